"""The benchmarks run and count right; their times are nobody's business here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from benchmarks.proxy import DelayProxy
from benchmarks.replay import check_stored
from benchmarks.report import Row, as_text
from benchmarks.server import Server, sqlalchemy_url
from benchmarks.variants import BASE, VARIANTS, Databases, WrongCount
from otel_activity.postgres import schema

if TYPE_CHECKING:
    from tests.conftest import Server as TestServer

ROOT = Path(__file__).parent.parent


@pytest.mark.e2e
def test_quick_run_counts_right_and_reports_every_row(postgres_server: TestServer, tmp_path: Path) -> None:
    """A short run records exactly what was done, in every variant, and says so in table and JSON."""
    result_file = tmp_path / "result.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--no-pin", "--json", str(result_file)]
    command += ["--dsn", postgres_server.dsn()]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "budgets met" in finished.stdout
    result = json.loads(result_file.read_text())
    assert result["quick"] is True
    rows = {(row["what"], row["variant"], row["measure"]) for row in result["rows"]}
    for workload in ("request", "request, 1 ms away", "insert of 2,000"):
        for variant in ("triggers", "same", "other", "durable", "proven", "strict"):
            for measure in ("latency", "client CPU", "database CPU"):
                assert (workload, variant, measure) in rows
    assert ("request", "parts", "export") in rows
    with psycopg.connect(postgres_server.dsn()) as connection:
        left = connection.execute(
            "SELECT datname FROM pg_database WHERE datname ~ '^activity_bench_'"
        ).fetchall()
    assert left == []


@pytest.mark.e2e
def test_a_run_about_the_journal_counts_right(postgres_server: TestServer, tmp_path: Path) -> None:
    """Every event that goes into a journal is found in it, and every one of a dead process is stored once."""
    result_file = tmp_path / "result.json"
    command = [sys.executable, "-m", "benchmarks.delivery", "--events", "600", "--json", str(result_file)]
    command += ["--dsn", postgres_server.dsn()]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "600 events were replayed, each is stored once" in finished.stdout
    result = json.loads(result_file.read_text())
    assert result["quick"] is True
    rows = {(row["what"], row["variant"], row["measure"]): row for row in result["rows"]}
    assert rows["journal", "fsync interval", "CPU over memory"]["budget"] == 6.0
    assert rows["append", "units of 3", "encoded units"]["budget"] == 100_000
    assert rows["replay", "", "replay / plain COPY"]["value"] > 0
    with psycopg.connect(postgres_server.dsn()) as connection:
        left = connection.execute(
            "SELECT datname FROM pg_database WHERE datname ~ '^activity_bench_'"
        ).fetchall()
    assert left == []


def test_a_replay_that_stored_too_little_is_noticed(postgres_server: TestServer) -> None:
    """A store that lacks events, or has a hole in its stream, fails the run."""
    server = Server(postgres_server.dsn())
    try:
        schema.apply(server.create("activity_bench_short"))
        with pytest.raises(WrongCount, match="stored"):
            check_stored(server.dsn("activity_bench_short"), 3, left=[])
    finally:
        server.drop(["activity_bench_short"])
        server.close()


def test_password_is_masked_in_the_report(postgres_server: TestServer, tmp_path: Path) -> None:
    """A password in --dsn appears neither on the screen nor in the JSON."""
    result_file = tmp_path / "result.json"
    dsn = postgres_server.dsn()
    password = dsn.partition("://")[2].partition("@")[0].partition(":")[2]
    if not password:
        pytest.skip("the server's DSN has no password")
    command = [sys.executable, "-m", "benchmarks", "--quick", "--no-pin", "--no-components"]
    command += ["--workload", "insert", "--variant", "triggers", "--json", str(result_file), f"--dsn={dsn}"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert password not in finished.stdout + finished.stderr + result_file.read_text()


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_missing_audit_records_are_noticed(postgres_server: TestServer, variant: object) -> None:
    """Work that left no audit record fails the run, in every variant that audits."""
    server = Server(postgres_server.dsn())
    databases = Databases(server, 10, "activity_bench_missing")
    chosen = next(each for each in VARIANTS if each is variant)
    try:
        databases.drop_all((chosen,))
        databases.create_templates((chosen,))
        databases.open(chosen)
        with psycopg.connect(server.dsn(databases.application(chosen))) as connection:
            connection.execute("SET session_replication_role = replica")  # no trigger fires
            connection.execute("UPDATE tasks SET revision = revision + 1 WHERE id = 1")
            connection.execute("DELETE FROM attachments WHERE id = 1")
            connection.execute(
                "INSERT INTO comments (task_id, author_id, body, mentions, internal, created_at)"
                " VALUES (1, 1, '', '[]', false, now())"
            )
        with pytest.raises(
            WrongCount, match="recorded: created 0, not 1; updated 0, not 1; deleted 0, not 1"
        ):
            databases.check(chosen, "request", 1)
    finally:
        databases.drop_all((chosen,))
        server.close()


def test_work_that_was_not_done_is_noticed(postgres_server: TestServer) -> None:
    """A client that did less than it was told fails the run."""
    server = Server(postgres_server.dsn())
    databases = Databases(server, 10, "activity_bench_undone")
    try:
        databases.drop_all((BASE,))
        databases.create_templates((BASE,))
        databases.open(BASE)
        databases.check(BASE, "request", 0)
        with pytest.raises(WrongCount, match="work done: inserted 0, not 3"):
            databases.check(BASE, "request", 3)
    finally:
        databases.drop_all((BASE,))
        server.close()


def test_server_cpu_time_counts_ended_processes(postgres_server: TestServer) -> None:
    """The CPU time of a session that has ended stays in the sum."""
    server = Server(postgres_server.dsn())
    try:
        before = server.cpu_seconds()
        if before is None:
            pytest.skip("the server's processes are not on this machine, or this is not Linux")
        with psycopg.connect(server.dsn("postgres")) as connection:
            connection.execute("SELECT count(*) FROM generate_series(1, 2000000)")
        inside = server.cpu_seconds()
        assert inside is not None
        assert inside - before > 0.05  # two million rows cannot be counted in less
    finally:
        server.close()


def test_proxy_passes_everything_on(postgres_server: TestServer) -> None:
    """Large data in both directions arrives complete and in order through the proxy."""
    server = Server(postgres_server.dsn())
    try:
        with DelayProxy(server.host, server.port, 1) as proxy:
            text = "".join(map(str, range(300_000)))
            with psycopg.connect(server.dsn("postgres", port=proxy.port)) as connection:
                row = connection.execute("SELECT %s::text || '!'", [text]).fetchone()
        assert row == (text + "!",)
    finally:
        server.close()


@pytest.mark.parametrize(
    ("dsn", "url"),
    [
        (
            "host=db port=5433 user=u password='p@:/ w' dbname=app",
            "postgresql+psycopg://u:p%40%3A%2F w@db:5433/app",
        ),
        ("host=/run/pg user=u dbname=app", "postgresql+psycopg://u@/app?host=%2Frun%2Fpg"),
        ("postgresql://u@db/app?sslmode=require", "postgresql+psycopg://u@db/app?sslmode=require"),
    ],
)
def test_connection_strings_become_sqlalchemy_urls(dsn: str, url: str) -> None:
    """Odd passwords, sockets and further settings survive the way into SQLAlchemy."""
    assert sqlalchemy_url(dsn) == url


@pytest.mark.parametrize(("value", "verdict"), [(1.03, "met"), (1.031, "NOT MET"), (None, "")])
def test_verdict_follows_the_median_alone(value: float | None, verdict: str) -> None:
    """The budget itself is met, anything above is not, and what could not be measured is not judged."""
    row = Row(what="request", variant="same", measure="latency", unit="x", value=value, budget=1.03)
    assert row.cells()[-1] == verdict
    assert ("n/a" in as_text([row])) is (value is None)
