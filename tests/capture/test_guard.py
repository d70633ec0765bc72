"""Nothing that goes wrong in here reaches the application, except a refusal that it asked for."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any, Never

import pytest
from sqlalchemy import Text, TypeDecorator, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from otel_activity.capture import SQLAlchemyCapture, drivers, guard
from otel_activity.errors import ActivityError
from tests.capture.support import Account, Note, Open, Recorder, Scene, add

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from otel_activity.events import Unit


class Broken(Recorder):
    """Raises out of every method."""

    def prepare(self, unit: Unit) -> Never:
        raise RuntimeError("delivery is broken")

    committed = aborted = prepare

    def undecided(self, unit: Unit, error: BaseException | None) -> Never:
        raise RuntimeError("delivery is broken")


class Interrupted(Recorder):
    """Is interrupted while it prepares."""

    def prepare(self, unit: Unit) -> Never:
        raise KeyboardInterrupt


class Refusing(Recorder):
    """Refuses one of the units it is to prepare, the first, as fail-closed delivery does when it is full."""

    refused = False
    after = 0

    def prepare(self, unit: Unit) -> None:
        super().prepare(unit)
        self.after -= 1
        if not self.refused and self.after < 0:
            self.refused = True
            raise ActivityError("the queue is full")


@pytest.fixture
def other(scene: Scene, capture: SQLAlchemyCapture) -> Iterator[Any]:
    """Puts another delivery or redactor in the place of the recorder."""
    made: list[SQLAlchemyCapture] = []
    capture.uninstall()

    def install(delivery: Any, redactor: Any = None) -> SQLAlchemyCapture:
        guard._last.clear()
        made.append(SQLAlchemyCapture(delivery, redactor=redactor or Open()))
        made[-1].install()
        return made[-1]

    yield install
    for capture_ in made:
        assert capture_._bracket.open == {}
        capture_.uninstall()


def work(scene: Scene, driver: str) -> None:
    """Commit, roll back, release, close: each of the port's methods is called."""
    with Session(scene.engine(driver)) as session:
        account = add(session, "a")
        session.commit()
        account.name = "b"
        session.flush()
        session.rollback()
        with session.begin_nested():
            add(session, "c")
        raw: Any = session.connection().connection.driver_connection
        raw.commit()
        session.rollback()
        session.delete(account)
        session.commit()
    assert [name for _, name in scene.ask("rows")] == ["c"]


def test_delivery_that_raises(
    scene: Scene, driver: str, other: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A delivery that raises in every method costs its events and one line of log, nothing else."""
    other(Broken())
    work(scene, driver)
    assert any("internal error" in record.getMessage() for record in caplog.records)
    caplog.clear()


class Secretive(Open):
    """A redactor with a fault."""

    def clean(self, value: Any) -> Never:
        raise RuntimeError("redactor is broken")

    def mode_of(self, name: str) -> Never:
        raise RuntimeError("redactor is broken")


def test_redactor_that_raises(
    scene: Scene, driver: str, other: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A redactor that raises costs the event: nothing that it did not see gets out."""
    recorder = Recorder()
    other(recorder, Secretive())
    work(scene, driver)
    assert recorder.events == []
    caplog.clear()


class _Base(DeclarativeBase):
    pass


class Touchy(TypeDecorator[str]):
    """A column type whose values cannot be compared."""

    impl = Text
    cache_ok = True

    def compare_values(self, x: Any, y: Any) -> bool:
        raise RuntimeError("cannot be compared")


class TouchyAccount(_Base):
    __tablename__ = "account"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(Touchy)
    balance: Mapped[int] = mapped_column(default=0)


def test_comparison_that_raises(scene: Scene, driver: str, caplog: pytest.LogCaptureFixture) -> None:
    """A column type that cannot compare values costs at most its own event; other rows come out."""
    engine = scene.engine(driver)
    with Session(engine) as session:
        touchy = TouchyAccount(name="a")
        session.add(touchy)
        session.commit()
        with session.no_autoflush:
            session.refresh(touchy)
        try:
            touchy.name = "b"
            session.add(Note(body="n"))
            session.commit()
        except RuntimeError:  # SQLAlchemy's own comparison raised, as it does without us
            session.rollback()
    assert scene.recorder.names()[0] == "a"
    caplog.clear()


def test_refusal_gets_out(scene: Scene, driver: str, other: Any) -> None:
    """A refusal by delivery is raised out of commit(), and the transaction is rolled back."""
    recorder = Refusing()
    other(recorder)
    with Session(scene.engine(driver)) as session:
        add(session, "refused by delivery")
        with pytest.raises(ActivityError, match="the queue is full"):
            session.commit()
        session.rollback()
        assert scene.ask("rows") == []
        add(session, "kept")
        session.commit()
    assert recorder.kinds == ["prepare", "aborted", "prepare", "committed"]
    assert recorder.replayed() == scene.ask("rows")


def test_refusal_on_a_bare_connection(scene: Scene, driver: str, other: Any) -> None:
    """A refused COMMIT is not made up for by the next COMMIT on the same connection."""
    recorder = Refusing()
    other(recorder)
    with scene.engine(driver).connect() as connection:
        session = Session(connection, join_transaction_mode="rollback_only")
        add(session, "refused")
        with pytest.raises(ActivityError):
            connection.commit()
        connection.rollback()
        connection.execute(text("select 1"))
        connection.commit()
    assert recorder.kinds == ["prepare", "aborted"]
    assert scene.ask("rows") == []


@pytest.mark.parametrize("how", ["text", "pooled", "twophase"])
def test_refusal_elsewhere(scene: Scene, driver: str, other: Any, how: str) -> None:
    """A refusal stops a COMMIT by text, one on the pooled connection, and a one-phase two-phase commit."""
    recorder = Refusing()
    other(recorder)
    with scene.engine(driver).connect() as connection:
        commit: Callable[[], Any] = connection.connection.commit
        if how == "twophase":
            commit = connection.begin_twophase().commit
        elif how == "text":
            commit = functools.partial(connection.exec_driver_sql, "COMMIT")
        add(Session(connection, join_transaction_mode="rollback_only"), "refused")
        with pytest.raises(ActivityError):
            commit()
        connection.rollback()
    assert recorder.kinds == ["prepare", "aborted"]
    assert scene.ask("rows") == []


@pytest.mark.parametrize("end", ["rollback", "commit", "close", "text"])
def test_refusal_of_a_prepare(scene: Scene, driver: str, other: Any, end: str) -> None:
    """A refused PREPARE TRANSACTION is rolled back at once, whatever the application does next."""
    recorder = Refusing()
    other(recorder)
    with scene.engine(driver).connect() as connection:
        if end == "text":
            prepare: Callable[[], Any] = functools.partial(
                connection.exec_driver_sql, "PREPARE TRANSACTION 'refused'"
            )
        else:
            transaction = connection.begin_twophase("refused")
            prepare = transaction.prepare
        add(Session(connection, join_transaction_mode="rollback_only"), "refused")
        with pytest.raises(ActivityError, match="the queue is full"):
            prepare()
        assert idle(connection)
        if end == "commit":
            with pytest.raises(ActivityError, match="refused when it was prepared"):
                transaction.commit()
        elif end != "text":
            getattr(transaction, end)()
    assert recorder.kinds == ["prepare", "aborted"]
    assert scene.ask("prepared") == scene.ask("rows") == []


def test_after_a_refused_prepare(scene: Scene, driver: str, other: Any) -> None:
    """The connection, and the same global id, serve the next transaction, whatever becomes of it."""
    recorder = Refusing()
    other(recorder)
    with scene.engine(driver).connect() as connection:
        for wanted in ("refused", "rolled back", "kept"):
            with contextlib.suppress(ActivityError):
                transaction = connection.begin_twophase("again")
                add(Session(connection, join_transaction_mode="rollback_only"), wanted)
                if wanted != "rolled back":
                    transaction.prepare()
            getattr(transaction, "commit" if wanted == "kept" else "rollback")()
    assert recorder.kinds == ["prepare", "aborted", "aborted", "prepare", "committed"]
    assert recorder.replayed() == scene.ask("rows")


def test_refusal_by_one_of_two_databases(scene: Scene, driver: str, other: Any) -> None:
    """When delivery refuses the second of two, the first is rolled back as well; the session goes on."""
    recorder = Refusing()
    recorder.after = 1
    other(recorder)
    engines = scene.engine(driver), scene.engine(driver, other=True)
    with Session(binds={Account: engines[0], Note: engines[1]}, twophase=True) as session:
        session.add_all([Account(name="here"), Note(body="there")])
        with pytest.raises(ActivityError, match="the queue is full"):
            session.commit()
        session.rollback()
        assert scene.ask("prepared") == scene.ask("rows") == scene.ask("notes", other=True) == []
        session.add_all([Account(name="here"), Note(body="there")])
        session.commit()
    assert recorder.kinds[:2] == ["prepare", "prepare"]
    assert recorder.ends == ["aborted", "aborted", "committed", "committed"]
    assert recorder.replayed() == scene.ask("rows")


def idle(connection: Any) -> bool:
    """Whether the server is in no transaction on a connection, as far as the driver says."""
    driver = connection.connection.driver_connection
    return drivers.driver_state(driver) is drivers.State.ENDED


def test_keyboard_interrupt(scene: Scene, driver: str, other: Any) -> None:
    """An interrupt in the middle of our work passes through unchanged; nothing was committed yet."""
    recorder = Interrupted()
    other(recorder)
    with Session(scene.engine(driver)) as session:
        add(session, "a")
        with pytest.raises(KeyboardInterrupt):
            session.commit()
    # What was being prepared is taken back; the transaction goes on as a unit of its own, and is rolled back.
    assert recorder.kinds == ["aborted", "aborted"]
    assert len({call.transaction_id for call in recorder.calls}) == 1
    assert scene.ask("rows") == []


def test_errors_of_the_application(scene: Scene, driver: str) -> None:
    """The application's own errors pass through unchanged."""
    with Session(scene.engine(driver)) as session:
        session.add(Account(name=None))
        with pytest.raises(Exception, match="null value") as caught:
            session.commit()
    assert "otel_activity" not in str(caught.value)
    assert scene.recorder.events == []


def test_dialect_that_cannot_be_asked_for_autocommit(scene: Scene, driver: str) -> None:
    """An error in a dialect of somebody else: savepoints are set, and changes are captured."""

    def broken(dbapi_connection: Any) -> Never:
        raise RuntimeError("odd dialect")

    engine = scene.engine(driver)
    engine.dialect.detect_autocommit_setting = broken  # type: ignore[method-assign]
    with Session(engine) as session:
        with session.begin_nested():
            add(session, "a")
        session.execute(text("SAVEPOINT mine"))
        add(session, "lost")
        session.execute(text("ROLLBACK TO mine"))
        session.commit()
    assert scene.recorder.names() == ["a"]
    scene.check()
