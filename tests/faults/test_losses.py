"""A process loses events and is killed before it could say so: the next one does, and all is explained."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from otel_activity.store.gaps import Kind, find_gaps
from tests.cli.support import run
from tests.e2e.support import World, events, journals, relay, rows, wait_for_line
from tests.faults.disks import small_disk

if TYPE_CHECKING:
    from pathlib import Path

    from otel_activity.store.gaps import Finding

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(120),
    pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL"),
]

SMALL = {
    "OTEL_BLRP_MAX_QUEUE_SIZE": "8",
    "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE": "4",
    "OTEL_BLRP_SCHEDULE_DELAY": "20",
    "OTEL_ACTIVITY_JOURNAL_MAX_BYTES": "65536",
}
LARGER = {**SMALL, "OTEL_BLRP_MAX_QUEUE_SIZE": "100"}
"""More fits into memory than into the journal."""
BEST_EFFORT = {
    "beside a journal": {"OTEL_ACTIVITY_DELIVERY_RULES": "Task=best_effort"},
    "alone": {"OTEL_ACTIVITY_DELIVERY": "best_effort"},
}


def said(world: World) -> list[dict[str, Any]]:
    """What the gap records say."""
    with psycopg.connect(world.store) as connection:
        found = connection.execute("SELECT attributes FROM activity.events WHERE name = 'activity.gap'")
        return [row[0] for row in found.fetchall()]


def counted(world: World) -> int:
    """How many events the gap records say were lost."""
    return sum(record["activity.gap.count"] for record in said(world))


def missing(world: World) -> int:
    """How many rows have no event."""
    stored = {entity for name, entity, _ in events(world) if name == "activity.entity.created"}
    return len(rows(world) - stored)


def found(world: World) -> list[Finding]:
    """What is missing in the store, everything judged at once."""
    since = datetime.now(UTC) - timedelta(hours=1)
    return find_gaps(world.store, "activity", since=since, grace=timedelta(0))


def back(world: World) -> None:
    """The store has its tables again."""
    with psycopg.connect(world.store, autocommit=True) as connection:
        connection.execute("ALTER SCHEMA elsewhere RENAME TO activity")


def delivered(world: World, directory: Path) -> None:
    """The relay has delivered everything, and the command finds nothing that is not explained."""
    status, output = relay(world, directory / "journal", "--timeout", "60")
    assert status == 0, output
    assert journals(directory) == []
    result = run("doctor", "--gaps", "--grace", "0", dsn=world.store)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("kind", BEST_EFFORT)
def test_a_hole_is_explained_although_its_process_was_killed(
    durable: World, tmp_path: Path, kind: str
) -> None:
    """Places were lost to a full queue, later ones are stored, and the window was open at SIGKILL."""
    process = durable.start("python", "losing.py", "queue", **SMALL, **BEST_EFFORT[kind])
    output, _ = process.communicate(timeout=60)
    assert "program dies" in output
    delivered(durable, tmp_path)
    holes = [one for one in found(durable) if one.kind is Kind.HOLE]
    assert 10 < sum(one.count or 0 for one in holes) <= missing(durable)
    assert {str(one.explanation).split(",")[0] for one in holes} == {"gap record: queue full"}
    assert counted(durable) == missing(durable)


def test_what_a_full_journal_cost_is_counted_to_the_end(durable: World, tmp_path: Path) -> None:
    """Events that were dropped, and those that were in memory alone at SIGKILL: all of them are said."""
    process = durable.start("python", "losing.py", "journal", "later", **LARGER)
    assert "program dies" in process.communicate(timeout=60)[0]
    back(durable)
    delivered(durable, tmp_path)
    assert counted(durable) == missing(durable) > 50
    reasons = {record["activity.gap.reason"] for record in said(durable)}
    assert reasons == {"journal full", "process ended"}
    assert all(record["activity.gap.estimate"] for record in said(durable))


def test_a_process_that_is_killed_at_its_first_loss_has_said_so(durable: World, tmp_path: Path) -> None:
    """The very first loss is written down at once; the count may be short, and says that it may."""
    process = durable.start("python", "losing.py", "journal", "at once", **SMALL)
    assert "program dies" in process.communicate(timeout=60)[0]
    back(durable)
    delivered(durable, tmp_path)
    assert 1 <= counted(durable) <= missing(durable)
    assert "journal full" in {record["activity.gap.reason"] for record in said(durable)}
    assert all(record["activity.gap.estimate"] for record in said(durable))


def test_a_full_disk_does_not_keep_losses_from_being_written_down(durable: World, tmp_path: Path) -> None:
    """The journal's file system is full, and the process is killed: what it lost is said nevertheless."""
    mounted = small_disk(tmp_path, size="128k")
    relay_program = "from otel_activity.cli import main; main()"
    script = (
        f"{mounted.mount} && opentelemetry-instrument python losing.py journal later; "
        f'{sys.executable} -c "{relay_program}" relay --journal {mounted.directory} --timeout 60'
    )
    environment = {**LARGER, "OTEL_ACTIVITY_JOURNAL_MAX_BYTES": ""}
    process = durable.spawn(
        *(*mounted.namespace, "sh", "-c", script),
        OTEL_ACTIVITY_JOURNAL_DIR=str(mounted.directory),
        **environment,
    )
    seen = wait_for_line(process, "program dies")
    assert "No space left on device" in seen
    back(durable)
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 0, output
    assert counted(durable) == missing(durable) > 50
    assert [one for one in found(durable) if one.explanation is None] == []
