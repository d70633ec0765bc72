"""Savepoints: a rolled-back one takes away exactly its own events."""

from __future__ import annotations

import random

import pytest
from sqlalchemy.orm import Session, SessionTransaction

from tests.capture.support import Scene, add, run


def descend(session: Session, outcomes: list[str], level: int = 0) -> list[str]:
    """Open one savepoint for each outcome, inside one another, with a row before, inside and after each.

    Returns the names that survive.
    """
    if level == len(outcomes):
        return []
    nested = session.begin_nested()
    kept = [f"in{level}"]
    add(session, f"in{level}")
    kept += descend(session, outcomes, level + 1)
    add(session, f"out{level}")
    kept.append(f"out{level}")
    if outcomes[level] == "release":
        nested.commit()
        return kept
    nested.rollback()
    return []


@pytest.mark.parametrize("depth", range(1, 6))
def test_any_mix_of_release_and_rollback(scene: Scene, driver: str, depth: int) -> None:
    """At any depth, in any mix, what the outermost COMMIT releases is what the table holds, in order."""
    engine = scene.engine(driver)
    expected: list[str] = []
    for mix in range(2**depth):
        outcomes = ["release" if mix & 1 << level else "rollback" for level in range(depth)]
        with Session(engine) as session:
            add(session, "first")
            kept = descend(session, outcomes)
            add(session, "last")
            session.commit()
        expected += ["first", *kept, "last"]
    assert scene.recorder.names() == expected
    scene.check()


def test_names_reused(scene: Scene, driver: str) -> None:
    """A savepoint's name may be used again: the newer one hides the older one until it is released."""
    with Session(scene.engine(driver)) as session:
        for name in ("a1", "a2"):
            run(session, "SAVEPOINT a")
            add(session, name)
        run(session, "ROLLBACK TO a")
        add(session, "a3")
        run(session, "RELEASE SAVEPOINT a")
        add(session, "a4")
        session.commit()
        assert scene.recorder.names() == ["a1", "a3", "a4"]
        run(session, "SAVEPOINT a")
        add(session, "b1")
        run(session, "SAVEPOINT a")
        add(session, "b2")
        run(session, "RELEASE a")
        run(session, "ROLLBACK TO SAVEPOINT a")
        add(session, "b3")
        session.commit()
    assert scene.recorder.names() == ["a1", "a3", "a4", "b3"]
    scene.check()


def test_rolled_back_twice(scene: Scene, driver: str) -> None:
    """A savepoint outlives ROLLBACK TO and can be gone back to again; those set after it are gone."""
    with Session(scene.engine(driver)) as session:
        add(session, "kept")
        run(session, "SAVEPOINT outer_one")
        for name in ("x", "y"):
            run(session, "SAVEPOINT inner_one")
            add(session, name)
            run(session, "ROLLBACK TO outer_one")
        session.commit()
    assert scene.recorder.names() == ["kept"]
    scene.check()


def test_everything_rolled_back(scene: Scene, driver: str) -> None:
    """When the savepoints took all, COMMIT makes no call: there is nothing to say."""
    with Session(scene.engine(driver)) as session:
        nested = session.begin_nested()
        add(session, "lost")
        nested.rollback()
        session.commit()
    assert scene.recorder.calls == []
    scene.check()


def test_session_close_inside_a_savepoint(scene: Scene, driver: str) -> None:
    """Closing a session inside nested transactions rolls all of it back."""
    session = Session(scene.engine(driver))
    add(session, "a")
    session.begin_nested()
    add(session, "b")
    session.close()
    assert scene.recorder.kinds == ["aborted"]
    scene.check()


@pytest.mark.parametrize("seed", range(6))
def test_random_walk(scene: Scene, driver: str, seed: int) -> None:
    """Random sequences of flush, savepoint, release, rollback and errors agree with the table."""
    chance = random.Random(seed)
    engine = scene.engine(driver)
    for _ in range(8):
        with Session(engine) as session:
            stack: list[SessionTransaction] = []
            for step in range(chance.randrange(4, 14)):
                choice = chance.random()
                if choice < 0.45:
                    add(session, f"{seed}-{step}")
                elif choice < 0.65 and len(stack) < 5:
                    stack.append(session.begin_nested())
                elif stack:
                    nested = stack.pop(chance.randrange(len(stack)) if choice > 0.9 else -1)
                    if nested.is_active:
                        (nested.commit if choice < 0.8 else nested.rollback)()
                    stack = [left for left in stack if left.is_active]
            (session.commit if chance.random() < 0.7 else session.rollback)()
    assert scene.recorder.ends.count("undecided") == 0
    scene.check()
