SELECT child.relname
FROM pg_inherits
JOIN pg_class AS child ON child.oid = inhrelid
WHERE inhparent = to_regclass(quote_ident(%(schema)s) || '.events')
ORDER BY child.relname
