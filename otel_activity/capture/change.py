"""One captured change: a cheap snapshot now, an event later and elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import uuid_utils
from opentelemetry import context as otel_context
from opentelemetry import trace

from otel_activity import semconv
from otel_activity.actors import nobody
from otel_activity.capture.plan import MISSING, Copied, Encoded
from otel_activity.codec import ATOMIC
from otel_activity.codec.changes import AFTER, BEFORE, BOTH
from otel_activity.context import current_context
from otel_activity.events import Commit, Event

if TYPE_CHECKING:
    import msgspec

    from otel_activity.capture.plan import Plan, TablePlan
    from otel_activity.context import RequestContext
    from otel_activity.events import Unit

__all__ = ["CREATED", "DELETED", "UPDATED", "Change", "Row"]

# event name, activity.action, db.operation.name
CREATED: Final = (semconv.ENTITY_CREATED, "create", "INSERT")
UPDATED: Final = (semconv.ENTITY_UPDATED, "update", "UPDATE")
DELETED: Final = (semconv.ENTITY_DELETED, "delete", "DELETE")

_KEPT: Final = ATOMIC | {Copied, Encoded}
_time_ns = time.time_ns
_current_otel = otel_context.get_current


class Change:
    """A row of an entity before and after one statement.

    `before` and `after` map column names to values; a name that is missing on one side, or `MISSING`, is not
    known there.
    Values are immutable Python objects, `Copied` or `Encoded`.
    """

    __slots__ = (
        "after",
        "attributes",
        "before",
        "context",
        "identity",
        "kind",
        "otel",
        "partial",
        "plan",
        "time",
    )
    survives = False

    def __init__(
        self,
        plan: TablePlan,
        kind: tuple[str, str, str],
        identity: tuple[Any, ...],
        before: dict[str, Any],
        after: dict[str, Any],
        *,
        partial: bool,
    ) -> None:
        self.plan = plan
        self.kind = kind
        self.identity = identity
        self.before = before
        self.after = after
        self.partial = partial
        self.time = _time_ns()
        self.context: RequestContext | None = current_context()
        self.attributes: dict[str, Any] | None = None
        self.otel = _current_otel()

    @property
    def delivery(self) -> str | None:
        """That of its entity."""
        return self.plan.delivery

    def rolled_back(self) -> None:
        """A change that was rolled back did not happen: nothing to mark."""

    def to_event(self, unit: Unit, commit: Commit) -> Event:
        """Encode; see `otel_activity.events.Entry`."""
        plan = self.plan
        attributes = plan.attributes_of(self.kind, unit, commit)
        attributes[semconv.ENTITY_ID] = plan.entity_id(self.identity)
        attributes[semconv.CHANGES] = self._changes()
        attributes[semconv.CAPTURE] = "partial" if self.partial else "full"
        attributes.update(
            nobody() if self.attributes is None else plan.redactor.scrub_shared(self.attributes)
        )
        event = Event(
            id=str(uuid_utils.uuid7()),
            name=self.kind[0],
            time=self.time // 1000 * 1000,
            attributes=attributes,
            observed=_time_ns(),
        )
        if self.otel:
            span = trace.get_current_span(self.otel).get_span_context()
            if span.is_valid:
                event.trace_id = span.trace_id
                event.span_id = span.span_id
                event.trace_flags = int(span.trace_flags)
        return event

    def _changes(self) -> msgspec.Raw:
        """As JSON; a side that is not known is left out."""
        before, after = self.before, self.after
        if not before:
            return self.plan.changes(tuple(after), AFTER, list(after.values()))
        known = after.get
        values = [side for name, old in before.items() for side in (old, known(name, MISSING))]
        return self.plan.changes(tuple(before), BOTH, values)


class Row(Change):
    """A row that was inserted or deleted as a whole; its values are taken in the order of the columns."""

    __slots__ = ("values",)

    plan: Plan

    def __init__(
        self, plan: Plan, kind: tuple[str, str, str], identity: tuple[Any, ...], values: list[Any]
    ) -> None:
        self.plan = plan
        self.kind = kind
        self.identity = identity
        self.values = values
        self.time = _time_ns()
        self.context = current_context()
        self.attributes = None
        self.otel = _current_otel()

        self.partial = False

    def _changes(self) -> msgspec.Raw:
        plan, values = self.plan, self.values
        if not _KEPT.issuperset(map(type, values)):
            values = [
                value if type(value) in _KEPT else column.late(value)
                for column, value in zip(plan.columns, values, strict=True)
            ]
            self.partial = any(value is MISSING for value in values)
        return plan.changes(plan.names, AFTER if self.kind is CREATED else BEFORE, values)
