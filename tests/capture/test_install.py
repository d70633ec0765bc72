"""Installing and uninstalling: everything is captured that should be, and everything is put back."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.dialects import registry
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.orm import Mapper, Session, dependency, persistence, sessionmaker
from sqlalchemy.pool import base as pool_base

from otel_activity.capture import SQLAlchemyCapture, check
from tests.capture.support import Account, Base, Open, Recorder, Scene, add, run, url_of

if TYPE_CHECKING:
    from collections.abc import Iterator


def owners() -> Iterator[Any]:
    """Every class and module that capture could have touched."""
    seen: set[Any] = set()
    waiting: list[type[Any]] = [DefaultDialect]
    while waiting:
        cls = waiting.pop()
        waiting += cls.__subclasses__()
        seen.update(base for base in cls.__mro__ if base is not object)
    yield from seen
    yield from (pool_base._ConnDialect, pool_base._AsyncConnDialect, pool_base._ConnectionFairy)
    yield from (pool_base.Pool, pool_base._ConnectionRecord, persistence, dependency, Mapper, Session)
    yield from (value for value in vars(dependency).values() if isinstance(value, type))


def snapshot() -> dict[tuple[int, str], int]:
    """Identity of every attribute, and of every listener on mappers and sessions."""
    found = {(id(owner), name): id(value) for owner in owners() for name, value in vars(owner).items()}
    targets: tuple[Any, ...] = (Mapper, Session)
    for target in targets:
        for name in (name for name in dir(target.dispatch) if not name.startswith("_")):
            listeners = getattr(target.dispatch, name)
            if hasattr(listeners, "_clslevel"):
                found[(id(target), f"dispatch.{name}")] = sum(map(len, listeners._clslevel.values()))
    return found


def differences(before: dict[tuple[int, str], int], after: dict[tuple[int, str], int]) -> set[str]:
    names = {key[1] for key, _ in before.items() ^ after.items()}
    # Python's own bookkeeping, and SQLAlchemy's caches that any use of a class fills.
    return {name for name in names if name not in {"__abstractmethods__", "_abc_impl", "__doc__"}}


def test_everything_is_put_back(scene: Scene, driver: str) -> None:
    """After uninstall every attribute and listener is what it was, again after a second round."""
    scene_capture = SQLAlchemyCapture(Recorder(), redactor=Open())
    with Session(scene.engine(driver)) as session:
        add(session, "warm up")  # fills SQLAlchemy's memoized attributes
        session.rollback()
    before = snapshot()
    for _ in range(2):
        scene_capture.install()
        assert {"do_commit", "do_execute", "_run_crud", "dispatch.before_insert"} <= differences(
            before, snapshot()
        )
        with Session(scene.engine(driver)) as session:
            add(session, "used")
            session.rollback()
        scene_capture.uninstall()
        assert differences(before, snapshot()) == set()


def test_nothing_of_sqlalchemy_is_missing() -> None:
    """The installed SQLAlchemy has the private functions that capture wraps."""
    assert check() == []


def test_installed_twice(scene: Scene, capture: SQLAlchemyCapture, driver: str) -> None:
    """Installing twice captures once, and uninstalling twice is harmless."""
    capture.install()
    with Session(scene.engine(driver)) as session:
        add(session, "once")
        session.commit()
    assert scene.recorder.names() == ["once"]
    capture.uninstall()
    capture.uninstall()
    capture.install()
    scene.check()


def test_engines_and_sessions_from_before(scene: Scene, capture: SQLAlchemyCapture, driver: str) -> None:
    """Engines, pooled connections, sessions and factories made before install are captured."""
    capture.uninstall()
    engine = scene.engine(driver)
    session, factory = Session(engine), sessionmaker(engine)
    run(session, "select 1")
    session.rollback()
    capture.install()
    add(session, "old session")
    session.commit()
    session.close()
    with factory.begin() as other:
        add(other, "old factory")
    assert scene.recorder.names() == ["old session", "old factory"]
    scene.check()


def test_installed_inside_a_transaction(scene: Scene, capture: SQLAlchemyCapture, driver: str) -> None:
    """What a transaction writes after install comes out with it; what it wrote before does not."""
    capture.uninstall()
    with Session(scene.engine(driver)) as session:
        add(session, "before")
        capture.install()
        add(session, "after")
        session.commit()
    assert scene.recorder.names() == ["after"]


def test_uninstalled_inside_a_transaction(scene: Scene, capture: SQLAlchemyCapture, driver: str) -> None:
    """Uninstalling while transactions are open harms nobody: they commit, unrecorded."""
    with Session(scene.engine(driver)) as session:
        add(session, "open")
        nested = session.begin_nested()
        capture.uninstall()
        add(session, "later")
        nested.commit()
        session.commit()
    assert scene.recorder.calls == []
    assert [name for _, name in scene.ask("rows")] == ["open", "later"]


def test_wrapped_by_somebody_else(scene: Scene, capture: SQLAlchemyCapture, driver: str) -> None:
    """A wrapper that another tool put around ours survives uninstall, and ours inside it is inert."""
    original = vars(DefaultDialect)["do_commit"]
    calls: list[str] = []

    def theirs(dialect: Any, connection: Any) -> Any:
        calls.append("theirs")
        return original(dialect, connection)

    DefaultDialect.do_commit = theirs  # type: ignore[method-assign]
    try:
        capture.uninstall()
        assert vars(DefaultDialect)["do_commit"] is theirs
        with Session(scene.engine(driver)) as session:
            add(session, "unrecorded")
            session.commit()
        assert (calls, scene.recorder.calls) == (["theirs"], [])
    finally:
        DefaultDialect.do_commit = original.__wrapped__  # type: ignore[method-assign]


def test_arguments_of_create_engine(scene: Scene, driver: str) -> None:
    """create_engine still knows the dialect's arguments (it reads them from signatures)."""
    engine = scene.engine(driver, isolation_level="SERIALIZABLE", client_encoding="utf8", label_length=40)
    with engine.connect() as connection:
        assert connection.get_isolation_level() == "SERIALIZABLE"


def test_dialect_of_a_third_party(scene: Scene, driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dialect class that is defined after install, with methods of its own from a mixin, is guarded."""
    base: type[Any] = type(scene.engine(driver).dialect)

    class Mixin:
        def do_commit(self, connection: Any) -> None:
            connection.commit()

    class Late(Mixin, base):  # type: ignore[misc]
        supports_statement_cache = True

    monkeypatch.setattr(sys.modules[__name__], "Late", Late, raising=False)
    registry.register("postgresql.late", __name__, "Late")
    with Session(scene.engine("late")) as session:
        add(session, "late")
        session.commit()
    assert scene.recorder.names() == ["late"]
    scene.check()


LATE_IMPORT = """
import sys
from otel_activity.capture import SQLAlchemyCapture
from tests.capture.support import Account, Open, Recorder
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

recorder = Recorder()
SQLAlchemyCapture(recorder, redactor=Open()).install()
assert not [name for name in sys.modules if name.startswith("sqlalchemy.dialects.postgresql.psycopg2")]
engine = create_engine(sys.argv[1])
with Session(engine) as session:
    session.add(Account(name="kept"))
    session.commit()
    session.add(Account(name="lost"))
    session.flush()
    nested = session.begin_nested()
    session.add(Account(name="lost"))
    nested.rollback()
    session.rollback()
print(recorder.ends, recorder.names())
"""


def test_dialect_loaded_after_install(scene: Scene, driver: str) -> None:
    """A dialect whose module is imported only after install is guarded from its first engine on."""
    done = subprocess.run(
        [sys.executable, "-c", LATE_IMPORT, url_of(scene.dsn, driver)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "['committed', 'aborted'] ['kept']", done.stderr


@pytest.mark.parametrize("installed", [True, False])
def test_no_engine_wide_listener(scene: Scene, capture: SQLAlchemyCapture, installed: bool) -> None:
    """No listener is put on Engine or Connection: they would cost every statement, for ever."""
    if not installed:
        capture.uninstall()
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        assert not connection._has_events
        assert not engine._has_events
    engine.dispose()
    assert Base.registry is Account.registry
