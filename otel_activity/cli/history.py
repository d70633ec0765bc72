"""``otel-activity history``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from otel_activity.cli.eventview import action_text, actor_text, event_json, field_lines
from otel_activity.cli.options import WHEN, json_option, local_option, require_dsn, store_options
from otel_activity.cli.render import fit, json_line, note, output_width, printable, say, shown_time
from otel_activity.store import ActivityStore

if TYPE_CHECKING:
    from datetime import datetime

    from otel_activity.store import StoredEvent

__all__ = ["history"]


@click.command()
@click.argument("entity_type")
@click.argument("entity_id")
@click.option("--since", type=WHEN, help="From this time on: 15m, 2h, 7d (ago), or an ISO date or time.")
@click.option("--until", type=WHEN, help="Before this time.")
@click.option(
    "--limit", "-n", type=click.IntRange(1, 10_000), default=200, show_default=True, help="Newest events."
)
@json_option
@local_option
@store_options
def history(
    entity_type: str,
    entity_id: str,
    since: datetime | None,
    until: datetime | None,
    limit: int,
    as_json: bool,
    local: bool,
    dsn: str | None,
    schema: str,
) -> None:
    """Show what happened to one entity, oldest first.

    A composite key is given as a JSON array: otel-activity history membership '[4,7]'.
    Times are UTC unless --local is given.
    """
    with ActivityStore(require_dsn(dsn), schema=schema) as store:
        events = store.history(entity_type, entity_id, since=since, until=until, limit=limit + 1)
    older = len(events) > limit
    events = events[-limit:]
    if as_json:
        for event in events:
            say(json_line(event_json(event)))
        return
    if not events:
        note(f"No events of {printable(entity_type)} {printable(entity_id)}.")
        return
    if older:
        note("There are older events: use --until, or a larger --limit.")
    _write_timeline(events, f"{printable(entity_type)} {printable(entity_id)}", local=local)


def _write_timeline(events: list[StoredEvent], entity: str, *, local: bool) -> None:
    width = output_width()
    many = "event" if len(events) == 1 else "events"
    say(f"{entity}: {len(events)} {many}, oldest first, times {'local' if local else 'in UTC'}")
    for event in events:
        moment = shown_time(event.time, local=local, milliseconds=True)
        line = f"{moment}  {action_text(event)} by {actor_text(event)}"
        say("")
        say(line if width is None else fit(line, width))
        for field in field_lines(event, width):
            say(field)
