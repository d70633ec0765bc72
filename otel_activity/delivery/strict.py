"""Delivery that outlives the machine: the events of a transaction are written by the transaction itself."""

from __future__ import annotations

import logging
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

import msgspec

from otel_activity.delivery.durable import DurableDelivery
from otel_activity.delivery.holding import Held
from otel_activity.delivery.outbox import OutboxDrain, decode_row, encode_rows
from otel_activity.errors import ActivityError, OutboxError
from otel_activity.events import Commit
from otel_activity.interruptions import pass_on

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from otel_activity.events import Event, Unit
    from otel_activity.ports import Outbox, OutboxRow

__all__ = ["StrictDelivery"]

_survives: Final = attrgetter("survives")
_IN_OUTBOX: Final = object()
"""What `Unit.prepared` is: the database decides about the unit, and nobody else needs to."""


class StrictDelivery(DurableDelivery):
    """A `ports.Delivery` that writes units into an outbox, in their own transaction.

    What has no transaction that could write it (user actions outside or in a read-only one, failures of what
    was rolled back, statements under AUTOCOMMIT, transactions that ended unseen) goes the way of
    `DurableDelivery`. So does what is read from the outbox, but for the journal.

    Args:
        outbox: writes and reads.
        poke: asks the exporters to send what they have.
        *args, **options: as for `DurableDelivery`.
    """

    def __init__(self, *args: Any, outbox: Outbox, poke: Callable[[], None], **options: Any) -> None:
        self._outbox = outbox
        self._resource: str | None = None
        self._drain = OutboxDrain(outbox, self._deliver, poke)
        super().__init__(*args, **options)

    def after_fork(self) -> None:
        """As `DurableDelivery.after_fork`."""
        self._drain.after_fork()
        super().after_fork()

    def start(self) -> None:
        """As `DurableDelivery.start`; outboxes that are known already are emptied from now on."""
        super().start()
        if self._outbox.addresses():
            self._drain.wake()

    # --- ports.Delivery ----------------------------------------------------------------------

    def prepare(self, unit: Unit) -> None:
        """Write the unit into its transaction.

        Raises:
            OutboxError: it cannot be written, so nothing may be committed.
        """
        outlet = unit.outlet
        if outlet is None or (_only_actions(unit) and self._outbox.read_only(outlet)):
            super().prepare(unit)
            return
        try:
            unit.courier = self._outbox.write(outlet, *encode_rows(_encoded(unit)), self._about_us())
        except ActivityError:
            raise
        except Exception as error:
            pass_on(error)
            raise OutboxError(
                f"not committed, because its events cannot be encoded ({type(error).__name__})"
            ) from error
        unit.prepared = _IN_OUTBOX

    def committed(self, unit: Unit) -> None:
        """What is in the outbox can be read now; the rest as `DurableDelivery.committed`."""
        if unit.prepared is _IN_OUTBOX:
            self._drain.wake()
        else:
            super().committed(unit)

    def aborted(self, unit: Unit) -> None:
        """What was in the outbox is gone with the transaction."""
        if unit.prepared is _IN_OUTBOX:
            unit.prepared = None
        else:
            super().aborted(unit)

    def undecided(self, unit: Unit, error: BaseException | None) -> None:
        """The outbox knows what nobody else does: the rows are there if and only if COMMIT happened."""
        if unit.prepared is _IN_OUTBOX:
            self._drain.wake()
        else:
            super().undecided(unit, error)

    def _about_us(self) -> str:
        if self._resource is None:
            self._resource = msgspec.json.encode(dict(self._about())).decode()
        return self._resource

    # --- out of the outbox -------------------------------------------------------------------

    def _deliver(self, rows: Sequence[OutboxRow]) -> tuple[list[OutboxRow], list[Held]]:
        """Release rows as units of one resource each; those that this version cannot read stay."""
        read: list[OutboxRow] = []
        units: list[Held] = []
        resource: str | None = None
        events: list[Event] = []
        known: set[str] = set()
        for row in rows:
            try:
                event = decode_row(row.event)
            except ValueError:
                line = "an outbox holds events that this version cannot read; they stay there"
                self._say("outbox", logging.ERROR, line)
                continue
            read.append(row)
            if event.id in known:
                continue  # an interrupted COMMIT was followed by another
            known.add(event.id)
            if row.resource != resource:
                resource, events = row.resource, []
                units.append(self._unit(events, resource))
            events.append(event)
        with self._lock:
            for held in units:
                held.count = len(held.events or ())
                self._kept += held.count
                self._let_in(held)
                self.released += held.count
                self.strict_released += held.count
        self._ensure_thread()
        return read, units

    def _unit(self, events: list[Event], resource: str) -> Held:
        lanes = len(self.lanes)
        held = Held(0, events, lanes, lanes, commit=Commit.PROVEN.value, outboxed=True)
        about = msgspec.json.decode(resource)
        if isinstance(about, dict) and about != msgspec.json.decode(self._about_us()):
            held.origin = about
        return held

    # --- the end -----------------------------------------------------------------------------

    def _flush(self, deadline: float, poke: Callable[[], None]) -> bool:
        """As `DurableDelivery._flush`; what is in the outboxes now counts as well."""
        drained = self._drain.flush(deadline)
        return super()._flush(deadline, poke) and drained

    def close(self, deadline: float) -> None:
        """As `DurableDelivery.close`; what is in the outbox then stays there."""
        self._drained = self._drain.flush(deadline)
        self._drain.close(deadline)
        super().close(deadline)

    def finish(self) -> bool:
        """As `DurableDelivery.finish`; an outbox that is not empty counts as well."""
        return super().finish() and self._drained

    def _reset(self) -> None:
        super()._reset()
        self._drained = True

    def metrics(self) -> dict[str, Any]:
        """As `DurableDelivery.metrics`, and ``outbox``: ``drained`` (events) and ``trouble``."""
        return {**super().metrics(), "outbox": self._drain.metrics()}


def _only_actions(unit: Unit) -> bool:
    """Whether nothing of it was written into the database, as far as is known."""
    return all(map(_survives, unit.entries))  # an interruption that met a generator's end would be lost


def _encoded(unit: Unit) -> list[Event]:
    """The events of a unit. Those that an interrupted COMMIT may have written already are the same again."""
    known = unit.encoded
    if known is None:
        known = unit.encoded = {}
    for entry in unit.entries:
        if id(entry) not in known:
            # Whoever reads it from the outbox has the proof: the row is there.
            known[id(entry)] = entry, entry.to_event(unit, Commit.PROVEN)
    return [known[id(entry)][1] for entry in unit.entries]
