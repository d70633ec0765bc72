-- The classic design: one wide table, filled by three row-level triggers on each table of the application.

CREATE TABLE audit_logs (
    id                bigserial PRIMARY KEY,
    event_id          uuid NOT NULL DEFAULT gen_random_uuid(),
    schema_name       text NOT NULL,
    table_name        text NOT NULL,
    record_id         text NOT NULL,
    operation         text NOT NULL,
    action            text NOT NULL,
    old_values        jsonb,
    new_values        jsonb,
    changed_fields    text[],
    user_id           text,
    user_name         text,
    user_email        text,
    user_role         text,
    impersonator_id   text,
    tenant_id         text,
    project_id        text,
    session_id        text,
    request_id        text,
    correlation_id    text,
    ip_address        inet,
    user_agent        text,
    http_method       text,
    endpoint          text,
    application_name  text,
    database_user     text,
    backend_pid       integer,
    transaction_id    bigint,
    severity          text NOT NULL DEFAULT 'info',
    status            text NOT NULL DEFAULT 'success',
    error_message     text,
    metadata          jsonb,
    created_at        timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- With the primary key's: seven.
CREATE INDEX audit_logs_created_at ON audit_logs (created_at DESC);
CREATE INDEX audit_logs_record ON audit_logs (table_name, record_id);
CREATE INDEX audit_logs_user ON audit_logs (user_id, created_at DESC);
CREATE INDEX audit_logs_operation ON audit_logs (operation);
CREATE INDEX audit_logs_session ON audit_logs (session_id);
CREATE INDEX audit_logs_request ON audit_logs (request_id);

CREATE FUNCTION audit_row() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    old_row jsonb;
    new_row jsonb;
    changed text[];
BEGIN
    IF TG_OP <> 'INSERT' THEN
        old_row := to_jsonb(OLD);
    END IF;
    IF TG_OP <> 'DELETE' THEN
        new_row := to_jsonb(NEW);
    END IF;
    IF TG_OP = 'UPDATE' THEN
        SELECT array_agg(n.key) INTO changed
        FROM jsonb_each(new_row) AS n
        WHERE old_row -> n.key IS DISTINCT FROM n.value;
    END IF;
    INSERT INTO audit_logs (
        schema_name, table_name, record_id, operation, action, old_values, new_values, changed_fields,
        user_id, user_name, user_email, user_role, impersonator_id, tenant_id, project_id,
        session_id, request_id, correlation_id, ip_address, user_agent, http_method, endpoint,
        application_name, database_user, backend_pid, transaction_id
    ) VALUES (
        TG_TABLE_SCHEMA, TG_TABLE_NAME, coalesce(new_row, old_row) ->> 'id', TG_OP,
        lower(TG_TABLE_NAME || '.' || TG_OP), old_row, new_row, changed,
        nullif(current_setting('app.user_id', true), ''),
        nullif(current_setting('app.user_name', true), ''),
        nullif(current_setting('app.user_email', true), ''),
        nullif(current_setting('app.user_role', true), ''),
        nullif(current_setting('app.impersonator_id', true), ''),
        nullif(current_setting('app.tenant_id', true), ''),
        nullif(current_setting('app.project_id', true), ''),
        nullif(current_setting('app.session_id', true), ''),
        nullif(current_setting('app.request_id', true), ''),
        nullif(current_setting('app.correlation_id', true), ''),
        inet_client_addr(),
        nullif(current_setting('app.user_agent', true), ''),
        nullif(current_setting('app.http_method', true), ''),
        nullif(current_setting('app.endpoint', true), ''),
        current_setting('application_name', true), session_user, pg_backend_pid(), txid_current()
    );
    RETURN NULL;
END
$$;
