"""Users and invoices."""

import enum
from decimal import Decimal

from flask_login import UserMixin
from sqlalchemy import Enum, ForeignKey, Identity, Numeric, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

__all__ = ["Base", "Invoice", "Status", "User"]


class Base(DeclarativeBase):
    """Registry of the application's tables."""


class User(UserMixin, Base):  # type: ignore[misc]  # its package is not typed
    """Somebody who may sign in."""

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(String(80), unique=True)
    password_hash: Mapped[str]
    approver: Mapped[bool] = mapped_column(default=False)


class Status(enum.Enum):
    """Where an invoice stands."""

    DRAFT = "draft"
    APPROVED = "approved"


class Invoice(Base):
    """What a customer owes."""

    __tablename__ = "invoices"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    customer: Mapped[str] = mapped_column(String(120))
    amount: Mapped[Decimal] = mapped_column(Numeric(12, 2))
    status: Mapped[Status] = mapped_column(Enum(Status, name="invoice_status"), default=Status.DRAFT)
    created_by: Mapped[int] = mapped_column(ForeignKey("users.id"))
    approved_by: Mapped[int | None] = mapped_column(ForeignKey("users.id"))
