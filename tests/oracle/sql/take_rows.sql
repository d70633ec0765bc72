DELETE FROM oracle_row RETURNING seq, txid::text, table_name, operation, old, new;
