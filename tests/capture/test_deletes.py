"""Deletes of rows that are partly gone already."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from otel_activity import semconv
from tests.capture.support import Account, Scene

if TYPE_CHECKING:
    from sqlalchemy import Engine


def delete_all(scene: Scene, engine: Engine, gone: list[str]) -> list[str]:
    """Load three rows, let somebody else delete some of them, delete all; the names that events report."""
    with Session(engine) as session:
        session.add_all([Account(name=name) for name in ("a", "b", "c")])
        session.commit()
        found = session.scalars(select(Account).order_by(Account.id)).all()
        with engine.begin() as somebody_else:
            for name in gone:
                somebody_else.execute(text("DELETE FROM account WHERE name = :name"), {"name": name})
        for account in found:
            session.delete(account)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SQLAlchemy warns that fewer rows were matched
            session.commit()
    deleted = [event for event in scene.recorder.events if event.name == semconv.ENTITY_DELETED]
    return [event.attributes[semconv.CHANGES]["name"]["before"] for event in deleted]


def test_a_row_that_was_gone_hides_no_other(scene: Scene, driver: str) -> None:
    """psycopg2 counts the last row of an executemany only; the rows before it were deleted all the same."""
    assert {"a", "b"} <= set(delete_all(scene, scene.engine(driver), ["c"]))


def test_rows_that_were_all_gone_are_not_reported(scene: Scene) -> None:
    """Where the driver counts, a DELETE that matched nothing is no event."""
    assert delete_all(scene, scene.engine("psycopg"), ["a", "b", "c"]) == []
