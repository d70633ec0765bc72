"""OTLP/HTTP, health and metrics, as an ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from typing import TYPE_CHECKING, Any, Final

import msgspec

from otel_activity.errors import ExportError
from otel_activity.receiver import answers
from otel_activity.receiver.records import BadRequest, TooLarge

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from otel_activity.receiver.auth import BearerToken
    from otel_activity.receiver.intake import Intake
    from otel_activity.receiver.metrics import ReceiverMetrics

    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

__all__ = ["HTTPApplication"]

JSON: Final = b"application/json"
PROTOBUF: Final = b"application/x-protobuf"
TEXT: Final = b"text/plain"
_GZIP: Final = 16 + zlib.MAX_WBITS
_MEMBERS: Final = 1_000
"""Members of one gzip; who packs in blocks makes a few hundred of a large body."""
_STEP: Final = 1 << 18
"""Bytes that are unpacked, and for which room is made, at a time."""
_LINGER: Final = 5.0
"""Seconds in which the rest of a refused body is read and thrown away."""


class _Refused(Exception):
    """The request is answered with an error.

    Attributes:
        status: of HTTP.
        code: of gRPC, for the body.
        outcome: for the metrics.
    """

    def __init__(self, status: int, code: int, outcome: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.outcome = outcome


class _Gone(Exception):
    """The sender went away: there is nobody to answer."""


class _Incoming:
    """The body of one request as it arrives.

    Attributes:
        whole: nothing more will come.
    """

    def __init__(self, headers: dict[bytes, bytes], receive: Receive) -> None:
        self._receive = receive
        self._waits = headers.get(b"expect", b"").lower() == b"100-continue"
        self.whole = headers.get(b"content-length") == b"0"

    async def next(self) -> bytes:
        """One part.

        Raises:
            _Gone: the sender has closed the connection.
        """
        self._waits = False
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.whole = True
            raise _Gone
        self.whole = not message.get("more_body", False)
        body: bytes = message.get("body", b"")
        return body

    async def discard(self, seconds: float) -> None:
        """Throw away what still comes, for so long.

        A connection that is closed with unread bytes is reset, and the reset takes away the answer
        that the sender has not read yet (RFC 9112, section 9.6): it would send again for ever what was
        refused for good.
        """
        if self._waits:  # it sends only when it is told to, and it was told otherwise
            return
        with contextlib.suppress(TimeoutError, _Gone):
            async with asyncio.timeout(seconds):
                while not self.whole:
                    await self.next()


class HTTPApplication:
    """``POST /v1/logs``, ``GET /healthz``, ``GET /metrics``.

    Args:
        intake: where requests go.
        metrics: what counts.
        token: who may send, and read the metrics.
        max_message: largest body, after decompression.
        read_timeout: seconds that a sender may take to send its body.
    """

    def __init__(
        self,
        intake: Intake,
        metrics: ReceiverMetrics,
        token: BearerToken,
        *,
        max_message: int,
        read_timeout: float,
    ) -> None:
        self._intake = intake
        self._metrics = metrics
        self._token = token
        self._max_message = max_message
        self._read_timeout = read_timeout

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers = dict(scope["headers"])
        route = scope["method"], scope["path"]
        incoming = _Incoming(headers, receive)
        if route == ("POST", "/v1/logs"):
            await self._logs(headers, incoming, send)
        elif route == ("GET", "/healthz"):
            await self._health(headers, send)
        elif route == ("GET", "/metrics"):
            await self._show_metrics(headers, send)
        elif scope["path"] in {"/v1/logs", "/healthz", "/metrics"}:
            allowed = b"POST" if scope["path"] == "/v1/logs" else b"GET"
            await self._dismiss(incoming, send, 405, TEXT, b"method not allowed\n", (b"allow", allowed))
        else:
            await self._dismiss(incoming, send, 404, TEXT, b"not found; OTLP logs go to /v1/logs\n")

    async def _health(self, headers: dict[bytes, bytes], send: Send) -> None:
        failure = self._intake.failure
        if failure is None:
            await _answer(send, 200, JSON, b'{"status":"ok"}')
            return
        said = {"status": "unavailable"}
        if self._token.allows(headers.get(b"authorization")):  # it names host, user and database
            said["reason"] = failure
        await _answer(send, 503, JSON, msgspec.json.encode(said))

    async def _show_metrics(self, headers: dict[bytes, bytes], send: Send) -> None:
        if not self._token.allows(headers.get(b"authorization")):
            await _answer(send, 401, TEXT, b"unauthorized\n", (b"www-authenticate", b"Bearer"))
            return
        await _answer(send, 200, self._metrics.content_type.encode(), self._metrics.text())

    async def _logs(self, headers: dict[bytes, bytes], incoming: _Incoming, send: Send) -> None:
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        as_json = kind == JSON
        outcome = "gone"  # unless there is somebody to answer
        refusal: _Refused | None = None
        room = _Room(self._intake)
        try:
            self._check(kind, headers)
            # No name for the body: it is given up when it is decoded, not when it is answered.
            answer = self._intake.submit(
                await self._body(headers, incoming, room), as_json=as_json, room=room.held
            )
            room.hand_over()
            result = await asyncio.wrap_future(answer)
            outcome = "partial" if result.rejected else "ok"
            await _answer(send, 200, kind, answers.success(result, as_json=as_json))
        except _Gone:
            outcome = "stalled"
        except (_Refused, BadRequest, ExportError) as error:
            # Without its traceback, which would hold the body while the rest is thrown away.
            refusal = _refusal(error).with_traceback(None)
            outcome = refusal.outcome
        finally:
            room.release()
            self._metrics.requests.labels("http", outcome).inc()
        if refusal is not None:
            await self._refuse(incoming, send, refusal, as_json=as_json)

    def _check(self, kind: bytes, headers: dict[bytes, bytes]) -> None:
        if not self._token.allows(headers.get(b"authorization")):
            raise _Refused(
                401, answers.UNAUTHENTICATED, "unauthenticated", "the bearer token is missing or wrong"
            )
        if kind not in {JSON, PROTOBUF}:
            raise _Refused(
                415,
                answers.INVALID_ARGUMENT,
                "bad",
                "content-type must be application/x-protobuf or application/json",
            )
        if headers.get(b"content-encoding", b"identity").lower() not in {b"identity", b"gzip"}:
            raise _Refused(415, answers.INVALID_ARGUMENT, "bad", "content-encoding must be gzip or none")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._max_message:
            raise TooLarge(f"more than {self._max_message} bytes")

    async def _body(self, headers: dict[bytes, bytes], incoming: _Incoming, room: _Room) -> bytes:
        """Read and unpack; room is made as the body grows, before it does."""
        packed = headers.get(b"content-encoding", b"").lower() == b"gzip"
        length = int(headers.get(b"content-length", b"0"))
        collected = _Unpacked(room, self._max_message) if packed else _Plain(room, self._max_message, length)
        try:
            async with asyncio.timeout(self._read_timeout):
                while True:
                    collected.add(await incoming.next())
                    if incoming.whole:
                        return collected.finish()
        except TimeoutError:
            raise _Refused(408, answers.UNAVAILABLE, "stalled", "the body did not arrive in time") from None

    async def _refuse(self, incoming: _Incoming, send: Send, refusal: _Refused, *, as_json: bool) -> None:
        headers = []
        if refusal.code == answers.UNAVAILABLE:
            headers.append((b"retry-after", b"%d" % answers.RETRY_AFTER))
        if refusal.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        body = answers.failure(refusal.code, str(refusal), as_json=as_json)
        await self._dismiss(incoming, send, refusal.status, JSON if as_json else PROTOBUF, body, *headers)

    async def _dismiss(
        self,
        incoming: _Incoming,
        send: Send,
        status: int,
        kind: bytes,
        body: bytes,
        *headers: tuple[bytes, bytes],
    ) -> None:
        """Answer before the body was read: say it at once, and close when the sender can have read it."""
        if incoming.whole:
            await _answer(send, status, kind, body, *headers)
            return
        await _answer(send, status, kind, body, *headers, (b"connection", b"close"), more_body=True)
        # Who stalled has had its time.
        if status != 408:
            await incoming.discard(min(_LINGER, self._read_timeout))
        await send({"type": "http.response.body", "body": b""})


class _Room:
    """What one request holds of the intake's room.

    Attributes:
        held: bytes.
    """

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self.held = 0

    def need(self, size: int) -> None:
        """Have at least so much."""
        more = size - self.held
        if more > 0:
            if not self._intake.reserve(more):
                raise _Refused(503, answers.UNAVAILABLE, "busy", "the receiver is busy; come back later")
            self.held = size

    def hand_over(self) -> None:
        """It is the intake's from now on."""
        self.held = 0

    def release(self) -> None:
        """Give all back."""
        if self.held:
            self._intake.release(self.held)
            self.held = 0


class _Plain:
    """A body as it is."""

    def __init__(self, room: _Room, limit: int, length: int) -> None:
        self._room = room
        self._limit = limit
        self._data = bytearray()
        room.need(length)

    def add(self, data: bytes) -> None:
        size = len(self._data) + len(data)
        if size > self._limit:
            raise TooLarge(f"more than {self._limit} bytes")
        self._room.need(size)
        self._data += data

    def finish(self) -> bytes:
        return bytes(self._data)


class _Unpacked:
    """A body in gzip. Unpacked in steps, so that a bomb is noticed at the limit."""

    def __init__(self, room: _Room, limit: int) -> None:
        self._room = room
        self._limit = limit
        self._data = bytearray()
        self._gzip = zlib.decompressobj(_GZIP)
        self._packed = 0
        self._members = 1

    def add(self, data: bytes) -> None:
        self._packed += len(data)
        if self._packed > self._limit:
            raise TooLarge(f"more than {self._limit} bytes")
        try:
            while data:
                if self._gzip.eof:
                    self._next_member()
                self._room.need(len(self._data) + _STEP)
                self._data += self._gzip.decompress(data, _STEP)
                if len(self._data) > self._limit:
                    raise TooLarge(f"more than {self._limit} bytes after decompression")
                data = self._gzip.unconsumed_tail or self._gzip.unused_data
        except zlib.error:
            raise BadRequest("the gzip is damaged") from None

    def _next_member(self) -> None:
        """Gzip allows several. Empty ones would cost time without end, and never reach the limit."""
        self._members += 1
        if self._members > _MEMBERS:
            raise BadRequest(f"the gzip has more than {_MEMBERS} members")
        self._gzip = zlib.decompressobj(_GZIP)

    def finish(self) -> bytes:
        if not self._gzip.eof:
            raise BadRequest("the gzip is cut off")
        return bytes(self._data)


def _refusal(error: Exception) -> _Refused:
    if isinstance(error, _Refused):
        return error
    if isinstance(error, TooLarge):
        return _Refused(413, answers.INVALID_ARGUMENT, "too_large", str(error))
    if isinstance(error, BadRequest):
        return _Refused(400, answers.INVALID_ARGUMENT, "bad", str(error))
    return _Refused(503, answers.UNAVAILABLE, "unavailable", str(error))


async def _answer(
    send: Send,
    status: int,
    kind: bytes,
    body: bytes,
    *headers: tuple[bytes, bytes],
    more_body: bool = False,
) -> None:
    length = b"%d" % len(body)
    start = [(b"content-type", kind), (b"content-length", length), *headers]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body, "more_body": more_body})
