"""User actions: outcomes, what is logged, and the transaction they share with row changes."""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import traceback
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

from otel_activity import Actor, activity_context, log_user_action, semconv, with_activity_logging
from otel_activity.testing import Recorder, recorded_events

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

    from otel_activity.events import Event


class Base(DeclarativeBase):
    pass


class Invoice(Base):
    __tablename__ = "invoice"
    id: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[str]


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    """Auditing is active and kept in memory."""
    with recorded_events(redact=["iban"]) as made:
        yield made


@pytest.fixture(params=["psycopg", "psycopg2", "sqlite"])
def engine(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Engine]:
    """The application's database, with its tables."""
    if request.param == "sqlite":
        made = create_engine(f"sqlite:///{tmp_path}/app.db")
    else:
        dsn = request.getfixturevalue("postgres_dsn")
        made = create_engine(dsn.replace("postgresql://", f"postgresql+{request.param}://"))
    Base.metadata.create_all(made)
    yield made
    made.dispose()


def only(recorder: Recorder) -> dict[str, Any]:
    """The attributes of the one event."""
    (event,) = recorder.events
    return event.attributes


def actions(recorder: Recorder) -> list[Event]:
    """The events of actions."""
    return [event for event in recorder.events if event.name == semconv.ACTION]


def fate(event: Event) -> tuple[Any, Any, bool]:
    """Outcome, error type, and whether it belongs to a transaction."""
    found = event.attributes
    return (
        found[semconv.ACTIVITY_OUTCOME],
        found.get(semconv.ERROR_TYPE),
        semconv.TRANSACTION_ID in found,
    )


SUCCESS = ("success", None, False)
JOINED = ("success", None, True)
ROLLED_BACK = ("failure", "rolled back", False)


# --- what is logged -------------------------------------------------------------------------------


def test_an_action_says_who_did_what(recorder: Recorder) -> None:
    """All arguments arrive; nothing claims a transaction or commit that there was not."""
    with activity_context(actor=Actor(id="u-1", name="Ada"), tenant="t-1"):
        log_user_action(
            "invoice.approve",
            entity_type="Invoice",
            entity_id=(4711, "de"),
            details="by phone",
            channel="web",
        )
    (event,) = recorder.events
    assert event.name == "activity.action"
    assert event.severity == 9
    assert event.attributes == {
        "activity.action": "invoice.approve",
        "activity.outcome": "success",
        "activity.entity.type": "Invoice",
        "activity.entity.id": '[4711,"de"]',
        "activity.details": "by phone",
        "channel": "web",
        "user.id": "u-1",
        "user.name": "Ada",
        "activity.actor.type": "user",
        "activity.tenant.id": "t-1",
        "activity.schema.version": semconv.SCHEMA_VERSION,
    }


def test_a_named_user_does_not_inherit_another_ones_name(recorder: Recorder) -> None:
    """`user_id` beats the context; name and roles of somebody else do not stick to it."""
    with activity_context(actor=Actor(id="u-1", name="Ada", roles=("admin",), on_behalf_of="u-9")):
        log_user_action("login", user_id="u-2")
        log_user_action("login", user_id="u-1")
    other, same = (event.attributes for event in recorder.events)
    assert other[semconv.USER_ID] == "u-2"
    assert {semconv.USER_NAME, semconv.USER_ROLES, semconv.ACTOR_ON_BEHALF_OF}.isdisjoint(other)
    assert same[semconv.USER_NAME] == "Ada"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (7, ("user", "7")),
        ("", ("unknown", None)),
        ("u" * 257, ("unknown", None)),
        (object(), ("unknown", None)),
    ],
)
def test_a_named_user_is_an_id_or_unknown(
    recorder: Recorder, key: Any, expected: tuple[str, str | None]
) -> None:
    """What names nobody for certain does not leave the action to the user of the context."""
    with activity_context(actor=Actor(id="u-1", name="Ada")):
        log_user_action("login", user_id=key)
    found = only(recorder)
    assert (found[semconv.ACTOR_TYPE], found.get(semconv.USER_ID)) == expected
    assert semconv.USER_NAME not in found


def test_secrets_are_removed(recorder: Recorder) -> None:
    """By name of the attribute, and by key at any depth of details and attributes."""
    log_user_action(
        "pay",
        details={"cards": [{"card_number": "4111111111111111", "iban": "DE02120300000000202051"}]},
        password="hunter2",
        payload={"auth": {"token": "abc123"}},
    )
    found = repr(only(recorder))
    assert not any(
        secret in found for secret in ("4111111111111111", "DE02120300000000202051", "hunter2", "abc123")
    )
    assert only(recorder)["password"] == {"$redacted": True}
    assert only(recorder)["payload"] == {"auth": {"$redacted": True}}


def test_attributes_cannot_forge_ours(recorder: Recorder) -> None:
    """An attribute named like one of ours does not replace what was really logged."""
    log_user_action("pay", outcome="failure", **{"activity.outcome": "success", "activity.action": "nothing"})
    assert only(recorder)[semconv.ACTIVITY_OUTCOME] == "failure"
    assert only(recorder)[semconv.ACTIVITY_ACTION] == "pay"


def test_odd_values_never_raise(recorder: Recorder) -> None:
    """What cannot be a JSON value is encoded or marked; a wrong outcome is unknown; too many are cut."""

    class Broken:
        def __str__(self) -> str:
            raise RuntimeError

    log_user_action(
        "a\ud800\0b" + "x" * 1000,
        entity_id=dt.date(2026, 1, 2),
        details=Broken(),
        outcome="maybe",  # type: ignore[arg-type]
        **{f"n{number}": number for number in range(100)},
    )
    found = only(recorder)
    assert found[semconv.ACTIVITY_ACTION] == "a\ufffd\ufffdb" + "x" * 252
    assert found[semconv.ENTITY_ID] == "2026-01-02"
    assert found[semconv.ACTIVITY_OUTCOME] == "unknown"
    assert sum(name.startswith("n") for name in found) == 64
    recorder.clear()
    log_user_action(Broken(), outcome=[], session=object())  # type: ignore[arg-type]
    found = only(recorder)
    assert found[semconv.ACTIVITY_ACTION].startswith("<test_odd_values_never_raise")
    assert found[semconv.ACTIVITY_OUTCOME] == "unknown"


# --- with_activity_logging ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entity_id", "said"),
    [
        (10**5_000, hex(10**5_000)),
        ((2**70, 1), f'["{2**70}",1]'),
        ((10**5_000, None, True), f'["{hex(10**5_000)}",null,true]'),
    ],
    ids=["huge", "composite", "huge in composite"],
)
def test_a_number_of_any_size_is_an_entity_id(recorder: Recorder, entity_id: Any, said: str) -> None:
    """Python refuses to write some, and JSON others: neither costs the event."""
    log_user_action("count", entity_id=entity_id)
    assert only(recorder)[semconv.ENTITY_ID] == said


class Unbound:
    """A proxy of something that is not there."""

    @property
    def __class__(self) -> type:
        raise RuntimeError("outside of a request")


def test_a_proxy_of_nothing_does_not_cost_the_event(recorder: Recorder) -> None:
    """What raises when it is asked for its class is marked, wherever it stands."""
    log_user_action("pay", entity_id=Unbound(), details=[Unbound()], by=Unbound())
    found = only(recorder)
    mark = {"$replaced": {"type": "Unbound", "reason": "no encoding for this type"}}
    assert (found["by"], found[semconv.DETAILS]) == (mark, [mark])


def test_a_decorated_call_is_logged_once(recorder: Recorder) -> None:
    """Result, name and signature are the function's; duration and entity id are in the event."""

    @with_activity_logging("invoice.create", entity_type="Invoice", entity_id=lambda made: made["id"], v=1)
    def create(number: int) -> dict[str, int]:
        """Docstring."""
        return {"id": number}

    assert create(4711) == {"id": 4711}
    assert (create.__name__, create.__doc__) == ("create", "Docstring.")
    found = only(recorder)
    assert found[semconv.ENTITY_ID] == "4711"
    assert found["v"] == 1
    assert 0 <= found[semconv.ACTION_DURATION] < 60


def test_an_exception_goes_on_unchanged(recorder: Recorder) -> None:
    """The same object with its traceback; the event has its type and not its message."""
    problem = ValueError("secret message")

    @with_activity_logging("invoice.create", entity_id=lambda made: made)
    def create() -> None:
        raise problem

    with pytest.raises(ValueError) as caught:
        create()
    assert caught.value is problem
    assert problem.__context__ is None
    assert traceback.extract_tb(problem.__traceback__)[-1].line == "raise problem"
    assert fate(recorder.events[0]) == ("failure", "ValueError", False)
    assert recorder.events[0].severity == 13
    assert "secret message" not in repr(only(recorder))


def test_coroutines(recorder: Recorder) -> None:
    """An async function stays one; its end counts, its cancellation is a failure."""

    @with_activity_logging("invoice.send", entity_id=lambda sent: sent)
    async def send(delay: float) -> int:
        await asyncio.sleep(delay)
        return 7

    async def main() -> None:
        assert await send(0) == 7
        task = asyncio.create_task(send(60))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with with_activity_logging("invoice.archive") as running:
            running.entity_id = 8

    assert asyncio.iscoroutinefunction(send)
    asyncio.run(main())
    assert [fate(event)[:2] for event in recorder.events] == [
        ("success", None),
        ("failure", "asyncio.exceptions.CancelledError"),
        ("success", None),
    ]
    assert [event.attributes.get(semconv.ENTITY_ID) for event in recorder.events] == ["7", None, "8"]


def test_a_coroutine_function_that_another_decorator_hides(recorder: Recorder) -> None:
    """It is logged when it is awaited, as what it was; and it works in the context that it was given."""

    def plain(function: Any) -> Any:
        return lambda *args: function(*args)

    @with_activity_logging("pay", entity_id=lambda paid: paid)
    @activity_context(actor="till")
    @plain
    async def pay(amount: int) -> int:
        await asyncio.sleep(0)
        log_user_action("step")
        if not amount:
            raise LookupError
        return amount

    async def main() -> None:
        with activity_context(actor="ada"):
            assert await pay(5) == 5
            with pytest.raises(LookupError):
                await pay(0)
            log_user_action("end")

    asyncio.run(main())
    assert [
        (found.attributes[semconv.ACTIVITY_ACTION], found.attributes[semconv.USER_ID])
        for found in recorder.events
    ] == [("step", "till"), ("pay", "ada"), ("step", "till"), ("pay", "ada"), ("end", "ada")]
    _, paid, _, failed, _ = (found.attributes for found in recorder.events)
    assert (paid[semconv.ACTIVITY_OUTCOME], paid[semconv.ENTITY_ID]) == ("success", "5")
    assert (failed[semconv.ACTIVITY_OUTCOME], failed[semconv.ERROR_TYPE]) == ("failure", "LookupError")


def test_a_block_may_add_what_it_learns(recorder: Recorder) -> None:
    """Entity id, details and attributes set inside the block are logged, of a failure too."""

    def block() -> None:
        with with_activity_logging("import", details="start") as running:
            running.entity_id = 5
            running.details = {"rows": 3, "password": "x"}
            running.attributes["source"] = "ftp"
            raise KeyError

    with pytest.raises(KeyError):
        block()
    found = only(recorder)
    assert found[semconv.ENTITY_ID] == "5"
    assert found[semconv.DETAILS] == {"rows": 3, "password": {"$redacted": True}}
    assert found["source"] == "ftp"
    assert found[semconv.ERROR_TYPE] == "KeyError"


def test_stacked_decorators_log_once(recorder: Recorder) -> None:
    """The same action on the same function is one event, through other decorators too; recursion is not."""

    def other(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any) -> Any:
            return function(*args)

        return wrapper

    @with_activity_logging("count")
    @other
    @with_activity_logging("count")
    @with_activity_logging("measure")
    def count(depth: int) -> None:
        if depth:
            count(depth - 1)

    count(1)
    logged = [event.attributes[semconv.ACTIVITY_ACTION] for event in recorder.events]
    assert logged == ["measure", "count"] * 2


def test_a_callable_that_fails_costs_only_the_entity_id(recorder: Recorder) -> None:
    """The call has succeeded, and says so."""

    @with_activity_logging("create", entity_id=lambda made: made.nothing)
    def create() -> int:
        return 1

    assert create() == 1
    assert fate(recorder.events[0]) == SUCCESS
    assert semconv.ENTITY_ID not in only(recorder)


def test_what_cannot_be_measured_is_refused() -> None:
    """A generator's work is not done when its call returns; one object cannot be two blocks at once."""
    for_all = with_activity_logging("export")

    async def rows() -> Any:
        yield 1

    with pytest.raises(TypeError, match="inside it"):
        for_all(lambda: (yield))
    with pytest.raises(TypeError, match="rows"):
        for_all(rows)
    with for_all, pytest.raises(RuntimeError, match="export"):
        for_all.__enter__()
    with for_all:
        pass


def test_decorated_before_auditing_is_active() -> None:
    """Without auditing everything works and logs nothing; the same function logs once it is active."""

    @with_activity_logging("create")
    def create() -> int:
        return 1

    log_user_action("nothing", session=object())
    with with_activity_logging("nothing"):
        assert create() == 1
    with recorded_events() as recorder:
        assert create() == 1
    assert create() == 1
    assert len(recorder.events) == 1


# --- transactions ---------------------------------------------------------------------------------


def test_an_action_joins_the_transaction(recorder: Recorder, engine: Engine) -> None:
    """Before the first statement, unflushed, flushed: it is released with the row changes, in its place."""
    with Session(engine) as session, session.begin():
        log_user_action("first", session=session)
        session.add(Invoice(id=1, state="new"))
        log_user_action("second", session=session)
        session.flush()
        log_user_action("third", connection=session.connection())
        assert recorder.events == []
    assert [fate(event) for event in recorder.events] == [JOINED] * 4
    assert [event.attributes[semconv.ACTIVITY_ACTION] for event in recorder.events] == [
        *("first", "second", "create", "third")
    ]
    assert len({event.attributes[semconv.TRANSACTION_ID] for event in recorder.events}) == 1
    assert {event.attributes[semconv.COMMIT] for event in recorder.events} == {"reported"}


@pytest.mark.parametrize("flushed", [True, False])
def test_an_action_that_is_rolled_back_has_failed(recorder: Recorder, engine: Engine, flushed: bool) -> None:
    """The rows are forgotten, the action is reported, with the actor that its context has at the end."""
    with activity_context() as context, Session(engine) as session:
        session.add(Invoice(id=1, state="new"))
        if flushed:
            session.flush()
        log_user_action("approve", session=session)
        context.actor = Actor(id="u-late")
        session.rollback()
    assert fate(recorder.events[0]) == ROLLED_BACK
    assert only(recorder)[semconv.USER_ID] == "u-late"


def test_an_action_in_a_savepoint(recorder: Recorder, engine: Engine) -> None:
    """Rolled back with its savepoint it has failed; what came before and after is committed."""
    with Session(engine) as session:
        session.add(Invoice(id=1, state="new"))
        session.flush()
        savepoint = session.begin_nested()
        session.add(Invoice(id=2, state="new"))
        session.flush()
        log_user_action("inner", session=session)
        savepoint.rollback()
        log_user_action("outer", session=session)
        session.commit()
    assert [fate(event) for event in actions(recorder)] == [ROLLED_BACK, JOINED]
    assert len(recorder.of("Invoice")) == 1


def test_a_refused_commit_reports_the_action_as_failed(recorder: Recorder, postgres_dsn: str) -> None:
    """A deferred constraint fails at COMMIT: nothing is committed, the action says so, once."""
    engine = create_engine(postgres_dsn.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE parent (id int PRIMARY KEY)"))
        connection.execute(text("CREATE TABLE child (id int REFERENCES parent INITIALLY DEFERRED)"))
    connection = engine.connect()
    connection.execute(text("INSERT INTO child VALUES (1)"))
    log_user_action("adopt", connection=connection)
    with pytest.raises(Exception, match="foreign key"):
        connection.commit()
    connection.close()
    assert [fate(event) for event in recorder.events] == [ROLLED_BACK]
    engine.dispose()


def test_a_statement_that_failed_and_was_swallowed(recorder: Recorder, postgres_dsn: str) -> None:
    """COMMIT of a transaction in error commits nothing, whatever it returns."""
    engine = create_engine(postgres_dsn.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        log_user_action("before", connection=connection)  # in no transaction yet
        connection.begin()
        log_user_action("first", connection=connection)
        with pytest.raises(Exception, match="division"):
            connection.execute(text("SELECT 1 / 0"))
        connection.commit()
    assert [fate(event) for event in recorder.events] == [SUCCESS, ROLLED_BACK]
    engine.dispose()


def test_without_a_transaction_an_action_stands_alone(recorder: Recorder, engine: Engine) -> None:
    """After a commit, on a fresh session, under AUTOCOMMIT: released at once."""
    with Session(engine) as session:
        log_user_action("fresh", session=session)
        session.add(Invoice(id=1, state="new"))
        session.commit()
        log_user_action("after", session=session)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SELECT 1"))
        log_user_action("autocommit", connection=connection)
        assert [fate(event) for event in actions(recorder)] == [SUCCESS] * 3


def test_a_transaction_with_actions_alone_is_committed(recorder: Recorder, engine: Engine) -> None:
    """Nothing was sent to the server, or only a query: the action's transaction is reported as committed."""
    with Session(engine) as session, session.begin():
        log_user_action("nothing sent", session=session)
    with Session(engine) as session, session.begin():
        session.execute(text("SELECT 1"))
        log_user_action("only read", session=session)
    assert [fate(event) for event in recorder.events] == [JOINED] * 2
    assert {event.attributes[semconv.COMMIT] for event in recorder.events} == {"reported"}


def test_a_block_that_commits_and_reads_has_succeeded(recorder: Recorder, engine: Engine) -> None:
    """The transaction of a read after the block's own commit says nothing about the block."""
    with Session(engine) as session:
        with with_activity_logging("create", session=session):
            invoice = Invoice(id=1, state="new")
            session.add(invoice)
            session.commit()
            assert invoice.state == "new"
        with with_activity_logging("approve", session=session):
            invoice.state = "approved"
        session.rollback()
    assert [fate(event) for event in actions(recorder)] == [SUCCESS, ROLLED_BACK]


def test_a_block_that_fails_keeps_its_own_reason(recorder: Recorder, engine: Engine) -> None:
    """An action whose exception rolls the transaction back is logged once, with the exception's type."""

    def request() -> None:
        with Session(engine) as session, session.begin():
            session.add(Invoice(id=1, state="new"))
            with with_activity_logging("approve", session=session):
                session.flush()
                raise LookupError

    with pytest.raises(LookupError):
        request()
    assert [fate(event) for event in recorder.events] == [("failure", "LookupError", False)]


def test_scoped_and_async_sessions(recorder: Recorder, postgres_dsn: str) -> None:
    """Scoped sessions and async sessions and connections join like plain ones."""
    engine = create_engine(postgres_dsn.replace("postgresql://", "postgresql+psycopg://"))
    Base.metadata.create_all(engine)
    scoped = scoped_session(sessionmaker(engine))
    scoped.add(Invoice(id=1, state="new"))
    log_user_action("scoped", session=scoped)
    scoped.commit()
    scoped.remove()
    engine.dispose()

    async def main() -> None:
        engine = create_async_engine(postgres_dsn.replace("postgresql://", "postgresql+asyncpg://"))
        async with AsyncSession(engine) as session:
            session.add(Invoice(id=2, state="new"))
            await session.flush()
            log_user_action("async", session=session)
            await session.commit()
        async with engine.begin() as connection:
            log_user_action("early", connection=connection)
            await connection.execute(text("DELETE FROM invoice"))
        async with AsyncSession(engine) as session:
            session.add(Invoice(id=3, state="new"))
            log_user_action("pooled", session=session)
            await session.rollback()
        await engine.dispose()

    asyncio.run(main())
    assert [fate(event) for event in actions(recorder)] == [JOINED] * 3 + [ROLLED_BACK]


def test_a_session_whose_connection_cannot_be_had(recorder: Recorder) -> None:
    """No default bind, or no session at all: logged all the same, and no transaction is claimed."""
    with Session() as session:
        session.add(Invoice(id=3, state="new"))
        log_user_action("unbound", session=session)
    log_user_action("no session", session=object())
    assert [fate(event) for event in recorder.events] == [SUCCESS] * 2
