"""One event as people read it, and as the JSON object that programs read."""

from __future__ import annotations

import difflib
import textwrap
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from otel_activity import semconv
from otel_activity.cli.render import Column, display_width, fit, layout, printable, shown_time, table_line
from otel_activity.codec import display

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from otel_activity.events import Event
    from otel_activity.store import ActivityStore, StoredEvent

__all__ = [
    "EventTable",
    "action_text",
    "actor_text",
    "entity_text",
    "event_json",
    "field_lines",
    "heading_lines",
    "name_hint",
    "origin_text",
    "type_hint",
]

ARROW: Final = " -> "
NOT_KNOWN: Final = "(not known)"
INDENT: Final = "    "
_WEB_EVENTS: Final = frozenset(
    {semconv.REQUEST, semconv.AUTH_LOGIN, semconv.AUTH_LOGOUT, semconv.AUTH_FAILED}
)
_STREAM_EVENTS: Final = frozenset({semconv.STREAM_OPENED, semconv.STREAM_BEAT, semconv.STREAM_CLOSED})
NAMES: Final = (
    semconv.ENTITY_CREATED,
    semconv.ENTITY_UPDATED,
    semconv.ENTITY_DELETED,
    semconv.ACTION,
    semconv.REQUEST,
    semconv.AUTH_LOGIN,
    semconv.AUTH_LOGOUT,
    semconv.AUTH_FAILED,
    semconv.GAP,
    semconv.STREAM_OPENED,
    semconv.STREAM_BEAT,
    semconv.STREAM_CLOSED,
    semconv.STREAM_REPEATED,
)
"""Names of our events. A store may hold others, which came by OTLP."""
_ACTIONS: Final = {
    "create": semconv.ENTITY_CREATED,
    "update": semconv.ENTITY_UPDATED,
    "delete": semconv.ENTITY_DELETED,
}
"""What people read in the column ACTION, and take for the name."""
STACKED_BELOW: Final = 110
"""Terminals narrower than this show an event's changes on a line of their own."""
MOST_TYPES: Final = 20
"""Types of entity that a hint names."""
LEAST_CHANGES: Final = 40
"""Cells that the changes keep beside the other columns."""


def event_json(event: StoredEvent) -> dict[str, Any]:
    """The event as a JSON object; docs/cli.md describes each key, and they do not change."""
    return {
        "id": event.id,
        "name": event.name,
        "time": _iso(event.time),
        "observed": _iso(event.observed) if event.observed else None,
        "severity": event.severity,
        "trace_id": f"{event.trace_id:032x}" if event.trace_id else None,
        "span_id": f"{event.span_id:016x}" if event.span_id else None,
        "service": event.service,
        "attributes": event.attributes,
        "resource": None if event.resource is None else event.resource.attributes,
    }


def _iso(nanoseconds: int) -> str:
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    moment = datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest // 1000)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _text(event: Event, attribute: str) -> str:
    value = event.attributes.get(attribute)
    return "" if value is None else printable(display(value))


def actor_text(event: Event) -> str:
    """Who did it: ``Ada (7)``, ``service billing``, ``anonymous``, or ``unknown``; never a guess."""
    kind, ident, name = (
        _text(event, attribute) for attribute in (semconv.ACTOR_TYPE, semconv.USER_ID, semconv.USER_NAME)
    )
    shown = f"{name} ({ident})" if name and ident and name != ident else name or ident
    if kind not in {"", "user"}:
        shown = f"{kind} {shown}".rstrip()
    represented = _text(event, semconv.ACTOR_ON_BEHALF_OF)
    return (shown or "unknown") + (f" for {represented}" if represented else "")


def action_text(event: Event) -> str:
    """What was done, with a failed outcome in capitals."""
    action = _text(event, semconv.ACTIVITY_ACTION) or printable(event.name).removeprefix("activity.")
    return f"{action} FAILED" if event.attributes.get(semconv.ACTIVITY_OUTCOME) == "failure" else action


def entity_text(event: Event) -> str:
    """The entity: ``task 42``."""
    return f"{_text(event, semconv.ENTITY_TYPE)} {_text(event, semconv.ENTITY_ID)}".strip()


def origin_text(event: Event) -> str:
    """Where it was done: ``PATCH /tasks/{number} from 10.0.0.7``, ``job nightly``.

    Empty when that is not known, and for events that are about a request: it is among their fields.
    """
    if event.name in _WEB_EVENTS:
        return ""
    request = " ".join(filter(None, (_text(event, semconv.REQUEST_METHOD), _text(event, semconv.ROUTE))))
    job, client = _text(event, semconv.JOB_NAME), _text(event, semconv.CLIENT_ADDRESS)
    parts = (request, f"from {client}" if client else "", f"job {job}" if job else "")
    return " ".join(filter(None, parts))


def heading_lines(event: Event, moment: str, width: int | None) -> list[str]:
    """When, what, who, and where; on a terminal too narrow for it where is on lines of its own, never cut."""
    said = f"{moment}  {action_text(event)} by {actor_text(event)}"
    request = _text(event, semconv.REQUEST_ID)
    where = ", ".join(filter(None, (origin_text(event), f"request {request}" if request else "")))
    whole = f"{said}, {where}" if where else said
    if width is None or display_width(whole) <= width:
        return [whole]
    inside = max(width - len(INDENT), 20)
    return [
        fit(said, width),
        *(INDENT + line for line in textwrap.wrap(where, inside, break_on_hyphens=False)),
    ]


def _fields(event: Event) -> Iterator[tuple[str, str]]:
    """Field and what happened to it; first what no reader may miss when the line is cut."""
    if event.attributes.get(semconv.COMMIT) == "unknown":
        yield "commit", "unknown, this may not have been committed"
    if semconv.ERROR_TYPE in event.attributes:
        yield "error", _text(event, semconv.ERROR_TYPE)
    if event.name in _WEB_EVENTS:
        yield from _request_fields(event)
    if event.name == semconv.GAP:
        yield from _gap_fields(event)
    if event.name in _STREAM_EVENTS and isinstance(service := getattr(event, "service", None), str):
        yield "service", printable(service)
    changes = event.attributes.get(semconv.CHANGES)
    if isinstance(changes, dict):
        for name, sides in changes.items():
            yield printable(name), _change_text(event.name, sides)
    details = event.attributes.get(semconv.DETAILS)
    if isinstance(details, dict):
        for name, value in details.items():
            yield printable(name), printable(display(value))
    elif details is not None:
        yield "details", _text(event, semconv.DETAILS)
    if semconv.REASON in event.attributes:
        yield "reason", _text(event, semconv.REASON)


def _gap_fields(event: Event) -> Iterator[tuple[str, str]]:
    """Of a loss, how much, why, and for which exporter."""
    estimate = "about " if event.attributes.get(semconv.GAP_ESTIMATE) else ""
    known = filter(None, (_text(event, semconv.GAP_COUNT), _text(event, semconv.GAP_REASON)))
    yield "lost", f"{estimate}{', '.join(known)}"
    if semconv.GAP_EXPORTER in event.attributes:
        yield "exporter", _text(event, semconv.GAP_EXPORTER)


def _request_fields(event: Event) -> Iterator[tuple[str, str]]:
    """Of events that are about a request, which one, and from where."""
    if event.name == semconv.REQUEST:
        yield "request", f"{_text(event, semconv.REQUEST_METHOD)} {_text(event, semconv.ROUTE)}".strip()
        if semconv.STATUS_CODE in event.attributes:
            yield "status", _text(event, semconv.STATUS_CODE)
    if semconv.CLIENT_ADDRESS in event.attributes:
        yield "client", _text(event, semconv.CLIENT_ADDRESS)


def _change_text(name: str, sides: Any) -> str:
    """``before -> after``; an insert has no before and a delete no after worth an arrow."""
    if not isinstance(sides, dict):
        return _shown(sides)
    before, after = (_shown(sides[side]) if side in sides else None for side in ("before", "after"))
    if name == semconv.ENTITY_CREATED and before is None:
        return after or NOT_KNOWN
    if name == semconv.ENTITY_DELETED and after is None:
        return before or NOT_KNOWN
    return f"{NOT_KNOWN if before is None else before}{ARROW}{NOT_KNOWN if after is None else after}"


def _shown(value: Any) -> str:
    """The value; in quotes where one could not see where it begins and ends, or that it is there at all."""
    text = printable(display(value))
    return text if text and text == text.strip() else f'"{text}"'


def name_hint(wanted: Sequence[str]) -> str:
    """Where nothing was found: which names of events are none of ours, and the one that may be meant."""
    hints = []
    for name in wanted:
        if name in NAMES:
            continue
        # What the column ACTION shows, or the last word of a name.
        words = {one.rpartition(".")[2]: one for one in NAMES} | _ACTIONS
        close = difflib.get_close_matches(name, [*NAMES, *words], n=1)
        meant = f"; did you mean {words.get(close[0], close[0])}?" if close else "."
        hints.append(f" No event of ours is called {printable(name)}{meant}")
    return "".join(hints)


def type_hint(store: ActivityStore, wanted: str | None) -> str:
    """Where nothing was found: that the store has no such type of entity, and which ones it has."""
    if wanted is None:
        return ""
    known = store.entity_types()
    if not known or wanted in known:
        return ""
    named = {name.lower(): name for name in reversed(known)}
    close = difflib.get_close_matches(wanted.lower(), named, n=1)
    meant = f"; did you mean {printable(named[close[0]])}?" if close else "."
    shown = ", ".join(map(printable, known[:MOST_TYPES])) + (", ..." if len(known) > MOST_TYPES else "")
    return f" There is no such type{meant} Types are: {shown}"


def field_lines(event: Event, width: int | None) -> list[str]:
    """One indented line for each changed field, the names in one column."""
    fields = list(_fields(event))
    names = [Column("", most=24), Column("")]
    sizes = layout(names, [(name, "") for name, _ in fields], 1_000)
    lines = []
    for name, text in fields:
        line = INDENT + table_line([name, text], [sizes[0], len(text) * 2])
        lines.append(line if width is None else fit(line, width))
    return lines


class EventTable:
    """Events as lines of a table. From one batch to the next a column moves only when it has to become wider.

    On a narrow terminal an event takes two lines, so that neither the actor nor the change is cut to nothing.

    Args:
        width: cells of the terminal; `None` cuts nothing.
        local: show local times.
    """

    def __init__(self, width: int | None, *, local: bool = False) -> None:
        zone = "local" if local else "UTC"
        self._columns = [
            Column(f"TIME ({zone})"),
            Column("ACTOR", least=8, most=28),
            Column("ACTION", least=6, most=24),
            Column("ENTITY", least=8, most=32),
        ]
        self._width = width
        self._local = local
        self._stacked = width is not None and width < STACKED_BELOW
        self._widths: list[int] = []

    def lines(self, events: Sequence[Event]) -> list[str]:
        """The events' lines; the first call that gets any puts the headings before them."""
        rows = [self._row(event) for event in events]
        if not rows:
            return []
        begins = not self._widths
        self._widths = self._layout(
            [*rows, [" " * size for size in self._widths or [0] * len(self._columns)]]
        )
        lines = []
        if begins:
            lines = self._lines(
                [column.title for column in self._columns], "" if self._stacked else "CHANGES"
            )
        for event, cells in zip(events, rows, strict=True):
            lines += self._lines(cells, ", ".join(f"{name}: {text}" for name, text in _fields(event)))
        return lines

    def _row(self, event: Event) -> list[str]:
        time = shown_time(event.time, local=self._local)
        return [time, actor_text(event), action_text(event), entity_text(event)]

    def _layout(self, rows: list[list[str]]) -> list[int]:
        if self._width is None:  # one long name must not push every line's rest out of sight
            sizes = layout(self._columns, rows, None)
            return [min(size, column.most or size) for size, column in zip(sizes, self._columns, strict=True)]
        if self._stacked:
            return layout(self._columns, rows, self._width)
        return layout(self._columns, rows, self._width - LEAST_CHANGES)

    def _lines(self, cells: list[str], changes: str) -> list[str]:
        if self._width is None:
            padded = [
                cell + " " * (size - display_width(cell))
                for cell, size in zip(cells, self._widths, strict=True)
            ]
            return ["  ".join([*padded, changes]).rstrip()]
        line = table_line(cells, self._widths, pad_last=not self._stacked)
        if self._stacked:
            return [line, fit(INDENT + changes, self._width)] if changes else [line]
        return [fit(f"{line}  {changes}", self._width).rstrip()]
