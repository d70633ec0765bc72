"""A delivery class for each event: what is declared, what rules and calls say, on real servers."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import otel_activity
from otel_activity import audited, log_user_action, with_activity_logging
from otel_activity.errors import ConfigurationError, OutboxError
from otel_activity.postgres import schema
from otel_activity.postgres.outbox import apply_outbox
from tests.e2e.support import journals, wait_for_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.support import World

pytestmark = pytest.mark.e2e

SEED = 20261128
KILLS = 10
PATIENCE = 60.0
RULES = "Invoice=strict,visit=best_effort,order.pay=strict,page.*=best_effort"


class Base(DeclarativeBase):
    pass


class Invoice(Base):
    __tablename__ = "invoice"
    id: Mapped[int] = mapped_column(primary_key=True)


class Visit(Base):
    __tablename__ = "visit"
    id: Mapped[int] = mapped_column(primary_key=True)


class Order(Base):
    __tablename__ = "order"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
def database(postgres_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The application's database with an outbox, and the store; auditing is off afterwards."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OTEL_ACTIVITY_JOURNAL_DIR", str(tmp_path / "journal"))
    monkeypatch.setattr("otel_activity.declare._deliveries", set())
    schema.apply(postgres_dsn)
    apply_outbox(postgres_dsn)
    yield postgres_dsn
    otel_activity.shutdown(0.1)


@pytest.fixture
def engine(database: str) -> Iterator[Engine]:
    """The application's engine; its tables exist."""
    made = create_engine(database.replace("postgresql://", "postgresql+psycopg://"))
    Base.metadata.create_all(made)
    yield made
    made.dispose()


def start(dsn: str, **settings: Any) -> None:
    """Audit this process."""
    assert otel_activity.instrument(postgres_dsn=dsn, **settings)


def stored(dsn: str) -> list[tuple[str, str]]:
    """Type of entity, or action, and fate of each stored event, as they were released."""
    with psycopg.connect(dsn) as connection:
        return connection.execute(
            "SELECT coalesce(entity_type, action), attributes ->> 'activity.commit'"
            " FROM activity.events ORDER BY stream_id, sequence"
        ).fetchall()


def work(engine: Engine, *, rolled_back: bool = False) -> None:
    """One transaction with something of each class."""
    with Session(engine) as session:
        session.add_all([Invoice(), Visit(), Order()])
        session.flush()
        log_user_action("order.pay", session=session)
        log_user_action("page.view", session=session)
        if rolled_back:
            session.rollback()
        else:
            session.commit()


def column(dsn: str, query: str) -> list[Any]:
    """One column of an answer."""
    with psycopg.connect(dsn) as connection:
        return [row[0] for row in connection.execute(query).fetchall()]


def test_one_transaction_with_every_class(database: str, engine: Engine) -> None:
    """All of it arrives once, in one stream and with one transaction id; only strict is proven by its row."""
    start(database, delivery_rules=RULES)
    work(engine)
    work(engine, rolled_back=True)
    assert otel_activity.flush_queue(PATIENCE)
    assert Counter(stored(database)) == Counter(
        [
            ("Invoice", "proven"),
            ("Order", "reported"),
            ("Visit", "reported"),
            ("order.pay", None),  # failed, because it was rolled back
            ("order.pay", "proven"),
            ("page.view", None),
            ("page.view", "reported"),
        ]
    )
    transactions = column(
        database,
        "SELECT DISTINCT attributes ->> 'activity.transaction.id' FROM activity.events"
        " WHERE attributes ->> 'activity.commit' IS NOT NULL",
    )
    assert len(transactions) == 1
    assert column(database, "SELECT sequence FROM activity.events ORDER BY sequence") == list(range(1, 8))
    assert len(column(database, "SELECT DISTINCT stream_id FROM activity.events")) == 1
    assert column(database, "SELECT count(*) FROM activity.outbox") == [0]
    assert otel_activity.get_queue_metrics()["outbox"]["drained"] == 2


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_savepoints_and_two_phases_take_every_class_along(database: str, driver: str) -> None:
    """What a savepoint took away is in no part; a prepared transaction's parts wait for its end."""
    start(database, delivery_rules=RULES)
    engine = create_engine(database.replace("postgresql://", f"postgresql+{driver}://"))
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all([Invoice(), Visit(), Order()])
        session.flush()
        with session.begin_nested() as nested:
            session.add_all([Invoice(), Visit(), Order()])
            session.flush()
            nested.rollback()
        session.commit()
    for end in ("commit", "rollback"):
        with Session(engine, twophase=True) as session:
            session.add_all([Invoice(), Visit(), Order()])
            session.flush()
            session.prepare()
            getattr(session, end)()
    engine.dispose()
    assert otel_activity.flush_queue(PATIENCE)
    assert Counter(name for name, _ in stored(database)) == {"Invoice": 2, "Order": 2, "Visit": 2}
    assert otel_activity.get_queue_metrics()["journal"]["units"] == 0


def test_asyncpg_splits_its_transactions(database: str, engine: Engine) -> None:
    """The async driver commits with every class, and a rollback takes all of it away."""
    start(database, delivery_rules=RULES)

    async def shop() -> None:
        async_engine = create_async_engine(database.replace("postgresql://", "postgresql+asyncpg://"))
        async with AsyncSession(async_engine) as session:
            session.add_all([Invoice(), Visit(), Order()])
            await session.commit()
            session.add_all([Invoice(), Visit(), Order()])
            await session.flush()
            await session.rollback()
        await async_engine.dispose()

    asyncio.run(shop())
    assert otel_activity.flush_queue(PATIENCE)
    fates = [("Invoice", "proven"), ("Order", "reported"), ("Visit", "reported")]
    assert sorted(stored(database)) == fates


def test_under_autocommit_strict_is_journaled(database: str, engine: Engine) -> None:
    """A statement that commits by itself has no transaction to share, whatever its class."""
    start(database, delivery_rules=RULES)
    alone = engine.execution_options(isolation_level="AUTOCOMMIT")
    with Session(alone) as session:
        session.add_all([Invoice(), Visit()])
        session.commit()
    log_user_action("order.pay")
    assert otel_activity.flush_queue(PATIENCE)
    assert Counter(stored(database)) == Counter(
        [("Invoice", "reported"), ("Visit", "reported"), ("order.pay", None)]
    )
    assert otel_activity.get_queue_metrics()["outbox"]["drained"] == 0


def test_best_effort_writes_nothing_on_the_request_path(database: str, engine: Engine) -> None:
    """A transaction of visits alone is in no journal and in no outbox."""
    start(database, delivery_rules=RULES)
    before = otel_activity.get_queue_metrics()["journal"]
    with Session(engine) as session:
        session.add_all([Visit() for _ in range(100)])
        session.commit()
    log_user_action("page.view")
    after = otel_activity.get_queue_metrics()["journal"]
    assert (after["bytes"], after["units"]) == (before["bytes"], before["units"])
    assert after["unjournaled"] == 0
    assert otel_activity.flush_queue(PATIENCE)
    assert len(stored(database)) == 101
    assert otel_activity.get_queue_metrics()["outbox"]["drained"] == 0


def test_without_an_outbox_only_strict_fails_closed(database: str, engine: Engine) -> None:
    """A transaction with one strict entry is not committed, nothing of it; those without go on."""
    start(database, delivery_rules=RULES)
    with psycopg.connect(database) as connection:
        connection.execute("DROP TABLE activity.outbox")
    with pytest.raises(OutboxError, match=r"not committed.*schema apply --outbox"):
        work(engine)
    with Session(engine) as session:
        session.add_all([Order(), Visit()])
        session.commit()
    assert otel_activity.flush_queue(PATIENCE)
    assert column(database, 'SELECT count(*) FROM "order"') == [1]
    assert column(database, "SELECT count(*) FROM invoice") == [0]
    assert Counter(stored(database)) == Counter(
        [
            ("Order", "reported"),
            ("Visit", "reported"),
            ("order.pay", None),
            ("page.view", None),
        ]
    )
    assert otel_activity.get_queue_metrics()["journal"]["units"] == 0


def test_sqlite_goes_on_without_strict(database: str, tmp_path: Path) -> None:
    """A database that can have no outbox refuses strict entries only."""
    start(database, delivery_rules=RULES)
    engine = create_engine(f"sqlite:///{tmp_path / 'shop'}")
    Base.metadata.create_all(engine)
    with pytest.raises(OutboxError, match="needs PostgreSQL, not sqlite"):
        work(engine)
    with Session(engine) as session:
        session.add(Order())
        session.commit()
    engine.dispose()
    with sqlite3.connect(tmp_path / "shop") as connection:
        assert connection.execute('SELECT count(*) FROM "order"').fetchone() == (1,)
        assert connection.execute("SELECT count(*) FROM invoice").fetchone() == (0,)
    connection.close()
    assert otel_activity.flush_queue(PATIENCE)


def test_code_beats_rules_and_calls_beat_both(database: str, engine: Engine) -> None:
    """A declaration counts whenever it is made; an argument decides about one call."""
    start(database, delivery_rules="Invoice=best_effort,order.*=best_effort")
    audited(Invoice, delivery="strict")
    try:
        with Session(engine) as session:
            session.add_all([Invoice(), Order()])
            session.flush()
            log_user_action("order.pay", session=session, delivery="strict")
            log_user_action("order.look", session=session)
            with with_activity_logging("order.send", session=session, delivery="durable"):
                pass
            session.commit()
    finally:
        del Invoice.__activity__
    assert otel_activity.flush_queue(PATIENCE)
    assert otel_activity.get_queue_metrics()["outbox"]["drained"] == 2
    assert [name for name, fate in stored(database) if fate == "proven"] == ["Invoice", "order.pay"]
    assert len(stored(database)) == 5


def test_strict_by_default_and_less_for_some(database: str, engine: Engine) -> None:
    """What rules take out of strict delivery is in no outbox, and needs none."""
    start(database, delivery="strict", delivery_rules="Order=durable,Visit=best_effort,page.*=best_effort")
    work(engine)
    assert otel_activity.flush_queue(PATIENCE)
    assert otel_activity.get_queue_metrics()["outbox"]["drained"] == 2
    assert len(stored(database)) == 5
    with psycopg.connect(database) as connection:
        connection.execute("DROP TABLE activity.outbox")
    with Session(engine) as session:
        session.add_all([Order(), Visit()])
        session.commit()
    with Session(engine) as session:
        session.add(Invoice())
        with pytest.raises(OutboxError):
            session.commit()


def test_best_effort_by_default_keeps_a_journal_for_the_others(
    database: str, engine: Engine, tmp_path: Path
) -> None:
    """Rules that ask for more are reason enough for a journal; everything else stays out of it."""
    start(database, delivery="best_effort", delivery_rules="Invoice=strict,Order=durable")
    assert len(journals(tmp_path)) == 1
    with Session(engine) as session:
        session.add(Visit())
        session.commit()
    assert otel_activity.get_queue_metrics()["journal"]["units"] == 0
    work(engine)
    assert otel_activity.flush_queue(PATIENCE)
    assert otel_activity.get_queue_metrics()["outbox"]["drained"] == 1
    assert len(stored(database)) == 6


def test_best_effort_alone_refuses_what_is_declared_strict_later(
    database: str, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """No journal was opened: strict fails closed, durable is said to be in memory only."""
    start(database, delivery="best_effort")
    assert "journal" not in otel_activity.get_queue_metrics()
    log_user_action("order.send", delivery="durable")
    with Session(engine) as session:
        session.add(Order())
        session.commit()
        session.add(Order())
        session.flush()
        log_user_action("order.pay", session=session, delivery="strict")
        with pytest.raises(OutboxError, match="name the class in OTEL_ACTIVITY_DELIVERY_RULES"):
            session.commit()
    lines = [record.getMessage() for record in caplog.records if "is asked for" in record.getMessage()]
    assert len(lines) == 1
    assert "OTEL_ACTIVITY_DELIVERY_RULES" in lines[0]
    assert otel_activity.flush_queue(PATIENCE)
    assert [name for name, _ in stored(database)] == ["order.send", "Order", "order.pay"]


def test_the_end_of_a_process_with_every_class(database: str, engine: Engine, tmp_path: Path) -> None:
    """A normal end delivers all of it, and leaves neither journal nor outbox."""
    start(database, delivery_rules=RULES, schedule_delay=60_000)
    for _ in range(20):
        work(engine)
    assert otel_activity.shutdown(PATIENCE)
    assert len(stored(database)) == 100
    assert column(database, "SELECT count(*) FROM activity.outbox") == [0]
    assert journals(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_child_of_a_fork_has_every_class_of_its_own(database: str, engine: Engine) -> None:
    """Parent and child deliver what is theirs, each in a stream of its own."""
    start(database, delivery_rules=RULES)
    work(engine)
    assert otel_activity.flush_queue(PATIENCE)
    engine.dispose()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work(engine)
            status = 0 if otel_activity.flush_queue(PATIENCE) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    work(engine)
    assert otel_activity.flush_queue(PATIENCE)
    # Who delivers a strict event is whoever comes first to the outbox.
    streams = column(database, "SELECT count(*) FROM activity.events GROUP BY stream_id")
    assert (len(streams), sum(streams)) == (2, 15)


@pytest.mark.parametrize(
    ("rules", "line"),
    [
        ("Invoice=strct", r"no delivery class: 'strct'; did you mean 'strict'\? use one of"),
        ("Invoice", r"'Invoice' is no rule; use for example Invoice=strict"),
        ("=strict", r"'=strict' is no rule"),
    ],
)
def test_a_wrong_rule_stops_the_start(database: str, rules: str, line: str) -> None:
    """One line names the value and the fix."""
    with pytest.raises(ConfigurationError, match=line):
        otel_activity.instrument(postgres_dsn=database, delivery_rules=rules)


def test_the_applications_provider_refuses_rules_for_more(database: str) -> None:
    """It confirms nothing, so nothing above best_effort can be promised."""
    with pytest.raises(ConfigurationError, match="confirms nothing"):
        otel_activity.instrument(
            postgres_dsn=database, logger_provider="global", delivery_rules="Invoice=strict"
        )


# --- whole processes ------------------------------------------------------------------------------


@pytest.fixture
def shop(durable: World) -> World:
    """Programs with an outbox in the application's database, a journal, and a store elsewhere."""
    apply_outbox(durable.application)
    return durable


def settle(world: World, tmp_path: Path) -> None:
    """Deliver what dead processes left, in the outbox and in their journals."""
    program = "from otel_activity.cli import main; main()"
    for left in (("--outbox", world.application), ("--journal", str(tmp_path / "journal"))):
        relay = subprocess.run(
            [sys.executable, "-c", program, "relay", *left, "--timeout", "60"],
            env=world.environment(OTEL_SERVICE_NAME="", OTEL_ACTIVITY_PROOF_DSN=world.application),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert relay.returncode == 0, relay.stdout + relay.stderr


def compare(world: World) -> int:
    """Rows and events tell the same; how many best-effort events the kills have cost."""
    rows = {
        name: set(column(world.application, f"SELECT id FROM {name}"))
        for name in ("invoice", "visit", "task")
    }
    with psycopg.connect(world.store) as connection:
        found = connection.execute(
            "SELECT coalesce(entity_type, action), name, entity_id::int FROM activity.events"
        ).fetchall()

    def of(entity: str, name: str) -> list[int]:
        return sorted(number for kind, event, number in found if (kind, event) == (entity, name))

    assert of("Invoice", "activity.entity.created") == sorted(rows["invoice"])
    assert of("Task", "activity.entity.created") == sorted(rows["task"])
    assert of("Task", "activity.entity.updated") == sorted(rows["task"])
    committed = set(of("order.pay", "activity.action"))
    assert committed >= rows["invoice"]  # those that were rolled back are reported as failed
    visits = of("Visit", "activity.entity.created")
    assert len(visits) == len(set(visits))
    assert set(visits) <= rows["visit"]
    return len(rows["visit"]) - len(visits)


@pytest.mark.timeout(240)
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_between_prepare_and_the_mark(shop: World, tmp_path: Path, moment: str) -> None:
    """Strict and durable parts exist if and only if COMMIT reached the server, each event once."""
    for rounds in (1, 3):
        process = shop.start("python", "classes.py", str(rounds), moment, OTEL_BLRP_SCHEDULE_DELAY="50")
        output, _ = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, output
    assert len(column(shop.application, "SELECT id FROM task")) == (2 if moment == "before" else 4)
    settle(shop, tmp_path)
    assert compare(shop) <= 4
    with psycopg.connect(shop.store) as connection:
        fates = connection.execute(
            "SELECT DISTINCT attributes ->> 'activity.commit' FROM activity.events "
            "WHERE name NOT LIKE 'activity.stream.%'"
        ).fetchall()
    assert {fate for (fate,) in fates} <= {"proven", "reported"}


@pytest.mark.timeout(240)
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_killed_anywhere(shop: World, tmp_path: Path) -> None:
    """Killed again and again: exactly the committed rows have strict and durable events, each once."""
    rng = random.Random(SEED)
    for _ in range(KILLS):
        process = shop.start("python", "classes.py", str(1 << 30), OTEL_BLRP_SCHEDULE_DELAY="50")
        wait_for_line(process, "program runs")
        time.sleep(rng.uniform(0.0, 0.5))
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=30) == -signal.SIGKILL
    settle(shop, tmp_path)
    assert column(shop.application, "SELECT count(*) > 10 FROM task") == [True]
    compare(shop)


def test_a_program_that_ends_loses_nothing_of_any_class(shop: World, tmp_path: Path) -> None:
    """Its own end delivers everything, best effort included."""
    process = shop.start("python", "classes.py", "20")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert compare(shop) == 0
    assert column(shop.application, "SELECT count(*) FROM activity.outbox") == [0]
    assert journals(tmp_path) == []
