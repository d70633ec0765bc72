"""Sends encoded logs with the SDK's own OTLP exporters, which know all their variables: endpoints, headers,
compression, certificates, timeouts, retries.

They cannot be handed bytes, and they do not look at what the receiver answers. So each is subclassed where it
encodes and where it hears the answer; those names are private, and `transport` says so when they have moved.
"""

from __future__ import annotations

import logging
import math
import os
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from otel_activity.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Answer", "Transport", "transport"]

_logger: Final = logging.getLogger("otel_activity")
_GRPC_METHOD: Final = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"
_PASSING: Final = frozenset({401, 403, 404, 405, 407, 408, 425, 429, 502, 503, 504})
_BUSY: Final = frozenset({429, 503})
_GRPC_PASSING: Final = frozenset(
    {"UNAVAILABLE", "CANCELLED", "ABORTED", "DEADLINE_EXCEEDED"}
    | {"UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED"}
)
"""Not RESOURCE_EXHAUSTED: it also stands for a message that is too large."""
_WEB_PAGE: Final = "text/html"
_LONGEST_MESSAGE: Final = 200
"""Characters of what a receiver says; it may say anything, and it is logged."""


@dataclass(frozen=True)
class Answer:
    """What became of one request.

    Attributes:
        taken: whether the receiver took it; otherwise it is to be sent again.
        rejected: records that it will never take (``partial_success``); they must not be sent again.
        message: why, in the receiver's words.
        trouble: why it was not taken, for people; empty when that is not known.
        passing: it was not taken for a reason that lies in no record: the receiver is busy, or nobody may
            send to it like this.
        pause: seconds that the receiver asks to be left alone.
    """

    taken: bool
    rejected: int = 0
    message: str = ""
    trouble: str = ""
    passing: bool = False
    pause: float = 0.0


class Transport(Protocol):
    """Sends one request, retrying within the SDK's timeout."""

    def send(self, body: bytes, count: int) -> Answer:
        """Send an encoded ``ExportLogsServiceRequest`` with `count` records."""

    def shutdown(self) -> None:
        """Close the connection."""


def transport(endpoint: str | None, protocol: str) -> Transport | None:
    """A connection that is made when it is first used.

    Args:
        endpoint: of our own, or None for the SDK's variables.
        protocol: ``grpc`` or ``http/protobuf``.

    Returns:
        None when the SDK's exporter is not built as it was; it is usable as it stands.

    Raises:
        ImportError: the exporter is not installed.
        ConfigurationError: half of a client certificate for gRPC is missing.
    """
    make = _grpc() if protocol == "grpc" else _http()
    try:
        return make(endpoint)
    except AttributeError as error:
        _logger.warning(
            "otel_activity: this version of the OTLP exporter is not known (%s); it works as it stands, and "
            "takes more time for each event",
            error,
        )
        return None


def _answer(response: Any) -> Answer:
    """What an ``ExportLogsServiceResponse`` says."""
    partial = response.partial_success
    words = " ".join(partial.error_message.split())[:_LONGEST_MESSAGE]
    return Answer(taken=True, rejected=partial.rejected_log_records, message=words)


class _Heard:
    """Stands before the SDK's HTTP transport and keeps what the last response said."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.is_connection_error: Callable[[Any], bool] = inner.is_connection_error
        self.close: Callable[[], None] = inner.close
        self._forget()

    def _forget(self) -> None:
        self.body, self.kind, self.pause = b"", "", 0.0

    def request(self, *args: Any, **options: Any) -> Any:
        self._forget()
        result = self._inner.request(*args, **options)
        if result.error is None:
            self.body = result.content()
            headers = result.headers()
            self.kind = headers.get("content-type") or ""
            self.pause = _seconds(headers.get("retry-after"))
        return result


def _seconds(retry_after: str | None) -> float:
    """What a ``Retry-After`` asks for; 0 when it asks for nothing, or for what is over."""
    try:
        asked = float(retry_after or 0)
    except ValueError:
        try:
            asked = parsedate_to_datetime(retry_after or "").timestamp() - time.time()
        except (TypeError, ValueError, OverflowError):
            return 0.0
    return asked if math.isfinite(asked) and asked > 0 else 0.0


def _not_taken(status: int | None, reason: str | None, error: Exception | None, pause: float) -> Answer:
    """A request that was answered with something else than success, or not at all."""
    if status is None:
        return Answer(taken=False, trouble=type(error).__name__ if error is not None else "out of time")
    words = " ".join((reason or "").split())[:_LONGEST_MESSAGE]
    passing = status in _PASSING or 300 <= status < 400
    asked = pause if status in _BUSY else 0.0
    return Answer(taken=False, trouble=f"{status} {words}".rstrip(), passing=passing, pause=asked)


def _http() -> Callable[[str | None], Transport]:
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

    class Http(OTLPLogExporter):
        def __init__(self, endpoint: str | None) -> None:
            super().__init__(endpoint=endpoint)
            self._heard = _Heard(self._client._transport)
            self._client._transport = self._heard  # type: ignore[assignment]  # same methods
            _ = self._max_request_size, self._metrics.export_operation

        def send(self, body: bytes, count: int) -> Answer:
            with self._metrics.export_operation(count) as operation:
                if 0 < self._max_request_size < len(body):
                    operation.error = ValueError("the request is too large")
                    return Answer(taken=False, trouble=f"a request of {len(body)} bytes is too large")
                result = self._client.export(body)
                # The SDK takes a redirect for success, and does not follow it.
                if not result.success or not 200 <= (result.status_code or 0) < 300:
                    operation.error = result.error or ConnectionError(str(result.status_code))
                    return _not_taken(result.status_code, result.reason, result.error, self._heard.pause)
                if self._heard.kind.lower().startswith(_WEB_PAGE):
                    operation.error = ConnectionError("a web page")
                    return Answer(taken=False, trouble="a web page answers, and no receiver", passing=True)
            try:
                return _answer(ExportLogsServiceResponse.FromString(self._heard.body))
            except Exception:  # noqa: BLE001 - protobuf's own error, and whatever a proxy answered
                _logger.debug("otel_activity: the OTLP receiver's answer is not protobuf")
                return Answer(taken=True)

    return Http


def _grpc() -> Callable[[str | None], Transport]:
    from grpc import RpcError, StatusCode
    from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

    class Stub:
        """The service's only method, for bytes; keeps the last answer."""

        def __init__(self, channel: Any) -> None:
            self._call = channel.unary_unary(
                _GRPC_METHOD, response_deserializer=ExportLogsServiceResponse.FromString
            )
            self.answer = Answer(taken=True)

        def Export(self, request: bytes, **options: Any) -> None:
            try:
                self.answer = _answer(self._call(request, **options))
            except RpcError as error:
                self.answer = _refusal(error)
                raise

    class Grpc(OTLPLogExporter):
        def __init__(self, endpoint: str | None) -> None:
            self._count = 0
            self._stub_of_bytes: Stub | None = None
            self._answer = Answer(taken=False)
            super().__init__(endpoint=endpoint)
            # So a message is refused, too, that is too large; the SDK would send it again for ten seconds.
            # Whoever calls `send` does so with less.
            codes: frozenset[Any] = getattr(self, "_retryable_error_codes", frozenset())
            self._retryable_error_codes = codes - {StatusCode.RESOURCE_EXHAUSTED}
            if self._stub_of_bytes is None:
                raise AttributeError("_initialize_channel_and_stub is not called any more")

        def _initialize_channel_and_stub(self) -> None:
            if self._stub_of_bytes is not None:  # for a new channel, after the old one's answer
                self._answer = self._stub_of_bytes.answer
            elif not self._insecure:
                _require_whole_pair(os.environ)
            super()._initialize_channel_and_stub()  # type: ignore[no-untyped-call]  # the SDK does not annotate
            self._client = self._stub_of_bytes = Stub(self._channel)  # type: ignore[assignment]  # it says None
            self._stub_of_bytes.answer = self._answer

        def _translate_data(self, data: Any) -> Any:
            return data

        def _count_data(self, data: Any) -> int:
            return self._count

        def send(self, body: bytes, count: int) -> Answer:
            self._count = count
            # Typed for records, which `_translate_data` would translate.
            taken = self._export(body) is self._result.SUCCESS  # type: ignore[arg-type]
            stub = self._stub_of_bytes
            answer = Answer(taken=False) if stub is None else stub.answer
            return answer if taken is answer.taken else Answer(taken=False)

    return Grpc


def _require_whole_pair(environ: Mapping[str, str]) -> None:
    """See that a client certificate has its key, and the key its certificate.

    gRPC ends the whole process (SIGABRT, "Check failed: private_key != nullptr") over half of a pair, and the
    SDK passes on what it finds, also nothing.

    Raises:
        ConfigurationError: one of them is not named, not there, or empty.
    """
    prefixes = ("OTEL_EXPORTER_OTLP_LOGS_", "OTEL_EXPORTER_OTLP_")
    chosen = next((each for each in prefixes if f"{each}CERTIFICATE" in environ), None)
    if chosen is None or not environ[f"{chosen}CERTIFICATE"]:
        return  # the SDK looks at the others only beside this one
    names = f"{chosen}CLIENT_CERTIFICATE", f"{chosen}CLIENT_KEY"
    for name, other in (names, names[::-1]):
        path = environ.get(name, "")
        if path and not (Path(path).is_file() and Path(path).stat().st_size):
            raise ConfigurationError(name, path, "there is no such file, or it is empty", "name the PEM file")
        if environ.get(other) and not path:
            problem = "a client certificate and its key belong together"
            raise ConfigurationError(name, path, problem, f"set it, or unset {other}")


def _refusal(error: Any) -> Answer:
    """What a status of gRPC says."""
    code = error.code()
    name = code.name if code is not None else "UNKNOWN"
    return Answer(taken=False, trouble=name, passing=name in _GRPC_PASSING, pause=_retry_info(error))


def _retry_info(error: Any) -> float:
    """Seconds that a receiver asks to be left alone for, as ``google.rpc.RetryInfo`` says."""
    try:
        from google.rpc.error_details_pb2 import RetryInfo

        said = dict(error.trailing_metadata() or ()).get("google.rpc.retryinfo-bin")
        delay = RetryInfo.FromString(said).retry_delay if said is not None else None
        return 0.0 if delay is None else max(0.0, delay.seconds + delay.nanos / 1e9)
    except Exception:  # noqa: BLE001 - a receiver may say anything
        return 0.0
