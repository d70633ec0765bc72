"""A journal whose file system cannot be written: from the start, or from some instant on."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.e2e.support import World, events, rows, wait_for_line
from tests.faults.disks import OWN_MOUNTS, require_mounts
from tests.faults.test_kills import settle

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(120),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mounts file systems"),
]


@pytest.fixture
def start(durable: World) -> Callable[..., subprocess.Popen[str]]:
    """Starts a program in a mount namespace of its own, after some commands of a shell."""
    require_mounts()

    def started(commands: str, *program: str, **extra: str) -> subprocess.Popen[str]:
        command = f'{commands} && exec opentelemetry-instrument python "$@"'
        return durable.spawn(*OWN_MOUNTS, "sh", "-c", command, "sh", *program, **extra)

    return started


def test_a_read_only_directory_stops_the_start(
    durable: World, tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """Whoever the user is: one line with the variable, the reason and the fix, status 2, and no row."""
    (tmp_path / "journal").mkdir()
    process = start(f"mount -t tmpfs -o ro tmpfs {tmp_path}/journal", "plain.py")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2, output
    (line,) = output.splitlines()
    assert line.startswith(f"otel_activity: OTEL_ACTIVITY_JOURNAL_DIR='{tmp_path}/journal")
    assert "Read-only file system" in line
    assert "OTEL_ACTIVITY_DELIVERY=best_effort" in line


def enter(process: subprocess.Popen[str], command: str) -> None:
    """Run a command in the mount namespace of a program."""
    subprocess.run(
        ["nsenter", "--target", str(process.pid), "--user", "--mount", "sh", "-c", command], check=True
    )


def test_a_directory_that_turns_read_only(
    durable: World, tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """No further segment can be made: units go through memory, arrive, and the program hears of nothing."""
    journal = tmp_path / "journal"
    journal.mkdir()
    process = start(
        "true", "stubborn.py", OTEL_BLRP_SCHEDULE_DELAY="20", OTEL_ACTIVITY_JOURNAL_MAX_BYTES="65536"
    )
    wait_for_line(process, "program runs")
    # Made elsewhere and laid over it in one step: a mount that somebody writes to cannot turn read-only.
    aside = tmp_path / "aside"
    aside.mkdir()
    enter(process, f"mount --bind {journal} {aside} && mount -o remount,bind,ro {aside}")
    enter(process, f"mount --bind {aside} {journal}")
    wait_for_line(process, "Read-only file system")
    lost_hold = len(rows(durable))
    wait_until(lambda: len(rows(durable)) > lost_hold + 100)
    enter(process, f"umount {journal}")
    finish(process)
    settle(durable, tmp_path)
    assert {fate for _, _, fate in events(durable)} == {"reported"}


def test_a_disk_that_refuses_every_write_for_a_while(durable: World, tmp_path: Path) -> None:
    """The system refuses to write files from one instant to another: rows go on, and so do their events."""
    process = durable.start("python", "stubborn.py", OTEL_BLRP_SCHEDULE_DELAY="20")
    wait_for_line(process, "program runs")
    most = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    for _ in range(3):
        before = len(rows(durable))
        wait_until(lambda before=before: len(rows(durable)) > before + 50)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, most[1]))
        before = len(rows(durable))
        wait_until(lambda before=before: len(rows(durable)) > before + 50)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, most)
    output = finish(process)
    assert "could not be journaled (OSError: File too large)" in output
    settle(durable, tmp_path)
    assert {fate for _, _, fate in events(durable)} == {"reported"}


def wait_until(condition: Callable[[], bool]) -> None:
    """Look again and again, for half a minute."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.02)


def finish(process: subprocess.Popen[str]) -> str:
    """Let the program come to its end; what it said."""
    subprocess.run(["kill", "-USR1", str(process.pid)], check=True)
    output, _ = process.communicate(timeout=60)
    assert "program done" in output, output
    return output
