"""Many threads on a small pool: events equal committed rows exactly."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy.orm import Session

from tests.capture.support import Scene, add, run

THREADS, TRANSACTIONS = 8, 50


def test_threads(scene: Scene, driver: str) -> None:
    """8 threads x 50 transactions with commits, rollbacks, savepoints and errors on a pool of 3."""
    engine = scene.engine(driver, pool_size=3, max_overflow=0)
    started = threading.Barrier(THREADS)

    def work(number: int) -> list[str]:
        chance = random.Random(number)
        kept: list[str] = []
        started.wait()
        for turn in range(TRANSACTIONS):
            with Session(engine) as session:
                first = add(session, f"{number}/{turn}")
                inner = session.begin_nested()
                add(session, f"{number}/{turn}/inner")
                released = chance.random() < 0.5
                (inner.commit if released else inner.rollback)()
                first.name = f"{number}/{turn}/changed"
                end = chance.choice(["commit", "commit", "text", "rollback", "close"])
                if end == "text":
                    session.flush()
                    run(session, "COMMIT")
                elif end != "close":
                    getattr(session, end)()
                if end in {"commit", "text"}:
                    kept += [f"{number}/{turn}", f"{number}/{turn}/changed"]
                    kept += [f"{number}/{turn}/inner"] if released else []
        return kept

    with ThreadPoolExecutor(THREADS) as pool:
        kept = [name for names in pool.map(work, range(THREADS)) for name in names]
    assert sorted(scene.recorder.names()) == sorted(kept)
    assert scene.recorder.doubtful == []
    by_transaction: dict[str, set[str]] = {}
    for transaction, name in zip(scene.recorder.transactions(), scene.recorder.names(), strict=True):
        by_transaction.setdefault(transaction, set()).add("/".join(name.split("/")[:2]))
    assert all(len(owners) == 1 for owners in by_transaction.values())
    assert len(by_transaction) == scene.recorder.ends.count("committed")
    scene.check()
