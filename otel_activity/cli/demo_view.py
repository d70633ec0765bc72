"""What people see: events as they arrive, counters, and the reconciliation at the end."""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from otel_activity import semconv
from otel_activity.cli.eventview import action_text, actor_text, entity_text
from otel_activity.cli.render import printable
from otel_activity.codec import display

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console, RenderableType

    from otel_activity.cli.demo_reconcile import Reconciliation
    from otel_activity.cli.demo_users import Crowd
    from otel_activity.events import Event
    from otel_activity.store import Follower

__all__ = ["Watcher", "result_table"]

POLL_SECONDS: Final = 0.25
FRAME: Final = 11
"""Lines that are not events: what was said before, heading, rules, counters."""
WRAPPED: Final = 2
"""Lines more that the counters take on a narrow terminal."""
WIDE: Final = 100
"""Columns from which on borders and commits leave room for what was changed."""
_COLOURS: Final = {"create": "green", "update": "yellow", "delete": "red"}


class Watcher:
    """Follows the store in a thread of its own and keeps what is worth showing.

    Args:
        follower: where new events come from.
        crowd: whose requests are counted.
        console: decides how much fits.
    """

    def __init__(self, follower: Follower, crowd: Crowd, console: Console) -> None:
        self._follower = follower
        self._crowd = crowd
        self._console = console
        self._recent: deque[Event] = deque(maxlen=200)
        self._transactions: set[str] = set()
        self._events = 0
        self._lag = 0.0
        self._began = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="otel-activity-demo-watcher", daemon=True)
        self.error: Exception | None = None

    def __enter__(self) -> Watcher:
        self._follower.poll()  # from here on nothing is missed
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def live(self, *, title: str) -> AbstractContextManager[Any]:
        """A table that renews itself; nothing where there is no terminal."""
        if not self._console.is_terminal:
            return nullcontext()
        return Live(
            get_renderable=lambda: self.render(title),
            console=self._console,
            refresh_per_second=6,
            screen=False,
            transient=True,
        )

    def _follow(self) -> None:
        while not self._stop.is_set():
            try:
                self._take(self._follower.poll())
            except Exception as error:  # noqa: BLE001 - a view that fails must not end the demo unseen
                self.error = error
            self._stop.wait(self._follower.rest(POLL_SECONDS))

    def _take(self, events: Sequence[Event]) -> None:
        now = time.time_ns()
        for event in events:
            self._recent.append(event)
            self._events += 1
            self._transactions.add(str(event.attributes.get(semconv.TRANSACTION_ID)))
        if events:
            self._lag = max(0.0, (now - max(event.time for event in events)) / 1e9)

    def render(self, title: str) -> RenderableType:
        """The picture of this moment."""
        wide = self._console.width >= WIDE
        room = max(self._console.height - FRAME - (0 if wide else WRAPPED), 3)
        table = _wide_table(title) if wide else _narrow_table(title)
        for event in list(self._recent)[-room:]:
            table.add_row(*_cells(event)[: len(table.columns)])
        return Group(table, self._counters())

    def _counters(self) -> Text:
        seconds = max(time.monotonic() - self._began, 0.001)
        answers = self._crowd.statuses
        parts = [
            f"{answers.total():,} requests ({answers['refused']:,} refused, {answers['failed']:,} failed)",
            f"{len(self._transactions):,} transactions",
            f"{self._events:,} events ({self._events / seconds:,.0f}/s)",
            f"{self._lag:.1f} s from change to store",
        ]
        if self.error is not None:
            parts.append(f"[{type(self.error).__name__}]")
        return Text("  ".join(parts), style="bold")


def _table(title: str, **form: Any) -> Table:
    return Table(
        expand=True, title=title, title_justify="left", title_style="bold", header_style="dim", **form
    )


def _wide_table(title: str) -> Table:
    table = _table(title)
    table.add_column("Time (UTC)", no_wrap=True, width=12)
    table.add_column("Who", no_wrap=True, width=14, overflow="ellipsis")
    table.add_column("Action", no_wrap=True, width=7)
    table.add_column("Entity", no_wrap=True, ratio=2, overflow="ellipsis")
    table.add_column("Changed", no_wrap=True, ratio=4, overflow="ellipsis")
    table.add_column("Commit", no_wrap=True, width=8)
    return table


def _narrow_table(title: str) -> Table:
    """What was changed is what people look for: it gets the room of borders, milliseconds and commits."""
    table = _table(title, box=None, padding=(0, 1, 0, 0))
    table.add_column("Time", no_wrap=True, width=8, overflow="crop")
    table.add_column("Who", no_wrap=True, width=11, overflow="ellipsis")
    table.add_column("Action", no_wrap=True, width=7, overflow="ellipsis")
    table.add_column("Entity", no_wrap=True, ratio=2, overflow="ellipsis")
    table.add_column("Changed", no_wrap=True, ratio=3, overflow="ellipsis")
    return table


def _cells(event: Event) -> list[Text]:
    moment = datetime.fromtimestamp(event.time // 1_000_000_000, UTC)
    action = action_text(event)
    return [
        Text(f"{moment:%H:%M:%S}.{event.time % 1_000_000_000 // 1_000_000:03d}", style="dim"),
        Text(actor_text(event)),
        Text(action, style=_COLOURS.get(action, "")),
        Text(entity_text(event)),
        Text(_changed(event), style="cyan"),
        Text(str(event.attributes.get(semconv.COMMIT, "")), style="dim"),
    ]


def _changed(event: Event) -> str:
    """Fields with the values that are known: both sides of an update, the one side there is otherwise."""
    changes = event.attributes.get(semconv.CHANGES)
    if not isinstance(changes, dict):
        return ""
    parts = []
    for name, sides in changes.items():
        before, after = (display(sides[side]) if side in sides else "?" for side in ("before", "after"))
        text = {semconv.ENTITY_CREATED: after, semconv.ENTITY_DELETED: before}.get(event.name)
        parts.append(f"{name}: {text or f'{before} → {after}'}")
    return printable(", ".join(parts))


def result_table(result: Reconciliation, crowd: Crowd, wanted: int) -> Table:
    """The reconciliation for people."""
    answers = crowd.statuses
    table = Table(title="Reconciliation", title_justify="left", show_header=False, title_style="bold")
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    operations = ", ".join(f"{count:,} {name}" for name, count in result.by_operation.items())
    asked = answers.total()
    bad = "bold red"
    good = "bold green"
    rows: list[tuple[str, int, str, str]] = [
        ("Requests", asked, f"{answers['refused']:,} refused, {answers['failed']:,} failed: rolled back", ""),
        ("Transactions committed", result.transactions, "that changed a row", ""),
        ("Rows changed", result.rows, f"counted by triggers in the database: {operations}", ""),
        ("Events stored", result.events, f"at least {wanted:,} expected" if wanted else "", ""),
        (
            "Events missing",
            result.missing,
            "committed, but no event says so",
            bad if result.missing else good,
        ),
        (
            "Events extra",
            result.extra,
            "an event, but nothing like it committed",
            bad if result.extra else good,
        ),
    ]
    if result.mixed_transactions:
        rows.append(("Transactions mixed up", result.mixed_transactions, "ids do not agree", bad))
    for name, number, note, style in rows:
        table.add_row(name, Text(f"{number:,}", style=style), note)
    return table
