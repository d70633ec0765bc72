"""Ends of a process while other threads are still committing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.e2e.support import NOTHING, World, relay, unexplained

if TYPE_CHECKING:
    from pathlib import Path


def test_threads_that_commit_until_the_very_end_lose_nothing(durable: World, tmp_path: Path) -> None:
    """Daemon threads go on while the process ends: what they commit then is found by the next one."""
    for _ in range(2):
        process = durable.start("python", "daemons.py", "1")
        process.communicate(timeout=60)
    relay(durable, tmp_path / "journal")
    assert unexplained(durable) == NOTHING
