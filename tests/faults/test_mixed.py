"""Processes are killed in the middle of transactions that are strict, durable and best effort at once."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.e2e.test_classes import column, compare, settle, shop
from tests.faults.test_kills import start_relay

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.support import World

__all__ = ["shop"]

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(240),
    pytest.mark.skipif(sys.platform == "win32", reason="forks"),
]

SEED = 20261129
KILLS = 60


def test_kills_in_transactions_of_every_class(shop: World, tmp_path: Path) -> None:
    """Strict and durable parts are there if and only if their rows are; best effort is never invented."""
    process = shop.start("python", "mixed.py", str(SEED), str(KILLS), OTEL_BLRP_SCHEDULE_DELAY="50")
    output, _ = process.communicate(timeout=200)
    assert "program done" in output, output
    for wait in (0.6, 0.9):
        relay = start_relay(shop, tmp_path / "journal")
        time.sleep(wait)
        relay.kill()
        relay.communicate()
    settle(shop, tmp_path)
    lost = compare(shop)
    visits = len(column(shop.application, "SELECT id FROM visit"))
    assert visits > KILLS
    assert lost < visits
    with psycopg.connect(shop.store) as connection:
        (unknown,) = connection.execute(
            "SELECT count(*) FROM activity.events WHERE attributes ->> 'activity.commit' = 'unknown'"
        ).fetchone() or (None,)
    assert unknown == 0
    counted = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    # 16 of its 20 transactions committed: a visit, and a task that was made and changed.
    assert counted["best_effort"] == {"released": 16, "dropped": 0}
    assert counted["durable"]["dropped"] == counted["strict"]["dropped"] == 0
    # More where others left it something: in the outbox, or without a mark in their journals.
    assert counted["strict"]["released"] >= 16 * 2
    assert counted["durable"]["released"] >= 16 * 2 + 4  # four payments failed, in no transaction
