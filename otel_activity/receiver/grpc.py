"""OTLP/gRPC."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio

from otel_activity.errors import ConfigurationError, ExportError
from otel_activity.receiver import answers
from otel_activity.receiver.records import BadRequest, TooLarge

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from otel_activity.receiver.auth import BearerToken
    from otel_activity.receiver.intake import Intake
    from otel_activity.receiver.metrics import ReceiverMetrics
    from otel_activity.receiver.settings import ReceiverSettings

__all__ = ["GRPCServer"]

SERVICE: Final = "opentelemetry.proto.collector.logs.v1.LogsService"
PATIENCE: Final = 5.0
"""Seconds that a request waits for room before its sender is told to come back."""
IDLE: Final = 75.0
"""Seconds after which a connection without requests is closed, as HTTP's are. Its sender makes another one
when it needs it; who never sends would hold it for ever, and connections are what a process has few of."""
STREAMS: Final = 64
"""Requests at the same time on one connection."""
_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


class GRPCServer:
    """The server and its one method.

    The method is registered as one that takes a stream, though a sender sends one message: only then does the
    message stay in the network until the sender is known and there is room for it.
    """

    def __init__(
        self, intake: Intake, metrics: ReceiverMetrics, token: BearerToken, settings: ReceiverSettings
    ) -> None:
        self._intake = intake
        self._metrics = metrics
        self._token = token
        self._max_message = settings.max_message_bytes
        self._read_timeout = settings.read_timeout
        self._room = asyncio.Condition()
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_concurrent_streams", STREAMS),
                ("grpc.so_reuseport", int(settings.reuse_port)),
                ("grpc.server_handshake_timeout_ms", round(settings.read_timeout * 1000)),
                ("grpc.max_connection_idle_ms", round(max(IDLE, settings.read_timeout) * 1000)),
            ]
        )
        handler = grpc.stream_unary_rpc_method_handler(self._export)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {"Export": handler}),)
        )

    def bind(self, address: str, credentials: grpc.ServerCredentials | None) -> int:
        """Take the port.

        Raises:
            ConfigurationError: somebody else has it.
        """
        try:
            if credentials is None:
                return int(self._server.add_insecure_port(address))
            return int(self._server.add_secure_port(address, credentials))
        except RuntimeError:
            raise ConfigurationError(
                "--grpc-port", address, "cannot listen there", "choose a free port, or 0 for any"
            ) from None

    async def start(self) -> None:
        """Begin to answer."""
        await self._server.start()

    async def stop(self, grace: float) -> None:
        """Take no more, and answer what was taken within so many seconds."""
        await self._server.stop(grace)

    async def _export(self, messages: AsyncIterator[bytes], context: Any) -> bytes:
        outcome = "gone"  # unless there is somebody to answer
        try:
            if not self._token.allows(_header(context, "authorization")):
                raise _Unauthenticated("the bearer token is missing or wrong")
            result = await self._take(messages)
            outcome = "partial" if result.rejected else "ok"
            return answers.success(result, as_json=False)
        except (_Unauthenticated, BadRequest, ExportError, TimeoutError) as error:
            code, outcome, message = _refusal(error)
            await _abort(context, code, message)
            raise  # abort has raised
        finally:
            self._metrics.requests.labels("grpc", outcome).inc()

    async def _take(self, messages: AsyncIterator[bytes]) -> Any:
        held = self._max_message
        await self._reserve(held)
        try:
            async with asyncio.timeout(self._read_timeout):
                body = await anext(aiter(messages), b"")
            size = len(body)
            self._give_back(held - size)
            held = size
            answer = self._intake.submit(body, as_json=False, room=size)
            held = 0
            del body  # given up when it is decoded, not when it is answered
            return await asyncio.wrap_future(answer)
        finally:
            self._give_back(held)

    async def _reserve(self, size: int) -> None:
        """Make room for the largest message there may be: how large this one is shows when it is there."""
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while not self._intake.reserve(size):
            if asyncio.get_running_loop().time() >= deadline:
                raise _Full("the receiver is busy; come back later")
            await asyncio.sleep(0.02)

    def _give_back(self, size: int) -> None:
        if size:
            self._intake.release(size)


class _Unauthenticated(Exception):
    """The sender did not show the token."""


class _Full(ExportError):
    """There was no room for too long."""


def _refusal(error: Exception) -> tuple[int, str, str]:
    if isinstance(error, _Unauthenticated):
        return answers.UNAUTHENTICATED, "unauthenticated", str(error)
    if isinstance(error, TooLarge):
        return answers.INVALID_ARGUMENT, "too_large", str(error)
    if isinstance(error, BadRequest):
        return answers.INVALID_ARGUMENT, "bad", str(error)
    if isinstance(error, TimeoutError):
        return answers.UNAVAILABLE, "stalled", "the message did not arrive in time"
    return answers.UNAVAILABLE, "busy" if isinstance(error, _Full) else "unavailable", str(error)


async def _abort(context: Any, code: int, message: str) -> None:
    details = (("grpc-status-details-bin", answers.failure(code, message)),)
    await context.abort(_CODES[code], message, details)


def _header(context: Any, name: str) -> str | bytes | None:
    for key, value in context.invocation_metadata() or ():
        if key == name:
            shown: str | bytes = value
            return shown
    return None
