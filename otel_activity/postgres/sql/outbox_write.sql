INSERT INTO {schema}.outbox (id, event, resource)
SELECT (item.value ->> 0)::uuid, item.value -> 1, {resource}::text::json
FROM json_array_elements({events}::text::json) WITH ORDINALITY AS item (value, place)
ORDER BY item.place
