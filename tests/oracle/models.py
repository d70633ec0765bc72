"""Models with one of everything that the unit of work treats in a way of its own."""

from __future__ import annotations

import datetime as dt  # noqa: TC003 - SQLAlchemy reads the annotations
import enum
import itertools
import uuid
from decimal import Decimal  # noqa: TC003 - SQLAlchemy reads the annotations
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    Enum,
    FetchedValue,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    LargeBinary,
    Numeric,
    String,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.mutable import MutableDict, MutableList
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    backref,
    column_property,
    composite,
    deferred,
    mapped_column,
    relationship,
)

__all__ = [
    "Account",
    "Base",
    "Circle",
    "Code",
    "CodeUse",
    "Comment",
    "Contract",
    "Employee",
    "Engineer",
    "Lazy",
    "Ledger",
    "Link",
    "Manager",
    "Node",
    "Owner",
    "Pet",
    "Point",
    "Post",
    "Prompt",
    "Seat",
    "Shape",
    "Square",
    "Status",
    "Tag",
    "Ticket",
    "post_tag",
]

_touches = itertools.count(1)


class Base(DeclarativeBase):
    """All tables of the oracle's database."""


class Status(enum.Enum):
    """An enum whose names differ from its values."""

    NEW = "new"
    OPEN = "o"
    DONE = 3


class Account(Base):
    """Column types, defaults of all kinds, a column with another name, a deferred one, JSON."""

    __tablename__ = "account"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(40), unique=True)
    note: Mapped[str | None] = mapped_column("remark", Text)
    number: Mapped[int] = mapped_column(default=7)
    balance: Mapped[Decimal | None] = mapped_column(Numeric(12, 2))
    status: Mapped[Status | None] = mapped_column(Enum(Status, name="status"))
    payload: Mapped[bytes | None] = mapped_column(LargeBinary)
    api_token: Mapped[str | None]
    public_id: Mapped[uuid.UUID] = mapped_column(default=uuid.uuid4)
    born: Mapped[dt.date | None]
    active: Mapped[bool] = mapped_column(server_default=text("true"))
    created: Mapped[dt.datetime] = mapped_column(server_default=func.clock_timestamp())
    touched: Mapped[int | None] = mapped_column(onupdate=lambda: next(_touches))
    changed: Mapped[dt.datetime | None] = mapped_column(onupdate=func.clock_timestamp())
    stamped: Mapped[int | None] = mapped_column(server_default=FetchedValue(), server_onupdate=FetchedValue())
    data: Mapped[dict[str, Any] | None] = mapped_column(MutableDict.as_mutable(JSONB))
    items: Mapped[list[Any] | None] = mapped_column(MutableList.as_mutable(JSONB))
    extra: Mapped[Any] = mapped_column(JSON, nullable=True)
    story: Mapped[str | None] = deferred(mapped_column(Text))
    doubled: Mapped[int] = column_property(number * 2)  # type: ignore[operator]


class Lazy(Base):
    """Server defaults that the session does not read back."""

    __tablename__ = "lazy"
    __mapper_args__ = {"eager_defaults": False}

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None]
    created: Mapped[dt.datetime] = mapped_column(server_default=func.clock_timestamp())
    changed: Mapped[dt.datetime | None] = mapped_column(onupdate=func.clock_timestamp())


class Prompt(Base):
    """Server-side values that the session reads back at once; a key from the server."""

    __tablename__ = "prompt"
    __mapper_args__ = {"eager_defaults": True}

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, server_default=text("gen_random_uuid()"))
    name: Mapped[str | None]
    number: Mapped[int] = mapped_column(server_default="5")
    changed: Mapped[dt.datetime | None] = mapped_column(onupdate=func.clock_timestamp())


class Ledger(Base):
    """A version counter."""

    __tablename__ = "ledger"

    id: Mapped[int] = mapped_column(primary_key=True)
    amount: Mapped[int | None]
    version: Mapped[int] = mapped_column(nullable=False)
    __mapper_args__ = {"version_id_col": version}


class Ticket(Base):
    """A version that is no number."""

    __tablename__ = "ticket"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str | None]
    version: Mapped[str] = mapped_column(String(32), nullable=False)
    __mapper_args__ = {"version_id_col": version, "version_id_generator": lambda _: uuid.uuid4().hex}


class Contract(Base):
    """A version that the application counts itself."""

    __tablename__ = "contract"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str | None]
    version: Mapped[int] = mapped_column(nullable=False)
    __mapper_args__ = {"version_id_col": version, "version_id_generator": False}


class Seat(Base):
    """A composite key."""

    __tablename__ = "seat"

    row: Mapped[str] = mapped_column("line", String(10), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    label: Mapped[str | None]


class Employee(Base):
    """Base of a joined-table hierarchy, with a version."""

    __tablename__ = "employee"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(20))
    name: Mapped[str | None]
    remark: Mapped[str | None]
    version: Mapped[int] = mapped_column(nullable=False)
    __mapper_args__ = {
        "polymorphic_on": kind,
        "polymorphic_identity": "employee",
        "version_id_col": version,
    }


class Engineer(Employee):
    """Joined, with another name for its key and a column name that the base has, too."""

    __tablename__ = "engineer"

    id: Mapped[int] = mapped_column("engineer_id", ForeignKey("employee.id"), primary_key=True)
    skill: Mapped[str | None]
    engineer_remark: Mapped[str | None] = mapped_column("remark")
    changed: Mapped[dt.datetime | None] = mapped_column(onupdate=func.clock_timestamp())
    __mapper_args__ = {"polymorphic_identity": "engineer"}


class Manager(Employee):
    """Joined, with an ``onupdate`` in Python."""

    __tablename__ = "manager"

    id: Mapped[int] = mapped_column(ForeignKey("employee.id"), primary_key=True)
    level: Mapped[int | None]
    touched: Mapped[int | None] = mapped_column(onupdate=lambda: next(_touches))
    __mapper_args__ = {"polymorphic_identity": "manager"}


class Point:
    """A value of two columns."""

    def __init__(self, x: int | None, y: int | None) -> None:
        self.x = x
        self.y = y

    def __composite_values__(self) -> tuple[int | None, int | None]:
        return self.x, self.y

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and (self.x, self.y) == (other.x, other.y)

    def __hash__(self) -> int:
        return hash((self.x, self.y))


class Shape(Base):
    """Base of a single-table hierarchy, with a composite attribute."""

    __tablename__ = "shape"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(20))
    name: Mapped[str | None]
    at: Mapped[Point | None] = composite(
        Point, mapped_column("x", Integer, nullable=True), mapped_column("y", Integer, nullable=True)
    )
    __mapper_args__ = {"polymorphic_on": kind, "polymorphic_identity": "shape"}


class Circle(Shape):
    """Single-table."""

    radius: Mapped[int | None]
    __mapper_args__ = {"polymorphic_identity": "circle"}


class Square(Shape):
    """Single-table, a sibling."""

    side: Mapped[int | None] = mapped_column(default=4)
    __mapper_args__ = {"polymorphic_identity": "square"}


post_tag = Table(
    "post_tag",
    Base.metadata,
    Column("post_id", ForeignKey("post.id"), primary_key=True),
    Column("tag", ForeignKey("tag.id"), primary_key=True, key="tag_id"),
    Column("tagged", Integer, server_default="1"),
)


class Post(Base):
    """Many-to-many, and children that do not live without it."""

    __tablename__ = "post"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str | None]
    tags: Mapped[list[Tag]] = relationship(secondary=post_tag, back_populates="posts")
    comments: Mapped[list[Comment]] = relationship(back_populates="post", cascade="all, delete-orphan")


class Tag(Base):
    """The other side."""

    __tablename__ = "tag"

    id: Mapped[int] = mapped_column(primary_key=True)
    label: Mapped[str | None]
    posts: Mapped[list[Post]] = relationship(secondary=post_tag, back_populates="tags")


class Comment(Base):
    """A child that is deleted with its parent and when it is taken out of the list."""

    __tablename__ = "comment"

    id: Mapped[int] = mapped_column(primary_key=True)
    post_id: Mapped[int] = mapped_column(ForeignKey("post.id"))
    body: Mapped[str | None]
    post: Mapped[Post] = relationship(back_populates="comments")


class Node(Base):
    """A tree in one table: the unit of work orders its rows one by one."""

    __tablename__ = "node"

    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("node.id"))
    name: Mapped[str | None]
    children: Mapped[list[Node]] = relationship(backref=backref("parent", remote_side=[id]))


class Link(Base):
    """A chain in one table that second UPDATEs close, without a version: many rows in one statement."""

    __tablename__ = "link"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None]
    next_id: Mapped[int | None] = mapped_column(ForeignKey("link.id"))
    touched: Mapped[int | None] = mapped_column(onupdate=lambda: next(_touches))
    next: Mapped[Link | None] = relationship(remote_side=[id], post_update=True)


class Owner(Base):
    """One side of a circle of foreign keys, closed by a second UPDATE."""

    __tablename__ = "owner"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None]
    favourite_id: Mapped[int | None] = mapped_column(ForeignKey("pet.id", use_alter=True, name="favourite"))
    touched: Mapped[int | None] = mapped_column(onupdate=lambda: next(_touches))
    changed: Mapped[dt.datetime | None] = mapped_column(onupdate=func.clock_timestamp())
    version: Mapped[int] = mapped_column(nullable=False)
    favourite: Mapped[Pet | None] = relationship(foreign_keys=[favourite_id], post_update=True)
    pets: Mapped[list[Pet]] = relationship(
        back_populates="owner", foreign_keys="Pet.owner_id", cascade="all, delete-orphan"
    )
    __mapper_args__ = {"version_id_col": version}


class Pet(Base):
    """The other side of the circle."""

    __tablename__ = "pet"

    id: Mapped[int] = mapped_column(primary_key=True)
    owner_id: Mapped[int | None] = mapped_column(ForeignKey("owner.id"))
    name: Mapped[str | None]
    owner: Mapped[Owner | None] = relationship(back_populates="pets", foreign_keys=[owner_id])


class Code(Base):
    """A key that people change."""

    __tablename__ = "code"

    code: Mapped[str] = mapped_column(String(40), primary_key=True)
    label: Mapped[str | None]
    uses: Mapped[list[CodeUse]] = relationship(back_populates="of", passive_updates=False)


class CodeUse(Base):
    """A row whose foreign key is part of its own key and follows that change."""

    __tablename__ = "code_use"
    __table_args__ = (
        # Checked at the end, so that the session may move parent and child one after the other.
        ForeignKeyConstraint(["code"], ["code.code"], deferrable=True, initially="DEFERRED"),
    )

    code: Mapped[str] = mapped_column(String(40), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    label: Mapped[str | None]
    of: Mapped[Code] = relationship(back_populates="uses", passive_updates=False)
