-- The conditions that a search is made of. Each begins with a line "-- name: ..." and is joined by AND.

-- name: since
e.time >= %(since)s
-- name: until
e.time < %(until)s
-- name: names
e.name = ANY(%(names)s)
-- name: actions
e.action = ANY(%(actions)s)
-- name: outcomes
e.outcome = ANY(%(outcomes)s)
-- name: actor_type
e.actor_type = %(actor_type)s
-- name: actor_id
e.actor_id = %(actor_id)s
-- name: entity_type
e.entity_type = %(entity_type)s
-- name: entity_id
e.entity_id = %(entity_id)s
-- name: tenant_id
e.tenant_id = %(tenant_id)s
-- name: project_id
e.project_id = %(project_id)s
-- name: service
e.service = %(service)s
-- name: trace_id
e.trace_id = %(trace_id)s
-- name: span_id
e.span_id = %(span_id)s
-- name: transaction_id
e.transaction_id = %(transaction_id)s::uuid
-- name: table
e.attributes ->> 'db.collection.name' = %(table)s
-- name: changed_field
e.changes ? %(changed_field)s
-- name: text
(strpos(
    lower(concat_ws(
        ' ', e.name, e.action, e.outcome, e.actor_type, e.actor_id, e.entity_type, e.entity_id, e.tenant_id,
        e.project_id, e.service
    )),
    lower(%(text)s)
) > 0 OR strpos(
    -- In the text of a JSON document quotes, backslashes and control characters are escaped: so are those looked for.
    lower(concat_ws(' ', e.changes::text, e.attributes::text)),
    lower(regexp_replace(to_json(%(text)s::text)::text, '^"|"$', '', 'g'))
) > 0)
-- name: store_tenant
e.tenant_id = %(store_tenant)s
-- name: after_position
(e.time, e.id) < (%(after_time)s, %(after_id)s::uuid) AND e.time <= %(after_time)s
