"""Who decides about the delivery class of an event, and what a wrong name is answered with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Column, ForeignKey, Table, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from otel_activity import actions, audited, log_user_action, semconv, with_activity_logging
from otel_activity.capture import SQLAlchemyCapture
from otel_activity.classes import Classes
from otel_activity.events import Performed
from otel_activity.redaction import Redactor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_activity.events import Unit


class Seen:
    """A `ports.Delivery` that notes the class of each entry, by the name of its entity or action."""

    def __init__(self) -> None:
        self.classes: dict[str, str | None] = {}

    def prepare(self, unit: Unit) -> None:
        """Nothing to do."""

    def committed(self, unit: Unit) -> None:
        for entry, event in zip(unit.entries, unit.events(), strict=True):
            attributes = event.attributes
            name = attributes.get(semconv.ENTITY_TYPE) or attributes[semconv.ACTIVITY_ACTION]
            self.classes[name] = entry.delivery

    def aborted(self, unit: Unit) -> None:
        """Nothing to do."""

    def undecided(self, unit: Unit, error: BaseException | None) -> None:
        raise AssertionError(error)


class Base(DeclarativeBase):
    pass


membership = Table(
    "membership",
    Base.metadata,
    Column("person", ForeignKey("person.id"), primary_key=True),
    Column("club", ForeignKey("club.id"), primary_key=True),
)


class Person(Base):
    __tablename__ = "person"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    clubs: Mapped[list[Club]] = relationship(secondary=membership)
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}


class Customer(Person):
    __tablename__ = "customer"
    id: Mapped[int] = mapped_column(ForeignKey("person.id"), primary_key=True)
    __mapper_args__ = {"polymorphic_identity": "customer"}


class Club(Base):
    __tablename__ = "club"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
def undeclared(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is declared in a test is forgotten after it."""
    monkeypatch.setattr("otel_activity.declare._deliveries", set())
    yield
    for cls in (Person, Customer, Club):
        if "__activity__" in vars(cls):
            del cls.__activity__  # type: ignore[attr-defined]
    membership.info.clear()


def classes_of(*rules: str, default: str = "durable") -> dict[str, str | None]:
    """The class of each kind of entity, None for the default."""
    seen = Seen()
    capture = SQLAlchemyCapture(seen, redactor=Redactor(), classes=Classes(default, rules))
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    capture.install()
    try:
        with Session(engine) as session:
            session.add_all([Person(clubs=[Club()]), Customer()])
            session.commit()
    finally:
        capture.uninstall()
        engine.dispose()
    return seen.classes


DEFAULT = dict.fromkeys(("Person", "Customer", "Club", "membership"))


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ((), {}),
        (("Club=strict",), {"Club": "strict"}),
        (("club=strict",), {"Club": "strict"}),
        (("Person=strict",), {"Person": "strict", "Customer": "strict"}),
        (("Customer=best_effort", "Person=strict"), {"Person": "strict", "Customer": "best_effort"}),
        (("customer=strict",), {"Customer": "strict"}),
        (("member*=best_effort",), {"membership": "best_effort"}),
        (("?lub=durable", "*=strict"), {"Person": "strict", "Customer": "strict", "membership": "strict"}),
    ],
)
def test_rules_name_models_their_bases_and_tables(rules: tuple[str, ...], expected: dict[str, str]) -> None:
    """The first rule that matches counts, and one that says the default is no deviation."""
    assert classes_of(*rules) == {**DEFAULT, **expected}


def test_declarations_beat_rules(undeclared: None) -> None:
    """Subclasses inherit, their own word beats their base's, and tables speak for themselves."""
    audited(Person, delivery="strict")
    audited(membership, delivery="best_effort")
    audited(Club.__table__, delivery="strict")
    assert classes_of("*=durable") == {
        **dict.fromkeys(("Person", "Customer", "Club"), "strict"),
        "membership": "best_effort",
    }
    audited(Customer, delivery="best_effort")
    audited(Club, mask="id", delivery="durable")
    assert classes_of("*=strict", default="strict") == {
        "Person": None,
        "Customer": "best_effort",
        "Club": "durable",
        "membership": "best_effort",
    }


def test_a_deviation_is_told_before_the_first_entry_has_it() -> None:
    """Whoever routes is told in time, and not at all while everything has the default."""
    told: list[str] = []
    classes = Classes("durable", ("page.*=best_effort",), told.append)
    assert classes.of(None, ("order.pay",)) is None
    assert classes.of("durable", ("page.view",)) is None
    assert told == []
    assert classes.of(None, ("page.view",)) == "best_effort"
    assert told == ["best_effort"]


def test_actions_are_known_by_their_name_and_by_that_of_their_event(caplog: pytest.LogCaptureFixture) -> None:
    """Requests and logins have names of events; a call beats the rules, and a wrong word is logged once."""
    seen = Seen()
    rules = ("activity.request=best_effort", "activity.auth.*=strict", "order.*=strict")
    capture = SQLAlchemyCapture(seen, redactor=Redactor(), classes=Classes("durable", rules))
    actions.use(capture.actions)
    try:
        capture.actions.record(Performed(action="request", name=semconv.REQUEST))
        capture.actions.record(Performed(action="login", name=semconv.AUTH_LOGIN))
        log_user_action("order.pay")
        log_user_action("order.look", delivery="best_effort")
        for _ in range(2):
            log_user_action("order.ship", delivery="express")  # type: ignore[arg-type]
        with with_activity_logging("order.send", delivery="durable"):
            pass
    finally:
        actions.use(None)
    assert seen.classes == {
        "request": "best_effort",
        "login": "strict",
        "order.pay": "strict",
        "order.look": "best_effort",
        "order.ship": "strict",
        "order.send": None,
    }
    (line,) = [record.getMessage() for record in caplog.records]
    assert "'order.ship': no delivery class: 'express'; use one of best_effort, durable, strict" in line


def test_a_wrong_word_is_refused_where_it_is_declared(undeclared: None) -> None:
    """One line says what is wrong and what is right."""
    wrong: Any = "Strict"
    with pytest.raises(ValueError, match=r"audited\(\): no delivery class: 'Strict'; did you mean 'strict'"):
        audited(Club, delivery=wrong)
    with pytest.raises(ValueError, match="no delivery class: 'Strict'"):
        with_activity_logging("order.pay", delivery=wrong)
