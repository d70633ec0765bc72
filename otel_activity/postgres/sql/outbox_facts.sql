SELECT current_user::text,
       current_database()::text,
       found.outbox IS NOT NULL,
       coalesce(has_table_privilege(found.outbox::oid, 'INSERT'), false),
       coalesce(has_table_privilege(found.outbox::oid, 'SELECT'), false)
FROM (SELECT to_regclass(quote_ident(%(schema)s) || '.outbox') AS outbox) AS found
