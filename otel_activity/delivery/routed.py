"""Delivery by class: each entry of a transaction goes its own way, and all of them share its fate."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from otel_activity.delivery.lane import log_safely
from otel_activity.errors import ActivityError, OutboxError
from otel_activity.events import Unit
from otel_activity.interruptions import pass_on

if TYPE_CHECKING:
    from collections.abc import Mapping

    from otel_activity.events import Entry
    from otel_activity.ports import Delivery

__all__ = ["Refusing", "RoutedDelivery"]

_ORDER: Final = ("best_effort", "strict", "durable")
"""In which ways are prepared. One that may refuse and leaves no trace comes first; the journal last, because
its record would have to be taken back by another."""


class _Parts(list[tuple["Delivery", Unit]]):
    """What `Unit.prepared` is: the parts of the unit, each with the way it goes."""


class RoutedDelivery:
    """A `ports.Delivery` that splits units by the delivery class of their entries.

    The parts keep the transaction's id and the order of their entries. They are prepared and decided as one:
    when one of them cannot be prepared and that is to stop the transaction, the others are aborted.

    Args:
        ways: by class, all three.
        default: class of entries that say nothing.
    """

    def __init__(self, ways: Mapping[str, Delivery], default: str) -> None:
        self._ways = ways
        self._default = default

    def prepare(self, unit: Unit) -> None:
        """Prepare every part.

        Raises:
            ActivityError: a part must not be committed like this, and so nothing may be.
        """
        # Noted before anything is written: whoever is interrupted in here (Ctrl-C, a timeout, a cancelled
        # task) leaves parts behind, and the abort that follows must find them.
        parts = unit.prepared = self._parts(unit)
        for done, (way, part) in enumerate(parts):
            try:
                way.prepare(part)
            except ActivityError:
                for other, prepared in parts[:done]:
                    other.aborted(prepared)
                unit.prepared = None
                raise
            except Exception as raised:  # noqa: BLE001 - a bug in one way must not keep the others from theirs
                pass_on(raised)
                log_safely(logging.ERROR, "otel_activity: internal error in prepare", exc_info=True)
            finally:
                part.outlet = None
        # One way at most writes into the transaction.
        unit.courier = next((part.courier for _, part in parts if part.courier is not None), None)

    def committed(self, unit: Unit) -> None:
        """Release every part."""
        for way, part in self._decided(unit):
            part.commit, part.error = unit.commit, unit.error
            way.committed(part)

    def aborted(self, unit: Unit) -> None:
        """Forget every part."""
        if unit.prepared is not None:
            for way, part in self._decided(unit):
                way.aborted(part)
            unit.prepared = None

    def undecided(self, unit: Unit, error: BaseException | None) -> None:
        """Each way finds out what became of its part, or says that nobody knows."""
        for way, part in self._decided(unit):
            part.commit, part.error = unit.commit, unit.error
            way.undecided(part, error)

    # --- parts -------------------------------------------------------------------------------

    def _parts(self, unit: Unit) -> _Parts:
        classes = {entry.delivery for entry in unit.entries}
        if len(classes) == 1:  # as most are
            name = classes.pop() or self._default
            return _Parts([(self._ways[name], _part(unit, unit.entries, strict=name == "strict"))])
        entries: dict[str, list[Entry]] = {name: [] for name in _ORDER}
        for entry in unit.entries:
            entries[entry.delivery or self._default].append(entry)
        return _Parts(
            [
                (self._ways[name], _part(unit, found, strict=name == "strict"))
                for name, found in entries.items()
                if found
            ]
        )

    def _decided(self, unit: Unit) -> _Parts:
        prepared = unit.prepared
        if isinstance(prepared, _Parts):
            return prepared
        if prepared is not None:  # before anything was routed
            return _Parts([(self._ways[self._default], unit)])
        # Preparing failed, or was skipped; each way makes up for it as it can.
        parts = unit.prepared = self._parts(unit)
        return parts


def _part(unit: Unit, entries: list[Entry], *, strict: bool) -> Unit:
    part = Unit(unit.transaction_id, system=unit.system, database=unit.database)
    part.entries = entries
    part.proof = unit.proof
    if strict:  # what has no transaction to be written into is journaled
        part.outlet = unit.outlet
        if unit.encoded is None:
            unit.encoded = {}
        part.encoded = unit.encoded
    return part


class Refusing:
    """The ``strict`` way of a process that has no other than its memory: fail closed.

    Args:
        inner: takes what belongs to no transaction.
        why: what is said to whoever wanted to commit.
    """

    def __init__(self, inner: Delivery, why: str) -> None:
        self._why = why
        self.committed = inner.committed
        self.aborted = inner.aborted
        self.undecided = inner.undecided

    def prepare(self, unit: Unit) -> None:
        """Refuse a transaction.

        Raises:
            OutboxError: nothing may be committed.
        """
        if unit.outlet is not None:
            raise OutboxError(f"not committed, because {self._why}")
