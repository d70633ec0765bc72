# The command otel-activity: "schema apply" and "receive" of compose.yaml. Built from the repository's root.
FROM python:3.13-slim
COPY pyproject.toml README.md LICENSE /src/
COPY otel_activity /src/otel_activity
COPY examples/project_board /src/examples/project_board
RUN pip install --no-cache-dir "/src[binary,receiver]" && rm -rf /src
USER nobody
ENTRYPOINT ["otel-activity"]
