COPY pg_temp.otel_activity_staging ({columns}) FROM STDIN WITH (NULL '')
