"""Each thing that the unit of work does in a way of its own, once, compared with the triggers."""

from __future__ import annotations

import contextlib
import datetime as dt
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import JSON, create_engine, delete, event, func, inspect, select, text
from sqlalchemy.exc import DBAPIError, SAWarning
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import Mapper, Session, load_only, undefer
from sqlalchemy.orm.attributes import flag_dirty
from sqlalchemy.pool import NullPool

from otel_activity import semconv
from tests.oracle.models import (
    Account,
    Circle,
    Code,
    CodeUse,
    Comment,
    Contract,
    Employee,
    Engineer,
    Lazy,
    Ledger,
    Link,
    Manager,
    Node,
    Owner,
    Pet,
    Point,
    Post,
    Prompt,
    Seat,
    Shape,
    Square,
    Status,
    Tag,
    Ticket,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.oracle.conftest import World

pytestmark = pytest.mark.oracle


def _account(name: str, **values: Any) -> Account:
    given: dict[str, Any] = {
        "note": "n",
        "balance": Decimal("1.50"),
        "status": Status.DONE,
        "payload": b"\x00\xff",
        "api_token": "hunter2",
        "born": dt.date(2000, 2, 29),
        "data": {"a": [1, {"b": None}]},
        "items": [1, "two"],
        "extra": {"k": "v"},
        "story": "long",
    }
    return Account(name=name, **(given | values))


def _add(*objects: Any) -> Any:
    def work(session: Session) -> None:
        session.add_all(objects)
        session.commit()

    return work


@contextlib.contextmanager
def _listening(target: Any, hook: Callable[..., None], *names: str) -> Iterator[None]:
    """The application has a hook on some mapper events."""
    for name in names:
        event.listen(target, name, hook)
    try:
        yield
    finally:
        for name in names:
            event.remove(target, name, hook)


def test_insert_update_delete_of_every_column_type(world: World) -> None:
    """Each type of value is captured as the server stored it, on all three operations."""

    def work(session: Session) -> None:
        account = _account("a")
        session.add_all([account, Account(name="empty")])
        session.commit()
        session.refresh(account)
        account.note = None
        account.balance = Decimal("-3.25")
        account.status = Status.NEW
        account.payload = b""
        account.api_token = "other"
        account.born = None
        account.active = False
        account.data = {"new": True}
        account.items = []
        account.extra = [1, 2]
        account.story = "x"
        session.commit()
        session.refresh(account)
        session.delete(account)
        session.commit()

    world.run(work)
    assert world.check() == 4


def test_batch_order_of_inserts_and_updates_in_one_flush(world: World) -> None:
    """New and changed objects of one flush come in the order of the statements: updates, then inserts."""

    def work(session: Session) -> None:
        accounts = [Account(name=f"a{number}") for number in range(6)]
        session.add_all(accounts)
        session.commit()
        for number, account in enumerate(accounts):
            if number % 2:
                account.note = "changed"
            else:
                account.balance = Decimal(number)
        session.add_all([Account(name=f"b{number}", note="n" if number % 2 else None) for number in range(7)])
        session.flush()
        session.delete(accounts[3])
        accounts[2].number = 9
        session.add(Account(name="c"))
        session.commit()

    world.run(work)
    assert world.check() == 22


def test_server_defaults_that_are_not_read_back(world: World) -> None:
    """A value that only the server knows is in the event as a name without a value."""

    def work(session: Session) -> None:
        lazy = Lazy(name="x")
        session.add(lazy)
        session.commit()
        lazy.name = "y"
        session.commit()
        session.refresh(lazy)
        lazy.name = "z"
        session.flush()
        lazy.name = "again"  # `changed` is expired now
        session.commit()

    world.run(work)
    assert world.check() == 4


def test_server_defaults_that_are_read_back(world: World) -> None:
    """With eager defaults both sides of server-side values are known."""

    def work(session: Session) -> None:
        prompt = Prompt(name="x")
        session.add(prompt)
        session.commit()
        session.refresh(prompt)
        prompt.name = "y"
        session.flush()
        prompt.number = Prompt.number + 1
        session.commit()

    world.run(work)
    assert world.check() == 3


def test_expression_assigned_to_an_attribute(world: World) -> None:
    """An SQL expression is a change whose result is not known."""

    def work(session: Session) -> None:
        ledger, account = Ledger(amount=1), _account("a")
        session.add_all([ledger, account])
        session.flush()
        account.number = Account.number + 1
        ledger.amount = Ledger.amount + 41
        session.flush()
        account.number = Account.number + 1
        account.note = func.upper("x")
        session.commit()
        ledger.amount = select(func.count()).select_from(Account).scalar_subquery()
        session.commit()

    world.run(work)
    assert world.check() == 6


def test_expression_in_an_insert(world: World) -> None:
    """A column that an INSERT computed is not taken for null."""
    world.run(
        _add(Account(name="a", note=func.lower("ABC"), balance=text("1 + 1")), Ledger(amount=func.abs(-3)))
    )
    assert world.check() == 2


def test_assigned_but_equal_is_no_event(world: World) -> None:
    """Setting a loaded attribute to the value that it has, or back, changes nothing."""

    def work(session: Session) -> None:
        account = _account("a")
        session.add(account)
        session.commit()
        session.refresh(account)
        account.note = account.note
        account.balance = Decimal("9")
        account.balance = Decimal("1.50")
        session.commit()

    world.run(work)
    assert world.check() == 1


def test_never_loaded_and_expired_attributes(world: World) -> None:
    """What the session did not know is absent before, right after, and never guessed."""

    def work(session: Session) -> None:
        account = _account("a")
        session.add(account)
        session.commit()
        account.note = "blind"
        account.touched = 12345
        account.story = "s"
        session.commit()
        account.note = "blind"  # as it was: an UPDATE of nothing in this column
        session.commit()
        session.delete(account)
        session.commit()

    world.run(work)
    assert world.check() == 4


def test_json_changed_in_place(world: World) -> None:
    """In-place changes of mutable columns are captured with the value of that flush."""

    def work(session: Session) -> None:
        account = _account("a")
        session.add(account)
        session.flush()
        account.data["a"].append(2)
        account.data["x"] = 1  # type: ignore[index]
        session.flush()
        account.data["x"] = 2  # type: ignore[index]
        account.items.append("three")  # type: ignore[union-attr]
        session.commit()
        account.data["x"] = 3  # type: ignore[index]
        session.commit()

    world.run(work)
    assert world.check() == 4


def test_onupdate_of_many_rows_in_one_statement(world: World) -> None:
    """A Python-side ``onupdate`` gives each row a value of its own, whatever the session has."""

    def work(session: Session) -> None:
        accounts = [_account(str(number)) for number in range(5)]
        managers = [Manager(name="a", level=1) for _ in range(3)]
        session.add_all(accounts + managers)
        session.commit()
        for manager in managers:
            manager.level = 2
        for account in accounts:
            account.note = "blind"
        session.flush()
        for account in accounts[1:]:
            session.refresh(account)
            account.note = "known"
        accounts[0].number = 9
        session.commit()

    world.run(work)
    assert world.check() == 21


@pytest.mark.parametrize("expire", [True, False])
def test_what_onupdate_gave_is_known_before_the_next_change(world: World, expire: bool) -> None:
    """The next changes of those rows, and their deletion, have before what was written, not what the session
    has; a value that the application sets afterwards is its own."""

    def work(session: Session) -> None:
        managers = [Manager(name="a", level=1) for _ in range(4)]
        session.add_all(managers)
        session.flush()
        for level in (2, 3):
            for manager in managers:
                manager.level = level
            session.flush()
        wrong = [manager.touched for manager in managers]
        managers[1].name = "only in the other table"
        managers[2].touched = 1_000_007
        managers[3].touched = wrong[3]
        session.commit()
        managers[2].touched = wrong[2]
        session.commit()
        managers[2].touched = 1_000_008
        session.commit()
        for manager in managers:
            session.delete(manager)
        session.commit()

    world.run(work, expire_on_commit=expire)
    world.check()


def test_onupdate_of_a_second_update(world: World) -> None:
    """So it is where second UPDATEs of many rows close a circle."""

    def work(session: Session) -> None:
        links = [Link(name=str(number)) for number in range(4)]
        for link in links:
            link.next = links[0]
        session.add_all(links)
        session.flush()
        for link in links:
            link.next, link.name = links[1], "renamed"
        session.commit()

    world.run(work)
    assert world.check() == 16


def test_json_null(world: World) -> None:
    """SQLAlchemy's symbol for JSON's null is null, before and after."""

    def work(session: Session) -> None:
        account = _account("a", extra=JSON.NULL)
        session.add(account)
        session.flush()
        account.extra = {"k": "v"}
        session.flush()
        account.extra = JSON.NULL
        session.flush()
        session.delete(account)
        session.commit()

    world.run(work)
    assert world.check() == 4


def test_versions(world: World) -> None:
    """Version columns change with every UPDATE, whoever makes the version."""

    def work(session: Session) -> None:
        ledger, ticket, contract = Ledger(amount=1), Ticket(title="t"), Contract(title="c", version=1)
        session.add_all([ledger, ticket, contract])
        session.commit()
        ledger.amount, ticket.title = 2, "u"
        contract.title, contract.version = "d", 2
        session.flush()
        ledger.amount, ticket.title = 3, "v"
        session.flush()
        session.delete(ledger)
        session.delete(ticket)
        session.delete(contract)
        session.commit()

    world.run(work)
    assert world.check() == 12  # reading the version loads it, which flushes the new title first


def test_composite_key(world: World) -> None:
    """A composite key is a JSON array, its changes both sides."""

    def work(session: Session) -> None:
        seats = [Seat(row="A", number=number, label="x") for number in range(3)]
        session.add_all(seats)
        session.commit()
        seats[1].label = None
        seats[2].number = 9
        session.flush()
        session.delete(seats[0])
        session.commit()

    world.run(work)
    assert world.check() == 6


def test_joined_inheritance(world: World) -> None:
    """One event covers the rows of all tables of a hierarchy, whichever of them a statement wrote."""

    def work(session: Session) -> None:
        people = [
            Employee(name="e"),
            Engineer(name="g", skill="s", remark="base", engineer_remark="own"),
            Manager(name="m", level=1),
            Engineer(name="g2"),
        ]
        session.add_all(people)
        session.commit()
        people[1].skill = "t"
        people[2].name = "n"
        people[3].name, people[3].engineer_remark = "h", "r"
        session.add_all([Manager(name="new"), Employee(name="new")])
        session.flush()
        people[1].remark, people[1].engineer_remark = "b2", "o2"
        people[2].level = 2
        session.flush()
        for person in people:
            session.delete(person)
        session.commit()

    world.run(work)
    assert world.check() == 15


def test_single_table_inheritance_and_composite_attribute(world: World) -> None:
    """Columns of sibling classes are not named; a composite attribute is its columns."""

    def work(session: Session) -> None:
        shapes = [Shape(name="s"), Circle(radius=1, at=Point(1, 2)), Square(), Square(side=2)]
        session.add_all(shapes)
        session.commit()
        shapes[1].at = Point(1, 3)
        shapes[1].radius = 5
        shapes[2].name = "x"
        session.flush()
        for shape in shapes:
            session.delete(shape)
        session.commit()

    world.run(work)
    assert world.check() == 10


def test_many_to_many(world: World) -> None:
    """Rows of a secondary table are events of their own, from either side, in statement order."""

    def work(session: Session) -> None:
        post, tags = Post(title="p"), [Tag(label=str(number)) for number in range(4)]
        post.tags = tags[:3]
        session.add_all([post, *tags])
        session.commit()
        post.tags.remove(tags[0])
        tags[3].posts.append(post)
        session.flush()
        session.delete(tags[1])
        session.flush()
        session.delete(post)
        session.commit()

    world.run(work)
    assert world.check() == 8 + 2 + 2 + 3


def test_cascade_and_orphans(world: World) -> None:
    """Children that the unit of work deletes are captured: with the parent, and as orphans."""

    def work(session: Session) -> None:
        post = Post(title="p", comments=[Comment(body=str(number)) for number in range(4)])
        session.add(post)
        session.commit()
        post.comments.pop()
        post.comments.append(Comment(body="new"))
        session.commit()
        session.delete(post)
        session.commit()

    world.run(work)
    assert world.check() == 5 + 2 + 5


def test_tree_in_one_table(world: World) -> None:
    """Rows of a self-referential table, which the unit of work orders one by one."""

    def work(session: Session) -> None:
        root = Node(name="root", children=[Node(name="a", children=[Node(name="b")]), Node(name="c")])
        session.add(root)
        session.commit()
        (a, c) = root.children
        b = a.children[0]
        b.parent = c
        c.children.append(Node(name="d"))
        a.name = "a2"
        session.flush()
        session.delete(c)  # its children lose their parent
        session.flush()
        session.delete(a)
        session.delete(root)
        session.commit()

    world.run(work)
    world.check()


def test_circle_closed_by_post_update(world: World) -> None:
    """The second UPDATE that closes a circle is an event, with version and onupdate columns."""

    def work(session: Session) -> None:
        owner = Owner(name="o", pets=[Pet(name="p"), Pet(name="q")])
        owner.favourite = owner.pets[0]
        others = [Owner(name=f"o{number}", pets=[Pet(name="r")]) for number in range(3)]
        for other in reversed(others):
            other.favourite = other.pets[0]
        session.add_all([owner, *others])
        session.commit()
        session.refresh(owner)
        owner.favourite = owner.pets[1]
        session.flush()
        owner.favourite, owner.name = owner.pets[0], "renamed"
        session.commit()
        session.delete(owner)  # its favourite is set to NULL first
        session.commit()
        for other in session.scalars(select(Owner)):
            other.favourite = None
        session.commit()

    world.run(work)
    world.check()


def test_post_update_of_a_row_whose_onupdate_column_was_set(world: World) -> None:
    """A value that the first statement wrote is not reported again by the second one."""

    def work(session: Session) -> None:
        owner = Owner(name="o", touched=1, pets=[Pet(name="p"), Pet(name="q")])
        owner.favourite = owner.pets[0]
        session.add(owner)
        session.commit()
        session.refresh(owner)
        owner.touched, owner.favourite = 5, owner.pets[1]
        session.commit()

    world.run(work)
    world.check()


def test_changed_key(world: World) -> None:
    """A changed primary key is an UPDATE with both keys, and so are the keys that follow it."""

    def work(session: Session) -> None:
        code = Code(code="old", label="l", uses=[CodeUse(number=number) for number in range(2)])
        session.add(code)
        session.commit()
        session.refresh(code)
        code.code = "new"
        session.flush()
        code.label = "m"
        session.commit()
        for use in code.uses:
            session.delete(use)
        session.delete(code)
        session.commit()

    world.run(work)
    assert world.check() == 3 + 3 + 1 + 3


def test_row_switch(world: World) -> None:
    """A new object on the key of one that is deleted in the same flush is an UPDATE of that row."""

    def work(session: Session) -> None:
        seat, ledger, code = (
            Seat(row="A", number=1, label="x"),
            Ledger(id=5, amount=1),
            Code(code="c", label="l"),
        )
        account = _account("a", id=77)
        session.add_all([seat, ledger, code, account])
        session.commit()
        for found in (seat, ledger, code, account):
            session.refresh(found)
        seat.label = "never written"
        for found in (seat, ledger, code, account):
            session.delete(found)
        session.add_all(
            [
                Seat(row="A", number=1, label="y"),
                Ledger(id=5, amount=2),
                Code(code="c"),
                Account(id=77, name="b", note=func.lower("ABC"), data={"z": 1}),
            ]
        )
        session.commit()

    world.run(work)
    world.check()


@pytest.mark.parametrize("hooked", [False, True])
def test_row_switch_that_reads_back(world: World, hooked: bool) -> None:
    """The new object may have the row's identity early, when SQLAlchemy reads its server-side values back."""

    def compute(mapper: Any, connection: Any, target: Prompt) -> None:
        target.number = func.abs(-9)

    def work(session: Session) -> None:
        prompt, contract = Prompt(name="x"), Contract(title="c", version=1)
        session.add_all([prompt, contract])
        session.commit()
        session.refresh(prompt)
        session.refresh(contract)
        if hooked:
            event.listen(Prompt, "before_insert", compute)
        session.delete(prompt)
        session.delete(contract)
        session.add_all([Prompt(id=prompt.id, name="x"), Contract(id=contract.id, version=2)])
        session.commit()

    try:
        world.run(work)
    finally:
        if hooked:
            event.remove(Prompt, "before_insert", compute)
    assert world.check() == 4


def test_row_switch_of_an_expired_object(world: World) -> None:
    """The row that is taken over need not be loaded."""

    def work(session: Session) -> None:
        seat, ledger = Seat(row="A", number=1, label="x"), Ledger(id=5, amount=1)
        session.add_all([seat, ledger])
        session.commit()
        session.delete(seat)
        session.delete(ledger)
        session.add_all([Seat(row="A", number=1, label="y"), Ledger(id=5, amount=2)])
        session.commit()

    world.run(work)
    assert world.check() == 4


def test_merge(world: World) -> None:
    """Merging a detached object is the UPDATE of its differences or an INSERT."""

    def work(session: Session) -> None:
        session.add(_account("a", id=1))
        session.commit()
        session.expunge_all()
        session.merge(Account(id=1, name="a", note="merged", data={"n": 1}))
        session.merge(Account(id=2, name="b"))
        session.commit()

    world.run(work)
    assert world.check() == 3


def test_savepoints(world: World) -> None:
    """A savepoint that is rolled back takes away exactly its own changes, at any depth."""

    def work(session: Session) -> None:
        session.add(Seat(row="A", number=1))
        outer = session.begin_nested()
        session.add(Seat(row="A", number=2))
        inner = session.begin_nested()
        session.add(Seat(row="A", number=3))
        inner.rollback()
        session.begin_nested().commit()
        session.add(Seat(row="A", number=4))
        outer.commit()
        lost = session.begin_nested()
        session.add(Seat(row="A", number=5))
        session.flush()
        lost.rollback()
        session.commit()

    world.run(work)
    assert world.check() == 3


def test_failed_statement_is_swallowed(world: World) -> None:
    """After an error the server commits nothing, unless a savepoint took it."""

    def work(session: Session) -> None:
        session.add(Seat(row="A", number=1))
        session.flush()
        with pytest.raises(DBAPIError):
            session.execute(text("SELECT 1/0"))
        session.rollback()
        session.add(Seat(row="A", number=2))
        nested = session.begin_nested()
        session.add(Seat(row="A", number=3))
        session.flush()
        with pytest.raises(DBAPIError):
            session.execute(text("SELECT 1/0"))
        nested.rollback()
        session.commit()
        session.add(Seat(row="A", number=4))
        session.flush()
        with pytest.raises(DBAPIError):
            session.connection().execute(text("SELECT 1/0"))
        session.commit()  # the server answers with ROLLBACK

    world.run(work)
    assert world.check() == 1


def test_failed_flush(world: World) -> None:
    """What a flush wrote before it failed is gone with it."""

    def work(session: Session) -> None:
        session.add(Account(name="a"))
        session.commit()
        session.add_all([Code(code="first"), Account(name="a")])
        with pytest.raises(DBAPIError):
            session.flush()
        session.rollback()
        session.add(Code(code="kept"))
        nested = session.begin_nested()
        session.add_all([Code(code="lost"), Account(name="a")])
        with pytest.raises(DBAPIError):
            session.flush()
        nested.rollback()
        session.commit()

    world.run(work)
    assert world.check() == 2


def test_several_flushes_of_one_object(world: World) -> None:
    """Each flush is an event of its own, each with the state of that flush."""

    def work(session: Session) -> None:
        account = _account("a")
        session.add(account)
        for note in ("one", "two", None, "three"):
            account.note = note
            session.flush()
        session.delete(account)
        session.commit()

    world.run(work)
    assert world.check() == 5


@pytest.mark.parametrize("name", ["after_insert", "after_update", "after_delete"])
def test_autocommit_and_a_hook_that_raises(world: World, name: str) -> None:
    """Under AUTOCOMMIT the rows of a flush stay that an error of the application's hook kept from being
    reported."""

    def fail(mapper: Any, connection: Any, target: Seat) -> None:
        if target.number == 2:
            raise ValueError

    def work(session: Session) -> None:
        session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        seats = [Seat(row="A", number=number, label="x") for number in range(1, 5)]
        session.add_all(seats)
        with contextlib.suppress(ValueError):
            session.flush()
            seats[0].label = "y"
            for seat in seats[1:]:
                seat.label = None
            session.flush()
            for seat in seats:
                session.delete(seat)
            session.flush()
        session.rollback()

    with _listening(Seat, fail, name):
        world.run(work)
    steps = ["after_insert", "after_update", "after_delete"].index(name) + 1
    assert world.oracle.check_concatenated(world.delivery) == 4 * steps


def test_autocommit(world: World) -> None:
    """Under AUTOCOMMIT what was written stays, whatever the session does afterwards."""

    def work(session: Session) -> None:
        session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        post = Post(title="p", tags=[Tag(label="a"), Tag(label="b")])
        session.add(post)
        session.flush()
        post.title = "q"
        session.flush()
        session.rollback()

    world.run(work)
    assert world.oracle.check_concatenated(world.delivery) == 6


@pytest.mark.parametrize("verb", ["ROLLBACK", "COMMIT"])
def test_raw_control_and_what_follows(world: World, verb: str) -> None:
    """After raw transaction control the next changes belong to the next transaction, if there is one.

    psycopg2 sends no BEGIN then: each statement is committed as it runs, whatever the session does.
    """
    if world.driver == "asyncpg":
        pytest.skip("asyncpg refuses a COMMIT after raw transaction control")

    def work(session: Session) -> None:
        session.add(Code(code="c", label="l"))
        session.flush()
        session.execute(text(verb))
        session.expunge_all()
        session.add_all([Seat(row="A", number=number) for number in range(3)])
        session.flush()
        session.rollback()
        session.add(Seat(row="B", number=1))
        session.commit()

    world.run(work)
    first = {"ROLLBACK": 0, "COMMIT": 1}[verb]
    stays = 3 if world.driver == "psycopg2" else 0
    assert world.oracle.check_concatenated(world.delivery) == first + stays + 1


def test_update_hook_of_the_application(world: World) -> None:
    """What the application's own mapper hook sets is part of the change."""

    def stamp(mapper: Any, connection: Any, target: Account) -> None:
        target.note = f"hooked {target.number}"

    with _listening(Account, stamp, "before_insert", "before_update"):

        def work(session: Session) -> None:
            account = _account("a")
            session.add(account)
            session.commit()
            account.number = 8
            session.commit()

        world.run(work)
        assert world.check() == 2


def test_update_hook_that_sets_a_generated_column(world: World) -> None:
    """A hook may set a column that has an ``onupdate`` to an expression, alone in its table."""

    def count(mapper: Any, connection: Any, target: Manager) -> None:
        target.touched = func.abs(-77)  # type: ignore[assignment]

    with _listening(Manager, count, "before_update"):

        def work(session: Session) -> None:
            manager = Manager(name="a", level=1)
            session.add(manager)
            session.commit()
            manager.name = "b"
            session.commit()

        world.run(work)
        assert world.check() == 2


@pytest.mark.parametrize("target", [Account, Mapper])
def test_update_hook_that_sets_an_expression(world: World, target: Any) -> None:
    """An SQL expression that a hook sets, of which the flush leaves no trace, is a change all the same."""

    def count(mapper: Any, connection: Any, target: Any) -> None:
        target.number = Account.number + 1
        target.note = "always"

    with _listening(target, count, "before_update"):

        def work(session: Session) -> None:
            account = _account("a", note="always")
            session.add(account)
            session.commit()
            session.refresh(account)
            account.extra = ["also"]
            session.flush()
            account.note = "set back by the hook"
            session.commit()
            account.story = "of an expired object"
            session.commit()

        world.run(work)
        assert world.check() == 4


def test_update_hook_that_sets_an_expression_on_one_row(world: World) -> None:
    """Another row of the same flush, whose column nobody has loaded, is not said to have changed there."""

    def count(mapper: Any, connection: Any, target: Any) -> None:
        if target.name == "one":
            target.number = Account.number + 1

    def work(session: Session) -> None:
        query = select(Account).options(load_only(Account.name)).order_by(Account.id)
        one, other = session.scalars(query)
        one.name, other.name = "one", "other"
        session.commit()

    world.run(_add(_account("a"), _account("b")))
    with _listening(Account, count, "before_update"):
        world.run(work)
    changes = [found.attributes[semconv.CHANGES] for found in world.delivery.released[-1]]
    assert ["number" in sides for sides in changes] == [True, False]
    assert world.check() == 4


def test_delete_hook_that_deletes_by_itself(world: World) -> None:
    """What a hook of the application deletes, or finds gone, says nothing about the rows of the flush."""

    def clean_up(mapper: Any, connection: Any, target: Seat) -> None:
        connection.execute(delete(Ledger).where(Ledger.id == target.number))

    with _listening(Seat, clean_up, "before_delete", "after_delete"):

        def work(session: Session) -> None:
            seats = [Seat(row="A", number=number) for number in range(3)]
            session.add_all(seats)
            session.commit()
            for seat in seats:
                session.delete(seat)
            session.commit()

        world.run(work)
        assert world.check() == 6


def test_shards(world: World) -> None:
    """A session may choose a connection for each object, also where a second UPDATE closes a circle."""
    if world.driver == "asyncpg":
        pytest.skip("sessions with shards are synchronous")
    shards = {name: create_engine(world.url, poolclass=NullPool) for name in ("first", "second")}

    def chosen(mapper: Any, instance: Any, clause: Any = None) -> str:
        pet = instance if isinstance(instance, Pet) else instance.pets[0]
        return "first" if pet.name == "a" else "second"

    with ShardedSession(
        shards=shards,
        shard_chooser=chosen,
        identity_chooser=lambda *_, **__: list(shards),
        execute_chooser=lambda _: list(shards),
    ) as session:
        for number in range(2):
            for name in ("a", "b"):
                owner = Owner(name=str(number), pets=[Pet(name=name)])
                owner.favourite = owner.pets[0]
                session.add(owner)
        session.commit()
    for engine in shards.values():
        engine.dispose()
    world.delivery.released.sort(key=lambda unit: unit[0].attributes[semconv.ENTITY_ID])
    assert [len(unit) for unit in world.delivery.released] == [6, 6]
    assert world.check() == 12


def test_deleted_elsewhere(world: World) -> None:
    """A DELETE that finds no row is no event; one that finds it is, whatever the driver counts."""

    def work(session: Session) -> None:
        seats = [Seat(row="A", number=number) for number in range(1, 4)]
        session.add_all(seats)
        session.commit()
        session.execute(text("DELETE FROM seat WHERE number = 1"))
        session.delete(seats[0])
        session.flush()
        session.delete(seats[1])
        session.commit()

    with pytest.warns(SAWarning, match="expected to delete 1 row"):
        world.run(work, expire_on_commit=False)
    world.oracle._connection.execute("DELETE FROM oracle_row WHERE new IS NULL AND old->>'number' = '1'")
    assert world.check() == 4


# --- fetch_before ------------------------------------------------------------------------------------


def test_fetch_expired_and_never_loaded(fetching: World) -> None:
    """With fetch_before, values that the session had not loaded are read before they change."""

    def work(session: Session) -> None:
        account, person, seat = (
            _account("a"),
            Engineer(name="e", skill="s"),
            Seat(row="A", number=1, label="x"),
        )
        session.add_all([account, person, seat])
        session.commit()
        account.note, account.story, account.payload, account.touched = "blind", "s", b"1", 5
        person.engineer_remark, person.name = "r", "f"
        seat.label = "y"
        session.commit()
        account.note = "blind"
        session.commit()
        account.number = Account.number + 1
        session.commit()

    def blind(session: Session) -> None:
        account = session.scalars(select(Account)).one()
        assert "story" in inspect(account).unloaded
        account.story = "t"
        session.commit()
        session.delete(account)
        session.delete(session.scalars(select(Employee)).one())
        session.commit()

    fetching.run(work)
    assert fetching.check() == 8
    fetching.run(blind)
    assert fetching.check() == 3


def test_fetch_json_changed_in_place(fetching: World) -> None:
    """With fetch_before, the value before an in-place change is the stored one, tracked or not."""

    def work(session: Session) -> None:
        account = _account("a")
        session.add(account)
        session.flush()
        account.data["x"] = 1  # type: ignore[index]
        account.items.append(3)  # type: ignore[union-attr]
        session.flush()
        account.extra["k"] = "changed unseen"
        account.extra = {**account.extra, "more": 1}
        session.flush()
        account.extra["k"] = "changed again"
        account.data["y"] = 1  # type: ignore[index]
        session.delete(account)
        session.commit()

    fetching.run(work)
    assert fetching.check() == 4


def test_fetch_post_update_and_row_switch(fetching: World) -> None:
    """With fetch_before, second UPDATEs and row switches know what was there before."""

    def work(session: Session) -> None:
        owner = Owner(name="o", pets=[Pet(name="p"), Pet(name="q")])
        seat = Seat(row="A", number=1, label="x")
        session.add_all([owner, seat])
        session.commit()
        first = owner.pets[0]
        session.expire(owner)
        owner.favourite = first
        session.commit()
        session.delete(seat)
        session.add(Seat(row="A", number=1, label="y"))
        session.commit()
        session.delete(owner)
        session.commit()

    fetching.run(work)
    fetching.check()


def test_fetch_of_an_object_that_is_not_written(fetching: World) -> None:
    """Reading ahead makes no event of an object that is not written, and misses no UPDATE."""

    def work(session: Session) -> None:
        lazy, post = Lazy(name="x"), Post(title="p")
        session.add_all([lazy, post])
        session.commit()
        flag_dirty(lazy)
        session.commit()
        lazy.name = "x"  # an UPDATE all the same, which sets `changed`
        session.commit()

    fetching.run(work)
    assert fetching.check() == 3


def test_fetch_in_a_failed_transaction(fetching: World) -> None:
    """Reading before-values in a transaction that has failed already is no error of the audit."""

    def work(session: Session) -> None:
        account = _account("a")
        session.add(account)
        session.commit()
        account.note = "x"
        with pytest.raises(DBAPIError):
            session.execute(text("SELECT 1/0"))
        account.note = "y"
        with pytest.raises(DBAPIError):
            session.flush()
        session.rollback()

    fetching.run(work, autoflush=False)
    assert fetching.check() == 1


# --- two sessions on one row -------------------------------------------------------------------------


def test_sessions_with_their_own_transactions(world: World) -> None:
    """Two sessions at once have two units; one is released, one is not."""
    if world.driver == "asyncpg":
        pytest.skip("two synchronous sessions say the same for every driver")
    engine = create_engine(world.url, poolclass=NullPool)
    with Session(engine) as one, Session(engine) as two:
        one.add(Seat(row="A", number=1))
        one.flush()
        two.add(Seat(row="B", number=1))
        two.flush()
        one.add(Seat(row="A", number=2))
        one.commit()
        two.rollback()
    engine.dispose()
    assert world.check() == 2


def test_redacted_and_marked(world: World) -> None:
    """The secret column never shows its value."""
    world.run(_add(_account("a")))
    (unit,) = world.delivery.released
    assert unit[0].attributes[semconv.CHANGES]["api_token"] == {"after": {"$redacted": True}}
    assert "hunter2" not in repr(unit)
    assert world.check() == 1


def test_deferred_column_loaded_on_demand(world: World) -> None:
    """A deferred column has a before-value once it is loaded."""
    world.run(_add(_account("a")))

    def work(session: Session) -> None:
        account = session.scalars(select(Account).options(undefer(Account.story))).one()
        account.story = "changed"
        session.commit()

    world.run(work)
    event_ = world.delivery.released[-1][0]
    assert event_.attributes[semconv.CHANGES]["story"] == {"before": "long", "after": "changed"}
    assert world.check() == 2


@pytest.mark.parametrize("value", [30, func.abs(-30)])
def test_fetch_of_what_a_hook_is_about_to_set(fetching: World, value: Any) -> None:
    """With fetch_before, what a hook sets is known before, loaded or not."""

    def stamp(mapper: Any, connection: Any, target: Account) -> None:
        target.number = value

    def work(session: Session) -> None:
        session.add_all([_account("a"), _account("b")])
        session.commit()
        for account in session.scalars(select(Account).options(load_only(Account.note))):
            account.note = "set"
        session.commit()

    with _listening(Account, stamp, "before_update"):
        fetching.run(work)
        assert fetching.check() == 4
