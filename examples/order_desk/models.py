"""Two tables. `owner` is whoever asked for the row: what an audit trail should say, too."""

import os

from sqlalchemy import ForeignKey, Identity, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

__all__ = ["Base", "Order", "Session", "Step", "engine"]


class Base(DeclarativeBase):
    """Registry of the application's tables."""


class Order(Base):
    """Something that somebody wants."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    owner: Mapped[str]
    item: Mapped[str]
    status: Mapped[str] = mapped_column(default="new")


class Step(Base):
    """What was done for an order."""

    __tablename__ = "steps"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    order_id: Mapped[int | None] = mapped_column(ForeignKey("orders.id"))
    owner: Mapped[str]
    name: Mapped[str]


engine = create_engine(os.environ["DATABASE_URL"], pool_size=4, max_overflow=8)
Session = sessionmaker(engine)
