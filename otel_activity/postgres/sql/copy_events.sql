COPY {schema}.events ({columns}) FROM STDIN
