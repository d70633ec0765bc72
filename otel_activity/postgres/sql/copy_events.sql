COPY {schema}.events ({columns}) FROM STDIN WITH (NULL '')
