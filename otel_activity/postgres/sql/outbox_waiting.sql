SELECT count(*), extract(epoch FROM clock_timestamp() - min(time))::float FROM {schema}.outbox
