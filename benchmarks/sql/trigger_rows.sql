-- Audit rows that say what they must, by kind of change; a row without its values is not counted.
SELECT count(*) FILTER (WHERE operation = 'INSERT' AND new_values ? 'id' AND old_values IS NULL) AS created,
       count(*) FILTER (WHERE operation = 'UPDATE' AND new_values -> 'revision' <> old_values -> 'revision') AS updated,
       count(*) FILTER (WHERE operation = 'DELETE' AND old_values ? 'id' AND new_values IS NULL) AS deleted,
       count(*) AS rows,
       count(DISTINCT event_id) AS distinct_ids
FROM audit_logs;
