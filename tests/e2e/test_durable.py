"""``OTEL_ACTIVITY_DELIVERY=durable`` on real processes: killed, restarted, cut off, forked."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from typing import TYPE_CHECKING

import psycopg
import pytest

from otel_activity.delivery.records import Record, scan
from otel_activity.embedded import EmbeddedPostgres
from otel_activity.postgres import schema
from tests.e2e.support import (
    EXPECTED,
    NOTHING,
    World,
    events,
    journals,
    relay,
    rows,
    unexplained,
    wait_for_line,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e

KILLS = 20
SEED = 20261123


@pytest.mark.timeout(120)
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_sigkill_at_random_instants_loses_nothing(durable: World, tmp_path: Path) -> None:
    """Killed twenty times between two instructions, each restart delivers what the last run left."""
    rng = random.Random(SEED)
    for _ in range(KILLS):
        process = durable.start("python", "loop.py", OTEL_BLRP_SCHEDULE_DELAY="50")
        wait_for_line(process, "program runs")
        time.sleep(rng.uniform(0.0, 0.4))
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=10) == -signal.SIGKILL
    process = durable.start("python", "loop.py", "3")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert len(rows(durable)) > 10 * KILLS
    assert unexplained(durable) == NOTHING
    unknown = [row for row in events(durable) if row[2] == "unknown"]
    # Three events a transaction; each kill can leave one transaction between COMMIT and mark.
    assert len(unknown) <= 3 * KILLS
    assert journals(tmp_path) == []


def test_an_exit_without_any_end_loses_nothing(durable: World, tmp_path: Path) -> None:
    """`os._exit` right after the last COMMIT: the store hears of it from the next process."""
    process = durable.start("python", "loop.py", "20", "exit", OTEL_BLRP_SCHEDULE_DELAY="60000")
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert len(rows(durable)) == 32
    assert len(events(durable)) == 0
    process = durable.start("python", "loop.py", "0")
    output, _ = process.communicate(timeout=60)
    assert "48 events that dead processes left" in output
    assert "are taken over" in output
    assert unexplained(durable) == NOTHING
    assert {fate for _, _, fate in events(durable)} == {"reported"}
    assert journals(tmp_path) == []


def test_a_relay_delivers_what_a_dead_host_left(durable: World, tmp_path: Path) -> None:
    """Events arrive under the service and host that made them, once, and the journals are gone."""
    resource = "host.name=gone,service.instance.id=7"
    process = durable.start(
        *("python", "loop.py", "20", "exit"),
        OTEL_BLRP_SCHEDULE_DELAY="60000",
        OTEL_RESOURCE_ATTRIBUTES=resource,
    )
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert relay(durable, tmp_path / "journal") == (0, "48 events found, all delivered\n")
    assert unexplained(durable) == NOTHING
    with psycopg.connect(durable.store) as connection:
        rows = connection.execute(
            "SELECT DISTINCT service, r.attributes ->> 'host.name', r.attributes ->> 'service.instance.id' "
            "FROM activity.events e JOIN activity.resources r ON r.id = e.resource_id"
        ).fetchall()
    assert rows == [("shop", "gone", "7")]
    assert journals(tmp_path) == []
    assert relay(durable, tmp_path / "journal") == (0, "0 events found, all delivered\n")


def test_a_relay_leaves_the_living_alone_and_says_what_is_left(durable: World, tmp_path: Path) -> None:
    """A journal that is in use is not touched; with the store down everything stays and the status is 1."""
    living = durable.start("python", "loop.py", "3", "wait", OTEL_BLRP_SCHEDULE_DELAY="60000")
    wait_for_line(living, "program done")
    dead = durable.start("python", "loop.py", "3", "exit", OTEL_SERVICE_NAME="other")
    dead.communicate(timeout=60)
    store, durable.store = durable.store, "postgresql://127.0.0.1:1/none"
    assert relay(durable, tmp_path / "journal", "--timeout", "1")[0] == 1
    durable.store = store
    assert relay(durable, tmp_path / "journal")[0] == 0
    assert {row[2] for row in durable.stored()} == {"other"}
    living.send_signal(signal.SIGTERM)
    living.wait(timeout=20)
    assert unexplained(durable) == NOTHING


def test_an_outage_longer_than_the_queue_and_the_process(durable: World, tmp_path: Path) -> None:
    """With the store down and a queue of ten, a hundred transactions and a normal exit lose nothing."""
    with EmbeddedPostgres(fsync=False) as server:
        store = server.create_database("audit")
        schema.apply(store)
        server.kill()
        process = durable.start(
            *("python", "loop.py", "100"),
            OTEL_ACTIVITY_POSTGRES_DSN=store,
            OTEL_BLRP_MAX_QUEUE_SIZE="10",
            OTEL_ACTIVITY_SHUTDOWN_TIMEOUT="0.5",
        )
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert "240 events wait in" in output
        assert "dropped" not in output
        server.start()
        process = durable.start(
            *("python", "loop.py", "100"),
            OTEL_ACTIVITY_POSTGRES_DSN=store,
            OTEL_BLRP_MAX_QUEUE_SIZE="10",
            OTEL_BLRP_SCHEDULE_DELAY="20",
        )
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        durable.store, kept = store, durable.store
        assert len(rows(durable)) == 320
        assert unexplained(durable) == NOTHING
        assert {fate for _, _, fate in events(durable)} == {"reported"}
        durable.store = kept
    assert journals(tmp_path) == []


def test_a_store_that_comes_back_meanwhile(durable: World) -> None:
    """Store down for longer than the memory queue, then back: the running process catches up by itself."""
    with EmbeddedPostgres(fsync=False) as server:
        store = server.create_database("audit")
        schema.apply(store)
        server.kill()
        process = durable.start(
            *("python", "loop.py", "100", "wait"),
            OTEL_ACTIVITY_POSTGRES_DSN=store,
            OTEL_BLRP_MAX_QUEUE_SIZE="10",
            OTEL_BLRP_SCHEDULE_DELAY="20",
        )
        wait_for_line(process, "program done")
        server.start()
        durable.store, kept = store, durable.store
        deadline = time.monotonic() + 30
        while len(events(durable)) < 240:
            assert time.monotonic() < deadline, "the events never arrived"
            time.sleep(0.1)
        assert unexplained(durable) == NOTHING
        assert {fate for _, _, fate in events(durable)} == {"reported"}
        assert process.poll() is None
        durable.close()
        durable.store = kept


def test_two_exporters_with_one_dead(durable: World, tmp_path: Path) -> None:
    """PostgreSQL gets everything although the OTLP endpoint never answers; the journal keeps it for OTLP."""
    process = durable.start(
        *("python", "loop.py", "50"),
        OTEL_ACTIVITY_EXPORTERS="postgres,otlp",
        OTEL_ACTIVITY_OTLP_ENDPOINT="http://127.0.0.1:1",
        OTEL_BLRP_MAX_QUEUE_SIZE="20",
        OTEL_BLRP_SCHEDULE_DELAY="20",
        OTEL_ACTIVITY_SHUTDOWN_TIMEOUT="3",
        OTEL_EXPORTER_OTLP_TIMEOUT="1",
    )
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "120 events wait in" in output
    assert unexplained(durable) == NOTHING
    assert len(journals(tmp_path)) == 1


def test_a_relay_keeps_what_an_exporter_needs_that_it_lacks(durable: World, tmp_path: Path) -> None:
    """OTLP has nothing yet: a relay that has only PostgreSQL leaves the journal, unless told not to."""
    process = durable.start(
        *("python", "loop.py", "5"),
        OTEL_ACTIVITY_EXPORTERS="postgres,otlp",
        OTEL_ACTIVITY_OTLP_ENDPOINT="http://127.0.0.1:1",
        OTEL_ACTIVITY_SHUTDOWN_TIMEOUT="1",
        OTEL_EXPORTER_OTLP_TIMEOUT="1",
    )
    process.communicate(timeout=60)
    status, output = relay(durable, tmp_path / "journal")
    assert status == 1
    assert "4 transactions kept for an exporter that is not here" in output
    assert len(journals(tmp_path)) == 1
    status, output = relay(durable, tmp_path / "journal", "--without", "otlp")
    assert (status, output) == (0, "0 events found, all delivered\n")
    assert journals(tmp_path) == []
    assert unexplained(durable) == NOTHING


def test_a_relay_records_what_a_damaged_journal_cost(durable: World, tmp_path: Path) -> None:
    """Whoever looks into the store later must see that something is missing, although the journal is gone."""
    process = durable.start(
        *("python", "loop.py", "5"),
        OTEL_ACTIVITY_POSTGRES_DSN="postgresql://nobody@127.0.0.1:1/nowhere",
        OTEL_ACTIVITY_SHUTDOWN_TIMEOUT="1",
    )
    process.communicate(timeout=60)
    (segment,) = tmp_path.glob("journal/*/*/*.seg")
    data = bytearray(segment.read_bytes())
    record = next(one for one in scan(bytes(data)) if isinstance(one, Record) and one.number == 2)
    data[record.end - 1] ^= 0xFF
    segment.write_bytes(data)
    relay(durable, tmp_path / "journal")
    assert journals(tmp_path) == []
    with psycopg.connect(durable.store) as connection:
        found = connection.execute(
            "SELECT attributes ->> 'activity.gap.reason' FROM activity.events WHERE name = 'activity.gap'"
        ).fetchall()
    assert found == [("journal damaged",)]


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.parametrize("way", ["fork", "multiprocessing"])
def test_a_forked_child_is_audited(durable: World, tmp_path: Path, way: str) -> None:
    """Parent and child each journal and report their own rows, once."""
    status, output = durable.run(way)
    assert status == 0, output
    created = {"fork": 2, "multiprocessing": 1}[way]
    stored = durable.stored()
    assert len(stored) == len(EXPECTED) + created
    assert set(EXPECTED) <= set(stored)


def test_sigterm_leaves_nothing_to_send_again(durable: World) -> None:
    """After the flush of SIGTERM the cursors are written: the next process finds nothing to deliver."""
    process = durable.start("python", "plain.py", "wait", OTEL_BLRP_SCHEDULE_DELAY="60000")
    wait_for_line(process, "program done")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == -signal.SIGTERM
    assert durable.stored() == EXPECTED
    process = durable.start("python", "loop.py", "0")
    output, _ = process.communicate(timeout=60)
    assert "dead processes" not in output


def test_a_journal_that_cannot_be_written_stops_the_start(durable: World, tmp_path: Path) -> None:
    """One line with variable, value and fix; exit status 2; the program's code does not run."""
    (tmp_path / "file").write_text("")
    status, output = durable.run(OTEL_ACTIVITY_JOURNAL_DIR=str(tmp_path / "file"))
    assert status == 2
    (line,) = output.splitlines()
    assert line.startswith(f"otel_activity: OTEL_ACTIVITY_JOURNAL_DIR='{tmp_path / 'file'}")
    assert "OTEL_ACTIVITY_DELIVERY=best_effort" in line


@pytest.mark.skipif(not hasattr(os, "setuid") or os.geteuid() != 0, reason="changes the user")
def test_the_default_directory_follows_the_platform(durable: World, tmp_path: Path) -> None:
    """Without a setting the journal is below XDG_STATE_HOME, in a directory for the service."""
    process = durable.start(
        *("python", "loop.py", "2", "exit"),
        OTEL_ACTIVITY_JOURNAL_DIR="",
        XDG_STATE_HOME=str(tmp_path / "state"),
        OTEL_BLRP_SCHEDULE_DELAY="60000",
    )
    process.communicate(timeout=60)
    (service,) = (tmp_path / "state" / "otel_activity").iterdir()
    assert service.name.startswith("shop-")
    (journal,) = service.iterdir()
    assert {path.name for path in journal.iterdir()} == {"about.json", "lock", "losses", "00000001.seg"}
