"""Patterns in settings that name nothing: one line when the process ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from otel_activity.capture import SQLAlchemyCapture
from otel_activity.classes import Classes
from tests.capture.support import Open, Recorder

if TYPE_CHECKING:
    from tests.e2e.support import World


class Base(DeclarativeBase):
    pass


class Consignment(Base):
    __tablename__ = "consignment"
    __table_args__ = {"schema": "freight"}
    id: Mapped[int] = mapped_column(primary_key=True)


def said(
    *, include: tuple[str, ...] = (), exclude: tuple[str, ...] = (), rules: tuple[str, ...] = ()
) -> list[str]:
    """What the end of a process with such settings would say."""
    classes = Classes("durable", rules)
    capture = SQLAlchemyCapture(
        Recorder(), redactor=Open(), include=include, exclude=exclude, classes=classes
    )
    classes.of(None, ["page.view"])
    return capture.misspelt()


def test_each_pattern_that_named_nothing_is_said_with_what_is_near() -> None:
    """The setting, the pattern and the nearest tables; a setting's pattern that is there twice, once."""
    lines = said(include=("consignmnt", "consignmnt"), exclude=("freigt.consignment", "zzz_*"))
    assert lines == [
        "OTEL_ACTIVITY_INCLUDE: 'consignmnt' named no table in this process; did you mean consignment?",
        (
            "OTEL_ACTIVITY_EXCLUDE: 'freigt.consignment' named no table in this process; "
            "did you mean freight.consignment or consignment?"
        ),
        "OTEL_ACTIVITY_EXCLUDE: 'zzz_*' named no table in this process; correct it, or leave it out",
    ]
    assert said(rules=("Consignmet=strict",)) == [
        (
            "OTEL_ACTIVITY_DELIVERY_RULES: 'Consignmet' named no table, model or action in this process; "
            "did you mean Consignment?"
        )
    ]


def test_what_names_something_is_not_said() -> None:
    """With and without schema, by wildcards, tables that were never written to; actions that were or not."""
    assert said(include=("consignment", "freight.*", "cons?gnment"), exclude=("*.consignment",)) == []
    assert said(rules=("page.*=strict", "never.performed=strict", "Consignment=strict")) == []


def test_a_model_that_is_imported_late_counts() -> None:
    """Nothing is remembered of earlier looks: only what is known at the end counts."""
    assert len(said(include=("latecomer",))) == 1

    class Latecomer(Base):
        __tablename__ = "latecomer"
        id: Mapped[int] = mapped_column(primary_key=True)

    assert said(include=("latecomer",)) == []
    assert Latecomer.__tablename__ == "latecomer"


@pytest.mark.e2e
def test_a_program_says_it_once_when_it_ends(world: World) -> None:
    """After all the program did; what is right in the same setting is audited."""
    status, output = world.run(
        OTEL_ACTIVITY_INCLUDE="task,tsk", OTEL_ACTIVITY_DELIVERY_RULES="page.*=best_effort"
    )
    assert status == 0
    line = "OTEL_ACTIVITY_INCLUDE: 'tsk' named no table in this process; did you mean task?"
    assert output.count("OTEL_ACTIVITY_INCLUDE") == output.count(line) == 1
    assert output.index("program done") < output.index(line)
    assert "DELIVERY_RULES" not in output
    assert len(world.stored()) == 7
