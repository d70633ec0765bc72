"""What the capture tests share: a recording delivery, two tables, and the truth as the server tells it."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
import pytest
from sqlalchemy import CheckConstraint, Engine, create_engine, exc, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from otel_activity import semconv
from otel_activity.events import Commit, Event, Redacted, Unit
from otel_activity.semconv import RedactionMode

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_activity.capture.bracket import Bracket

    Errors = type[Exception] | tuple[type[Exception], ...]

SYNC_DRIVERS = ("psycopg", "psycopg2")
ASYNC_DRIVERS = ("asyncpg", "psycopg")
_SQL = Path(__file__).parent / "sql"


def sql(name: str) -> str:
    """One of the SQL files beside this module."""
    return (_SQL / f"{name}.sql").read_text()


class Base(DeclarativeBase):
    """Models of the tests; the tables come from ``tables.sql`` (PostgreSQL) or `Base.metadata` (SQLite)."""


class Account(Base):
    __tablename__ = "account"
    __table_args__ = (CheckConstraint("name <> 'forbidden'"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    balance: Mapped[int] = mapped_column(default=0)


class Note(Base):
    __tablename__ = "note"
    __table_args__ = (CheckConstraint("body <> 'forbidden'"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str]


class Open:
    """A redactor that hides nothing."""

    default_mode = RedactionMode.MASK
    hashes = False

    def mode_of(self, name: str) -> RedactionMode | None:
        return None

    def mode_of_type(self, name: str) -> RedactionMode | None:
        return None

    def hide(self, value: Any, mode: RedactionMode) -> Any:
        return Redacted()

    def hide_in_text(self, value: Any, mode: RedactionMode) -> str:
        return "[redacted]"

    def clean(self, value: Any) -> Any:
        return value

    def scrub(self, encoded: bytes) -> bytes:
        return encoded

    def scrub_attributes(self, attributes: dict[str, Any]) -> dict[str, Any]:
        return attributes

    scrub_shared = scrub_attributes

    def scrub_key(self, part: str) -> str:
        return part


class Call(NamedTuple):
    """One call of the delivery port."""

    kind: str
    transaction_id: str
    size: int
    error: str | None


class Recorder:
    """A delivery that keeps what it is handed, and holds the bracket to the port's contract."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.events: list[Event] = []
        """Events of committed units, in the order of release."""
        self.doubtful: list[Event] = []
        """Events of undecided units."""
        self.broken: list[str] = []
        """Violations of the contract."""
        self._waiting: dict[int, Unit] = {}
        self._lock = threading.Lock()

    def _note(self, kind: str, unit: Unit) -> None:
        self.calls.append(Call(kind, unit.transaction_id, len(unit), unit.error))
        if not unit.entries:
            self.broken.append(f"{kind} of an empty unit")
        if any(entry.context is not None for entry in unit.entries) and kind != "aborted":
            self.broken.append(f"{kind} of a unit that still holds its request context")

    def prepare(self, unit: Unit) -> None:
        with self._lock:
            self._note("prepare", unit)
            if id(unit) in self._waiting:
                self.broken.append("prepared twice")
            self._waiting[id(unit)] = unit

    def committed(self, unit: Unit) -> None:
        with self._lock:
            self._note("committed", unit)
            if self._waiting.pop(id(unit), None) is None:
                self.broken.append("committed without prepare")
            if unit.commit is not Commit.REPORTED:
                self.broken.append(f"committed as {unit.commit}")
            self.events += unit.events()

    def aborted(self, unit: Unit) -> None:
        with self._lock:
            self._note("aborted", unit)
            self._waiting.pop(id(unit), None)

    def undecided(self, unit: Unit, error: BaseException | None) -> None:
        with self._lock:
            self._note("undecided", unit)
            if self._waiting.pop(id(unit), None) is None:
                self.broken.append("undecided without prepare")
            self.doubtful += unit.events()

    def unfinished(self) -> int:
        """Prepared units whose end was never told."""
        return len(self._waiting)

    # --- reading what was recorded -----------------------------------------------------------

    @property
    def kinds(self) -> list[str]:
        """The calls' names in order."""
        return [call.kind for call in self.calls]

    @property
    def ends(self) -> list[str]:
        """As `kinds`, without ``prepare``."""
        return [call.kind for call in self.calls if call.kind != "prepare"]

    def names(self, column: str = "name") -> list[Any]:
        """The new value of a column in each committed event that has one, in order."""
        return _after(self.events, column)

    def doubtful_names(self, column: str = "name") -> list[Any]:
        """As `names`, of the undecided events."""
        return _after(self.doubtful, column)

    def transactions(self) -> list[str]:
        """Transaction id of each committed event, in order."""
        return [event.attributes[semconv.TRANSACTION_ID] for event in self.events]

    def replayed(self, table: str = "account", column: str = "name") -> list[tuple[int, Any]]:
        """The rows that a table must hold if the committed events are the whole truth."""
        rows: dict[int, Any] = {}
        for event in self.events:
            if event.attributes[semconv.DB_COLLECTION_NAME] != table:
                continue
            key = int(event.attributes[semconv.ENTITY_ID])
            if event.name == semconv.ENTITY_DELETED:
                del rows[key]
            elif event.name == semconv.ENTITY_CREATED:
                assert key not in rows, f"row {key} created twice"
                rows[key] = after_of(event, column)
            else:
                assert key in rows, f"row {key} updated before it was created"
                rows[key] = after_of(event, column) if column in changes_of(event) else rows[key]
        return sorted(rows.items())


def _after(events: list[Event], column: str) -> list[Any]:
    return [after_of(event, column) for event in events if "after" in changes_of(event).get(column, {})]


def changes_of(event: Event) -> dict[str, Any]:
    """``activity.changes`` of an event."""
    found: dict[str, Any] = event.attributes[semconv.CHANGES]
    return found


def after_of(event: Event, column: str) -> Any:
    """The new value of a column."""
    return changes_of(event)[column].get("after")


class Scene:
    """One server, two databases, one recorder; engines made here are disposed at the end."""

    def __init__(self, recorder: Recorder, bracket: Bracket, dsn: str, other_dsn: str) -> None:
        self.recorder = recorder
        self.bracket = bracket
        self.dsn = dsn
        self.other_dsn = other_dsn
        self._engines: list[Engine] = []

    def engine(self, driver: str = "psycopg", *, other: bool = False, **options: Any) -> Engine:
        """A new engine on one of the databases."""
        dsn = self.other_dsn if other else self.dsn
        engine = create_engine(url_of(dsn, driver), **options)
        self._engines.append(engine)
        return engine

    def dispose(self) -> None:
        for engine in self._engines:
            engine.dispose()

    def ask(self, name: str, *, other: bool = False, **parameters: Any) -> list[tuple[Any, ...]]:
        """Run one of the SQL files on a connection of its own, unseen by SQLAlchemy."""
        with psycopg.connect(self.other_dsn if other else self.dsn, autocommit=True) as connection:
            cursor = connection.execute(sql(name).encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

    def check(self) -> None:
        """What was released is what the table holds: nothing missing, nothing extra."""
        assert self.recorder.replayed() == self.ask("rows")

    def when_asleep(self, action: str) -> threading.Thread:
        """Start a thread that cancels or terminates the backend once it sleeps in its COMMIT."""
        thread = threading.Thread(target=self._strike, args=(action,))
        thread.start()
        return thread

    def wait_asleep(self) -> int:
        """Wait for a backend that sleeps in its COMMIT; its process id."""
        return int(wait_for(lambda: self.ask("asleep"))[0][0])

    def _strike(self, action: str) -> None:
        self.ask(action, pid=self.wait_asleep())


def wait_for(condition: Callable[[], Any]) -> Any:
    """Poll until the condition holds; its value. A test that waits in vain ends by its timeout."""
    while not (found := condition()):
        time.sleep(0.01)
    return found


def url_of(dsn: str, driver: str) -> str:
    """An SQLAlchemy URL for a driver."""
    return dsn.replace("postgresql://", f"postgresql+{driver}://", 1)


def add(session: Session, name: str) -> Account:
    """Add an account and flush it."""
    account = Account(name=name)
    session.add(account)
    session.flush()
    return account


def run(session: Session, statement: str) -> None:
    """Execute a text."""
    session.execute(text(statement))


def lose_a_statement(scene: Scene, autocommit: Engine, errors: Errors) -> None:
    """A statement whose answer is lost with the connection comes out as unknown.

    Args:
        scene: of the test.
        autocommit: an engine under AUTOCOMMIT.
        errors: what the application sees.
    """
    with Session(autocommit) as session:
        pid = session.scalar(text("select pg_backend_pid()"))
        session.add(Account(name="nobody knows"))
        scene.ask("terminate", pid=pid)
        with pytest.raises(errors):
            session.flush()
        session.rollback()
    assert scene.recorder.names() == []
    assert scene.recorder.doubtful_names() == ["nobody knows"]


def hear_last_words(scene: Scene, autocommit: Engine) -> None:
    """A server that goes down says so while its connection still looks open: nobody knows what it did."""
    with Session(autocommit) as session:
        session.execute(text(sql("going_down")))
        try:
            session.add(Account(name="nobody knows"))
            with pytest.raises(exc.DBAPIError):
                session.flush()
            session.rollback()
        finally:
            session.execute(text("DROP FUNCTION going_down CASCADE"))
    assert scene.recorder.names() == []
    assert scene.recorder.doubtful_names() == ["nobody knows"]


def fail_in_a_savepoint(scene: Scene, engine: Engine, errors: Errors) -> None:
    """An error inside a savepoint that is rolled back costs the savepoint's events and no others.

    Args:
        scene: of the test.
        engine: of its database.
        errors: what the application sees.
    """
    with Session(engine) as session:
        add(session, "kept")
        with pytest.raises(errors), session.begin_nested():  # noqa: PT012 - the entry before the error
            add(session, "lost")
            add(session, "forbidden")
        add(session, "kept too")
        session.commit()
    assert scene.recorder.names() == ["kept", "kept too"]
    scene.check()
