"""A state machine drives several sessions at once; after each step the events are held against the triggers.

Sessions run in REPEATABLE READ: there a row that another session changed cannot be written unseen, so what a
session remembers of a row is what the row is. (In READ COMMITTED the session's own memory may be out of date,
and `before` with it.) For the same reason they forget what they remember after raw transaction control.

``ACTIVITY_ORACLE_SECONDS`` gives each variant that much time instead of its share of the normal suite.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import os
import random
import time
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import create_engine, event, inspect, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import DetachedInstanceError

from tests.oracle import models as m
from tests.oracle.conftest import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection, Engine
    from sqlalchemy.pool import PoolProxiedConnection

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.timeout(0),
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning"),
]

SECONDS: Final = float(os.environ.get("ACTIVITY_ORACLE_SECONDS", "0"))
SLOTS: Final = 3
MODES: Final = ("conditional_savepoint", "rollback_only", "control_fully", "create_savepoint")
KINDS: Final = (
    *(m.Account, m.Lazy, m.Prompt, m.Ledger, m.Ticket, m.Contract, m.Seat, m.Employee, m.Engineer, m.Manager),
    *(m.Shape, m.Circle, m.Square, m.Post, m.Tag, m.Comment, m.Node, m.Owner, m.Pet, m.Code),
)

# A step takes milliseconds: shrinking would take minutes, so it is for those who ask for it.
PHASES: Final = (Phase.generate, *((Phase.shrink,) if os.environ.get("ACTIVITY_ORACLE_SHRINK") else ()))

slots = st.integers(0, SLOTS - 1)
seeds = st.integers(0, 1_000)
counts = st.integers(1, 20)


# --- values ------------------------------------------------------------------------------------------


def _text(rng: random.Random) -> str | None:
    return rng.choice([None, "", "a", "b", "ünïcode \U0001f40d", "long " * 10])


def _number(rng: random.Random) -> int:
    return rng.randint(-3, 3)


def _json(rng: random.Random) -> dict[str, Any]:
    return rng.choice([{}, {"a": 1}, {"a": [1, {"b": None}], "c": 1.5}, {"x": "y"}])


_VALUES: Final[dict[str, Callable[[random.Random], Any]]] = {
    "note": _text,
    "number": _number,
    "balance": lambda rng: rng.choice([None, Decimal("0"), Decimal("1.50"), Decimal("-99999.99")]),
    "status": lambda rng: rng.choice([None, *m.Status]),
    "payload": lambda rng: rng.choice([None, b"", b"\x00\xff"]),
    "api_token": lambda rng: rng.choice([None, "one", "two"]),
    "born": lambda rng: rng.choice([None, dt.date(2000, 2, 29), dt.date(1, 1, 1)]),
    "active": lambda rng: rng.random() < 0.5,
    "touched": _number,
    "data": lambda rng: rng.choice([None, _json(rng)]),
    "items": lambda rng: rng.choice([None, [], [1, "two"]]),
    "extra": lambda rng: rng.choice([None, 1, "x", [1], _json(rng)]),
    "story": _text,
    "amount": _number,
    "label": _text,
    "remark": _text,
    "engineer_remark": _text,
    "skill": _text,
    "level": _number,
    "radius": _number,
    "side": _number,
    "title": _text,
    "body": _text,
    "at": lambda rng: rng.choice([None, m.Point(1, 2), m.Point(1, None)]),
}


def _attributes(kind: type) -> list[str]:
    """Attributes that may be set to anything; the name is one only where it need not be unique."""
    names = [name for name in _VALUES if hasattr(kind, name)]
    if kind is m.Seat:
        names.remove("number")
    return names


def _set(target: Any, rng: random.Random) -> None:
    names = _attributes(type(target))
    for name in rng.sample(names, min(len(names), rng.randint(1, 3))):
        setattr(target, name, _VALUES[name](rng))
    if isinstance(target, m.Contract):
        target.version = (target.version or 0) + 1
    elif hasattr(target, "name") and not isinstance(target, m.Account) and rng.random() < 0.5:
        target.name = _text(rng)


def _make(kind: type, rng: random.Random) -> Any:
    if kind is m.Account:
        # Few names, and they are unique: some flushes fail.
        made: Any = m.Account(name=str(rng.randint(1, 400)))
    elif kind is m.Seat:
        made = m.Seat(row=rng.choice("AB"), number=rng.randint(1, 30))
    elif kind is m.Code:
        made = m.Code(
            code=str(rng.randint(1, 60)), uses=[m.CodeUse(number=n) for n in range(rng.randint(0, 2))]
        )
    elif kind is m.Contract:
        return m.Contract(version=1, title=_text(rng))
    elif kind is m.Comment:
        return m.Comment(post=m.Post(title="of a comment"), body=_text(rng))
    else:
        made = kind()
    if rng.random() < 0.8 and _attributes(kind):
        _set(made, rng)
    return made


# --- what a session does with one object ----------------------------------------------------------------


def _expression(session: Session, target: Any, rng: random.Random) -> None:
    for name in ("number", "amount", "level", "radius"):
        if name in inspect(target).mapper.attrs and not isinstance(target, m.Seat):
            setattr(target, name, getattr(type(target), name) + 1)


def _in_place(session: Session, target: Any, rng: random.Random) -> None:
    if isinstance(target, m.Account):
        if target.data is not None:
            target.data[rng.choice("abc")] = _text(rng)
        if target.items:
            target.items.append(_number(rng))


def _relate(session: Session, target: Any, rng: random.Random) -> None:
    """Append to or remove from a collection, or point a reference elsewhere."""
    if isinstance(target, m.Post):
        _toggle(target.tags, _some(session, m.Tag, rng), rng)
        if target.comments and rng.random() < 0.5:
            target.comments.pop()
        else:
            target.comments.append(m.Comment(body=_text(rng)))
    elif isinstance(target, m.Tag):
        _toggle(target.posts, _some(session, m.Post, rng), rng)
    elif isinstance(target, m.Node):
        parent = _some(session, m.Node, rng)
        target.parent = None if parent is None or _above(target, parent) else parent
    elif isinstance(target, m.Owner):
        if rng.random() < 0.5:
            target.pets.append(m.Pet(name=_text(rng)))
        target.favourite = rng.choice([None, *target.pets])
    elif isinstance(target, m.Code):
        _rename(target, rng)


def _toggle(collection: list[Any], item: Any, rng: random.Random) -> None:
    if item is not None and item not in collection:
        collection.append(item)
    elif collection:
        collection.remove(rng.choice(collection))


def _above(node: m.Node, other: m.Node | None) -> bool:
    while other is not None:
        if other is node:
            return True
        other = other.parent
    return False


def _rename(code: m.Code, rng: random.Random) -> None:
    if rng.random() < 0.7:
        _ = code.uses  # loaded, so that they follow
        code.code = f"renamed {rng.randint(1, 60)}"
    else:
        code.uses.append(m.CodeUse(number=rng.randint(10, 40)))


def _some(session: Session, kind: type, rng: random.Random) -> Any:
    found = [thing for thing in _things(session) if isinstance(thing, kind)]
    return rng.choice(found) if found else None


def _replace(session: Session, target: Any, rng: random.Random) -> None:
    """Delete, and put a new object on the same key in the same flush."""
    if isinstance(target, m.Seat):
        new: Any = m.Seat(row=target.row, number=target.number)
    elif isinstance(target, (m.Ledger, m.Account, m.Lazy, m.Circle)):
        new = type(target)(id=target.id)
        if isinstance(target, m.Account):
            new.name = target.name
    else:
        return
    session.delete(target)
    _set(new, rng)
    session.add(new)


def _merge(session: Session, target: Any, rng: random.Random) -> None:
    if not isinstance(target, (m.Ledger, m.Account, m.Ticket, m.Lazy, m.Engineer)):
        return
    copy = type(target)(id=target.id)
    if isinstance(target, m.Account):
        copy.name = target.name
    _set(copy, rng)
    session.merge(copy)


ACTIONS: Final[dict[str, Callable[[Session, Any, random.Random], Any]]] = {
    "set": lambda _, target, rng: _set(target, rng),
    "set again": lambda _, target, rng: _set(target, rng),
    "expression": _expression,
    "in place": _in_place,
    "relate": _relate,
    "relate again": _relate,
    "delete": lambda session, target, _: session.delete(target),
    "replace": _replace,
    "merge": _merge,
    "expire": lambda session, target, _: session.expire(target),
    "refresh": lambda session, target, _: session.refresh(target),
    "expunge": lambda session, target, _: session.expunge(target),
}


def _things(session: Session) -> list[Any]:
    """The session's objects, in an order that does not depend on memory addresses."""
    known = [(str(key), thing) for key, thing in session.identity_map.items()]
    known.sort(key=lambda pair: pair[0].split("<class")[-1])
    pending = sorted(session.new, key=lambda thing: inspect(thing).insert_order or 0)
    return [thing for _, thing in known] + pending


class Slot:
    """One session, on the engine or on a connection whose transaction somebody else began."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.connection: Connection | None = None
        self.raw_savepoints = 0
        self.session = Session(engine)

    def external(self, mode: str) -> None:
        self.close()
        self.connection = self.engine.connect()
        self.connection.begin()
        self.session = Session(self.connection, join_transaction_mode=mode)  # type: ignore[arg-type]

    def end_external(self, *, commit: bool) -> None:
        self.session.close()
        if self.connection is not None:
            transaction = self.connection.get_transaction()
            if transaction is not None and transaction.is_active and commit:
                transaction.commit()
        self.close()
        self.session = Session(self.engine)

    def close(self) -> None:
        with contextlib.suppress(SQLAlchemyError):
            self.session.close()
        if self.connection is not None:
            with contextlib.suppress(SQLAlchemyError):
                self.connection.close()
            self.connection = None
        self.raw_savepoints = 0


class Sessions(RuleBasedStateMachine):
    """Sessions that do what applications do, and what they should not."""

    world: World
    engine: Engine
    events: int = 0
    lent: list[PoolProxiedConnection]

    @initialize()
    def start(self) -> None:
        self.slots = [Slot(self.engine) for _ in range(SLOTS)]

    def act(self, number: int, work: Callable[[Slot], Any]) -> None:
        """Do something; the application swallows what SQLAlchemy raises (assertions, too)."""
        with contextlib.suppress(SQLAlchemyError, DetachedInstanceError, AssertionError):
            work(self.slots[number])

    # --- objects ---

    @rule(number=slots, kind=st.sampled_from(KINDS), count=counts, seed=seeds)
    def add(self, number: int, kind: type, count: int, seed: int) -> None:
        rng = random.Random(seed)
        self.act(number, lambda slot: slot.session.add_all([_make(kind, rng) for _ in range(count)]))

    @rule(number=slots, kinds=st.lists(st.sampled_from(KINDS), min_size=2, max_size=6), seed=seeds)
    def add_mixed(self, number: int, kinds: list[type], seed: int) -> None:
        rng = random.Random(seed)
        self.act(number, lambda slot: slot.session.add_all([_make(kind, rng) for kind in kinds]))

    @rule(number=slots, action=st.sampled_from(sorted(ACTIONS)), count=st.integers(1, 6), seed=seeds)
    def touch(self, number: int, action: str, count: int, seed: int) -> None:
        rng = random.Random(seed)

        def work(slot: Slot) -> None:
            things = _things(slot.session)
            for thing in rng.sample(things, min(count, len(things))):
                with contextlib.suppress(SQLAlchemyError):
                    ACTIONS[action](slot.session, thing, rng)

        self.act(number, work)

    @rule(number=slots, seed=seeds)
    def several_at_once(self, number: int, seed: int) -> None:
        """Many different things before one flush."""
        rng = random.Random(seed)

        def work(slot: Slot) -> None:
            with slot.session.no_autoflush:
                for thing in _things(slot.session):
                    if rng.random() < 0.5:
                        action = rng.choice(["set", "relate", "delete", "expression", "in place"])
                        with contextlib.suppress(SQLAlchemyError):
                            ACTIONS[action](slot.session, thing, rng)
                slot.session.add_all([_make(rng.choice(KINDS), rng) for _ in range(3)])
            slot.session.flush()

        self.act(number, work)

    @rule(number=slots, kind=st.sampled_from(KINDS), locked=st.booleans())
    def load(self, number: int, kind: type, locked: bool) -> None:
        query = select(kind).order_by(*inspect(kind).primary_key).limit(5)
        if locked:
            query = query.with_for_update()
        self.act(number, lambda slot: slot.session.scalars(query).unique().all())

    # --- the session ---

    @rule(number=slots)
    def flush(self, number: int) -> None:
        self.act(number, lambda slot: slot.session.flush())

    @rule(number=slots)
    def commit(self, number: int) -> None:
        self.act(number, lambda slot: slot.session.commit())

    @rule(number=slots)
    def commit_again(self, number: int) -> None:
        self.act(number, lambda slot: slot.session.commit())

    @rule(number=slots)
    def rollback(self, number: int) -> None:
        self.act(number, lambda slot: slot.session.rollback())

    @rule(number=slots)
    def close(self, number: int) -> None:
        self.act(number, lambda slot: slot.session.close())

    @rule(number=slots)
    def expire_all(self, number: int) -> None:
        self.act(number, lambda slot: slot.session.expire_all())

    @rule(number=slots)
    def begin_nested(self, number: int) -> None:
        self.act(number, lambda slot: slot.session.begin_nested())

    @rule(number=slots, commit=st.booleans())
    def end_nested(self, number: int, commit: bool) -> None:
        def work(slot: Slot) -> None:
            nested = slot.session.get_nested_transaction()
            if nested is not None:
                _ = nested.commit() if commit else nested.rollback()

        self.act(number, work)

    # --- trouble ---

    @rule(number=slots, inside=st.booleans())
    def failing_statement(self, number: int, inside: bool) -> None:
        def work(slot: Slot) -> None:
            nested = slot.session.begin_nested() if inside else None
            with contextlib.suppress(SQLAlchemyError):
                slot.session.execute(text("SELECT 1/0"))
            if nested is not None:
                nested.rollback()

        self.act(number, work)

    @rule(number=slots, verb=st.sampled_from(["ROLLBACK", "COMMIT", "rollback work", "/* x */ END"]))
    def raw_control(self, number: int, verb: str) -> None:
        def work(slot: Slot) -> None:
            if slot.session.connection().in_nested_transaction():
                return  # SQLAlchemy's savepoint would be gone, and its session unable to end
            slot.session.flush()
            slot.raw_savepoints = 0
            try:
                driver = slot.session.connection().connection.dbapi_connection
                slot.session.execute(text(verb))
                if self.world.driver == "psycopg2":
                    # It does not notice, and sends no BEGIN: each statement would be a transaction.
                    driver.rollback()  # type: ignore[union-attr]
            finally:
                slot.session.expunge_all()

        self.act(number, work)

    @rule(number=slots)
    def raw_savepoint(self, number: int) -> None:
        def work(slot: Slot) -> None:
            slot.session.flush()
            slot.session.execute(text('SAVEPOINT "Mine"'))
            slot.raw_savepoints += 1

        self.act(number, work)

    @precondition(lambda self: any(slot.raw_savepoints for slot in getattr(self, "slots", ())))
    @rule(number=slots, verb=st.sampled_from(["ROLLBACK TO SAVEPOINT", "RELEASE", "rollback to"]))
    def raw_savepoint_end(self, number: int, verb: str) -> None:
        def work(slot: Slot) -> None:
            if slot.raw_savepoints and not slot.session.connection().in_nested_transaction():
                slot.session.flush()
                try:
                    slot.session.execute(text(f'{verb} "Mine"'))
                finally:
                    slot.session.expunge_all()

        self.act(number, work)

    # --- transactions of somebody else ---

    @rule(number=slots, mode=st.sampled_from(MODES))
    def external(self, number: int, mode: str) -> None:
        self.act(number, lambda slot: slot.external(mode))

    @rule(number=slots, commit=st.booleans())
    def end_external(self, number: int, commit: bool) -> None:
        self.act(number, lambda slot: slot.end_external(commit=commit))

    # --- the truth ---

    @invariant()
    def events_are_the_rows(self) -> None:
        type(self).events += self.world.check()
        assert not self.world.delivery.undecided_units

    def teardown(self) -> None:
        for slot in getattr(self, "slots", ()):
            slot.close()
        self.slots = []
        for lent in self.lent:
            if lent.dbapi_connection is not None:
                # After raw transaction control SQLAlchemy may fail to end a session, and keep its connection.
                lent.rollback()  # type: ignore[attr-defined]
                lent.invalidate()
        self.lent.clear()
        self.events_are_the_rows()
        self.world.oracle.empty()


@pytest.fixture(params=["psycopg", "psycopg-fetch", "psycopg2"])
def machine(
    request: pytest.FixtureRequest, oracle_dsn: str, caplog: pytest.LogCaptureFixture
) -> Iterator[type[Sessions]]:
    """The machine on one driver, with and without reading unknown before-values."""
    driver, _, fetch = request.param.partition("-")
    made = World(oracle_dsn, driver, fetch_before=bool(fetch))
    engine = create_engine(
        made.url,
        pool_size=SLOTS * 2,
        isolation_level="REPEATABLE READ",
        connect_args={"options": "-c lock_timeout=20ms -c deadlock_timeout=10ms"},
    )
    lent: list[PoolProxiedConnection] = []
    event.listen(engine, "checkout", lambda _, __, proxy: lent.append(proxy))
    variant = type("Sessions", (Sessions,), {"world": made, "engine": engine, "events": 0, "lent": lent})
    yield variant
    engine.dispose()
    made.close()
    errors = [record for record in caplog.get_records("call") if record.levelno >= logging.ERROR]
    assert not errors, errors


def test_events_equal_what_the_triggers_saw(machine: type[Sessions], request: pytest.FixtureRequest) -> None:
    """Whatever sessions do: released units are the committed transactions, event for row, in order."""
    share = {"psycopg": 16, "psycopg-fetch": 12, "psycopg2": 8}
    end = time.monotonic() + (SECONDS or share[request.node.callspec.params["machine"]])
    while True:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=10,
                stateful_step_count=40,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
                report_multiple_bugs=False,
                phases=PHASES,
            ),
        )
        if time.monotonic() > end and machine.events > 100:
            break
    print(f"{machine.events} events")
