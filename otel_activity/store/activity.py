"""`ActivityStore`: find events, read one entity's history, follow what is stored."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from otel_activity.codec.rows import event_from_row
from otel_activity.errors import ConfigurationError
from otel_activity.events import Event, ResourceInfo
from otel_activity.store.connection import Reader, Row, StoreAddress
from otel_activity.store.filters import EventFilter, Position
from otel_activity.store.queries import Query, Selection, static

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from types import TracebackType
    from uuid import UUID

    import psycopg

__all__ = ["ActivityStore", "Follower", "Page", "StoredEvent", "position"]

DEFAULT_LOOKBACK: Final = timedelta(hours=1)
POLL_ROWS: Final = 5_000
"""Events of one poll: what a burst may cost in memory; the next poll goes on where this one stopped."""
RETURNED_KEPT: Final = 20_000
"""Events that a follower remembers so as not to return them again after a failover: about 2 MB."""
BUSY_SHARE: Final = 9
"""`ActivityStore.tail` rests this many times as long as its last poll took: at most a tenth of the time."""


class StoredEvent(Event, kw_only=True):
    """An event as the store returns it, with what produced it.

    Attributes:
        service: ``service.name`` of what recorded it.
        resource: its whole OpenTelemetry resource; `None` if the store does not have it.
    """

    service: str
    resource: ResourceInfo | None = None


@dataclass(frozen=True)
class Page:
    """One page of a search, newest first.

    Attributes:
        events: the events.
        cursor: give it to the next search to go on; `None` when there is nothing further.
    """

    events: tuple[StoredEvent, ...]
    cursor: str | None


class ActivityStore:
    """Reads the events. Opens one connection when it is first needed and opens it again after a loss.

    Every read is one read-only transaction. One thread reads at a time; the others wait. Use it as a context
    manager, or call `close`.

    Args:
        dsn: a PostgreSQL connection string; the user needs SELECT on the tables.
        schema: schema of the tables.
        tenant: restrict everything to the events of this tenant, whatever a filter says. Events without a
            tenant are then not seen either.

    Raises:
        ConfigurationError: the connection string or the schema's name is wrong in itself.
    """

    def __init__(self, dsn: str, *, schema: str = "activity", tenant: str | None = None) -> None:
        self._reader = Reader(StoreAddress(dsn, schema))
        self._schema = schema
        self._tenant = tenant

    def __enter__(self) -> ActivityStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. A later read opens another."""
        self._reader.close()

    def search(
        self, wanted: EventFilter | None = None, *, limit: int = 100, cursor: str | None = None
    ) -> Page:
        """Find events, newest first.

        Paging by the cursor neither skips nor repeats an event, also when many have the same time. An event
        that is stored meanwhile shows up on a later page only if its place is there.

        Args:
            wanted: which events; all by default.
            limit: events of one page, from 1 on.
            cursor: `Page.cursor` of the page before.

        Raises:
            ConfigurationError: the cursor is none, or the limit is below 1.
            StoreUnavailable, StoreRefused: the store cannot be reached, or refuses.
        """
        _check_limit(limit)
        after = None if cursor is None else Position.parse(cursor)
        rows = self._fetch(self._select(wanted).page(self._schema, limit + 1, after))
        events = tuple(map(_stored_event, rows[:limit]))
        more = len(rows) > limit
        return Page(events, position(events[-1]).cursor if more else None)

    def count(self, wanted: EventFilter | None = None) -> int:
        """How many events there are.

        Raises:
            StoreUnavailable, StoreRefused: the store cannot be reached, or refuses.
        """
        return int(self._fetch(self._select(wanted).count(self._schema))[0]["count"])

    def history(
        self,
        entity_type: str,
        entity_id: str,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        service: str | None = None,
        table: str | None = None,
        limit: int | None = None,
    ) -> list[StoredEvent]:
        """What happened to one entity, oldest first.

        Args:
            entity_type: ``activity.entity.type``.
            entity_id: ``activity.entity.id``; a composite key is a JSON array.
            since: earliest time, inclusive.
            until: latest time, exclusive.
            service: only what this service recorded; another one may use the same type and id.
            table: only what happened in this table.
            limit: only the newest so many; all by default.

        Raises:
            ConfigurationError: an argument is wrong in itself.
            StoreUnavailable, StoreRefused: the store cannot be reached, or refuses.
        """
        if limit is not None:
            _check_limit(limit)
        wanted = EventFilter(
            entity_type=entity_type,
            entity_id=entity_id,
            since=since,
            until=until,
            service=service,
            table=table,
        )
        rows = self._fetch(self._select(wanted).page(self._schema, limit, None))
        return [_stored_event(row) for row in reversed(rows)]

    def entity_types(self, *, limit: int = 100) -> list[str]:
        """The types of entity that there are events of, in order; at most `limit`.

        Raises:
            ConfigurationError: the limit is below 1.
            StoreUnavailable, StoreRefused: the store cannot be reached, or refuses.
        """
        _check_limit(limit)
        return [row["type"] for row in self._fetch(self._select(None).entity_types(self._schema, limit))]

    def follow(
        self, wanted: EventFilter | None = None, *, last: int = 0, lookback: timedelta = DEFAULT_LOOKBACK
    ) -> Follower:
        """Follow the events as they are stored; see `Follower` for what is guaranteed.

        Args:
            wanted: which events; all by default.
            last: how many of the newest stored ones the first poll returns.
            lookback: how much older than the moment it is stored an event's time may be.
        """
        return Follower(self._reader, self._select(wanted), last=last, lookback=lookback)

    def tail(
        self,
        wanted: EventFilter | None = None,
        *,
        last: int = 20,
        lookback: timedelta = DEFAULT_LOOKBACK,
        interval: float = 1.0,
        stop: threading.Event | None = None,
    ) -> Iterator[StoredEvent]:
        """The last events, oldest first, then each new one, until `stop` is set.

        Args:
            wanted: which events; all by default.
            last: how many stored ones to begin with.
            lookback: see `Follower`.
            interval: seconds between two looks; longer when looking itself takes long.
            stop: ends the iteration; without it only closing the generator does.

        Raises:
            StoreUnavailable, StoreRefused: the store cannot be reached, or refuses.
        """
        follower = self.follow(wanted, last=last, lookback=lookback)
        stop = stop or threading.Event()
        while not stop.is_set():
            yield from follower.poll()
            stop.wait(follower.rest(interval))

    def _select(self, wanted: EventFilter | None) -> Selection:
        return Selection(wanted or EventFilter(), tenant=self._tenant)

    def _fetch(self, query: Query) -> list[Row]:
        return self._reader.run(lambda cursor: cursor.execute(*query).fetchall())


class Follower:
    """Returns every event once, in the order in which the store's transactions made them visible.

    Guarantee: each matching event whose storing transaction commits after the first poll is returned by
    exactly one poll, however late it arrives and whatever its time, as long as its time is not further back
    than `lookback` at the moment of the poll. It does not rely on times rising: it asks for the rows of all
    transactions that were not surely over when the last poll looked, less those it has returned. A connection
    lost between two polls loses nothing, because what was seen is kept here and not in the session.

    Cost: a poll reads the events of the last `lookback`. A transaction that stays open on the server, in any
    database, makes each poll look again at everything stored since it began.

    Limits: an event further back than `lookback` is not returned; `ActivityStore.search` finds it. An event
    that ``otel-activity schema apply`` moves to another partition may be returned again. So may those within
    `lookback`, but for the newest that it has returned, when another server took over (a failover, a backup)
    or the server recovered from a crash: transactions then have ids that others had before. Within one poll
    the events are in the order of their times.
    """

    def __init__(self, reader: Reader, selection: Selection, *, last: int, lookback: timedelta) -> None:
        if last < 0:
            raise ConfigurationError("last", str(last), "below 0", "use 0 or more")
        if lookback <= timedelta(0):
            raise ConfigurationError("lookback", str(lookback), "not a positive time", "use for example 1h")
        self._reader = reader
        self._selection = selection
        self._last = last
        self._lookback = lookback
        self._horizon: int | None = None
        self._seen: dict[UUID, int] = {}
        self._run: str | None = None
        self._returned: deque[UUID] = deque(maxlen=RETURNED_KEPT)
        self._took = 0.0
        self._more = False

    def poll(self) -> list[StoredEvent]:
        """What has become visible since the last poll; the first poll returns the `last` newest events.

        Raises:
            StoreUnavailable, StoreRefused: the store cannot be reached, or refuses. Poll again: nothing is
                lost by it.
        """
        began = time.monotonic()
        rows = self._reader.run(self._start if self._horizon is None else self._advance)
        self._took = time.monotonic() - began
        return [_stored_event(row) for row in rows]

    def rest(self, interval: float) -> float:
        """Seconds to wait before the next poll: none in the middle of a burst, else at least `interval`."""
        return 0.0 if self._more else max(interval, BUSY_SHARE * self._took)

    def _start(self, cursor: psycopg.Cursor[Row]) -> list[Row]:
        snapshot = self._snapshot(cursor)
        schema = self._reader.address.schema
        rows = cursor.execute(*self._selection.page(schema, self._last, None)).fetchall()
        # Visible already, but of transactions that the next poll will look at again.
        window = {"lookback": self._lookback, "next": snapshot["next"], "horizon": snapshot["horizon"]}
        visible = cursor.execute(*self._selection.arrived(schema, **window)).fetchall()
        self._seen = {row["id"]: row["transaction"] for row in visible}
        self._horizon, self._run = snapshot["horizon"], snapshot["run"]
        self._returned.extend(row["id"] for row in rows[::-1])
        return rows[::-1]

    def _advance(self, cursor: psycopg.Cursor[Row]) -> list[Row]:
        snapshot = self._snapshot(cursor)
        if snapshot["run"] != self._run or snapshot["next"] < (self._horizon or 0):
            self._look_again(snapshot)
        query = self._selection.arrivals(
            self._reader.address.schema,
            lookback=self._lookback,
            next=snapshot["next"],
            horizon=self._horizon,
            seen=list(self._seen),
            limit=POLL_ROWS,
        )
        rows = cursor.execute(*query).fetchall()
        self._more = len(rows) == POLL_ROWS
        self._seen.update((row["id"], row["transaction"]) for row in rows)
        self._returned.extend(row["id"] for row in rows)
        if not self._more:
            self._horizon = snapshot["horizon"]
            self._seen = {key: number for key, number in self._seen.items() if number >= self._horizon}
        return rows

    def _look_again(self, snapshot: Row) -> None:
        """Ids that are given out now may have been others' before: none of them tells what is new."""
        self._seen = {**dict.fromkeys(self._returned, 0), **self._seen}
        self._horizon, self._run = 0, snapshot["run"]

    @staticmethod
    def _snapshot(cursor: psycopg.Cursor[Row]) -> Row:
        return cursor.execute(static("snapshot")).fetchone() or {}


def _check_limit(limit: int) -> None:
    if limit < 1:
        raise ConfigurationError("limit", str(limit), "below 1", "use 1 or more")


def _stored_event(row: Row) -> StoredEvent:
    event = event_from_row(row)
    resource = row["resource"]
    return StoredEvent(
        **{name: getattr(event, name) for name in Event.__struct_fields__},
        service=row["service"],
        resource=None if resource is None else ResourceInfo(resource),
    )


def position(event: Event) -> Position:
    """The event's place; its `Position.cursor` lets a search go on after it."""
    return Position(event.time // 1000, event.id)
