"""Failover to a replica that lagged: what the old primary had promised, nobody can know any more.

A base backup is the replica, stopped before the last transactions of the primary. After its promotion the ids
of those transactions are first "in the future" and later given to others. Both answers say nothing about the
transaction that is asked about.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

import otel_activity
from otel_activity.embedded import EmbeddedPostgres
from otel_activity.postgres import schema
from tests.e2e.test_proof import World

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(120),
    pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL"),
]


@pytest.fixture
def world(tmp_path: Path, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A primary with the application's database; the store is in another cluster and survives."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    with EmbeddedPostgres() as server:
        made = World(server, tmp_path / "journal")
        made.server = server
        schema.apply(postgres_dsn)
        made.store = postgres_dsn
        yield made
        otel_activity.shutdown(0.1)


def replica_of(primary: EmbeddedPostgres) -> EmbeddedPostgres:
    """A standby made from a base backup, with what was committed until now; it does not run.

    Made as PostgreSQL's manual describes it under "low-level API": not every installation has pg_basebackup.
    """
    root = primary.log_path.parent / "standby"
    data = root / "data"
    with psycopg.connect(primary.dsn(), autocommit=True) as connection:
        (source,) = connection.execute("SHOW data_directory").fetchall()[0]
        connection.execute("SELECT pg_backup_start('standby', fast => true)")
        shutil.copytree(source, data, ignore=shutil.ignore_patterns("postmaster.*", "pg_wal", "pg_replslot"))
        (label,) = connection.execute(
            "SELECT labelfile FROM pg_backup_stop(wait_for_archive => false)"
        ).fetchall()[0]
    # The log reaches to the end of the backup only now.
    shutil.copytree(Path(source) / "pg_wal", data / "pg_wal")
    (data / "pg_replslot").mkdir()
    (data / "backup_label").write_text(label)
    (data / "standby.signal").touch()
    (root / "password").write_text(primary._password)
    owner = Path(source).stat()
    for path in (root, *root.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid)
    return EmbeddedPostgres(persistent=root, bin_dir=primary._wanted_bin_dir)


def ask(dsn: str, statement: str) -> str:
    """The one value that a statement gives."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        row = connection.execute(statement.encode()).fetchone()
    assert row is not None
    return str(row[0])


def die_in_commit(world: World, item: str) -> str:
    """A process is killed in the middle of a COMMIT that the primary has done; the transaction's id."""
    program = f"""
        import otel_activity
        from sqlalchemy import create_engine
        from tests.e2e.test_proof import sell
        otel_activity.instrument(**{world.settings()!r})
        sell(create_engine({world.url!r}), {item!r})
    """
    world.hold_commits()
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)])
    try:
        pid = world.waiting("SyncRep")
        child.send_signal(signal.SIGKILL)
        child.wait(10)
        world.run(f"SELECT pg_terminate_backend({pid})")
    finally:
        child.kill()
        child.wait()
    world.let_commits_go()
    return ask(world.app, f"SELECT xmin FROM sale WHERE item = '{item}'")


@pytest.mark.parametrize("reused", [False, True], ids=["in the future", "given to another"])
def test_a_lagging_replica_decides_nothing(world: World, reused: bool) -> None:
    """The row is lost with the old primary; its event is stored, once, as `unknown`, whatever the id says."""
    replica = replica_of(world.server)
    for _ in range(5):  # the replica has not heard of these either
        ask(world.app, "SELECT pg_current_xact_id()")
    xid = die_in_commit(world, "lost")
    assert ask(world.app, f"SELECT pg_xact_status('{xid}')") == "committed"
    world.server.kill()
    with replica:
        promoted = replica.dsn("app")
        assert ask(promoted, "SELECT pg_promote()") == "True"
        status = f"SELECT pg_xact_status('{xid}')"
        if reused:
            while int(ask(promoted, "SELECT pg_current_xact_id()")) <= int(xid):
                pass
            assert ask(promoted, status) == "committed"
        else:
            with pytest.raises(psycopg.errors.InvalidParameterValue, match="in the future"):
                ask(promoted, status)
        otel_activity.instrument(**world.settings(proof_dsn=promoted))
        assert otel_activity.flush_queue(30)
        assert world.events() == [("lost", "unknown")]
        assert otel_activity.get_queue_metrics()["undecided"] == 1
        assert ask(promoted, "SELECT count(*) FROM sale") == "0"
        otel_activity.shutdown(5)
