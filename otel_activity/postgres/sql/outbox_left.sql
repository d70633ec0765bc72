SELECT EXISTS (SELECT FROM {schema}.outbox WHERE xid <= %(xid)s::text::xid8)
