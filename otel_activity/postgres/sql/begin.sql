-- Both in one round trip. SET LOCAL ends with the transaction: nothing leaks through a pooler. Not the isolation that
-- a role may have by default: rows that another one has just written or deleted would be errors.
BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = {timeout}
