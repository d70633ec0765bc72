"""``otel-activity tail``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import click

from otel_activity.cli.eventview import EventTable, event_json
from otel_activity.cli.options import (
    DURATION,
    filter_options,
    json_option,
    local_option,
    require_dsn,
    store_options,
    the_filter,
)
from otel_activity.cli.render import json_line, note, output_width, say
from otel_activity.errors import StoreUnavailable
from otel_activity.store import ActivityStore

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from otel_activity.store import Follower, StoredEvent

__all__ = ["tail"]

LONGEST_PAUSE: Final = 15.0
"""Seconds between two tries to reach a store that has gone away."""


@click.command()
@click.option("--lines", "-n", type=click.IntRange(0, 10_000), default=20, show_default=True, help="Events.")
@click.option("--follow", "-f", is_flag=True, help="Go on with new events until Ctrl-C.")
@click.option(
    "--interval",
    type=click.FloatRange(0.05, 3600),
    default=1.0,
    show_default=True,
    help="Seconds between looks.",
)
@click.option(
    "--late",
    type=DURATION,
    default="1h",
    show_default=True,
    help="How old an event may be when it arrives and still be shown; longer costs the server more.",
)
@filter_options
@json_option
@local_option
@store_options
def tail(
    dsn: str | None,
    schema: str,
    lines: int,
    follow: bool,
    interval: float,
    late: timedelta,
    as_json: bool,
    local: bool,
    **options: Any,
) -> None:
    """Show the newest events, oldest of them first, and follow new ones.

    New events appear in the order in which they are stored, which is not always that of their times.
    Times are UTC unless --local is given.
    """
    output = _Output(as_json=as_json, local=local)
    with ActivityStore(require_dsn(dsn), schema=schema) as store:
        follower = store.follow(the_filter(options), last=lines, lookback=late)
        output.write(follower.poll())
        while follow:
            time.sleep(follower.rest(interval))
            output.write(_poll(follower))


class _Output:
    def __init__(self, *, as_json: bool, local: bool) -> None:
        self._table = None if as_json else EventTable(output_width(), local=local)

    def write(self, events: Sequence[StoredEvent]) -> None:
        if self._table is None:
            lines = [json_line(event_json(event)) for event in events]
        else:
            lines = self._table.lines(events)
        for line in lines:
            say(line)


def _poll(follower: Follower) -> list[StoredEvent]:
    """The new events, however long the store is away: the follower goes on where it stopped."""
    pause = 0.0
    while True:
        try:
            events = follower.poll()
        except StoreUnavailable as error:
            if not pause:
                note(f"{error}. Waiting for it.")
            pause = min(pause * 2 or 0.5, LONGEST_PAUSE)
            time.sleep(pause)
            continue
        if pause:
            note("The store is back.")
        return events
