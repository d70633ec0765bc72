"""What is known of one DBAPI connection's open transaction."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from otel_activity.events import Unit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from otel_activity.capture.autocommit import Announced
    from otel_activity.capture.proof import Cluster
    from otel_activity.capture.updates import Updates
    from otel_activity.events import Entry

__all__ = ["Transaction", "anchor_of"]


class Transaction:
    """One DBAPI connection's open transaction: its unit, its savepoints, the batch that is being written.

    Attributes:
        key: ``id()`` of the DBAPI connection, under which the bracket finds it.
        anchor: weak reference to what lives as long as the connection (see `Bracket`); never the only owner.
        via: attribute that leads from the DBAPI connection to the anchor (``driver_connection``) or from
            the anchor to it (``dbapi_connection``); empty when they are the same object.
        is_driver: whether the anchor is the driver's own connection.
        dialect: SQLAlchemy's dialect.
        database: name of the database.
        cluster: what proves its commits; None when they cannot be proven.
        xid: the database's own id of the transaction, once it was read.
        autocommit: what was written last was committed by itself; read again after each statement.
        unit: captured entries; None while there are none.
        inside: a guarded method of this connection is running: what it calls in turn is its own business.
        poisoned: a statement failed on the server, which aborts a PostgreSQL transaction until a savepoint.
        url: of the engine.
        schemas: SQLAlchemy's ``schema_translate_map`` of the connection, if it has one.
        doubt: why the fate of the entries cannot be known even after a COMMIT.
        savepoints: name, number of entries and `poisoned` at each open savepoint.
        early: entries that joined before the first statement; they stand before all others.
        noted: what the UPDATEs of the current flush step tell; None if nobody wants to know.
        held: values read before a statement changes them, by instance state, until its after-event.
        matched: rows that the DELETEs of this flush step matched; None when the driver does not say.
        start: where in the unit the current batch of one flush step begins; -1 between batches.
        updates: entries of updates in the current batch.
        inserts: entries of inserts in the current batch.
        announced: under AUTOCOMMIT, the objects of the current flush step.
        written: under AUTOCOMMIT, by table and verb, whether each row sent was written; None: not known.
    """

    __slots__ = (
        "anchor",
        "announced",
        "autocommit",
        "cluster",
        "database",
        "dialect",
        "doubt",
        "early",
        "held",
        "inserts",
        "inside",
        "is_driver",
        "key",
        "matched",
        "noted",
        "poisoned",
        "savepoints",
        "schemas",
        "start",
        "unit",
        "updates",
        "url",
        "via",
        "written",
        "xid",
    )

    def __init__(self, key: int, anchor: Callable[[], Any], via: str, dialect: Any, database: str) -> None:
        self.key = key
        self.anchor = anchor
        self.via = via
        self.is_driver = via != "dbapi_connection"
        self.dialect = dialect
        self.database = database
        self.cluster: Cluster | None = None
        self.url: Any = None
        self.schemas: Mapping[str | None, Any] | None = None
        self.autocommit = False
        self.noted: Updates | None = None
        self.savepoints: list[tuple[str, int, bool]] = []
        self.early: list[Entry] = []
        self.held: dict[Any, dict[str, Any]] = {}
        self.announced: list[Announced] = []
        self.written: dict[tuple[Any, str], list[bool | None]] = {}
        self.reset()

    def reset(self) -> None:
        """Begin anew: the next transaction of the same connection."""
        if self.savepoints or self.early or self.held or self.announced or self.written:
            self.savepoints, self.early, self.held, self.announced, self.written = [], [], {}, [], {}
        self.xid: int | None = None
        self.unit: Unit | None = None
        self.inside = False
        self.poisoned = False
        self.doubt: str | None = None
        self.matched: int | None = None
        self.start = -1
        self.updates = 0
        self.inserts = 0

    def owns(self, raw: Any) -> bool:
        """Whether it belongs to that very connection, not to one that had its ``id()`` before."""
        anchor = self.anchor()
        if anchor is raw:
            return True
        if anchor is None or not self.via:
            return False
        if self.via == "driver_connection":
            return getattr(raw, "driver_connection", None) is anchor
        return anchor.dbapi_connection is raw

    def driver(self) -> Any:
        """The driver's own connection, or None when it is gone."""
        anchor = self.anchor()
        return anchor.dbapi_connection if self.via == "dbapi_connection" and anchor is not None else anchor

    def opened(self) -> Unit:
        """The unit, made when the first entry comes."""
        unit = self.unit
        if unit is None:
            unit = self.unit = Unit(None, system=self.dialect.name, database=self.database)
        return unit

    def take(self) -> Unit | None:
        """Take the unit out and forget all that belongs to it; None when nothing was captured."""
        self.start = -1
        self.updates = self.inserts = 0
        if self.early:
            self.admit()
        unit, self.unit = self.unit, None
        if self.savepoints:
            self.savepoints.clear()
        if self.held:
            self.held.clear()
        self.noted = None
        self.poisoned = False
        self.doubt = None
        self.xid = None
        return unit if unit is not None and unit.entries else None

    def admit(self) -> bool:
        """The transaction ends: entries that waited aside come first. Whether there are no others."""
        if not self.early:
            return False
        entries = self.opened().entries
        untouched = not entries
        entries[:0] = self.early
        self.early = []
        return untouched

    # One step of a flush (SQLAlchemy's `save_obj`) announces all its objects, runs the UPDATEs, then the
    # INSERTs, and then reports the inserted objects before the updated ones. Entries go in statement order.

    def close_batch(self) -> None:
        """The step is over: entries that come later stand behind its entries."""
        self.start = -1
        self.updates = self.inserts = 0

    def add_insert(self, entry: Entry) -> None:
        """An inserted row was reported."""
        unit = self.unit
        entries = (self.opened() if unit is None else unit).entries
        if self.start < 0:
            self.start = len(entries)
        entries.append(entry)
        self.inserts += 1

    def add_update(self, entry: Entry) -> None:
        """An updated row was reported; it stands before the rows that the same step inserted."""
        unit = self.unit
        entries = (self.opened() if unit is None else unit).entries
        if self.start < 0:
            self.start = len(entries)
        if self.inserts:
            entries.insert(self.start + self.updates, entry)
        else:
            entries.append(entry)
        self.updates += 1

    def add(self, entry: Entry) -> None:
        """Any other row was reported, in the order of the statements."""
        if self.start >= 0:
            self.close_batch()
        unit = self.unit
        (self.opened() if unit is None else unit).entries.append(entry)

    def mark(self, name: str) -> None:
        """SAVEPOINT. A name in use is hidden by the new one until that is released, as in SQL."""
        self.close_batch()
        self.savepoints.append((name, len(self.unit) if self.unit else 0, self.poisoned))

    def _find(self, name: str) -> int:
        for index in range(len(self.savepoints) - 1, -1, -1):
            if self.savepoints[index][0] == name:
                return index
        return -1

    def rollback_to(self, name: str) -> None:
        """Take away what came after the savepoint; the savepoint itself stays, as in SQL."""
        self.close_batch()
        self.held.clear()
        index = self._find(name)
        if index < 0:
            # Set on the driver's connection, unseen: nobody knows which entries it took away.
            self.poisoned = False
            self.doubt = "rolled back to a savepoint that was set outside SQLAlchemy"
            return
        _, position, self.poisoned = self.savepoints[index]
        if self.unit is not None:
            dropped = self.unit.entries[position:]
            self.unit.entries[position:] = [entry for entry in dropped if entry.survives]
            for entry in self.unit.entries[position:]:
                entry.rolled_back()
        del self.savepoints[index + 1 :]

    def release(self, name: str) -> None:
        """RELEASE SAVEPOINT: it and those set after it are gone, the entries stay."""
        self.close_batch()
        index = self._find(name)
        if index >= 0:
            del self.savepoints[index:]


def anchor_of(raw: Any, fairy: Any, gone: Callable[[object], None]) -> tuple[Callable[[], Any], str]:
    """A weak reference that dies no later than the connection.

    Adapted async connections cannot be referenced weakly, but the driver's can; sqlite3's cannot at all,
    so there the pool's proxy stands in, which is dropped when the connection goes back or away.
    """
    driver = getattr(raw, "driver_connection", None)
    for target, via in ((raw, ""), (driver, "driver_connection"), (fairy, "dbapi_connection")):
        if target is not None:
            try:
                return weakref.ref(target, gone), via
            except TypeError:
                continue
    raise TypeError(f"cannot follow the life of a {type(raw).__name__}")
