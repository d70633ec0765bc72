"""Our own numbers as OpenTelemetry metrics."""

from __future__ import annotations

import asyncio
import gc
import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import uuid_utils
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.semconv._incubating.metrics import db_metrics, otel_metrics
from opentelemetry.semconv.metrics import db_metrics as stable_db_metrics
from sqlalchemy import Column, Engine, Integer, MetaData, Table, create_engine, text
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, registry
from sqlalchemy.pool import NullPool, QueuePool

import otel_activity
from otel_activity import metrics
from otel_activity.capture.pools import Pools
from otel_activity.capture.timing import timed
from otel_activity.delivery import Backoff, Lane
from otel_activity.delivery.ages import Ages
from otel_activity.errors import ExportError
from otel_activity.events import Event, Unit
from otel_activity.metrics import HISTOGRAMS, READINGS, SAMPLE, Instruments, MeteredDelivery
from otel_activity.postgres import schema

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DOCS = Path(__file__).parent.parent / "docs" / "metrics.md"


class Meters:
    """A meter provider of its own, and what it has collected."""

    def __init__(self) -> None:
        self.reader = InMemoryMetricReader()
        self.provider = MeterProvider([self.reader], shutdown_on_exit=False)
        self.instruments = Instruments(self.provider.get_meter("test"))

    def points(self) -> dict[str, list[Any]]:
        """The data points of each metric that has any."""
        data = self.reader.get_metrics_data()
        return {
            metric.name: list(metric.data.data_points)
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.data.data_points
        }

    def by(self, name: str, attribute: str) -> dict[Any, Any]:
        """The data points of one metric by the value of an attribute."""
        return {point.attributes.get(attribute): point for point in self.points().get(name, ())}


@pytest.fixture
def meters(monkeypatch: pytest.MonkeyPatch) -> Iterator[Meters]:
    """What `otel_activity.instrument` reports to in this test."""
    made = Meters()
    monkeypatch.setattr(metrics, "_ours", made.instruments)
    yield made
    otel_activity.shutdown(0.1)
    made.provider.shutdown()


def test_every_instrument_is_documented_as_it_is() -> None:
    """The table in docs/metrics.md has each name with its kind, unit and meaning, and no other."""
    rows = re.findall(r"^\| `([^`]+)` \| (\w+) \| `([^`]+)` \| (.+) \|$", DOCS.read_text(), re.MULTILINE)
    in_code = [(each.name, each.kind, each.unit, each.description) for each in READINGS]
    in_code += [(each.name, "histogram", each.unit, each.description) for each in HISTOGRAMS]
    assert rows == in_code


def test_names_of_the_conventions_are_used_as_they_define_them() -> None:
    """A name that is not ours exists in the semantic conventions, with that kind of instrument and unit."""
    defined = {}
    for module in (otel_metrics, db_metrics, stable_db_metrics):
        source = Path(str(module.__file__)).read_text()
        for name, kind, unit in re.findall(
            r'Final = "([\w.]+)"\n"""\n.*?Instrument: (\w+)\nUnit: (\S+)', source, re.DOTALL
        ):
            defined[name] = (kind, unit)
    used = {each.name: (each.kind, each.unit) for each in READINGS}
    used |= {each.name: ("histogram", each.unit) for each in HISTOGRAMS}
    standard = {name: used[name] for name in used if not name.startswith("otel_activity.")}
    assert len(standard) == 8
    assert standard == {name: defined[name] for name in standard}


def test_metrics_show_what_the_queue_metrics_say(meters: Meters, postgres_dsn: str) -> None:
    """After real commits every number is there, the same as in `get_queue_metrics()`; then there are none."""
    schema.apply(postgres_dsn)
    mapping = registry()
    table = Table("note", MetaData(), Column("id", Integer, primary_key=True))

    class Note:
        pass

    mapping.map_imperatively(Note, table)
    engine = create_engine(postgres_dsn.replace("postgresql://", "postgresql+psycopg://"), pool_size=3)
    table.create(engine)
    assert otel_activity.instrument(postgres_dsn=postgres_dsn, schedule_delay=20)
    for _ in range(SAMPLE + 1):
        with Session(engine) as session:
            session.add(Note())
            session.commit()
    assert otel_activity.flush_queue(20)
    found = otel_activity.get_queue_metrics()
    lane = found["exporters"]["postgres"]
    points = meters.points()
    for name, expected in [
        ("otel_activity.event.waiting", 0),
        ("otel.sdk.processor.log.queue.size", 0),
        ("otel.sdk.processor.log.queue.capacity", lane["capacity"]),
        ("otel_activity.event.quarantined", 0),
        ("otel_activity.event.oldest.age", 0),
        ("otel_activity.export.retries", 0),
        ("otel_activity.export.failing", 0),
        ("otel_activity.unit.undecided", 0),
    ]:
        (point,) = points[name]
        assert point.value == expected, name
    released = meters.by("otel_activity.event.released", "otel_activity.delivery")
    by_class = {name: point.value for name, point in released.items()}
    assert by_class == {"best_effort": 0, "durable": SAMPLE + 1, "strict": 0}
    assert by_class == {name: each["released"] for name, each in found["deliveries"].items()}
    assert sum(by_class.values()) == found["released"]
    (captured,) = points["otel_activity.change.captured"]
    assert captured.value == SAMPLE + 1
    assert captured.attributes == {
        "db.namespace": engine.url.database,
        "db.collection.name": "note",
        "db.operation.name": "INSERT",
    }
    done = meters.by("otel.sdk.exporter.log.exported", "error.type")
    assert {kind: point.value for kind, point in done.items()} == {None: found["released"], "rejected": 0}
    assert {point.value for point in points["otel_activity.event.dropped"]} == {0}
    (export,) = points["otel.sdk.exporter.operation.duration"]
    assert export.count >= 1
    assert export.attributes["otel.component.name"] == "otel_activity/postgres"
    steps = meters.by("otel_activity.commit.overhead", "otel_activity.step")
    assert {step: point.count for step, point in steps.items()} == {"prepare": 1, "committed": 1}
    pools = meters.by("db.client.connection.count", "db.client.connection.state")
    assert (pools["used"].value, pools["idle"].value) == (0, 1)
    name = pools["used"].attributes["db.client.connection.pool.name"]
    assert name.endswith(engine.url.database or "")
    assert "postgres:" not in name
    (most,) = points["db.client.connection.max"]
    assert most.value == 13
    engine.dispose()
    assert otel_activity.shutdown(10)
    left = set(meters.points())
    assert left <= {each.name for each in HISTOGRAMS}


def change(table: str, operation: str = "UPDATE", name: str = "activity.entity.updated") -> Event:
    """An event about a row."""
    where = {"db.namespace": "shop", "db.collection.name": table, "db.operation.name": operation}
    return Event(id=str(uuid_utils.uuid7()), name=name, time=0, attributes=where)


def test_a_change_counts_once_however_many_exporters_there_are() -> None:
    """Changes are counted by table on the first road alone; actions are none."""
    sent: list[str] = []
    captured = metrics.Captured()
    lanes = ["postgres", "otlp"]
    emit_to = captured.one_road(lambda lane, event, origin: sent.append(lane), lanes)
    for lane in lanes:
        emit_to(lane, change("orders"), None)
        emit_to(lane, change("orders"), {"service.name": "a dead process"})
    emit = captured.all_roads(lambda event: sent.append("all"))
    emit(change("orders", "DELETE"))
    emit(change("orders", name="activity.action"))
    assert captured.counts() == {("shop", "orders", "UPDATE"): 2, ("shop", "orders", "DELETE"): 1}
    assert sent == ["postgres", "postgres", "otlp", "otlp", "all", "all"]
    captured.after_fork()
    assert captured.counts() == {}


def test_tables_beyond_the_bound_are_counted_together() -> None:
    """A schema for each of ten thousand tenants does not become ten thousand series."""
    captured = metrics.Captured()
    emit = captured.all_roads(lambda event: None)
    for number in range(2 * metrics.MOST_TABLES):
        emit(change(f"t{number}"))
    assert len(captured.counts()) == metrics.MOST_TABLES + 1
    assert captured.counts()["", "_OTHER", "UPDATE"] == metrics.MOST_TABLES


def test_an_outage_shows(meters: Meters) -> None:
    """While an exporter fails, its queue, the age of its oldest event, retries and attempts are reported."""
    lane = Lane("postgres", capacity=3, backoff=Backoff(0.001, 0.002))
    lane.attempted = meters.instruments.exported
    meters.instruments.watch(lambda: {"exporters": {"postgres": lane.metrics()}, "dropped": lane.dropped})
    assert [lane.enter() for _ in range(4)] == [True, True, True, False]
    down = threading.Event()

    def attempt() -> None:
        if not down.is_set():
            raise ExportError("no route")

    exporting = threading.Thread(target=lane.deliver, args=(3, attempt), daemon=True)
    exporting.start()
    deadline = time.monotonic() + 20
    while lane.retries < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    (failing,) = meters.points()["otel_activity.export.failing"]
    (oldest,) = meters.points()["otel_activity.event.oldest.age"]
    (size,) = meters.points()["otel.sdk.processor.log.queue.size"]
    dropped = meters.by("otel_activity.event.dropped", "otel_activity.drop.reason")
    assert (failing.value, size.value) == (1, 3)
    assert oldest.value > 0
    reasons = {reason: point.value for reason, point in dropped.items()}
    assert reasons == {"queue": 0, "exporter": 1, "rejected": 0}
    down.set()
    exporting.join(20)
    attempts = meters.by("otel.sdk.exporter.operation.duration", "error.type")
    assert {kind: point.count for kind, point in attempts.items()} == {"ExportError": lane.retries, None: 1}


def test_what_is_dropped_is_told_by_class(meters: Meters) -> None:
    """Before the exporters each class has its number; on the way to one only best effort can be lost."""
    lane = Lane("postgres", capacity=10)
    assert lane.enter()
    lane.turn_away(3)
    lane.lose(1, "rejected")
    deliveries = {"best_effort": {"released": 9, "dropped": 5}, "durable": {"released": 7, "dropped": 2}}
    found = {"exporters": {"postgres": lane.metrics()}, "dropped": 8, "deliveries": deliveries}
    meters.instruments.watch(lambda: found)
    points = meters.points()["otel_activity.event.dropped"]
    told = {
        (
            point.attributes["otel_activity.drop.reason"],
            point.attributes.get("otel_activity.delivery"),
        ): point.value
        for point in points
    }
    assert told == {
        ("queue", "best_effort"): 2,
        ("queue", "durable"): 2,
        ("exporter", "best_effort"): 3,
        ("rejected", None): 1,
    }
    assert sum(told.values()) == found["dropped"]


def test_the_journal_is_reported_when_there_is_one(meters: Meters) -> None:
    """Without a journal its instruments say nothing, not zero."""
    counters = {"bytes": 4096, "units": 2, "asked": 1, "lost_records": 3, "lost_events": 2, "unjournaled": 5}
    meters.instruments.watch(lambda: {"journal": counters})
    found = meters.points()
    assert found["otel_activity.journal.size"][0].value == 4096
    assert found["otel_activity.journal.units"][0].value == 2
    assert found["otel_activity.journal.asked"][0].value == 1
    assert found["otel_activity.journal.lost"][0].value == 3
    assert found["otel_activity.journal.lost_events"][0].value == 2
    assert found["otel_activity.event.unjournaled"][0].value == 5
    meters.instruments.watch(lambda: {"waiting": 1})
    assert set(meters.points()) == {"otel_activity.event.waiting", "otel_activity.event.dropped"}


def test_counters_that_cannot_be_read_cost_no_other_metric(meters: Meters) -> None:
    """A metrics exporter never sees an exception of ours."""
    meters.instruments.watch(lambda: {"released": 7, "exporters": {"x": {}}})
    assert meters.points()["otel_activity.event.released"][0].value == 7


class Kept:
    """A delivery that remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def prepare(self, unit: Unit) -> None:
        self.calls.append("prepare")

    def committed(self, unit: Unit) -> None:
        self.calls.append("committed")

    def aborted(self, unit: Unit) -> None:
        self.calls.append("aborted")

    def undecided(self, unit: Unit, error: BaseException | None) -> None:
        self.calls.append(f"undecided {error}")


def test_a_slow_commit_leads_to_its_trace(meters: Meters) -> None:
    """One commit in SAMPLE is timed, in the request's span, and its exemplar has the trace id; all pass."""
    kept = Kept()
    metered = MeteredDelivery(kept, meters.instruments)
    unit = Unit("1", system="", database="")
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")
    with tracer.start_as_current_span("request") as span:
        for _ in range(SAMPLE):
            metered.prepare(unit)
            metered.committed(unit)
    metered.aborted(unit)
    metered.undecided(unit, ValueError("x"))
    assert kept.calls == [*["prepare", "committed"] * SAMPLE, "aborted", "undecided x"]
    for point in meters.points()["otel_activity.commit.overhead"]:
        assert point.count == 1
        (exemplar,) = point.exemplars
        assert exemplar.trace_id == span.get_span_context().trace_id


class Thing(DeclarativeBase):
    """A base, and a table to write to."""


class Part(Thing):
    """One row."""

    __tablename__ = "part"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(unique=True)


async def use_async(url: str) -> None:
    """One SELECT through asyncpg."""
    engine = create_async_engine(url)
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
    await engine.dispose()


def test_statements_are_timed_where_that_is_wanted(meters: Meters, postgres_dsn: str) -> None:
    """Statements have durations by operation, sync and async; exemplars lead to trace and events."""
    schema.apply(postgres_dsn)
    engine = create_engine(postgres_dsn.replace("postgresql://", "postgresql+psycopg://"))
    Thing.metadata.create_all(engine)
    assert otel_activity.instrument(postgres_dsn=postgres_dsn, schedule_delay=20, database_metrics=True)
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")
    with tracer.start_as_current_span("request") as span, Session(engine) as session:
        session.add(Part(id=1, name="wheel"))
        session.commit()
        session.execute(text("  select 1"))
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE part SET name = :n WHERE id = :i"), [{"n": "x", "i": i} for i in (7, 8)]
        )
    with engine.connect() as connection, pytest.raises(IntegrityError):
        connection.execute(text("INSERT INTO part VALUES (1, 'twice')"))
    asyncio.run(use_async(postgres_dsn.replace("postgresql://", "postgresql+asyncpg://")))
    points = meters.points()
    found = {}
    for point in points["db.client.operation.duration"]:
        attributes = dict(point.attributes)
        assert attributes.pop("db.system.name") == "postgresql"
        assert attributes.pop("db.namespace") == engine.url.database
        found[attributes["db.operation.name"], attributes.get("error.type")] = point
        assert set(attributes) <= {"db.operation.name", "error.type"}
    assert found["INSERT", None].count == 1
    assert found["INSERT", "23505"].count == 1
    assert found["BATCH UPDATE", None].count == 1
    assert found["SELECT", None].count >= 2
    assert found["INSERT", None].exemplars[0].trace_id == span.get_span_context().trace_id
    waits = meters.by("db.client.connection.wait_time", "db.client.connection.pool.name")
    assert sum(point.count for point in waits.values()) == 5  # the session's commit gives its back
    assert otel_activity.flush_queue(20)
    with psycopg.connect(postgres_dsn) as connection:
        traces = connection.execute(
            "SELECT trace_id FROM activity.events WHERE entity_type = 'Part'"
        ).fetchall()
    assert [int(str(trace).replace("-", ""), 16) for (trace,) in traces] == [span.get_span_context().trace_id]
    engine.dispose()


class Recorded:
    """Remembers what was timed."""

    def __init__(self) -> None:
        self.operations: list[dict[str, str]] = []

    def operation(self, seconds: float, attributes: Mapping[str, str]) -> None:
        assert seconds >= 0
        self.operations.append(dict(attributes))

    def connection_wait(self, seconds: float, pool: str) -> None:
        raise ValueError("not what this test is about")


def test_a_dialect_that_calls_its_parent_is_timed_once() -> None:
    """Whatever a statement begins with and however many methods it goes through, it is one operation."""
    recorded = Recorded()

    class Parent:
        name = "postgresql"

        def do_execute(self, cursor: Any, statement: str, parameters: Any, context: Any = None) -> str:
            return statement

    class Child(Parent):
        def do_execute(self, cursor: Any, statement: str, parameters: Any, context: Any = None) -> str:
            return super().do_execute(cursor, statement, parameters, context=context)

    engine = create_engine("postgresql+psycopg:///shop")
    context = SimpleNamespace(
        root_connection=SimpleNamespace(engine=engine), isinsert=False, isupdate=False, isdelete=False
    )
    for cls in (Parent, Child):
        cls.do_execute = timed(cls.do_execute, recorded)  # type: ignore[method-assign]
    for statement in ("select 1", " Vacuum part", "/* x */ SELECT 1", "hunter2"):
        assert Child().do_execute(None, statement, (), context) == statement
    assert Child().do_execute(None, "SELECT 2", ()) == "SELECT 2"  # not a statement of an application
    where = {"db.system.name": "postgresql", "db.namespace": "shop"}
    vacuum, select = ({**where, "db.operation.name": name} for name in ("VACUUM", "SELECT"))
    assert recorded.operations == [select, vacuum, where, where]


def test_nothing_is_in_the_way_of_statements_when_they_are_not_timed(
    meters: Meters, postgres_dsn: str
) -> None:
    """By default, and with OTEL_METRICS_EXPORTER=none, no clock is installed; afterwards none is left."""
    schema.apply(postgres_dsn)
    before = (Engine.raw_connection, DefaultDialect.do_execute)
    engine = create_engine(postgres_dsn.replace("postgresql://", "postgresql+psycopg://"))
    for settings, wanted in (({}, False), ({"database_metrics": True}, True)):
        assert otel_activity.instrument(postgres_dsn=postgres_dsn, **settings)
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
        for name in ("db.client.operation.duration", "db.client.connection.wait_time"):
            assert (name in meters.points()) is wanted
        otel_activity.shutdown(10)
        assert (Engine.raw_connection, DefaultDialect.do_execute) == before
    assert not metrics.anybody_reads({"OTEL_METRICS_EXPORTER": "none"})
    engine.dispose()


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 3), st.integers(0, 3)), max_size=60))
def test_the_oldest_age_is_right_to_the_second(steps: list[tuple[float, int, int]]) -> None:
    """Whatever comes and goes, the age is that of the oldest entry, at most a second more, never less."""
    now = 0.0
    ages = Ages(lambda: now)
    came: list[float] = []
    entered = left = 0
    for pause, coming, going in steps:
        now += pause
        for _ in range(coming):
            entered += 1
            ages.came(entered, left)
            came.append(now)
        left = min(entered, left + going)
        if left < entered:
            assert 0 <= ages.oldest(left) - (now - came[left]) <= 1.0


def test_a_pool_is_forgotten_with_its_engine() -> None:
    """Pools that count are reported with what they hold; NullPool is not, nor one that is gone."""
    pools = Pools()
    engine = create_engine("sqlite://", poolclass=QueuePool, pool_size=2, max_overflow=1)
    other = create_engine("sqlite://", poolclass=NullPool)
    pools.see(engine)
    pools.see(other)
    with engine.connect():
        ((_, used, idle, most),) = pools.usage()
        assert (used, idle, most) == (1, 0, 3)
    ((_, used, idle, _),) = pools.usage()
    assert (used, idle) == (0, 1)
    engine.dispose()
    del engine
    gc.collect()
    assert pools.usage() == []
