-- json throughout, and no -> or ->>, which decode every escape: the encoding of a database need not have the
-- characters that are escaped.
INSERT INTO {schema}.outbox (id, event, resource)
SELECT item.id, item.event, {resource}::text::json
FROM ROWS FROM (unnest({ids}::text::uuid[]), json_array_elements({events}::text::json))
    WITH ORDINALITY AS item (id, event, place)
ORDER BY item.place
