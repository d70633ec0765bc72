"""``otel-activity search``."""

from __future__ import annotations

from typing import Any

import click

from otel_activity.cli.eventview import EventTable, event_json, name_hint, type_hint
from otel_activity.cli.options import (
    filter_options,
    json_option,
    local_option,
    require_dsn,
    store_options,
    the_filter,
)
from otel_activity.cli.render import json_line, note, output_width, printable, say
from otel_activity.store import ActivityStore, EventFilter, Page, position

__all__ = ["search"]


@click.command()
@filter_options
@click.option("--limit", "-n", type=click.IntRange(1, 10_000), default=50, show_default=True, help="Events.")
@click.option("--cursor", metavar="CURSOR", help="Go on where the last page ended.")
@click.option("--count", is_flag=True, help="Print only how many events there are.")
@json_option
@local_option
@store_options
def search(
    dsn: str | None,
    schema: str,
    limit: int,
    cursor: str | None,
    count: bool,
    as_json: bool,
    local: bool,
    **options: Any,
) -> None:
    """Find events, newest first.

    Events match that fit every option given. Times are UTC unless --local is given.
    """
    wanted = the_filter(options)
    with ActivityStore(require_dsn(dsn), schema=schema) as store:
        if count:
            number = store.count(wanted)
            say(json_line({"count": number}) if as_json else str(number))
            return
        page = store.search(wanted, limit=limit, cursor=cursor)
        hint = "" if page.events or as_json else _why_nothing(store, wanted)
    if as_json:
        _write_json(page)
    else:
        _write_table(page, hint, local=local)


def _why_nothing(store: ActivityStore, wanted: EventFilter) -> str:
    """What the store does not have at all, so that nothing found is not taken for nothing happened."""
    return (
        name_hint(wanted.names) + type_hint(store, wanted.entity_type) + _actor_hint(store, wanted.actor_id)
    )


def _actor_hint(store: ActivityStore, wanted: str | None) -> str:
    """Where nothing was found: that nobody with this id ever did anything; people type names."""
    if wanted is None or store.search(EventFilter(actor_id=wanted), limit=1).events:
        return ""
    return f" There is no actor {printable(wanted)}; it is the id, which stands in brackets behind a name."


def _write_json(page: Page) -> None:
    for event in page.events:
        say(json_line({**event_json(event), "cursor": position(event).cursor}))


def _write_table(page: Page, hint: str, *, local: bool) -> None:
    for line in EventTable(output_width(), local=local).lines(page.events):
        say(line)
    if not page.events:
        note(f"No events match.{hint}")
    elif page.cursor is not None:
        note(f"There are more: add --cursor {page.cursor}, or `export` them all")
