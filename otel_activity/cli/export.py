"""``otel-activity export``: everything that a search finds, for a file."""

from __future__ import annotations

import csv
import io
import re
from typing import TYPE_CHECKING, Any, Final

import click

from otel_activity import semconv
from otel_activity.cli.eventview import event_json
from otel_activity.cli.options import filter_options, require_dsn, store_options, the_filter
from otel_activity.cli.render import json_line, many, note, printable, say
from otel_activity.codec import display
from otel_activity.store import ActivityStore

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from otel_activity.store import EventFilter, Page, StoredEvent

__all__ = ["COLUMNS", "export"]

PAGE: Final = 1_000
"""Events that are read at once."""
COLUMNS: Final = {
    "time": None,
    "id": None,
    "name": None,
    "service": None,
    "action": semconv.ACTIVITY_ACTION,
    "outcome": semconv.ACTIVITY_OUTCOME,
    "error": semconv.ERROR_TYPE,
    "actor_type": semconv.ACTOR_TYPE,
    "actor_id": semconv.USER_ID,
    "actor_name": semconv.USER_NAME,
    "on_behalf_of": semconv.ACTOR_ON_BEHALF_OF,
    "tenant": semconv.TENANT_ID,
    "project": semconv.PROJECT_ID,
    "entity_type": semconv.ENTITY_TYPE,
    "entity_id": semconv.ENTITY_ID,
    "table": semconv.DB_COLLECTION_NAME,
    "field": None,
    "before": None,
    "after": None,
    "reason": semconv.REASON,
    "details": semconv.DETAILS,
    "method": semconv.REQUEST_METHOD,
    "route": semconv.ROUTE,
    "status": semconv.STATUS_CODE,
    "client": semconv.CLIENT_ADDRESS,
    "request_id": semconv.REQUEST_ID,
    "job": semconv.JOB_NAME,
    "transaction_id": semconv.TRANSACTION_ID,
    "commit": semconv.COMMIT,
    "trace_id": None,
}
"""Column -> the attribute that it shows, if it is one. docs/auditors.md has them, and they do not change."""
_FORMULA: Final = ("=", "+", "-", "@")
"""What a spreadsheet takes for a formula at the beginning of a cell."""
_NUMBER: Final = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")


@click.command()
@filter_options
@click.option("--csv", "as_csv", is_flag=True, help="One row for each changed field, for spreadsheets.")
@store_options
def export(dsn: str | None, schema: str, as_csv: bool, **options: Any) -> None:
    """Write every event that matches, newest first, for a file.

    The options of `search` choose. One JSON object a line, with all of each event, unless --csv is given.
    Times are UTC.
    """
    wanted = the_filter(options)
    number = 0
    with ActivityStore(require_dsn(dsn), schema=schema) as store:
        first = store.search(wanted, limit=PAGE)
        if (
            as_csv
        ):  # not before the store has answered: a file with a heading alone says that there is nothing
            say(_line(COLUMNS))
        for event in _events(store, wanted, first):
            number += 1
            lines = _rows(event, wanted.changed_field) if as_csv else [json_line(event_json(event))]
            for line in lines:
                say(line)
    note(f"{many(number, 'event')} written")


def _events(store: ActivityStore, wanted: EventFilter, page: Page) -> Iterator[StoredEvent]:
    """All events, page after page."""
    yield from page.events
    while page.cursor is not None:
        page = store.search(wanted, limit=PAGE, cursor=page.cursor)
        yield from page.events


def _rows(event: StoredEvent, only: str | None) -> Iterator[str]:
    """A row for each changed field, or for the one that was asked for; one alone for an event without any."""
    said = event_json(event)
    common = {
        name: said[name] if attribute is None else event.attributes.get(attribute)
        for name, attribute in COLUMNS.items()
        if attribute is not None or name in said
    }
    changes = event.attributes.get(semconv.CHANGES)
    if not isinstance(changes, dict) or not changes:
        yield _row(_cells(common))
        return
    for field, sides in changes.items():
        if only not in (None, field):
            continue
        known: Mapping[str, Any] = sides if isinstance(sides, dict) else {}
        cells = _cells({**common, "field": field})
        # A null is told from what is not known, which stays empty.
        cells |= {side: _cell(known[side]) for side in ("before", "after") if side in known}
        yield _row(cells)


def _cells(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: "" if value is None else _cell(value) for name, value in values.items()}


def _cell(value: Any) -> str:
    """The value whole, on one line, as a spreadsheet shows it and never runs it."""
    if isinstance(value, str):
        text = printable(value)
    else:
        text = printable(display(value) if _is_short(value) else json_line(value))
    return f"'{text}" if text.lstrip().startswith(_FORMULA) and not _NUMBER.fullmatch(text) else text


def _is_short(value: Any) -> bool:
    """Whether `display` cuts nothing off: numbers, times and the like, redacted values."""
    if not isinstance(value, dict):
        return not isinstance(value, list)
    return len(value) == 1 and all(
        name.startswith("$") and isinstance(held, (str, bool)) and len(str(held)) < 100
        for name, held in value.items()
    )


def _row(cells: Mapping[str, str]) -> str:
    """The cells in their columns; what is not named is empty."""
    return _line(cells.get(name, "") for name in COLUMNS)


def _line(values: Iterable[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(values)
    return text.getvalue()
