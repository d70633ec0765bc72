-- Both in one round trip. SET LOCAL ends with the transaction: nothing leaks through a pooler.
BEGIN; SET LOCAL statement_timeout = {timeout}
