-- As begin.sql. Where row-level security would hide rows from this role, reading them is to be an error: an outbox that
-- only looks empty is never emptied.
BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = {timeout}; SET LOCAL row_security = off
