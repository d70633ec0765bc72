"""Tickets and replies. People are Django's users, known here by their id."""

import enum
from datetime import datetime

from sqlalchemy import DateTime, Enum, ForeignKey, Identity, String, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

__all__ = ["Base", "Reply", "Status", "Ticket"]


class Base(DeclarativeBase):
    """Registry of the help desk's tables."""

    type_annotation_map = {datetime: DateTime(timezone=True)}  # noqa: RUF012 - SQLAlchemy reads it


class Status(enum.Enum):
    """Where a ticket stands."""

    OPEN = "open"
    CLOSED = "closed"


class Ticket(Base):
    """What somebody asks for."""

    __tablename__ = "tickets"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    subject: Mapped[str] = mapped_column(String(200))
    opened_by: Mapped[int]
    closed_by: Mapped[int | None]
    status: Mapped[Status] = mapped_column(Enum(Status, name="ticket_status"), default=Status.OPEN)
    opened_at: Mapped[datetime] = mapped_column(server_default=func.now())

    replies: Mapped[list["Reply"]] = relationship(cascade="all, delete-orphan", order_by="Reply.id")


class Reply(Base):
    """One message in a ticket."""

    __tablename__ = "replies"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    ticket_id: Mapped[int] = mapped_column(ForeignKey("tickets.id"), index=True)
    author: Mapped[int]
    text: Mapped[str]
