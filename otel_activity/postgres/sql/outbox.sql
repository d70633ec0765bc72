-- Events of committed transactions that no relay has delivered yet. n orders the events of one transaction.
CREATE TABLE IF NOT EXISTS {schema}.outbox (
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    n bigserial NOT NULL,
    id uuid NOT NULL,
    time timestamptz NOT NULL DEFAULT now(),
    event json NOT NULL,
    resource json NOT NULL,
    PRIMARY KEY (xid, n)
);
