-- What the workloads left behind, counted by the database. Parameter: attachments seeded.
SELECT (SELECT count(*) FROM comments) AS inserted,
       (SELECT coalesce(sum(revision), 0)::bigint FROM tasks) AS updated,
       %(attachments)s::bigint - (SELECT count(*) FROM attachments) AS deleted,
       (SELECT count(*) FROM items) AS items;
