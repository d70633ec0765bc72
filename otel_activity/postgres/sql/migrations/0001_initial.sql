-- The first schema: events by month, resources, quarantine.

-- Which migrations have been applied. The highest version must equal the code's.
CREATE TABLE {schema}.schema_version (
    version    integer     PRIMARY KEY,
    name       text        NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- What produced the events: the OpenTelemetry resource, once. The id is a hash of the attributes, so every
-- writer derives the same one without reading.
CREATE TABLE {schema}.resources (
    id         uuid        PRIMARY KEY,
    attributes jsonb       NOT NULL,
    first_seen timestamptz NOT NULL DEFAULT now()
);

-- The columns are what queries filter on; every other attribute is in "attributes". A text column holds at
-- most 256 characters: a longer value is clipped there and whole in "attributes", so no value is too long
-- for an index. No foreign key to resources: its check for each row would cost more than the insert, and
-- the writer stores the resource in the transaction that first uses it.
-- Wide, aligned types come first: no padding between columns.
CREATE TABLE {schema}.events (
    time           timestamptz NOT NULL, -- to the microsecond, PostgreSQL's resolution
    id             uuid        NOT NULL, -- log.record.uid
    observed       timestamptz,
    sequence       bigint,               -- activity.sequence
    severity       smallint    NOT NULL,
    trace_flags    smallint    NOT NULL,
    name           text        NOT NULL, -- event_name
    action         text,                 -- activity.action
    outcome        text,                 -- activity.outcome
    actor_type     text,                 -- activity.actor.type
    actor_id       text,                 -- user.id
    entity_type    text,                 -- activity.entity.type
    entity_id      text,                 -- activity.entity.id
    tenant_id      text,                 -- activity.tenant.id
    project_id     text,                 -- activity.project.id
    trace_id       text,                 -- 32 hexadecimal digits, as every tracing tool shows it
    span_id        text,                 -- 16 hexadecimal digits
    transaction_id uuid,                 -- activity.transaction.id
    stream_id      uuid,                 -- activity.stream.id
    service        text        NOT NULL, -- service.name
    resource_id    uuid        NOT NULL, -- resources.id
    changes        jsonb,                -- activity.changes
    attributes     jsonb       NOT NULL, -- the rest
    -- Time-range scans and paging; makes a batch that is sent again harmless. A unique key of a
    -- partitioned table has to contain the partition key.
    PRIMARY KEY (time, id)
) PARTITION BY RANGE (time);

-- The history of one entity, newest first.
CREATE INDEX events_entity_idx ON {schema}.events (entity_type, entity_id, time);
-- What one actor did, newest first.
CREATE INDEX events_actor_idx ON {schema}.events (actor_id, time) WHERE actor_id IS NOT NULL;
-- One tenant's events, newest first; where nobody sets a tenant it stays empty.
CREATE INDEX events_tenant_idx ON {schema}.events (tenant_id, time) WHERE tenant_id IS NOT NULL;
-- From a trace in another tool to its events.
CREATE INDEX events_trace_idx ON {schema}.events (trace_id) WHERE trace_id IS NOT NULL;
-- The events of one transaction. Its id begins with the time, so rows lie in its order and a few blocks of
-- summary do what a full index would.
CREATE INDEX events_transaction_idx ON {schema}.events
    USING brin (transaction_id) WITH (pages_per_range = 32, autosummarize = on);

-- The safety net: an event of an absurd time, or of a month that could not be created, is stored here.
CREATE TABLE {schema}.events_default PARTITION OF {schema}.events DEFAULT;

-- Records that the server refused, each with the reason, so that one of them never costs a batch.
CREATE TABLE {schema}.quarantine (
    digest         bytea       PRIMARY KEY, -- SHA-256 of the record: sent again, it is still here once
    quarantined_at timestamptz NOT NULL DEFAULT now(),
    event_id       text,
    event_time     numeric,                 -- nanoseconds since the epoch, as the record had it
    event_name     text,
    resource_id    uuid        NOT NULL,
    sqlstate       text        NOT NULL,
    message        text        NOT NULL,
    record         bytea       NOT NULL     -- the event as JSON in UTF-8
);

-- Creates the partition of the month that holds an instant, in UTC. Returns whether that month has a
-- partition afterwards. Runs with the owner's rights so that a writer needs no more than INSERT.
--  * Only months from 20 years ago to one year ahead: a broken clock must not create partitions for ever.
--  * ATTACH locks only the default partition against others, and gives up after a short wait; then the
--    event goes to the default partition until "otel-activity schema apply" moves it.
--  * Rows of that month in the default partition are in the way: with move_rows they move, without the
--    function returns false.
CREATE FUNCTION {schema}.ensure_partition(instant timestamptz, move_rows boolean DEFAULT false)
RETURNS boolean
LANGUAGE plpgsql
SECURITY DEFINER
SET search_path = {schema}, pg_temp
SET timezone = 'UTC'
SET datestyle = 'ISO'
SET lock_timeout = '3s'
AS $function$
DECLARE
    month_start timestamptz := date_trunc('month', instant);
    month_end   timestamptz := month_start + interval '1 month';
    child       text := 'events_' || to_char(month_start, 'YYYY_MM');
BEGIN
    IF month_start < now() - interval '20 years' OR month_start > now() + interval '1 year' THEN
        RETURN false;
    END IF;
    IF EXISTS (
        SELECT FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
        WHERE inhparent = 'events'::regclass AND relname = child
    ) THEN
        RETURN true;
    END IF;
    -- Two writers that see a new month at once: the second one waits here and finds it made.
    PERFORM pg_advisory_xact_lock(hashtextextended('otel_activity partition ' || current_schema(), 0));
    IF EXISTS (
        SELECT FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
        WHERE inhparent = 'events'::regclass AND relname = child
    ) THEN
        RETURN true;
    END IF;
    IF NOT move_rows AND EXISTS (
        SELECT FROM events_default WHERE time >= month_start AND time < month_end
    ) THEN
        RETURN false;
    END IF;
    EXECUTE format(
        'CREATE TABLE %I.%I (LIKE events INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE)',
        current_schema(), child
    );
    EXECUTE format('REVOKE ALL ON TABLE %I.%I FROM PUBLIC', current_schema(), child);
    IF move_rows THEN
        LOCK TABLE events_default IN ACCESS EXCLUSIVE MODE;
        EXECUTE format(
            'WITH moved AS (DELETE FROM events_default WHERE time >= $1 AND time < $2 RETURNING *)'
            ' INSERT INTO %I.%I SELECT * FROM moved',
            current_schema(), child
        ) USING month_start, month_end;
    END IF;
    EXECUTE format(
        'ALTER TABLE events ATTACH PARTITION %I.%I FOR VALUES FROM (%L) TO (%L)',
        current_schema(), child, month_start, month_end
    );
    RETURN true;
END;
$function$;

-- Append-only by grants: nobody but the owner may read or write until grants_writer.sql and
-- grants_reader.sql say who, and they never grant UPDATE, DELETE or TRUNCATE.
REVOKE ALL ON {schema}.schema_version, {schema}.resources, {schema}.events, {schema}.events_default,
    {schema}.quarantine FROM PUBLIC;
REVOKE ALL ON FUNCTION {schema}.ensure_partition FROM PUBLIC;
