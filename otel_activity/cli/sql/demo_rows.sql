-- Every row change of this run that was committed, in the order in which the statements ran.
SELECT xid::text, relation, operation, key::text, old_row::text, new_row::text
FROM {schema}.truth
WHERE seq > %(start)s
ORDER BY seq
