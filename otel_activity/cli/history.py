"""``otel-activity history``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import msgspec

from otel_activity import semconv
from otel_activity.cli.eventview import event_json, field_lines, heading_lines, type_hint
from otel_activity.cli.options import (
    SINCE_HELP,
    WHEN,
    json_option,
    local_option,
    require_dsn,
    store_options,
)
from otel_activity.cli.render import json_line, note, output_width, printable, say, shown_time
from otel_activity.store import ActivityStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from otel_activity.store import StoredEvent

__all__ = ["history"]


@click.command()
@click.argument("entity_type")
@click.argument("entity_id")
@click.option("--since", type=WHEN, help=SINCE_HELP)
@click.option("--until", type=WHEN, help="Before this time.")
@click.option("--service", metavar="NAME", help="Service that recorded the event.")
@click.option("--table", metavar="NAME", help="Table that was changed.")
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
    service: str | None,
    table: str | None,
    limit: int,
    as_json: bool,
    local: bool,
    dsn: str | None,
    schema: str,
) -> None:
    """Show what happened to one entity, oldest first.

    ENTITY_TYPE is the name of the mapped class. A composite key is given as a JSON array: otel-activity
    history membership '[4,7]'. Times are UTC unless --local is given.
    """
    narrowed: dict[str, Any] = {"since": since, "until": until, "service": service, "table": table}
    with ActivityStore(require_dsn(dsn), schema=schema) as store:
        events: list[StoredEvent] = []
        for key in _keys(entity_id):
            events = events or store.history(entity_type, key, **narrowed, limit=limit + 1)
        hint = "" if events or as_json else type_hint(store, entity_type)
    older = len(events) > limit
    events = events[-limit:]
    if as_json:
        for event in events:
            say(json_line(event_json(event)))
        return
    if not events:
        note(f"No events of {printable(entity_type)} {printable(entity_id)}.{hint}")
        return
    if older:
        note("There are older events: use --until, or a larger --limit.")
    _write_timeline(events, f"{printable(entity_type)} {printable(entity_id)}", local=local)
    _note_namesakes(events)


def _keys(typed: str) -> Iterator[str]:
    """The id as it was typed; then, if it is a JSON array, as a composite key is stored: without spaces."""
    yield typed
    try:
        key = msgspec.json.decode(typed, type=list)
    except msgspec.MsgspecError:
        return
    yield msgspec.json.encode(key).decode()


def _note_namesakes(events: list[StoredEvent]) -> None:
    """Two services, or two tables, may have an entity of the same type and id: that is not one history."""
    places = {
        f"{event.service} {table}"
        for event in events
        if (table := event.attributes.get(semconv.DB_COLLECTION_NAME)) is not None
    }
    if len(places) > 1:
        names = ", ".join(map(printable, sorted(places)))
        note(f"These are of several tables: {names}. Narrow it with --service or --table.")


def _write_timeline(events: list[StoredEvent], entity: str, *, local: bool) -> None:
    width = output_width()
    many = "event" if len(events) == 1 else "events"
    say(f"{entity}: {len(events)} {many}, oldest first, times {'local' if local else 'in UTC'}")
    for event in events:
        moment = shown_time(event.time, local=local, milliseconds=True)
        say("")
        for line in (*heading_lines(event, moment, width), *field_lines(event, width)):
            say(line)
