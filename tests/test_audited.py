"""What code says of its columns: `audited`, column info, and the entity ids of secret keys."""

from __future__ import annotations

import hashlib
import hmac
import logging
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import (
    JSON,
    Column,
    ForeignKey,
    PickleType,
    String,
    Table,
    TypeDecorator,
    create_engine,
    func,
    select,
)
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    column_property,
    mapped_column,
    relationship,
    synonym,
)

from otel_activity import audited, log_user_action, semconv
from otel_activity.codec import REDACTED
from otel_activity.errors import ConfigurationError
from otel_activity.settings import Settings
from otel_activity.testing import recorded_events

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = "a key that nobody guesses"
LOGGER = "otel_activity"


def hashed(text: str) -> str:
    """The hash as anybody can compute it who has the key."""
    return "hmac-sha256:" + hmac.new(KEY.encode(), text.encode(), hashlib.sha256).hexdigest()


def commit(
    base: type[DeclarativeBase], work: Callable[[Session], Any], **settings: Any
) -> list[dict[str, Any]]:
    """The attributes of the events of what `work` does in one transaction, in a database of its own."""
    engine = create_engine("sqlite://")
    base.metadata.create_all(engine)
    with recorded_events(**settings) as recorder, Session(engine) as session:
        work(session)
        session.commit()
        events = [event.plain_attributes() for event in recorder.events]
    engine.dispose()
    return events


def added(base: type[DeclarativeBase], *objects: Any, **settings: Any) -> list[dict[str, Any]]:
    """The attributes of the events of inserting some objects."""
    return commit(base, lambda session: session.add_all(objects), **settings)


def after(event: dict[str, Any]) -> dict[str, Any]:
    """The values that a row was written with."""
    return {name: sides.get("after") for name, sides in event[semconv.CHANGES].items()}


def test_each_mode_on_a_class() -> None:
    """A mask is one mark, a hash is equal for equal values, a dropped or excluded field is not there."""

    class Base(DeclarativeBase):
        pass

    @audited(mask=["iban"], hash="email", drop=("ssn",), exclude=["note"], keep=["token_color"])
    class Person(Base):
        __tablename__ = "person"
        id: Mapped[int] = mapped_column(primary_key=True)
        iban: Mapped[str]
        mail: Mapped[str] = mapped_column("email")
        ssn: Mapped[str]
        note: Mapped[str]
        token_color: Mapped[str]
        age: Mapped[int | None]

    common = {"iban": "DE1", "ssn": "2", "note": "n", "token_color": "red"}
    one, two, three = added(
        Base,
        Person(id=1, mail="a@b.example", **common),
        Person(id=2, mail="a@b.example", **common),
        Person(id=3, mail="c@d.example", **common),
        redact_key=KEY,
    )
    assert after(one) == {
        "id": 1,
        "iban": REDACTED,
        "email": {"$redacted": hashed("a@b.example")},
        "token_color": "red",
        "age": None,
    }
    assert after(two)["email"] == after(one)["email"] != after(three)["email"]


def test_an_update_of_hidden_columns() -> None:
    """Both sides are hidden; a change of a dropped column alone makes no event, a hashed one does."""

    class Base(DeclarativeBase):
        pass

    @audited(hash=["email"], drop=["ssn"])
    class Person(Base):
        __tablename__ = "person"
        id: Mapped[int] = mapped_column(primary_key=True)
        email: Mapped[str | None]
        ssn: Mapped[str]

    def work(session: Session) -> None:
        person = Person(id=1, email="old@example", ssn="1")
        session.add(person)
        session.commit()
        assert person.email == "old@example"
        person.email = "new@example"
        session.commit()
        assert person.ssn == "1"
        person.ssn = "2"
        session.commit()
        assert person.email == "new@example"
        person.email = None
        session.commit()
        person.email = func.lower("NEW@EXAMPLE")
        session.commit()
        session.delete(person)

    created, changed, emptied, computed, deleted = commit(Base, work, redact_key=KEY)
    old, new = ({"$redacted": hashed(f"{name}@example")} for name in ("old", "new"))
    assert created[semconv.CHANGES]["email"] == {"after": old}
    assert changed[semconv.CHANGES] == {"email": {"before": old, "after": new}}
    assert emptied[semconv.CHANGES] == {"email": {"before": new, "after": None}}
    assert computed[semconv.CHANGES]["email"].keys() <= {"before"}
    assert "ssn" not in deleted[semconv.CHANGES]
    assert "NEW" not in str(computed)


def test_only_what_is_included() -> None:
    """`include` leaves everything else out; a subclass adds to what its base says."""

    class Base(DeclarativeBase):
        pass

    @audited(include=["title"])
    class Page(Base):
        __tablename__ = "page"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        title: Mapped[str]
        body: Mapped[str]
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "page"}

    @audited(include=["author"], mask="title")
    class Letter(Page):
        author: Mapped[str | None]
        to: Mapped[str | None]
        __mapper_args__ = {"polymorphic_identity": "letter"}

    page, letter = added(
        Base, Page(id=1, title="t", body="b"), Letter(id=2, title="t", body="b", author="a", to="x")
    )
    assert after(page) == {"title": "t"}
    assert page[semconv.ENTITY_ID] == "1"
    assert after(letter) == {"title": REDACTED, "author": "a"}


def test_a_synonym_that_is_called_so_makes_its_column_secret() -> None:
    """A column may have an innocent name where the attribute that people use has not."""

    class Base(DeclarativeBase):
        pass

    class Login(Base):
        __tablename__ = "login"
        id: Mapped[int] = mapped_column(primary_key=True)
        digest: Mapped[str]
        password: Mapped[str] = synonym("digest")

    (event,) = added(Base, Login(id=1, password="s3cret"))
    assert after(event) == {"id": 1, "digest": REDACTED}


class EncryptedString(TypeDecorator[str]):
    impl = String
    cache_ok = True


class Wrapped(TypeDecorator[str]):
    impl = EncryptedString
    cache_ok = True


class UnencryptedString(EncryptedString):
    pass


class Plain(TypeDecorator[str]):
    impl = String
    cache_ok = True


def test_what_the_database_has_encrypted_is_not_written_in_clear() -> None:
    """Python sees such values in clear; code may say that they are no secret."""

    class Base(DeclarativeBase):
        pass

    class Patient(Base):
        __tablename__ = "patient"
        id: Mapped[int] = mapped_column(primary_key=True)
        notes: Mapped[str] = mapped_column(EncryptedString)
        more: Mapped[str] = mapped_column(Wrapped)
        based: Mapped[str] = mapped_column(UnencryptedString)
        plain: Mapped[str] = mapped_column(Plain)
        kept: Mapped[str] = mapped_column(EncryptedString, info={"activity": {"redact": False}})

    def work(session: Session) -> None:
        row = Patient(id=1, notes="a", more="b", based="c", plain="d", kept="e")
        session.add(row)
        session.flush()
        row.notes, row.kept = "f", "g"
        session.flush()
        session.delete(row)

    created, updated, deleted = commit(Base, work)
    hidden = dict.fromkeys(("notes", "more", "based"), REDACTED)
    assert after(created) == {"id": 1, **hidden, "plain": "d", "kept": "e"}
    assert updated[semconv.CHANGES] == {
        "notes": {"before": REDACTED, "after": REDACTED},
        "kept": {"before": "e", "after": "g"},
    }
    assert deleted[semconv.CHANGES]["notes"] == {"before": REDACTED}


def test_a_value_that_holds_one_part_again_and_again_is_no_work() -> None:
    """A pickle is small where it names a part twice; a copy of all paths through it would never end."""

    class Base(DeclarativeBase):
        pass

    class Graph(Base):
        __tablename__ = "graph"
        id: Mapped[int] = mapped_column(primary_key=True)
        body: Mapped[Any] = mapped_column(PickleType)

    body: Any = {"password": "s3cret"}
    for _ in range(9):
        body = [body] * 90
    (event,) = added(Base, Graph(id=1, body=body))
    assert event[semconv.CHANGES]["body"]["after"][0][0][0][0][0][0][0][0][0] == {"password": REDACTED}
    assert "s3cret" not in str(event)


def test_a_table_says_the_same() -> None:
    """A `Table` is told what its columns are; so is the secondary table of a relationship."""

    class Base(DeclarativeBase):
        pass

    links = Table(
        "link",
        Base.metadata,
        Column("left_id", ForeignKey("node.id"), primary_key=True),
        Column("right_id", ForeignKey("node.id"), primary_key=True),
    )
    assert audited(links, hash=["right_id"]) is links

    class Node(Base):
        __table__ = audited(
            Table("node", Base.metadata, Column("id", String, primary_key=True), Column("name", String)),
            mask="name",
        )
        others: Mapped[list[Node]] = relationship(
            secondary=links,
            primaryjoin=lambda: Node.id == links.c.left_id,
            secondaryjoin=lambda: Node.id == links.c.right_id,
        )

    events = added(Base, Node(id="a", name="n", others=[Node(id="b", name="m")]), redact_key=KEY)
    assert [after(event)["name"] for event in events[:2]] == [REDACTED] * 2
    assert after(events[2]) == {"left_id": "a", "right_id": {"$redacted": hashed("b")}}
    assert events[2][semconv.ENTITY_ID] == f'["a","{hashed("b")}"]'


def test_the_key_of_a_secret_column_is_no_entity_id() -> None:
    """It is hashed where there is a key, masked where there is none; foreign keys to it are as secret."""

    class Base(DeclarativeBase):
        pass

    access = Table(
        "access",
        Base.metadata,
        Column("holder", ForeignKey("badge.serial"), primary_key=True),
        Column("room", ForeignKey("room.id"), primary_key=True),
    )

    class Room(Base):
        __tablename__ = "room"
        id: Mapped[int] = mapped_column(primary_key=True)

    @audited(mask=["code"])
    class Badge(Base):
        __tablename__ = "badge"
        code: Mapped[str] = mapped_column("serial", primary_key=True)
        rooms: Mapped[list[Room]] = relationship(secondary=access)
        entries: Mapped[list[Entry]] = relationship()

    class Entry(Base):
        __tablename__ = "entry"
        id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
        owner: Mapped[str] = mapped_column(ForeignKey("badge.serial"), primary_key=True)

    def made() -> list[Any]:
        return [Badge(code="s3cret", rooms=[Room(id=7)], entries=[Entry(id=uuid.UUID(int=1))])]

    for settings, shown in (({"redact_key": KEY}, hashed("s3cret")), ({}, "[redacted]")):
        events = {event[semconv.ENTITY_TYPE]: event for event in added(Base, *made(), **settings)}
        assert {name: event[semconv.ENTITY_ID] for name, event in events.items()} == {
            "Badge": shown,
            "Room": "7",
            "Entry": f'["{uuid.UUID(int=1)}","{shown}"]',
            "access": f'["{shown}",7]',
        }
        assert after(events["access"]) == {"holder": REDACTED, "room": 7}
        assert after(events["Entry"])["owner"] == REDACTED
        assert "s3cret" not in str(events)


def test_a_dropped_key_is_not_even_hashed() -> None:
    """`drop` takes a part of the primary key out of the entity id as well."""

    class Base(DeclarativeBase):
        pass

    @audited(drop="serial")
    class Badge(Base):
        __tablename__ = "badge"
        serial: Mapped[str] = mapped_column(primary_key=True)
        site: Mapped[int] = mapped_column(primary_key=True)

    (event,) = added(Base, Badge(serial="s3cret", site=4), redact_key=KEY)
    assert event[semconv.ENTITY_ID] == '["[redacted]",4]'
    assert after(event) == {"site": 4}


def test_hash_and_entity_id_agree_for_every_type() -> None:
    """One value has one hash: in a column, in an entity id, in JSON and in the details of an action."""

    class Base(DeclarativeBase):
        pass

    class Thing(Base):
        __tablename__ = "thing"
        token: Mapped[uuid.UUID] = mapped_column(primary_key=True)
        data: Mapped[Any] = mapped_column(JSON)

    token = uuid.UUID(int=5)

    def work(session: Session) -> None:
        session.add(Thing(token=token, data={"token": str(token), "n": [{"pin": 5}, {"pin": None}]}))
        log_user_action("login", details={"token": token}, token=token)

    action, event = commit(Base, work, redact_key=KEY, redact_mode="hash")
    want = hashed(str(token))
    assert event[semconv.ENTITY_ID] == want
    assert after(event)["token"] == {"$redacted": want}
    assert after(event)["data"] == {
        "token": {"$redacted": want},
        "n": [{"pin": {"$redacted": hashed("5")}}, {"pin": None}],
    }
    assert action["token"] == {"$redacted": want}
    assert action[semconv.DETAILS] == {"token": {"$redacted": want}}


def test_names_in_the_settings_say_how() -> None:
    """``name=mode`` and patterns; the strictest of several wins, here and in nested JSON."""

    class Base(DeclarativeBase):
        pass

    class Person(Base):
        __tablename__ = "person"
        id: Mapped[int] = mapped_column(primary_key=True)
        email: Mapped[str]
        work_email: Mapped[str]
        phone: Mapped[str]
        password: Mapped[str]
        data: Mapped[Any] = mapped_column(JSON)

    data = {"email": "a", "old": [{"work_email": "b", "phone": "c"}], "pin": 1}
    (event,) = added(
        Base,
        Person(id=1, email="a", work_email="b", phone="c", password="d", data=data),
        redact=["email = hash", "work_*=DROP", "phone"],
        redact_key=KEY,
    )
    assert after(event) == {
        "id": 1,
        "email": {"$redacted": hashed("a")},
        "phone": REDACTED,
        "password": REDACTED,
        "data": {
            "email": {"$redacted": hashed("a")},
            "old": [{"phone": REDACTED}],
            "pin": REDACTED,
        },
    }


def test_column_info_says_how() -> None:
    """``info`` takes a mode, true for the default mode, or false for a name that only looks secret."""

    class Base(DeclarativeBase):
        pass

    class Person(Base):
        __tablename__ = "person"
        id: Mapped[int] = mapped_column(primary_key=True)
        a: Mapped[str] = mapped_column(info={"activity": {"redact": "hash"}})
        b: Mapped[str] = mapped_column(info={"activity": {"redact": True}})
        c: Mapped[str] = mapped_column(info={"activity": {"redact": "drop"}})
        d: Mapped[str] = mapped_column(info={"activity": {"exclude": True}})
        e: Mapped[str] = mapped_column(info={"activity": False})
        pin: Mapped[str] = mapped_column(info={"activity": {"redact": False}})

    (event,) = added(Base, Person(id=1, a="1", b="2", c="3", d="4", e="5", pin="6"), redact_key=KEY)
    assert after(event) == {"id": 1, "a": {"$redacted": hashed("1")}, "b": REDACTED, "pin": "6"}


def test_a_name_that_is_no_column_masks_everything(caplog: pytest.LogCaptureFixture) -> None:
    """A typing error is reported in one line that names the column meant, and shows nothing until then."""

    class Base(DeclarativeBase):
        pass

    @audited(mask=["emial"])
    class Person(Base):
        __tablename__ = "person"
        id: Mapped[int] = mapped_column(primary_key=True)
        email: Mapped[str]
        password: Mapped[str] = mapped_column(info={"activity": {"redact": False}})

    with caplog.at_level(logging.ERROR, LOGGER):
        events = added(
            Base, Person(id=4711, email="a", password="b"), Person(id=4712, email="a", password="b")
        )
    for event in events:
        assert after(event) == dict.fromkeys(["id", "email", "password"], REDACTED)
        assert event[semconv.ENTITY_ID] == "[redacted]"
    (line,) = caplog.messages
    assert line == (
        "otel_activity: audited(mask='emial') on Person names no column; did you mean 'email'? "
        "Until it is corrected, every column of Person is redacted"
    )


@pytest.mark.parametrize(
    "wish", [{"redcat": True}, {"redact": "hsah"}, {"redact": 1.5}, {"redact": None}, "mask", ["mask"]]
)
def test_column_info_that_makes_no_sense_masks_the_column(
    wish: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be understood may have been meant to hide: one line, and a mask."""

    class Base(DeclarativeBase):
        pass

    class Person(Base):
        __tablename__ = "person"
        id: Mapped[int] = mapped_column(primary_key=True)
        email: Mapped[str] = mapped_column(info={"activity": wish})

    with caplog.at_level(logging.ERROR, LOGGER):
        (event,) = added(Base, Person(id=1, email="a"))
    assert after(event) == {"id": 1, "email": REDACTED}
    (line,) = caplog.messages
    assert "info['activity'] of person.email" in line


def test_table_info_of_somebody_else_masks_the_table(caplog: pytest.LogCaptureFixture) -> None:
    """``Table(info={"activity": ...})`` is not a way to say it, and must not be one to show secrets."""

    class Base(DeclarativeBase):
        pass

    class Person(Base):
        __tablename__ = "person"
        __table_args__ = {"info": {"activity": {"mask": ["email"]}}}
        id: Mapped[int] = mapped_column(primary_key=True)
        email: Mapped[str]

    with caplog.at_level(logging.ERROR, LOGGER):
        (event,) = added(Base, Person(id=1, email="a"))
    assert after(event)["email"] == REDACTED
    (line,) = caplog.messages
    assert "info['activity'] of person" in line


def test_a_hash_without_a_key_is_a_mask(caplog: pytest.LogCaptureFixture) -> None:
    """Code may ask for a hash that the settings have no key for: one line, and a mask."""

    class Base(DeclarativeBase):
        pass

    @audited(hash=["email"])
    class Person(Base):
        __tablename__ = "person"
        id: Mapped[int] = mapped_column(primary_key=True)
        email: Mapped[str]

    with caplog.at_level(logging.ERROR, LOGGER):
        (event,) = added(Base, Person(id=1, email="a"))
    assert after(event) == {"id": 1, "email": REDACTED}
    (line,) = caplog.messages
    assert "OTEL_ACTIVITY_REDACT_KEY" in line


@pytest.mark.parametrize(
    ("settings", "variable", "fix"),
    [
        ({"redact": "email=hash"}, "OTEL_ACTIVITY_REDACT", "OTEL_ACTIVITY_REDACT_KEY"),
        ({"redact_mode": "hash"}, "OTEL_ACTIVITY_REDACT_MODE", "OTEL_ACTIVITY_REDACT_KEY"),
        ({"redact": "email=hsah"}, "redact", "did you mean 'hash'"),
        ({"redact": "=hash"}, "redact", "names nothing"),
        ({"redact_mode": "encrypt"}, "redact_mode", "mask, hash, drop"),
        ({"redact_key": "s3cret"}, "redact_key", "openssl rand"),
    ],
)
def test_settings_that_cannot_work_stop_the_start(settings: Any, variable: str, fix: str) -> None:
    """One line names the setting and the fix, and never shows the key."""
    with pytest.raises(ConfigurationError) as raised:
        Settings.from_env({}, **settings)
    assert raised.value.variable == variable
    assert fix in str(raised.value)
    assert "s3cret" not in str(raised.value)


def test_the_key_is_never_shown() -> None:
    """Neither the settings for people nor their `repr` hold it."""
    settings = Settings.from_env({"OTEL_ACTIVITY_REDACT_KEY": KEY})
    assert settings.redact_key == KEY
    assert settings.masked()["redact_key"] == "***"
    assert KEY not in repr(settings)


def test_one_name_has_one_mode() -> None:
    """A contradiction is an error where it is written."""
    with pytest.raises(ValueError, match="'email' is named twice"):
        audited(mask="email", drop=["email"])
    with pytest.raises(TypeError, match="mapped class or a Table"):
        audited(mask="email")(3)


def test_classes_mapped_to_a_join_or_a_select() -> None:
    """What has no table of its own, or columns that are expressions, is planned all the same."""

    class Base(DeclarativeBase):
        pass

    left = Table("left", Base.metadata, Column("id", ForeignKey("right.id"), primary_key=True))
    right = Table("right", Base.metadata, Column("id", String, primary_key=True), Column("pin", String))

    class Both(Base):
        __table__ = left.join(right)
        id = column_property(right.c.id, left.c.id)

    class Looked(Base):
        __table__ = select(right).subquery()
        __mapper_args__ = {"primary_key": [__table__.c.id]}
        shout = column_property(func.upper(__table__.c.pin))

    events = added(Base, Both(id="k", pin="1"))
    assert after(events[0]) == {"id": "k", "pin": REDACTED}
    assert events[0][semconv.ENTITY_ID] == "k"


def test_a_model_in_the_place_of_its_table_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """INCLUDE and EXCLUDE mean tables: the name of a model there is said once, with the table to use."""

    class Base(DeclarativeBase):
        pass

    class Order(Base):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(primary_key=True)

    assert added(Base, Order(), Order(), include=["Order"]) == []
    (line,) = (record.getMessage() for record in caplog.records)
    assert "INCLUDE names the model Order, but tables are meant: its changes are not captured" in line
    assert line.endswith("use orders")
    caplog.clear()
    assert len(added(Base, Order(), exclude=["Ord*"])) == 1
    assert "EXCLUDE names the model Order, but tables are meant: its changes are captured" in caplog.text
    caplog.clear()
    assert added(Base, Order(), include=["Order"], exclude=["orders"]) == []
    assert len(added(Base, Order(), include=["Order", "orders"])) == 1
    assert caplog.text == ""
