"""The way of events out of outboxes: read in the order of transactions, delivered, and only then deleted."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

import msgspec

from otel_activity.delivery.feeder import REPEAT, TICK
from otel_activity.delivery.lane import log_safely
from otel_activity.errors import ActivityError, OutboxError, StoreUnavailable
from otel_activity.events import Event  # noqa: TC001 - msgspec reads the annotation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from otel_activity.delivery.holding import Held
    from otel_activity.events import Courier, Outlet
    from otel_activity.ports import Outbox, OutboxReader, OutboxRow

__all__ = ["NoOutbox", "OutboxDrain", "decode_row", "encode_rows"]

_BATCH: Final = 1024
"""Rows that one round takes."""
_LOOK: Final = 1.0
"""Seconds between two looks for rows that others left, or that an older transaction kept back."""
_LOCKED: Final = 5.0
"""Seconds that rows stay locked while exporters work. A transaction that stays open for an outage would keep
VACUUM from its work; without the lock another relay may send the same rows, which the store has once."""
_POKE: Final = 0.2
_BEYOND: Final = 30.0
"""Seconds between two looks beyond rows that nobody here can read: the server locks those on the way."""
_UNREAD: Final = 32 * _BATCH
"""Rows of that kind beyond which there is no such look."""


class _Packed(msgspec.Struct, array_like=True):
    """An event and its trace id, which stands apart because JSON readers take no integer of 128 bits."""

    event: Event
    trace: str = "0"


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Packed).decode


def encode_rows(events: Sequence[Event]) -> tuple[str, str]:
    """The ids, as PostgreSQL writes an array of them, and a JSON array of what `decode_row` reads.

    Raises:
        OverflowError, TypeError, ValueError: an event holds what `Event` promises it does not.
    """
    traces = [event.trace_id for event in events]
    for event in events:
        event.trace_id = 0
    try:
        rows = [_Packed(e, f"{trace:x}") for e, trace in zip(events, traces, strict=True)]
        return f"{{{','.join([event.id for event in events])}}}", _encode(rows).decode()
    finally:
        for event, trace in zip(events, traces, strict=True):
            event.trace_id = trace


def decode_row(text: str) -> Event:
    """The event of one row.

    Raises:
        ValueError: it is none that this version knows.
    """
    packed = _decode(text)
    packed.event.trace_id = int(packed.trace, 16)
    return packed.event


class NoOutbox:
    """A `ports.Outbox` for a process that cannot have one: what asks for it is not committed.

    Args:
        why: it cannot, and what to do about it.
    """

    def __init__(self, why: str) -> None:
        self._why = why

    def write(self, outlet: Outlet, ids: str, events: str, resource: str) -> Courier | None:
        """Refuse.

        Raises:
            OutboxError: always.
        """
        raise OutboxError(f"not committed, because {self._why}")

    def read_only(self, outlet: Outlet) -> bool:
        """Nobody asks."""
        return False

    def addresses(self) -> Sequence[str]:
        """None."""
        return ()

    def reader(self, address: str) -> OutboxReader:
        """There is nothing to read.

        Raises:
            StoreUnavailable: always.
        """
        raise StoreUnavailable(self._why)


class _Late:
    """Rows whose delivery takes long: no longer locked, and deleted when they are confirmed."""

    def __init__(self, rows: Sequence[OutboxRow], held: Sequence[Held]) -> None:
        self.rows = rows
        self.held = held

    @property
    def confirmed(self) -> bool:
        """Whether every exporter has them."""
        return all(held.unconfirmed <= 0 for held in self.held)


class OutboxDrain:
    """A thread that empties the outboxes that this process knows.

    Args:
        outbox: reads and deletes.
        deliver: hands rows to the exporters; the units that it made of them, and the rows that it could read.
        poke: asks the exporters to send what they have.
    """

    def __init__(
        self,
        outbox: Outbox,
        deliver: Callable[[Sequence[OutboxRow]], tuple[list[OutboxRow], list[Held]]],
        poke: Callable[[], None],
    ) -> None:
        self._outbox = outbox
        self._deliver = deliver
        self._poke = poke
        self.after_fork()

    def after_fork(self) -> None:
        """In a forked child: connections and rows are the parent's; psycopg closes no other process's."""
        self.drained = 0
        self.trouble: str | None = None
        self._readers: dict[str, OutboxReader] = {}
        self._late: dict[str, _Late] = {}
        self._looked: dict[str, float] = {}
        self._unread: dict[str, int] = {}
        """Rows at the head of an outbox that this version cannot read, as far as this round knows."""
        self._said = -REPEAT
        self._due = threading.Event()
        self._stop = threading.Event()
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """There is something to do; starts the thread if there is none."""
        self._due.set()
        if self._thread is not None or self._stop.is_set():
            return
        thread = threading.Thread(target=self._run, name="otel-activity-outbox", daemon=True)
        try:
            with self._lock:
                first = self._thread is None
                if first:
                    self._thread = thread
            if first:
                thread.start()
        except RuntimeError:  # the interpreter ends: the next process of the service, or a relay, goes on
            self._thread = None
        except BaseException:
            if self._thread is thread:
                self._thread = None  # interrupted; if the thread runs nevertheless, it ends by itself
            raise

    def flush(self, deadline: float) -> bool:
        """Whether everything that is in the outboxes now was delivered until `deadline` (monotonic)."""
        done = True
        for address in self._outbox.addresses():
            try:
                with closing(self._outbox.reader(address)) as reader:
                    done = self._flush(reader, deadline) and done
            except ActivityError as error:
                self._failed(str(error))
                done = False
        return done

    def _flush(self, reader: OutboxReader, deadline: float) -> bool:
        newest = reader.newest()
        if newest is None:
            return True
        while reader.left(newest):
            if time.monotonic() >= deadline:
                return False
            self.wake()
            time.sleep(0.02)
        return True

    def close(self, deadline: float) -> None:
        """Stop; what was not delivered stays in the outboxes."""
        self._stop.set()
        self._due.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(max(0.0, deadline - time.monotonic()))

    # --- the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        looked = 0.0
        me = threading.current_thread()
        try:
            while not self._stop.is_set() and self._thread is me:
                # Polled: waking a thread costs the request that does it.
                if self._due.is_set() or time.monotonic() - looked >= _LOOK:
                    self._due.clear()
                    looked = time.monotonic()
                    self._round()
                self._stop.wait(TICK)
        finally:
            for reader in self._readers.values():
                reader.close()
            self._readers.clear()
            if self._thread is me:
                self._thread = None

    def _round(self) -> None:
        for address in self._outbox.addresses():
            self._unread[address] = 0
            try:
                while not self._stop.is_set() and self._empty(address):
                    pass
                self.trouble = None
            except Exception as error:  # noqa: BLE001 - rows stay where they are, and this thread goes on
                reader = self._readers.pop(address, None)
                if reader is not None:
                    reader.close()
                known = isinstance(error, ActivityError)
                self._failed(str(error) if known else f"{type(error).__name__} in the relay")

    def _empty(self, address: str) -> bool:
        """Deliver one batch of an outbox. Whether it is worth trying the next at once."""
        reader = self._readers.get(address)
        if reader is None:
            reader = self._readers[address] = self._outbox.reader(address)
        late = self._late.get(address)
        if late is not None:
            if not late.confirmed:
                self._poke()
                return False
            reader.delete(late.rows)
            self._done(address, late)
            return True
        rows = reader.take(_BATCH, self._unread[address])
        if not rows:
            reader.release()
            return False
        late = self._late[address] = _Late(*self._deliver(rows))
        if not self._confirmed(late):
            reader.release()
            return False
        reader.delete(late.rows)
        self._done(address, late)
        self._unread[address] += len(rows) - len(late.rows)
        return len(rows) == _BATCH and (bool(late.rows) or self._looks_beyond(address))

    def _looks_beyond(self, address: str) -> bool:
        """Whether to go on behind a batch that cannot be read; from time to time, and not for ever."""
        now = time.monotonic()
        if self._unread[address] == _BATCH:
            if now - self._looked.get(address, -_BEYOND) < _BEYOND:
                return False
            self._looked[address] = now
        return self._unread[address] < _UNREAD

    def _done(self, address: str, late: _Late) -> None:
        self.drained += len(late.rows)
        del self._late[address]

    def _confirmed(self, late: _Late) -> bool:
        until = time.monotonic() + _LOCKED
        poke = time.monotonic() + _POKE
        while not late.confirmed:
            now = time.monotonic()
            if now >= until or self._stop.is_set():
                return False
            if now >= poke:
                self._poke()
                poke = now + _POKE
            time.sleep(0.01)
        return True

    def _failed(self, trouble: str) -> None:
        self.trouble = trouble
        now = time.monotonic()
        if now - self._said >= REPEAT:
            self._said = now
            log_safely(
                logging.WARNING, "otel_activity: an outbox is not emptied, events wait in it: %s", trouble
            )

    def metrics(self) -> dict[str, Any]:
        """Its part of `get_queue_metrics`."""
        return {"drained": self.drained, "trouble": self.trouble}
