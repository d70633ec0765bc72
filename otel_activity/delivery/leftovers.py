"""What dead processes left in their journals: looked at, and left as it is."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from otel_activity.delivery.holding import take_over
from otel_activity.delivery.journal import Journal, is_held, is_journal

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["Leftovers", "find_leftovers"]


class Leftovers(NamedTuple):
    """What waits in a directory of journals for somebody who delivers it.

    Attributes:
        events: of dead processes that some exporter has not confirmed.
        homes: the directories, one for each service, that they are in.
        unreadable: journals that this user may not read, or this version cannot.
    """

    events: int = 0
    homes: tuple[Path, ...] = ()
    unreadable: int = 0


def find_leftovers(directory: Path, exporters: Sequence[str]) -> Leftovers:
    """Look for events that only a journal of a dead process has.

    Nothing is taken over or written. A journal that somebody takes over meanwhile does not count.

    Args:
        directory: of the journals of all services; it need not exist.
        exporters: of a process that would take them over.

    Raises:
        OSError: the directory cannot be read.
    """
    events, unreadable = 0, 0
    homes: list[Path] = []
    for home, path in _journals(directory):
        try:
            waiting = _waiting(path, exporters)
        except FileNotFoundError:  # somebody took it over just now, and is done with it
            continue
        except (OSError, ValueError):
            unreadable += 1
            continue
        events += waiting
        if waiting and home not in homes:
            homes.append(home)
    return Leftovers(events, tuple(homes), unreadable)


def _journals(directory: Path) -> Iterator[tuple[Path, Path]]:
    """Each journal with the directory of its service."""
    if not directory.is_dir():
        return
    for home in sorted(path for path in directory.iterdir() if path.is_dir()):
        with suppress(FileNotFoundError):
            yield from ((home, path) for path in sorted(home.iterdir()) if is_journal(path))


def _waiting(path: Path, exporters: Sequence[str]) -> int:
    """Events of a journal that somebody needs; 0 when its process lives.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    if is_held(path):
        return 0
    # Read without its lock, so that whoever wants to take it over can: what stands there does not change.
    journal = Journal(path, -1)
    try:
        found = take_over(journal, exporters)
        return sum(held.count for held in (*found.released, *found.undecided))
    finally:
        journal.abandon()
