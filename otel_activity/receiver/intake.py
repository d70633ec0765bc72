"""Between the servers and the store: bounded waiting, and one COMMIT for all requests that wait.

A request is accepted only while there is room; what is accepted is answered after its COMMIT, or with the
reason why there was none. Nothing is kept beyond that: the sender has the events until it is told so.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from otel_activity.errors import ExportError, without_messages
from otel_activity.receiver.jsondecoder import JSONDecoder
from otel_activity.receiver.protobuf import ProtobufDecoder
from otel_activity.receiver.records import BadRequest, Decoded

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from otel_activity.codec.lines import Row
    from otel_activity.events import ResourceInfo
    from otel_activity.postgres.writer import WriteResult
    from otel_activity.receiver.metrics import ReceiverMetrics

__all__ = ["Busy", "Intake", "Outcome", "Store"]

_log: Final = logging.getLogger("otel_activity.receiver")

GROUP_BYTES: Final = 2 << 20
"""Requests of this many bytes together make a full group; a larger one is a group of its own."""
PAUSE: Final = 1.0
"""Seconds after a failure in which senders are turned away at once: an attempt to connect may take long."""
PROBE: Final = 2.0
"""Seconds between probes of a store that failed."""


class Busy(ExportError):
    """There is no room for the request now. The same one may be sent again."""


class Store(Protocol):
    """Where events go: one connection, one attempt."""

    last_result: WriteResult

    def export_rows(self, rows: Sequence[Row], resources: Mapping[str, ResourceInfo]) -> list[Row]:
        """Store the rows; return those that can never be stored. Raises `ExportError`."""

    def probe(self) -> None:
        """Raise `ExportError` unless a batch could be stored now."""

    def close(self) -> None:
        """Give up the connection."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a request whose records are stored, as far as they can be.

    Attributes:
        quarantined: records that can never be stored as events; kept in the table ``quarantine``.
        foreign: records that are not ours and were refused.
    """

    quarantined: int = 0
    foreign: int = 0

    @property
    def rejected(self) -> int:
        """Records that are not stored as events."""
        return self.quarantined + self.foreign

    @property
    def message(self) -> str:
        """Why, for the sender's log; empty when all is well."""
        reasons = []
        if self.quarantined:
            reasons.append(f"{self.quarantined} records cannot be stored and are in the table quarantine")
        if self.foreign:
            reasons.append(f"{self.foreign} records are not audit events of otel_activity")
        return "; ".join(reasons)


@dataclass(slots=True)
class _Request:
    body: bytes
    as_json: bool
    answer: Future[Outcome]


class Intake:
    """Takes requests from any thread and stores them, in groups, in threads of its own.

    Args:
        connect: makes a store; called once for each writer.
        writers: how many groups may be on their way; while one waits for its COMMIT another is decoded.
        limit: bytes that may be read or wait, together.
        refuse_foreign: whether records that are not ours are reported as rejected.
        metrics: what counts.
    """

    def __init__(
        self,
        connect: Callable[[], Store],
        *,
        writers: int,
        limit: int,
        refuse_foreign: bool,
        metrics: ReceiverMetrics,
    ) -> None:
        self._refuse_foreign = refuse_foreign
        self._metrics = metrics
        self._limit = limit
        self._held = 0
        self._requests: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._retry_at = 0.0
        self.failure: str | None = "the store has not been asked yet"
        """Why the store cannot be written to; None while it can."""
        self.asked = threading.Event()
        """Set when the store has been asked for the first time, whatever it said."""
        metrics.waiting_limit.set(limit)
        self._threads = [
            threading.Thread(
                target=self._run, args=(connect(), not number), name=f"otel-activity-writer-{number}"
            )
            for number in range(writers)
        ]
        for thread in self._threads:
            thread.start()

    # --- room -------------------------------------------------------------------------------------

    def reserve(self, size: int) -> bool:
        """Make room for so many bytes; False when there is none. Everything reserved is released later."""
        with self._changed:
            if self._held + size > self._limit or self._closing:
                return False
            self._held += size
        self._metrics.waiting.inc(size)
        return True

    def release(self, size: int) -> None:
        """Give room back."""
        with self._changed:
            self._held -= size
        self._metrics.waiting.dec(size)

    # --- requests ---------------------------------------------------------------------------------

    def submit(self, body: bytes, *, as_json: bool, room: int) -> Future[Outcome]:
        """Queue a request for which room is reserved, and take over that room.

        The request is stored even if its sender does not wait for that, and the room is given back when it
        is answered, not when nobody listens any more: until then its bytes are here.

        The answer comes after COMMIT, or is one of these errors:
            BadRequest: it is not OTLP; nothing of it is stored.
            ExportError: it is not stored, and may be sent again.

        Raises:
            Busy: the store is away, or the receiver is stopping.
        """
        answer: Future[Outcome] = Future()
        answer.set_running_or_notify_cancel()  # and from now on nobody can cancel it
        with self._changed:
            if self._closing:
                raise Busy("the receiver is stopping")
            if time.monotonic() < self._retry_at:
                raise Busy(self.failure or "the store is away")
            answer.add_done_callback(lambda _: self.release(room))
            self._requests.append(_Request(body, as_json, answer))
            self._changed.notify()
        self._metrics.received.inc(len(body))
        return answer

    def close(self, timeout: float) -> bool:
        """Store what was accepted, then stop. False when that took longer than `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    # --- the writers' threads -----------------------------------------------------------------------

    def _run(self, store: Store, watches: bool) -> None:
        decoders = ProtobufDecoder(), JSONDecoder()
        if watches:
            self._probe(store)
            self.asked.set()
        while (group := self._next_group(watches)) is not None:
            if group:
                self._store(group, store, *decoders)
            elif watches:
                self._probe(store)
        store.close()

    def _next_group(self, watches: bool) -> list[_Request] | None:
        """The requests to store next; none when it is time to probe; None at the end."""
        with self._changed:
            while not self._requests:
                if self._closing:
                    return None
                wait = PROBE if watches and self.failure is not None else None
                if not self._changed.wait(wait) and not self._requests and not self._closing:
                    return []
            group = [self._requests.popleft()]
            size = len(group[0].body)
            while self._requests and size + len(self._requests[0].body) <= GROUP_BYTES:
                group.append(self._requests.popleft())
                size += len(group[-1].body)
            return group

    def _probe(self, store: Store) -> None:
        try:
            store.probe()
        except ExportError as error:
            self._failed(error)
        else:
            self._worked()

    def _store(
        self, group: list[_Request], store: Store, protobuf: ProtobufDecoder, json: JSONDecoder
    ) -> None:
        """Decode and store a group, and answer each of its requests exactly once."""
        decoded: list[tuple[_Request, Decoded]] = []
        try:
            for request in group:
                decoder = json if request.as_json else protobuf
                try:
                    decoded.append((request, decoder.decode(request.body)))
                except BadRequest as error:
                    request.answer.set_exception(error)
                request.body = b""
            self._commit(decoded, store)
        except ExportError as error:
            self._failed(error)
            _refuse(group, error)
        except Exception as error:  # noqa: BLE001 - the thread must live, and every request gets an answer
            _log.error("internal error; the senders are told to come back\n%s", without_messages(error))
            _refuse(group, Busy(f"internal error: {type(error).__name__}"))

    def _commit(self, decoded: list[tuple[_Request, Decoded]], store: Store) -> None:
        rows = [row for _, each in decoded for row in each.rows]
        refused: set[int] = set()
        if rows:
            resources = {key: resource for _, each in decoded for key, resource in each.resources.items()}
            started = time.perf_counter()
            refused = {id(row) for row in store.export_rows(rows, resources)}
            self._metrics.commits.observe(time.perf_counter() - started)
            self._worked()
            for result, number in zip(("stored", "duplicate", "quarantined"), store.last_result, strict=True):
                self._metrics.records.labels(result).inc(number)
        for request, each in decoded:
            self._count_foreign(each.foreign)
            quarantined = sum(id(row) in refused for row in each.rows) if refused else 0
            request.answer.set_result(Outcome(quarantined, each.foreign if self._refuse_foreign else 0))

    def _count_foreign(self, number: int) -> None:
        if number:
            self._metrics.records.labels("foreign_refused" if self._refuse_foreign else "foreign_passed").inc(
                number
            )

    def _worked(self) -> None:
        if self.failure is not None:
            _log.info("the store takes events")
        self.failure = None
        self._retry_at = 0.0
        self._metrics.up.set(1)

    def _failed(self, error: ExportError) -> None:
        reason = str(error)
        if self.failure != reason:
            _log.warning("%s", reason)
        self.failure = reason
        self._retry_at = time.monotonic() + PAUSE
        self._metrics.up.set(0)
        self._metrics.failures.inc()


def _refuse(group: list[_Request], error: ExportError) -> None:
    for request in group:
        if not request.answer.done():
            request.answer.set_exception(error)
