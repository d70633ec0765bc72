"""An append-only journal on disk: what a process has prepared and decided, readable after any kind of death.

One process writes one journal: a directory with a lock file and segments of bounded size. Segments are
deleted from the oldest on, never out of order, so a mark that is still needed is never deleted before the
unit that it belongs to.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
import threading
import zlib
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import msgspec
import uuid_utils

from otel_activity.delivery.filelock import try_lock
from otel_activity.delivery.page import LossPage, read_page
from otel_activity.delivery.records import (
    FORMAT,
    HEADER_SIZE,
    RECORD_SIZE,
    Damage,
    Record,
    frame,
    parse,
    read_header,
    scan,
    segment_header,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = ["ON_PAGE", "Journal", "JournalFull", "Kept", "Losses", "Place", "orphans"]

_logger: Final = logging.getLogger("otel_activity")
_LOCK: Final = "lock"
_ABOUT: Final = "about.json"
_LOSSES: Final = "losses"
_SUFFIX: Final = ".seg"
_PASSING: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""What says nothing about a file, and passes."""
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_LARGEST_SEGMENT: Final = 8 << 20
"""Large enough that a new file is rare, small enough to be read whole when it is adopted."""
_WINDOW: Final = 1 << 17
"""Bytes that are read at once."""
_MOST_UNSYNCED: Final = 100
"""Syncs that failed and are remembered: who waited for one asks at once."""
_WAIT: Final = 0.05
"""Seconds that background work waits for the lock: its holder may be a request that a signal handler
interrupted, and that handler may be waiting for the background."""

_NEW_FILE: Final = (
    os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
)
_datasync: Final = getattr(os, "fdatasync", os.fsync)
_crc32 = zlib.crc32
_new = tuple.__new__


class JournalFull(Exception):
    """The journal has reached its bound; nothing was written."""


class Place(NamedTuple):
    """Where a record stands."""

    number: int
    segment: int
    offset: int
    length: int


class Placed(Protocol):
    """Whatever a record is about."""

    place: Place | None


@dataclass
class Losses:
    """What a reader could not read.

    Attributes:
        bytes: that are no record and no torn tail.
        records: missing numbers between records that were read.
        tail: more records may be missing at the very end, where no number tells.
        torn: bytes of writes that were interrupted.
        events: that are known to be lost, because a record that was read names them.
        named: records among the missing ones that nobody needs to guess about.
    """

    bytes: int = 0
    records: int = 0
    tail: bool = False
    torn: int = 0
    events: int = 0
    named: int = 0
    _missing: list[range] = field(default_factory=list, repr=False)
    _expected: int | None = field(default=None, repr=False)

    def __bool__(self) -> bool:
        return bool(self.bytes or self.records)

    def begin(self, first: int) -> None:
        """A segment begins with the number `first`."""
        self._count(first)
        self._expected = first

    def found(self, number: int) -> None:
        """A record was read."""
        self._count(number)
        self._expected = number + 1

    def _count(self, number: int) -> None:
        if self._expected is not None and number > self._expected:
            self.records += number - self._expected
            self._missing.append(range(self._expected, number))
            self.tail = False

    def lacks(self, number: int) -> bool:
        """Whether a record is missing that others stand around; not one of a segment that was deleted."""
        return any(number in gap for gap in self._missing)

    @property
    def guessed(self) -> int:
        """Records of which nobody knows what they were; at least one where only bytes are missing."""
        return self.records - self.named if self.records else int(self.bytes > 0)

    def damaged(self, damage: Damage) -> None:
        """Bytes were skipped."""
        size = damage.end - damage.start
        if damage.torn:
            self.torn += size
        else:
            self.bytes += size
            self.tail = True

    @property
    def following(self) -> int:
        """Number for the next record."""
        return self._expected or 0


ON_PAGE: Final = Place(-1, -1, 0, 0)
"""A record that is no record: what the page says."""


class Kept(NamedTuple):
    """A journal that was left for exporters which whoever had it last does not have."""

    path: Path
    absent: list[str]
    """These exporters."""
    units: int
    """That they need."""


def orphans(
    home: Path,
    known: set[Path],
    exporters: Collection[str] = (),
    kept: Callable[[Kept], None] | None = None,
) -> Iterator[Journal]:
    """The journals of dead processes below `home`, taken over, the oldest first.

    Args:
        home: directory with one directory for each process.
        known: journals that this process holds; their locks must not be touched. One that cannot be opened
            is added, so that it is reported once.
        exporters: of this process, and those that nobody is to wait for.
        kept: told of journals that wait for others alone; without it they are taken over as well.

    Raises:
        OSError: there are no more descriptors, or the directory cannot be read.
    """
    try:
        paths = sorted(path for path in home.iterdir() if is_journal(path))
    except FileNotFoundError:
        return
    for path in paths:
        if path in known:
            continue
        try:
            left = None if kept is None else _kept_for_others(path, exporters)
            journal = _adopted(path) if left is None else None
        except OSError as error:
            if error.errno in _PASSING:
                raise
            known.add(path)
            _logger.error("otel_activity: the journal %s cannot be opened (%s)", path, error.strerror)
            continue
        if left is not None and kept is not None:
            kept(left)
        elif journal is not None:
            yield journal


def _kept_for_others(path: Path, exporters: Collection[str]) -> Kept | None:
    try:
        said = (path / _LOCK).read_bytes()
        absent, units = msgspec.json.decode(said, type=tuple[list[str], int])
    except (FileNotFoundError, ValueError):
        return None
    return None if any(name in exporters for name in absent) else Kept(path, absent, units)


def is_journal(path: Path) -> bool:
    """Whether a directory holds the journal of one process."""
    if not path.is_dir():
        return False
    return bool(_UUID.fullmatch(path.name)) or (path / _LOCK).exists() or any(path.glob(f"*{_SUFFIX}"))


def is_held(path: Path) -> bool:
    """Whether a living process has the journal; it is not kept from anybody by the question.

    Raises:
        OSError: the lock cannot be opened.
    """
    lock = try_lock(str(path / _LOCK))
    if lock is None:
        return True
    os.close(lock)
    return False


def _adopted(path: Path) -> Journal | None:
    try:
        lock = try_lock(str(path / _LOCK))
    except FileNotFoundError:  # another process finished it just now
        return None
    if lock is None:
        return None
    try:
        return Journal(path, lock)
    except OSError:
        os.close(lock)
        raise


class Journal:
    """One journal, held by its lock. Appending and reading are for any thread, deleting for one.

    Args:
        path: its directory.
        lock: descriptor that holds the lock.
        fsync: ``always``, ``interval`` (whoever calls `sync` decides when) or ``never``.
        max_bytes: bound for `append`; None for none.
    """

    def __init__(
        self, path: Path, lock: int, *, fsync: str = "interval", max_bytes: int | None = None
    ) -> None:
        self.path = path
        self.lock = threading.RLock()
        self.page: LossPage | None = None
        """What its process is losing; None when it was taken over."""
        self.begun = 0
        """Units that were begun, here or in what was taken over."""
        self.opened: dict[int, int] = {}
        """The same for each segment; written by appending threads."""
        self._finished: dict[int, int] = {}
        self._owner = lock
        self._fsync = fsync
        self.always = fsync == "always"
        """Whether what must not be lost waits for the disk: see `secure`."""
        self._max_bytes = max_bytes
        self._segment_bytes = _LARGEST_SEGMENT
        if max_bytes is not None:
            self._segment_bytes = min(_LARGEST_SEGMENT, max(max_bytes // 8, 4096))
        self._sizes = dict(sorted((int(found.stem), found.stat().st_size) for found in self._files()))
        self._active = max(self._sizes, default=0)
        self._descriptor: int | None = None
        self._offset = 0
        self._next = 0
        self._written = sum(self._sizes.values())
        self._deleted = 0
        self._dirty = False
        self._cramped = False
        """A record found no room, for which what nobody needs any more is to be given back."""
        self._retired: list[int] = []
        # Re-entrant, because a signal handler that commits may interrupt its owner.
        self._syncing = threading.RLock()
        self._synced = -1
        self._unsynced: list[tuple[int, int]] = []
        self._reading = threading.Lock()
        self._reader: tuple[int, int] | None = None
        self._seen: tuple[int, int, bytes] | None = None
        self._busy = False

    @classmethod
    def create(
        cls, home: Path, *, fsync: str, max_bytes: int, about: Mapping[str, Any] | None = None
    ) -> Journal:
        """A new and empty journal below `home`.

        Args:
            home: directory with one directory for each process.
            fsync: see `Journal`.
            max_bytes: see `Journal`.
            about: what whoever takes it over should know of its process.

        Raises:
            OSError: the directory cannot be written.
        """
        _make_private(home)
        while True:
            path = home / str(uuid_utils.uuid7())
            path.mkdir(mode=0o700)
            # A process that looks for orphans may see the directory before we hold its lock: let it have it.
            with suppress(FileNotFoundError):
                lock = try_lock(str(path / _LOCK))
                if lock is not None:
                    break
        journal = cls(path, lock, fsync=fsync, max_bytes=max_bytes)
        try:
            journal._write_about(about or {})
            journal.page = LossPage(path / _LOSSES)
            journal._roll()
            if fsync != "never":
                _sync_directory(home)
        except OSError:
            journal.close(remove=True)
            raise
        return journal

    def _write_about(self, about: Mapping[str, Any]) -> None:
        descriptor = os.open(self.path / _ABOUT, _NEW_FILE, 0o600)
        try:
            os.write(descriptor, msgspec.json.encode(about))
            if self._fsync != "never":
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def about(self) -> dict[str, Any]:
        """What its process said of itself; empty when that cannot be read."""
        try:
            return msgspec.json.decode((self.path / _ABOUT).read_bytes(), type=dict[str, Any])
        except (OSError, ValueError):
            return {}

    def losses(self) -> bytes:
        """What the page of its process says; empty when that says nothing.

        Raises:
            OSError: it cannot be read.
        """
        return read_page(self.path / _LOSSES)

    def forget_losses(self) -> None:
        """Remove the page: what it says is written elsewhere."""
        (self.path / _LOSSES).unlink(missing_ok=True)

    def leave_for(self, absent: Sequence[str], units: int) -> None:
        """Give up a journal that only exporters need which this process does not have.

        The lock file says so: who lacks them, too, need not read all of it only to find that out.

        Raises:
            OSError: it cannot be written; the journal is given up all the same.
        """
        try:
            os.ftruncate(self._owner, 0)
            os.write(self._owner, msgspec.json.encode((list(absent), units)))
        finally:
            self.close(remove=False)

    def _files(self) -> Iterator[Path]:
        return (found for found in self.path.glob(f"*{_SUFFIX}") if found.stem.isdigit())

    def _file(self, segment: int) -> Path:
        return self.path / f"{segment:08d}{_SUFFIX}"

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self._written - self._deleted

    @property
    def room(self) -> int:
        """Bytes up to the bound; 0 if it is reached, or if there is none."""
        return max(0, (self._max_bytes or 0) - self.size)

    @property
    def segments(self) -> int:
        """Number of files."""
        return len(self._sizes)

    @property
    def last(self) -> int:
        """Number of the newest record; -1 when there is none."""
        return self._next - 1

    # --- appending ---------------------------------------------------------------------------

    def append(
        self,
        kind: int,
        payload: bytes,
        *,
        unit: bool = False,
        bounded: bool = True,
        owner: Placed | None = None,
    ) -> Place:
        """Write one record.

        Args:
            kind: of the record.
            payload: its content.
            unit: a unit begins: it counts against the bound, and its segment stays until it is finished.
                (Marks go beyond the bound: without them a unit that is there already becomes a riddle.)
            bounded: whether it does count; what says that something was lost must not be lost as well.
            owner: is told the place as soon as there is a record, also when its writer is interrupted then.

        Raises:
            JournalFull: a unit would exceed the bound.
            OSError: disk full, or worse; nothing is left of the record.
        """
        # Runs on the request's thread, twice for each transaction: each line here was measured.
        crc = _crc32(payload)
        size = RECORD_SIZE + len(payload)
        with self.lock:
            if self._busy:  # a signal handler interrupted this very thread in the middle of a record
                raise OSError("a record is being written")
            self._busy = True
            try:
                if unit and bounded and self._max_bytes is not None and self.size + size > self._max_bytes:
                    self._cramped = True
                    raise JournalFull
                if self._descriptor is None or (
                    self._offset + size > self._segment_bytes and self._offset > HEADER_SIZE
                ):
                    self._roll()
                number, segment, offset = self._next, self._active, self._offset
                place: Place = _new(Place, (number, segment, offset, size))
                try:
                    self._write(frame(number, kind, payload, crc))
                    if owner is not None:
                        owner.place = place
                    self._next = number + 1
                except BaseException:
                    if self._next == number:  # interrupted, or the disk refuses: there is no such record
                        self._take_back(offset)
                        if owner is not None:
                            owner.place = None
                    raise
                if unit:
                    self.opened[segment] += 1
                    self.begun += 1
                return place
            finally:
                self._busy = False

    def append_soon(self, kind: int, payload: bytes) -> bool:
        """As `append`, from the background: False when the lock is not to be had."""
        if not self.lock.acquire(timeout=_WAIT):
            return False
        try:
            self.append(kind, payload)
        finally:
            self.lock.release()
        return True

    def _write(self, data: bytes) -> None:
        descriptor = self._descriptor
        if descriptor is None:
            raise OSError("the journal is closed")
        try:
            size = len(data)
            done = os.write(descriptor, data)
            while done < size:
                done += os.write(descriptor, data[done:])
        except OSError:
            self._cramped = True
            self._undo(descriptor)
            raise
        self._offset += size
        self._written += size
        self._sizes[self._active] = self._offset
        self._dirty = True

    def _take_back(self, offset: int) -> None:
        """As if nothing had been written from `offset` on."""
        if self._descriptor is not None:
            self._written -= self._offset - offset
            self._offset = self._sizes[self._active] = offset
            self._undo(self._descriptor)

    def _undo(self, descriptor: int) -> None:
        """Cut half a record off; where even that fails, go on in another segment."""
        try:
            os.ftruncate(descriptor, self._offset)
        except OSError:
            self._retire()

    def _roll(self) -> None:
        """Begin the next segment."""
        if self._owner < 0:
            raise OSError("the journal is closed")
        self._retire()
        segment = self._active + 1
        self._descriptor = os.open(self._file(segment), _NEW_FILE | os.O_APPEND, 0o600)
        self._active, self._offset = segment, 0
        self._sizes[segment] = self.opened[segment] = 0
        try:
            self._write(segment_header(self._next))
        except OSError:  # records behind half a header could not be found again
            self._discard(segment)
            raise
        if self._fsync != "never":
            _sync_directory(self.path)

    def _discard(self, segment: int) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
        del self._sizes[segment], self.opened[segment]
        with suppress(OSError):
            self._file(segment).unlink()

    def _retire(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        if self._fsync != "never" and self._dirty:
            self._retired.append(descriptor)
        else:
            os.close(descriptor)

    def secure(self, number: int) -> None:
        """With ``always``: return when a record is on disk, for which many wait together.

        The first of them syncs all that was written until then. Who comes meanwhile waits for it, and then
        one of those syncs for all of them. So a sync that began before a record was written never counts for
        it.

        Args:
            number: of the record.

        Raises:
            OSError: the disk refused. What a sync that failed was to cover may not be there, whatever a later
                one says.
        """
        if not self.always:
            return
        with self._syncing:
            if self._synced < number:
                self._sync_all()
            if any(first <= number <= last for first, last in self._unsynced):
                raise OSError(errno.EIO, "what was written could not be synced")

    def _sync_all(self) -> None:
        """Sync every record there is now; called under the lock of those who sync."""
        with self.lock:
            last = self._next - 1
            descriptors = self._unsynced_files()
        if self._sync_these(descriptors) is not None:
            self._unsynced = [*self._unsynced[-_MOST_UNSYNCED:], (self._synced + 1, last)]
        self._synced = max(self._synced, last)

    def _unsynced_files(self) -> list[int]:
        """Descriptors of what was written and not synced, for whoever syncs and closes them; under the lock.

        Raises:
            OSError: there are no more descriptors. Nothing has changed then.
        """
        # A copy of the current one, so that appending goes on, and may even begin another segment, meanwhile.
        current = [] if self._descriptor is None else [os.dup(self._descriptor)]
        descriptors, self._retired = [*self._retired, *current], []
        self._dirty = False
        return descriptors

    @staticmethod
    def _sync_these(descriptors: list[int]) -> OSError | None:
        """Sync and close them all; what went wrong, if anything did."""
        trouble: OSError | None = None
        for descriptor in descriptors:
            try:
                _datasync(descriptor)
            except OSError as error:
                trouble = error
            finally:
                os.close(descriptor)
        return trouble

    def sync(self) -> None:
        """Make what was appended durable against the loss of power.

        Raises:
            OSError: the disk refuses.
        """
        if self.always and self._dirty and self._syncing.acquire(timeout=_WAIT):
            try:
                self._sync_all()
            finally:
                self._syncing.release()
        if self._fsync != "interval" or not self._dirty or not self.lock.acquire(timeout=_WAIT):
            return
        try:
            descriptors = self._unsynced_files()
        finally:
            self.lock.release()
        trouble = self._sync_these(descriptors)
        if trouble is not None:
            self._dirty = True
            raise trouble

    # --- reading -----------------------------------------------------------------------------

    def recover(self, losses: Losses) -> Iterator[tuple[Record, int]]:
        """All records of a journal that was taken over, each with its segment; then it can be appended to.

        Args:
            losses: filled while reading.

        Raises:
            OSError: a segment cannot be read.
            ValueError: a newer version wrote it; it is left alone.
        """
        for segment in sorted(self._sizes):
            data = self._file(segment).read_bytes()
            header = read_header(data)
            if header is not None:
                version, first = header
                if version > FORMAT:
                    raise ValueError(f"journal format {version}; this version reads {FORMAT}")
                losses.begin(first)
            elif data:
                self._damaged_header(data, losses)
            for found in scan(data):
                if isinstance(found, Damage):
                    losses.damaged(found)
                else:
                    losses.found(found.number)
                    yield found, segment
        self._next = losses.following

    def _damaged_header(self, data: bytes, losses: Losses) -> None:
        torn = len(data) < HEADER_SIZE
        losses.damaged(Damage(0, min(len(data), HEADER_SIZE), torn))

    def read(self, place: Place) -> bytes | None:
        """The payload of a record; None when it is not there any more, or damaged.

        Raises:
            OSError: the segment is there, and cannot be read.
        """
        if place is ON_PAGE:
            return self.losses()
        try:
            with self._reading:
                data, start = self._window(place)
        except FileNotFoundError:
            data, start = self._read_open(place), place.offset
        record = parse(data, place.offset - start)
        return record.payload if record is not None and record.number == place.number else None

    def _window(self, place: Place) -> tuple[bytes, int]:
        """Bytes of the segment that hold the record, and where they begin."""
        seen = self._seen
        if seen is not None and seen[0] == place.segment:
            _, start, data = seen
            if start <= place.offset and place.offset + place.length <= start + len(data):
                return data, start
        # What stands behind it is likely to be read next. Each call of the system offers the interpreter to
        # other threads, and waiting to get it back takes longer than reading a hundred records.
        data = self._read(place.segment, place.offset, max(place.length, _WINDOW))
        self._seen = (place.segment, place.offset, data)
        return data, place.offset

    def _read(self, segment: int, offset: int, length: int) -> bytes:
        if self._reader is None or self._reader[0] != segment:
            self._close_reader()
            flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
            self._reader = (segment, os.open(self._file(segment), flags))
        descriptor = self._reader[1]
        os.lseek(descriptor, offset, os.SEEK_SET)
        chunks = []
        while length and (chunk := os.read(descriptor, length)):
            chunks.append(chunk)
            length -= len(chunk)
        return b"".join(chunks)

    def _read_open(self, place: Place) -> bytes:
        """From the segment that is written to, although its name is gone; empty if that is another one."""
        with self.at_rest():
            descriptor = self._descriptor
            if descriptor is None or place.segment != self._active or not hasattr(os, "pread"):
                return b""
            return os.pread(descriptor, place.length, place.offset)

    @property
    def in_place(self) -> bool:
        """Whether whoever looks for journals would find this one, and find it held. Somebody may have deleted
        or moved the directory, or tidied up files that seemed old.
        """
        try:
            return os.stat(self.path / _LOCK).st_ino == os.fstat(self._owner).st_ino
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:  # nobody can tell
            return True

    def _close_reader(self) -> None:
        self._seen = None
        if self._reader is not None:
            os.close(self._reader[1])
            self._reader = None

    # --- finishing ---------------------------------------------------------------------------

    def take(self, segment: int) -> None:
        """A unit of a journal that was taken over begins in the segment, and is still needed."""
        self.begun += 1
        self.opened[segment] = self.opened.get(segment, 0) + 1

    def finish(self, segment: int) -> None:
        """A unit that begins in the segment needs it no longer."""
        self._finished[segment] = self._finished.get(segment, 0) + 1

    def stale(self) -> list[int]:
        """The oldest segments that no unit needs, up to the one that is written to. That one is among them if
        it takes the room that a record lacked; then the next record begins another one.
        """
        found = []
        for segment in sorted(self._sizes):
            if not self._unneeded(segment) or (segment == self._active and not self._leaves(segment)):
                break
            found.append(segment)
        return found

    def _unneeded(self, segment: int) -> bool:
        return self._finished.get(segment, 0) >= self.opened.get(segment, 0)

    def _leaves(self, segment: int) -> bool:
        """Whether the segment that is written to was given up, because there is no room beside it."""
        if not self._cramped or not self.lock.acquire(timeout=_WAIT):
            return False
        try:
            if segment != self._active or self._busy or not self._unneeded(segment):
                return False
            self._retire()
            self._cramped = False
            return True
        finally:
            self.lock.release()

    def prune(self, segments: list[int]) -> None:
        """Delete segments that are `stale`."""
        for segment in segments:
            with self._reading:
                if self._reader is not None and self._reader[0] == segment:
                    self._close_reader()
            with suppress(FileNotFoundError):
                self._file(segment).unlink()
            self._deleted += self._sizes.pop(segment)
            self.opened.pop(segment, None)
            self._finished.pop(segment, None)

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Nobody appends meanwhile; unless whoever does cannot go on before us."""
        held = self.lock.acquire(timeout=_WAIT)
        try:
            yield
        finally:
            if held:
                self.lock.release()

    def close(self, *, remove: bool) -> None:
        """Give the journal up; what is in it stays for the next process, unless it is removed.

        Raises:
            OSError: it cannot be removed or written.
        """
        if not remove:
            self.sync()
        self.abandon(removing=remove)

    def abandon(self, *, removing: bool = False) -> None:
        """Close all descriptors, without a word to the file: in a forked child they are the parent's.

        Closing does not give the lock back while the parent holds its own copy of the descriptor.
        """
        if self._reading.acquire(timeout=_WAIT):  # in a forked child a thread of the parent may hold it
            self._close_reader()
            self._reading.release()
        if self.page is not None:
            self.page.close()
        owner, self._owner = self._owner, -1
        descriptors = [*self._retired, *(() if self._descriptor is None else (self._descriptor,))]
        self._retired, self._descriptor = [], None
        for descriptor in descriptors:
            os.close(descriptor)
        try:
            if removing:
                self._remove()
        finally:
            if owner >= 0:
                os.close(owner)

    def _remove(self) -> None:
        # The lock file last but one: who finds the directory without it finds it empty.
        for found in (*self._files(), self.path / _LOSSES, self.path / _ABOUT, self.path / _LOCK):
            with suppress(FileNotFoundError):
                found.unlink()
        with suppress(OSError):
            self.path.rmdir()


def _make_private(path: Path) -> None:
    """Make what is missing of a path, for this user alone; `mkdir(parents=True)` would open the parents."""
    if not path.is_dir():
        _make_private(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
        with suppress(OSError):  # one that may not be read
            _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    if sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
