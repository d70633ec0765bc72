"""A real OTLP receiver for tests, for gRPC and HTTP."""

from __future__ import annotations

import gzip
import http.server
import sys
import threading
from concurrent import futures
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Sink", "python_value", "serving"]


class Sink(logs_service_pb2_grpc.LogsServiceServicer):
    """Keeps what it gets, and can refuse or reject.

    Attributes:
        requests: what it took.
        headers: of each request, names in lower case.
        refusals: how many requests it will refuse as bad.
        partial: ``(rejected, message)`` for each of the next answers.
        redirects: how many requests HTTP will answer with a redirect.
        web_pages: how many requests HTTP will answer with a page for people.
        most: records that it takes in one request; a larger one is too large.
        never: ids of records for which it refuses a request as bad.
        busy: asked before each request, whether it is too busy for that.
        retry_after: what it says then, by HTTP.
    """

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.refusals = 0
        self.partial: list[tuple[int, str]] = []
        self.redirects = self.web_pages = 0
        self.most = sys.maxsize
        self.never: frozenset[str] = frozenset()
        self.busy: Callable[[], bool] = lambda: False
        self.retry_after: str | None = None

    def take(self, request: Any, headers: dict[str, str]) -> Any:
        """The answer, or None for a refusal."""
        if self.refusals:
            self.refusals -= 1
            return None
        if self.never & _ids(request):
            return None
        self.requests.append(request)
        self.headers.append({name.lower(): value for name, value in headers.items()})
        answer = logs_service_pb2.ExportLogsServiceResponse()
        if self.partial:
            rejected, message = self.partial.pop(0)
            answer.partial_success.rejected_log_records = rejected
            answer.partial_success.error_message = message
        return answer

    def Export(self, request: Any, context: Any) -> Any:
        if len(_ids(request)) > self.most:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too large")
        if self.busy():
            context.abort(grpc.StatusCode.UNAVAILABLE, "too busy")
        headers = {key: str(value) for key, value in context.invocation_metadata()}
        answer = self.take(request, headers)
        if answer is None:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not now")
        return answer

    @property
    def records(self) -> list[Any]:
        """Resource, scope and record of everything taken."""
        return [
            (resource.resource, scope.scope, record)
            for request in self.requests
            for resource in request.resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]


def _ids(request: Any) -> set[str]:
    return {
        attribute.value.string_value
        for resource in request.resource_logs
        for scope in resource.scope_logs
        for record in scope.log_records
        for attribute in record.attributes
        if attribute.key == "log.record.uid"
    }


@contextmanager
def serving(protocol: str) -> Iterator[tuple[str, str, Sink]]:
    """Endpoint, protocol and sink of a receiver."""
    sink = Sink()
    if protocol == "grpc":
        server = grpc.server(futures.ThreadPoolExecutor(2))
        logs_service_pb2_grpc.add_LogsServiceServicer_to_server(sink, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"http://127.0.0.1:{port}", "grpc", sink
        server.stop(None).wait()
        return

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if sink.redirects:
                sink.redirects -= 1
                self._say(307, b"", Location="/elsewhere")
                return
            if sink.web_pages:
                sink.web_pages -= 1
                self._say(200, b"<html>Please log in</html>", **{"Content-Type": "text/html; charset=utf-8"})
                return
            if sink.busy():
                asks = {} if sink.retry_after is None else {"Retry-After": sink.retry_after}
                self._say(503, b"", **asks)
                return
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            request = logs_service_pb2.ExportLogsServiceRequest.FromString(body)
            if len(_ids(request)) > sink.most:
                self._say(413, b"")
                return
            answer = sink.take(request, dict(self.headers)) if self.path == "/v1/logs" else None
            content = b"" if answer is None else answer.SerializeToString()
            status = 400 if answer is None else 200
            self._say(status, content, **{"Content-Type": "application/x-protobuf"})

        def _say(self, status: int, content: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}", "http/protobuf", sink
        httpd.shutdown()
        thread.join()


def python_value(value: Any) -> Any:
    """An AnyValue as a plain value."""
    kind = value.WhichOneof("value")
    if kind == "kvlist_value":
        return {item.key: python_value(item.value) for item in value.kvlist_value.values}
    if kind == "array_value":
        return [python_value(item) for item in value.array_value.values]
    return None if kind is None else getattr(value, kind)
