"""`otel_activity.instrument()` in a running program: start, outage of the store, end."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from fastapi import FastAPI
from sqlalchemy import create_engine
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from starlette.routing import Router

import otel_activity
from otel_activity import api
from otel_activity.embedded import EmbeddedPostgres
from otel_activity.errors import ConfigurationError, StoreUnavailable
from otel_activity.frameworks.starlette import LifespanFlush
from otel_activity.postgres import schema

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Engine

pytestmark = pytest.mark.e2e


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "order"
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]


@pytest.fixture
def engine(postgres_dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """The application's engine; the environment says nothing, and auditing is off afterwards."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    made = create_engine(postgres_dsn.replace("postgresql://", "postgresql+psycopg://"))
    Base.metadata.create_all(made)
    yield made
    otel_activity.shutdown(0.1)
    made.dispose()


def order(engine: Engine, item: str) -> None:
    """One transaction of the application."""
    with Session(engine) as session:
        session.add(Order(item=item))
        session.commit()


def trouble() -> str:
    """Why the exporter fails, once it has noticed."""
    deadline = time.monotonic() + 20
    while not (found := otel_activity.get_queue_metrics()["exporters"]["postgres"]["trouble"]):
        assert time.monotonic() < deadline, "the exporter never failed"
        time.sleep(0.02)
    return str(found)


def items(dsn: str) -> list[str]:
    """The items of all stored events, in order."""
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(
            "SELECT changes -> 'item' ->> 'after' FROM activity.events ORDER BY sequence"
        ).fetchall()
    return [row[0] for row in rows]


def test_a_store_that_goes_away_never_reaches_the_application(engine: Engine) -> None:
    """Killed, restarted, killed again: the application commits on, and everything is stored once."""
    with EmbeddedPostgres() as store:
        dsn = store.create_database("audit")
        schema.apply(dsn)
        assert otel_activity.instrument(postgres_dsn=dsn, schedule_delay=20)
        expected = []
        for outage in range(2):
            for number in range(20):
                expected.append(f"{outage}-{number}")
                order(engine, expected[-1])
                if number == 5:
                    store.kill()
                if number == 15:
                    assert not otel_activity.flush_queue(0.3)
                    assert "connection" in trouble() or "reached" in trouble()
                    store.start()
            assert otel_activity.flush_queue(30)
        assert items(dsn) == expected
        assert otel_activity.get_queue_metrics()["dropped"] == 0
        assert otel_activity.shutdown(10)


def test_durable_delivery_counts_its_journal_and_leaves_nothing(
    engine: Engine, postgres_dsn: str, tmp_path: Path
) -> None:
    """`get_queue_metrics` shows the journal; once all is confirmed and auditing ends, no file is left."""
    schema.apply(postgres_dsn)
    assert otel_activity.instrument(
        postgres_dsn=postgres_dsn, journal_dir=str(tmp_path), schedule_delay=60_000
    )
    for number in range(3):
        order(engine, f"item {number}")
    journal = otel_activity.get_queue_metrics()["journal"]
    assert (journal["units"], journal["segments"], journal["unjournaled"]) == (3, 1, 0)
    assert journal["bytes"] == sum(path.stat().st_size for path in tmp_path.glob("*/*/*.seg"))
    assert otel_activity.flush_queue(10)
    assert otel_activity.get_queue_metrics()["journal"]["units"] == 0
    assert otel_activity.shutdown(10)
    assert items(postgres_dsn) == ["item 0", "item 1", "item 2"]
    assert list(tmp_path.glob("*/*")) == []


def test_a_fallback_runs_without_a_journal_and_says_so(
    engine: Engine, postgres_dsn: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A directory that cannot be written stops the start, unless best effort was accepted beforehand."""
    schema.apply(postgres_dsn)
    (tmp_path / "file").write_text("")
    arguments = {"postgres_dsn": postgres_dsn, "journal_dir": str(tmp_path / "file" / "journal")}
    with pytest.raises(ConfigurationError, match="OTEL_ACTIVITY_JOURNAL_DIR"):
        otel_activity.instrument(**arguments)
    assert not otel_activity.is_active()
    assert otel_activity.instrument(**arguments, journal_fallback="best_effort")
    assert "EVENTS ARE ONLY IN MEMORY" in caplog.text
    order(engine, "in memory")
    assert otel_activity.shutdown(10)
    assert items(postgres_dsn) == ["in memory"]


def test_instrument_twice_is_once_and_uninstrument_restores(engine: Engine, postgres_dsn: str) -> None:
    """A second call changes nothing; after `uninstrument` every attribute and the signal handler are back."""
    schema.apply(postgres_dsn)
    before = (vars(DefaultDialect).copy(), Router.lifespan, signal.getsignal(signal.SIGTERM))
    for _ in range(2):
        assert otel_activity.instrument(postgres_dsn=postgres_dsn)
        assert otel_activity.instrument(postgres_dsn="postgresql://elsewhere/db")
        assert otel_activity.is_active()
        assert vars(DefaultDialect)["do_commit"] is not before[0]["do_commit"]
        order(engine, "audited")
        otel_activity.uninstrument()
        assert not otel_activity.is_active()
        assert (dict(vars(DefaultDialect)), Router.lifespan, signal.getsignal(signal.SIGTERM)) == (
            dict(before[0]),
            *before[1:],
        )
        order(engine, "not audited")
    assert items(postgres_dsn) == ["audited", "audited"]


def test_uninstrument_from_another_thread_leaves_no_chain_of_handlers(
    engine: Engine, postgres_dsn: str
) -> None:
    """Only the main thread can set signal handlers: the next start and end there put the first one back."""
    schema.apply(postgres_dsn)
    before = signal.getsignal(signal.SIGTERM)
    assert otel_activity.instrument(postgres_dsn=postgres_dsn)
    ending = threading.Thread(target=otel_activity.uninstrument)
    ending.start()
    ending.join()
    assert not otel_activity.is_active()
    assert otel_activity.instrument(postgres_dsn=postgres_dsn)
    otel_activity.uninstrument()
    assert signal.getsignal(signal.SIGTERM) == before


def test_settings_that_come_too_late_are_said(
    engine: Engine, postgres_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A second call cannot add a redaction: an error line names the setting, a wrong one raises as ever."""
    schema.apply(postgres_dsn)
    assert otel_activity.instrument(postgres_dsn=postgres_dsn, redact=["item"])
    assert otel_activity.instrument()
    assert otel_activity.instrument(postgres_dsn=postgres_dsn, redact=["item"], delivery=None)
    assert caplog.text == ""
    assert otel_activity.instrument(redact={"item", "price"})
    assert "instrument(redact=...) changes nothing" in caplog.text
    assert "set OTEL_ACTIVITY_REDACT before" in caplog.text
    assert "price" not in caplog.text
    with pytest.raises(ConfigurationError, match="did you mean 'redact'"):
        otel_activity.instrument(redat=["item"])


def test_the_instrumentor_is_an_opentelemetry_instrumentor(engine: Engine, postgres_dsn: str) -> None:
    """`ActivityInstrumentor` starts and ends the same audit trail, with settings as arguments."""
    schema.apply(postgres_dsn)
    instrumentor = otel_activity.ActivityInstrumentor()
    instrumentor.instrument(postgres_dsn=postgres_dsn)
    order(engine, "by the instrumentor")
    instrumentor.uninstrument()
    assert items(postgres_dsn) == ["by the instrumentor"]


def test_wrong_settings_raise_in_code(engine: Engine) -> None:
    """A direct call raises what is wrong; nothing is half started."""
    with pytest.raises(ConfigurationError, match="exporters"):
        otel_activity.instrument(exporters=["postgress"])
    with pytest.raises(StoreUnavailable, match="OTEL_ACTIVITY_STARTUP=require"):
        otel_activity.instrument(
            postgres_dsn="postgresql://127.0.0.1:1/none", startup="require", startup_timeout=0.1
        )
    assert not otel_activity.is_active()
    assert not otel_activity.instrument(disabled=True)
    assert otel_activity.flush_queue(0)
    assert otel_activity.get_queue_metrics() == {}


def test_include_exclude_and_redact_reach_the_capture(engine: Engine, postgres_dsn: str) -> None:
    """Settings that choose tables and secrets are obeyed end to end."""
    schema.apply(postgres_dsn)
    otel_activity.instrument(postgres_dsn=postgres_dsn, exclude=["ord*"])
    order(engine, "left out")
    otel_activity.uninstrument()
    otel_activity.instrument(postgres_dsn=postgres_dsn, include=["order"], redact=["item"])
    order(engine, "a secret")
    otel_activity.uninstrument()
    with psycopg.connect(postgres_dsn) as connection:
        rows = connection.execute("SELECT events::text FROM activity.events").fetchall()
    assert len(rows) == 1
    assert "redacted" in rows[0][0]
    assert "a secret" not in rows[0][0]


def test_a_lifespan_ends_although_the_flush_fails(caplog: pytest.LogCaptureFixture) -> None:
    """A bug in flushing is logged; the server is told that shutdown is complete."""
    hook = LifespanFlush(lambda: 1 / 0)
    hook.install()
    sent: list[str] = []
    messages: list[dict[str, Any]] = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message["type"])

    scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
    asyncio.run(FastAPI()(scope, receive, send))  # type: ignore[arg-type]
    hook.uninstall()
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert "internal error while flushing" in caplog.text


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_fork_while_another_thread_stops_auditing_cannot_hang(engine: Engine, postgres_dsn: str) -> None:
    """The child of a fork does not inherit a lock that nobody there can release."""
    schema.apply(postgres_dsn)
    otel_activity.instrument(postgres_dsn=postgres_dsn)
    held, end = threading.Event(), threading.Event()

    def hold() -> None:
        with api._lock:
            held.set()
            end.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        os._exit(0 if api._lock.acquire(timeout=5) else 1)
    assert os.waitpid(child, 0)[1] == 0
    end.set()
    thread.join()


def test_a_lifespan_flushes_before_it_is_complete() -> None:
    """Shutdown is complete only after the flush, which does not run on the event loop."""
    happened: list[str] = []
    original = Router.lifespan

    def flush() -> None:
        happened.append("flush" if threading.current_thread() is not threading.main_thread() else "blocked")

    hook = LifespanFlush(flush)
    hook.install()
    app = FastAPI()
    messages: list[dict[str, Any]] = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: dict[str, Any]) -> None:
        happened.append(message["type"])

    async def serve() -> None:
        await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)  # type: ignore[arg-type]

    asyncio.run(serve())
    assert happened == ["lifespan.startup.complete", "flush", "lifespan.shutdown.complete"]
    hook.uninstall()
    assert Router.lifespan is original


def test_a_slip_in_the_name_of_a_variable_is_said(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """It may be somebody else's variable, so the program starts; but not without a line that names both."""
    monkeypatch.setenv("OTEL_ACTIVTY_REDACT", "item")
    otel_activity.instrument(exporters="otlp", otlp_endpoint="http://127.0.0.1:9", journal_dir=str(tmp_path))
    assert "OTEL_ACTIVTY_REDACT is no setting; did you mean OTEL_ACTIVITY_REDACT?" in caplog.text


def test_a_carriage_return_is_no_part_of_the_services_name(
    engine: Engine, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A file of variables that has Windows' line ends starts the same service as one that has not."""
    schema.apply(postgres_dsn)
    for name, value in (
        ("OTEL_SERVICE_NAME", "shop\r"),
        ("OTEL_ACTIVITY_POSTGRES_DSN", f"{postgres_dsn}\r"),
        ("OTEL_ACTIVITY_JOURNAL_DIR", f"{tmp_path}\r"),
    ):
        monkeypatch.setenv(name, value)
    assert otel_activity.instrument()
    order(engine, "tea")
    assert otel_activity.flush_queue(30)
    with psycopg.connect(postgres_dsn) as connection:
        stored = connection.execute(
            """SELECT DISTINCT e.service, r.attributes ->> 'service.name'
            FROM activity.events AS e JOIN activity.resources AS r ON r.id = e.resource_id"""
        ).fetchall()
    assert stored == [("shop", "shop")]


def test_a_variable_that_is_set_too_late_is_said_once(
    engine: Engine,
    postgres_dsn: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    """As by `load_dotenv()`: nobody may believe that it redacts. What a program takes away is its own."""
    schema.apply(postgres_dsn)
    monkeypatch.setenv("OTEL_ACTIVITY_POSTGRES_DSN", postgres_dsn)
    monkeypatch.setenv("OTEL_ACTIVITY_JOURNAL_DIR", str(tmp_path))
    monkeypatch.setenv("OTEL_ACTIVITY_HEARTBEAT", "60")
    assert otel_activity.instrument()
    monkeypatch.delenv("OTEL_ACTIVITY_POSTGRES_DSN")
    monkeypatch.setenv("OTEL_ACTIVITY_REDACT", "item")
    for item in ("tea", "milk"):
        order(engine, item)
    assert otel_activity.flush_queue(30)
    said = [record.getMessage() for record in caplog.records if "is not read" in record.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("otel_activity: OTEL_ACTIVITY_REDACT is not read, because it was set after")


def test_variables_that_stay_as_they_are_are_not_said(
    engine: Engine, postgres_dsn: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Also where arguments of `instrument()` say something else."""
    schema.apply(postgres_dsn)
    otel_activity.instrument(postgres_dsn=postgres_dsn, journal_dir=str(tmp_path), redact="item")
    order(engine, "tea")
    assert otel_activity.flush_queue(30)
    assert "is not read" not in caplog.text
