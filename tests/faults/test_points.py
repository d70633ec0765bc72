"""Fault points inside the code, each enumerated: the lines of delivery that a transaction runs through."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from tests.e2e.support import events, rows
from tests.faults.test_kills import settle

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.support import World

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not hasattr(sys, "settrace") or sys.platform == "win32", reason="forks"),
]


def test_a_death_at_any_line_loses_nothing(durable: World, tmp_path: Path) -> None:
    """A process dies at each of them in turn, also while it takes over what another dead one left."""
    process = durable.start("python", "points.py", OTEL_BLRP_SCHEDULE_DELAY="20")
    output, _ = process.communicate(timeout=280)
    assert "program done" in output, output
    found = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
    assert found["points"] > 250, found
    assert found["killed"] > 0.9 * found["points"], found
    settle(durable, tmp_path)
    assert len(rows(durable)) > found["points"]
    assert {fate for _, _, fate in events(durable)} == {"reported", "proven"}
