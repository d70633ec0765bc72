"""What a process that keeps no journal could not say before it ended: a note for the next one."""

from __future__ import annotations

import logging
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from otel_activity.delivery.holding import PREPARED, RELEASED, Held, decode_unit, encode_release, encode_unit
from otel_activity.delivery.journal import Journal, Losses, orphans
from otel_activity.delivery.lane import log_safely
from otel_activity.events import Commit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from otel_activity.events import Event

__all__ = ["Note", "leave", "notebook", "notes"]

_NOTE: Final = "note"
_BOUND: Final = 1 << 20
_AT_ONCE: Final = 32
"""Notes that one process takes: each keeps a descriptor until it is delivered. The next one takes more."""


class Note(NamedTuple):
    """A note that was found.

    Attributes:
        journal: that holds it, locked; to be removed when the events have arrived.
        events: what it says.
    """

    journal: Journal
    events: list[Event]


def notebook(home: Path, resource: Mapping[str, Any]) -> Journal:
    """Where a process without a journal writes down what it is losing, in case it is killed.

    Raises:
        OSError: the directory cannot be written.
    """
    return Journal.create(home, fsync="interval", max_bytes=_BOUND, about={"resource": resource, _NOTE: True})


def leave(home: Path, resource: Mapping[str, Any], events: list[Event]) -> None:
    """Write a note, as a journal with one unit: whoever takes over journals takes it over as well."""
    try:
        journal = notebook(home, resource)
        held = Held(len(events), events, 0, 0, commit=Commit.REPORTED.value)
        held.place = journal.append(PREPARED, encode_unit(events), unit=True, bounded=False)
        journal.append(RELEASED, encode_release(held))
        journal.close(remove=False)
    except OSError as error:
        line = "otel_activity: %d records about losses are lost as well: %s cannot be written (%s)"
        log_safely(logging.ERROR, line, len(events), home, error.strerror)


def notes(home: Path) -> Iterator[Note]:
    """The notes of processes that ended; journals with more than a note are left alone."""
    if not home.is_dir():
        return
    try:
        others = {path for path in home.iterdir() if not _is_note(path)}
        for journal in islice(orphans(home, others), _AT_ONCE):
            events: list[Event] = []
            for record, _ in journal.recover(Losses()):
                if record.kind == PREPARED:
                    events += (event.unpacked() for event in decode_unit(record.payload)[0])
            payload = journal.losses()
            if payload:
                events += (event.unpacked() for event in decode_unit(payload)[0])
            yield Note(journal, events)
    except (OSError, ValueError) as error:
        log_safely(
            logging.ERROR, "otel_activity: notes in %s cannot be read (%s)", home, type(error).__name__
        )


def _is_note(path: Path) -> bool:
    try:
        return f'"{_NOTE}":true'.encode() in (path / "about.json").read_bytes()
    except OSError:
        return False
