# The command otel-activity: "schema apply" and "receive" of compose.yaml. Built from the repository's root.
FROM python:3.13 AS build
COPY pyproject.toml hatch_build.py README.md LICENSE /src/
COPY otel_activity /src/otel_activity
COPY examples/project_board /src/examples/project_board
# Compiled: docs/receiver.md, "Speed". This image has the compiler, the next one only what came of it.
RUN HATCH_BUILD_HOOKS_ENABLE=1 pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /src

FROM python:3.13-slim
RUN --mount=from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir "$(echo /wheels/*.whl)[binary,receiver]"
USER nobody
ENTRYPOINT ["otel-activity"]
