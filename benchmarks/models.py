"""The application that is measured: 35 tables, four of which the workloads write."""

from __future__ import annotations

import datetime as dt  # noqa: TC003 - the mapper reads the annotations
from decimal import Decimal  # noqa: TC003 - as above
from typing import Any, Final

from sqlalchemy import JSON, Column, DateTime, ForeignKey, Integer, Numeric, String, Table, Text, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

__all__ = ["TABLES", "Attachment", "Base", "Comment", "Item", "Task"]

BACKGROUND_TABLES: Final = 31
"""Tables that exist, with their triggers, but stand still: 35 tables and 105 triggers in all."""


class Base(DeclarativeBase):
    """Metadata of the whole application."""


class Task(Base):
    """Updated once in each request."""

    __tablename__ = "tasks"

    id: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[int]
    title: Mapped[str] = mapped_column(String(200))
    description: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(String(20))
    priority: Mapped[int]
    assignee_id: Mapped[int | None]
    estimate: Mapped[Decimal] = mapped_column(Numeric(10, 2))
    labels: Mapped[list[str]] = mapped_column(JSON)
    revision: Mapped[int]
    created_at: Mapped[dt.datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    updated_at: Mapped[dt.datetime] = mapped_column(DateTime(timezone=True))


class Comment(Base):
    """Inserted once in each request."""

    __tablename__ = "comments"

    id: Mapped[int] = mapped_column(primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey("tasks.id"), index=True)
    author_id: Mapped[int]
    body: Mapped[str] = mapped_column(Text)
    mentions: Mapped[list[int]] = mapped_column(JSON)
    internal: Mapped[bool]
    created_at: Mapped[dt.datetime] = mapped_column(DateTime(timezone=True))


class Attachment(Base):
    """Deleted once in each request."""

    __tablename__ = "attachments"

    id: Mapped[int] = mapped_column(primary_key=True)
    task_id: Mapped[int]
    file_name: Mapped[str] = mapped_column(String(200))
    content_type: Mapped[str] = mapped_column(String(100))
    size: Mapped[int]
    checksum: Mapped[str] = mapped_column(String(64))
    uploaded_by: Mapped[int]
    uploaded_at: Mapped[dt.datetime] = mapped_column(DateTime(timezone=True))


class Item(Base):
    """Inserted by the thousand in one unit of work."""

    __tablename__ = "items"

    id: Mapped[int] = mapped_column(primary_key=True)
    sku: Mapped[str] = mapped_column(String(40))
    name: Mapped[str] = mapped_column(String(200))
    quantity: Mapped[int]
    price: Mapped[Decimal] = mapped_column(Numeric(12, 2))
    properties: Mapped[dict[str, Any]] = mapped_column(JSON)
    active: Mapped[bool]
    created_at: Mapped[dt.datetime] = mapped_column(DateTime(timezone=True))


for _number in range(BACKGROUND_TABLES):
    Table(
        f"background_{_number:02}",
        Base.metadata,
        Column("id", Integer, primary_key=True),
        Column("name", String(200)),
        Column("amount", Numeric(10, 2)),
    )

TABLES: Final = tuple(sorted(Base.metadata.tables))
