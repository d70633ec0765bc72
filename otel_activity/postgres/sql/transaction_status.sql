SELECT pg_xact_status(%(xid)s::text::xid8)
