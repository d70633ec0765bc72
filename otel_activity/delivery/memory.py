"""Two ways into durable delivery: past its journal, and past whatever else was added to it."""

from __future__ import annotations

from types import MethodType
from typing import TYPE_CHECKING, Final

from otel_activity.delivery.durable import DurableDelivery
from otel_activity.delivery.holding import Held
from otel_activity.events import Commit

if TYPE_CHECKING:
    from otel_activity.events import Unit

__all__ = ["Journaled", "Memory"]

_REPORTED: Final = Commit.REPORTED.value


class Journaled:
    """The `ports.Delivery` that `DurableDelivery` is by itself, for an object that is more than that.

    Its methods are that class's own, so it costs no call.
    """

    def __init__(self, engine: DurableDelivery) -> None:
        self.prepare = MethodType(DurableDelivery.prepare, engine)
        self.committed = MethodType(DurableDelivery.committed, engine)
        self.aborted = MethodType(DurableDelivery.aborted, engine)
        self.undecided = MethodType(DurableDelivery.undecided, engine)


class Memory:
    """A `ports.Delivery` of ``best_effort`` units in a process that keeps a journal for others.

    They share its thread, its lanes and its stream. On the request path nothing is encoded and nothing is
    written; they are bounded by the engine's `capacity`, apart from units that wait for a lane and could be
    read back from the journal.

    Args:
        engine: takes them.
    """

    def __init__(self, engine: DurableDelivery) -> None:
        self._engine = engine

    def prepare(self, unit: Unit) -> None:
        """Nothing to make safe. But there must be room, as for `QueuedDelivery.prepare`.

        Raises:
            DeliveryRefused: there is none, and the user chose not to commit then.
        """
        overflow = self._engine.overflow
        if overflow.policy == "drop":
            return
        full = self._engine.crowded()
        if full is not None:
            overflow.refuse(full)
            for _ in overflow.waits():
                if self._engine.crowded() is None:
                    return

    def committed(self, unit: Unit) -> None:
        """Queue the unit; it is encoded by the feeding thread."""
        held = self._held(unit)
        if not held.entered:
            held.late = unit
            held.commit = _REPORTED
        self._engine.let_in(held)

    def aborted(self, unit: Unit) -> None:
        """Nothing of an aborted transaction is kept."""

    def undecided(self, unit: Unit, error: BaseException | None) -> None:
        """Have the database asked, as for the units beside it; the answer must not differ."""
        unit.commit = Commit.UNKNOWN
        held = self._held(unit)
        if not held.asked and not held.entered:
            held.error = held.error or unit.error
            unit.error = None  # the answer decides whether events mention it
            held.events = self._engine.encode(unit)
            held.count = len(held.events)
        self._engine.ask_or_release(held)

    def _held(self, unit: Unit) -> Held:
        """Made once, so that whoever is interrupted can begin again."""
        held: Held | None = unit.prepared
        if held is None:
            lanes = len(self._engine.lanes)
            held = unit.prepared = Held(len(unit.entries), None, lanes, lanes, unit.proof, loose=True)
        return held
