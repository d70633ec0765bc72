"""The demo's table shows what matters on any terminal."""

from __future__ import annotations

import importlib.util
import io
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any, cast

import pytest

from tests.store.support import make_event
from tests.support import skip_missing

if TYPE_CHECKING:
    from otel_activity.cli.demo_users import Crowd
    from otel_activity.events import Event
    from otel_activity.store import Follower


class Feed:
    """Gives its events at the second look: the first one only says from where on."""

    def __init__(self, *events: Event) -> None:
        self._looks = iter([[], list(events)])
        self.told = threading.Event()

    def poll(self) -> list[Event]:
        found = next(self._looks, None)
        if found is None:
            self.told.set()
        return found or []

    def rest(self, seconds: float) -> float:
        return seconds / 100


class People:
    """Nobody, who has asked for much."""

    statuses = Counter({"done": 123_456, "refused": 7_890, "failed": 1_234})


def shown(width: int, *events: Event) -> list[str]:
    """The lines of a terminal of that width."""
    if importlib.util.find_spec("rich") is None:
        skip_missing("rich is not installed")
    from rich.console import Console
    from rich.text import Text

    from otel_activity.cli.demo_view import Watcher

    console = Console(file=io.StringIO(), width=width, height=20, force_terminal=True)
    feed = Feed(*events)
    with Watcher(cast("Follower", feed), cast("Crowd", People()), console) as watcher:
        assert feed.told.wait(60)
        console.print(watcher.render("Events"))
    text: Any = console.file
    return Text.from_ansi(text.getvalue()).plain.splitlines()


@pytest.mark.parametrize("width", [60, 80, 99, 100, 140])
def test_the_change_is_seen_at_any_width(width: int) -> None:
    """Who, what and from what to what; no line is longer than the terminal, and the counters are whole."""
    event = make_event(
        user__name="Ada",
        activity__entity__type="Invoice",
        activity__commit="reported",
        activity__changes={"total": {"before": 1, "after": 22}},
    )
    lines = shown(width, event)
    (line,) = [line for line in lines if "Ada" in line]
    assert "update" in line
    assert "Invoice" in line
    assert "total: 1 → 22" in line
    assert ("reported" in line) is (width >= 100)
    assert max(map(len, lines)) <= width
    assert " s from change to store" in " ".join(" ".join(lines).split())
