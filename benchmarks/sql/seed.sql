-- Rows that the requests update and delete. Parameters: how many tasks, how many attachments.
INSERT INTO tasks (id, project_id, title, description, status, priority, assignee_id, estimate, labels, revision, updated_at)
SELECT n, mod(n, 50), 'Task number ' || n, repeat('What is to be done, in some detail. ', 4), 'open', mod(n, 5), mod(n, 20),
       (mod(n, 97)) + 0.25, '["backend", "customer"]', 0, now()
FROM generate_series(1, %(tasks)s) AS n;

INSERT INTO attachments (id, task_id, file_name, content_type, size, checksum, uploaded_by, uploaded_at)
SELECT n, 1 + mod(n, %(tasks)s), 'report-' || n || '.pdf', 'application/pdf', 1000 + n,
       md5(n::text) || md5((n + 1)::text), mod(n, 20), now()
FROM generate_series(1, %(attachments)s) AS n;
