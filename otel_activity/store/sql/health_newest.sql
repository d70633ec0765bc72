-- Time of the newest event; those of absurd times do not count.
SELECT max(time) AS newest FROM {schema}.events WHERE time <= now() + interval '1 day'
