"""What requests carry and what responses show."""

import uuid
from datetime import date
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from .models import Role, Status

__all__ = [
    "CommentIn",
    "CommentOut",
    "Labels",
    "MemberIn",
    "ProjectIn",
    "ProjectOut",
    "ProjectPatch",
    "Skipped",
    "Spending",
    "TaskIn",
    "TaskOut",
    "TaskPatch",
    "UserIn",
    "UserOut",
    "UserPatch",
]

Money = Annotated[Decimal, Field(max_digits=10, decimal_places=2)]


class _Out(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class UserIn(BaseModel):
    """A new person."""

    email: str
    name: str
    password: str
    hourly_rate: Money | None = None
    preferences: dict[str, Any] = {}


class UserPatch(BaseModel):
    """A change to a person; preferences are merged."""

    name: str | None = None
    hourly_rate: Money | None = None
    preferences: dict[str, Any] = {}


class UserOut(_Out):
    """A person, without the password."""

    id: int
    email: str
    name: str


class ProjectIn(BaseModel):
    """A new project."""

    owner_id: int
    name: str
    budget: Money
    starts_on: date | None = None
    settings: dict[str, Any] = {}


class ProjectPatch(BaseModel):
    """A change to a project; settings are merged."""

    name: str | None = None
    budget: Money | None = None
    settings: dict[str, Any] = {}


class ProjectOut(_Out):
    """A project."""

    id: uuid.UUID
    name: str
    budget: Decimal
    spent: Decimal
    version: int


class Spending(BaseModel):
    """Money to take from a project's budget."""

    amount: Money


class MemberIn(BaseModel):
    """A person who joins."""

    user_id: int
    role: Role = Role.MEMBER


class Skipped(BaseModel):
    """How many of many were taken."""

    added: int
    skipped: int


class TaskIn(BaseModel):
    """A new task."""

    title: str
    assignee_id: int | None = None
    estimate: Annotated[Decimal, Field(max_digits=6, decimal_places=2)] | None = None
    due_on: date | None = None
    details: dict[str, Any] = {}


class TaskPatch(BaseModel):
    """A change to a task; details are merged."""

    title: str | None = None
    status: Status | None = None
    priority: int | None = None
    assignee_id: int | None = None
    details: dict[str, Any] = {}


class TaskOut(_Out):
    """A task."""

    id: int
    title: str
    status: Status
    priority: int


class Labels(BaseModel):
    """All labels a task is to have; others are taken away."""

    names: list[str]


class CommentIn(BaseModel):
    """A new comment."""

    author_id: int
    body: str


class CommentOut(_Out):
    """A comment."""

    id: int
    body: str
