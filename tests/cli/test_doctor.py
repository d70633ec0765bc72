"""The doctor finds what would keep a service from being audited, and says how to mend it."""

from __future__ import annotations

import os
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import psycopg
import psycopg.sql
import pytest

from otel_activity.postgres.outbox import apply_outbox, outbox_facts
from otel_activity.settings import FIELDS
from tests.cli.support import json_lines, run
from tests.delivery.test_durable import World, bracket
from tests.delivery.test_queued import unit
from tests.store.support import make_event, store

DELIVERY = (Path(__file__).parents[2] / "docs" / "delivery.md").read_text("utf-8")
(OUTBOX_GRANTS,) = re.findall(r"^```sql\n(GRANT .*?)^```", DELIVERY, flags=re.MULTILINE | re.DOTALL)
READER = f"activity_doctor_reader_{os.getpid()}"


def examine(dsn: str | None = None, **variables: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit status, and the checks by name."""
    result = run("doctor", "--json", dsn=dsn, **variables)
    return result.exit_code, {row["check"]: row for row in json_lines(result.stdout)}


def test_healthy_installation_passes(store_dsn: str, tmp_path: Path) -> None:
    """With tables and an event nothing fails, and every part has its line."""
    store(store_dsn, [make_event()])
    named = {"OTEL_ACTIVITY_JOURNAL_DIR": str(tmp_path), "OTEL_SERVICE_NAME": "shop"}
    status, checks = examine(store_dsn, OTEL_PYTHON_DISTRO="otel_activity", **named)
    assert status == 0
    assert {name for name, row in checks.items() if row["status"] != "ok"} == {"append only"}
    expected = "python sqlalchemy psycopg settings exporters distro capture store clock schema partitions"
    assert set(expected.split()) <= set(checks)


@pytest.mark.parametrize(
    ("variables", "level", "shown"),
    [
        ({}, "warn", "unknown_service"),
        ({"OTEL_SERVICE_NAME": "shop", "OTEL_RESOURCE_ATTRIBUTES": "service.name=other"}, "ok", "shop"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "a=b, service.name = other ,c"}, "ok", "other"),
    ],
)
def test_a_service_without_a_name_is_told(variables: dict[str, str], level: str, shown: str) -> None:
    """Events of two services that have no name cannot be told apart, nor can their journals."""
    _, checks = examine(OTEL_ACTIVITY_EXPORTERS="otlp", **variables)
    assert checks["service"]["status"] == level
    assert shown in checks["service"]["message"]


def test_missing_schema_fails(postgres_dsn: str) -> None:
    """A database without tables fails with the command that makes them."""
    status, checks = examine(postgres_dsn)
    assert (status, checks["schema"]["status"]) == (1, "FAIL")
    assert "otel-activity schema apply" in checks["schema"]["message"]


def test_newer_schema_fails(store_dsn: str) -> None:
    """Tables of a newer version are told apart from missing ones."""
    with psycopg.connect(store_dsn) as connection:
        connection.execute("INSERT INTO activity.schema_version (version, name) VALUES (999, 'later')")
    status, checks = examine(store_dsn)
    assert (status, checks["schema"]["status"]) == (1, "FAIL")
    assert "newer" in checks["schema"]["message"]


def test_a_reader_by_the_printed_grants_is_enough_to_look(store_dsn: str) -> None:
    """An auditor's role is told what it may see, and that nothing is wrong with it."""
    store(store_dsn, [make_event()])
    grants = run("schema", "sql", "--grants", "--reader", READER).stdout
    with psycopg.connect(store_dsn, autocommit=True) as connection:
        connection.execute(f"DROP ROLE IF EXISTS {READER}")
        connection.execute(f"CREATE ROLE {READER} LOGIN PASSWORD 'reads'")
        try:
            connection.execute(grants)
            login = psycopg.conninfo.make_conninfo(store_dsn, user=READER, password="reads")
            _, checks = examine(login, OTEL_ACTIVITY_EXPORTERS="console")
            connection.execute(f"REVOKE SELECT ON activity.events_default FROM {READER}")
            _, older = examine(login, OTEL_ACTIVITY_EXPORTERS="console")  # granted before that was asked for
        finally:
            connection.execute(f"DROP OWNED BY {READER}")
            connection.execute(f"DROP ROLE {READER}")
    for found in (checks, older):
        assert (found["store"]["status"], found["newest event"]["status"]) == ("ok", "ok")
        assert found["quarantine"]["message"] == "empty"


@pytest.mark.parametrize(("exporters", "level"), [("postgres", "FAIL"), ("console", "warn")])
def test_a_store_that_is_read_only_fails_where_services_store_there(
    store_dsn: str, exporters: str, level: str
) -> None:
    """A hosted server that switched to reading because its disk is full takes no events."""
    with psycopg.connect(store_dsn, autocommit=True) as connection:
        name = psycopg.sql.Identifier(connection.info.dbname)
        connection.execute(
            psycopg.sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name)
        )
    _, checks = examine(store_dsn, OTEL_ACTIVITY_EXPORTERS=exporters)
    assert checks["store"]["status"] == level
    assert "default_transaction_read_only is on" in checks["store"]["message"]
    assert checks["schema"]["status"] == "ok"


def test_unreachable_store_fails_without_the_password(free_port: int) -> None:
    """A store that is away fails, and the password is not shown anywhere."""
    result = run("doctor", dsn=f"postgresql://audit:s3cret@127.0.0.1:{free_port}/app")
    assert result.exit_code == 1
    assert "FAIL  store" in result.stdout
    assert "s3cret" not in result.output


def test_quarantine_and_old_partitions_warn(store_dsn: str) -> None:
    """Refused records and missing months are warnings with their fix."""
    with psycopg.connect(store_dsn) as connection:
        connection.execute(
            "INSERT INTO activity.quarantine (digest, resource_id, sqlstate, message, record) "
            "VALUES ('x', gen_random_uuid(), '22000', 'm', 'r')"
        )
        for row in connection.execute(
            "SELECT inhrelid::regclass::text FROM pg_inherits "
            "WHERE inhparent = 'activity.events'::regclass AND inhrelid::regclass::text NOT LIKE '%default'"
        ).fetchall():
            connection.execute(f"DROP TABLE {row[0]}")
    status, checks = examine(store_dsn)
    assert status == 0
    assert (checks["quarantine"]["status"], checks["quarantine"]["message"][:9]) == ("warn", "1 record ")
    assert (checks["partitions"]["status"], checks["partitions"]["fix"]) == (
        "warn",
        "run `otel-activity schema apply`",
    )


@pytest.mark.parametrize(
    ("variables", "check", "level", "words"),
    [
        ({"OTEL_ACTIVITY_EXPORTERS": "postgers"}, "settings", "FAIL", "postgres"),
        ({"OTEL_ACTIVITY_EXCLUDES": "x"}, "settings", "FAIL", "OTEL_ACTIVITY_EXCLUDE"),
        ({"OTEL_ACTIVITY_POSTGRES_DSN": "postgresql://u:s3cret@h/x?y=z"}, "settings", "FAIL", "***"),
        ({"OTEL_ACTIVTY_REDACT": "email"}, "misspelt", "warn", "OTEL_ACTIVITY_REDACT"),
        ({}, "exporters", "FAIL", "unaudited"),
        ({"OTEL_ACTIVITY_DISABLED": "true"}, "exporters", "warn", "OTEL_ACTIVITY_DISABLED"),
        ({"OTEL_SDK_DISABLED": "true"}, "exporters", "FAIL", "OTEL_SDK_DISABLED"),
        ({"OTEL_ACTIVITY_EXPORTERS": "none"}, "exporters", "warn", "OTEL_ACTIVITY_EXPORTERS"),
        ({"OTEL_ACTIVITY_EXPORTERS": "console"}, "exporters", "warn", "not kept"),
        ({"OTEL_ACTIVITY_OTLP_ENDPOINT": "http://h:4317"}, "exporters", "ok", "OTEL_ACTIVITY_OTLP_ENDPOINT"),
        ({"OTEL_PYTHON_DISTRO": "other"}, "distro", "warn", "OTEL_PYTHON_DISTRO=otel_activity"),
        (
            {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "flask, otel_activity"},
            "exclusion",
            "warn",
            "OTEL_ACTIVITY_DISABLED",
        ),
        (
            {"OTEL_TRACES_EXPORTER": "oltp", "OTEL_PYTHON_DISTRO": "otel_activity"},
            "other signals",
            "warn",
            "oltp",
        ),
        ({"OTEL_METRICS_EXPORTER": "oltp", "OTEL_PYTHON_DISTRO": "x"}, "other signals", "FAIL", "neither"),
    ],
)
def test_each_mistake_has_its_line(variables: dict[str, str], check: str, level: str, words: str) -> None:
    """Each way to run unaudited, or to think so wrongly, is found and named with its fix."""
    status, checks = examine(**variables)
    row = checks[check]
    assert row["status"] == level
    assert words in f"{row['message']} {row['fix']}"
    assert row["fix"] or level == "ok"
    assert "s3cret" not in str(checks)
    if level == "FAIL":
        assert status == 1


def test_the_outbox_is_looked_for_where_an_event_may_be_strict(store_dsn: str) -> None:
    """By rule or by default: a missing outbox fails, one that is there passes, an unknown database warns."""
    rules = {"OTEL_ACTIVITY_DELIVERY_RULES": "Invoice=strict"}
    strict = {"OTEL_ACTIVITY_DELIVERY": "strict"}
    there = {"OTEL_ACTIVITY_PROOF_DSN": store_dsn}
    assert "outbox" not in examine(store_dsn, **there)[1]
    assert examine(store_dsn, **rules)[1]["outbox"]["status"] == "warn"
    for asked in (rules, strict):
        status, checks = examine(store_dsn, **asked, **there)
        assert (status, checks["outbox"]["status"]) == (1, "FAIL")
        assert "schema apply --outbox" in checks["outbox"]["fix"]
    apply_outbox(store_dsn)
    for asked in (rules, strict):
        status, checks = examine(store_dsn, **asked, **there)
        assert (status, checks["outbox"]["status"]) == (0, "ok")


def test_variables_that_nothing_reads_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics that are asked for need something that sets OpenTelemetry up; else a line says so."""
    asked = {"OTEL_METRICS_EXPORTER": "console"}
    assert examine(**asked)[1]["telemetry"]["status"] == "ok"
    found = metadata.entry_points

    def without_a_configurator(*, group: str) -> object:
        return () if group == "opentelemetry_configurator" else found(group=group)

    monkeypatch.setattr(metadata, "entry_points", without_a_configurator)
    row = examine(**asked)[1]["telemetry"]
    assert (row["status"], row["fix"]) == ("warn", "pip install opentelemetry-distro")
    assert "OTEL_METRICS_EXPORTER is set" in row["message"]
    for quiet in ({}, {"OTEL_METRICS_EXPORTER": "none"}):
        assert examine(**quiet)[1]["telemetry"]["status"] == "ok"


@pytest.mark.parametrize(
    "missing",
    ["USAGE ON SCHEMA activity", "INSERT ON activity.outbox", "USAGE ON SEQUENCE activity.outbox_n_seq"],
)
def test_an_outbox_that_the_role_cannot_write_into_is_told(store_dsn: str, missing: str) -> None:
    """Each privilege that its INSERT needs: without one of them no strict event commits."""
    apply_outbox(store_dsn)
    role = f"weak_{os.getpid()}"
    with psycopg.connect(store_dsn, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'w'")
        try:
            admin.execute(OUTBOX_GRANTS.replace(" TO app;", f" TO {role};").encode())
            weak = psycopg.conninfo.make_conninfo(store_dsn, user=role, password="w")
            facts = outbox_facts(weak)
            assert (facts.can_insert, facts.waiting) == (True, 0)
            admin.execute(f"REVOKE {missing} FROM {role}")
            settings = {"OTEL_ACTIVITY_DELIVERY": "strict", "OTEL_ACTIVITY_PROOF_DSN": weak}
            row = examine(store_dsn, **settings)[1]["outbox"]
            assert (row["status"], "may not write" in row["message"]) == ("warn", True)
            assert "grant" in row["fix"]
        finally:
            admin.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_events_that_wait_in_the_outbox_are_counted(store_dsn: str) -> None:
    """What nobody has taken out is not in the store: a few moments are normal, more is worth a warning."""
    settings = {"OTEL_ACTIVITY_DELIVERY": "strict", "OTEL_ACTIVITY_PROOF_DSN": store_dsn}
    apply_outbox(store_dsn)
    assert examine(store_dsn, **settings)[1]["outbox"]["message"].endswith("empty")
    insert = "INSERT INTO activity.outbox (id, event, resource) VALUES (gen_random_uuid(), '1', '{}')"
    with psycopg.connect(store_dsn, autocommit=True) as connection:
        connection.execute(insert)
        row = examine(store_dsn, **settings)[1]["outbox"]
        assert (row["status"], "1 event not delivered yet" in row["message"]) == ("ok", True)
        connection.execute("UPDATE activity.outbox SET time = time - interval '1 hour'")
    row = examine(store_dsn, **settings)[1]["outbox"]
    assert (row["status"], "the oldest for 60 min" in row["message"]) == ("warn", True)
    assert "relay --outbox" in row["fix"]


def test_best_effort_by_default_still_checks_the_journal_that_rules_need(store_dsn: str) -> None:
    """Only a service that asks for nothing better has none."""
    best = {"OTEL_ACTIVITY_DELIVERY": "best_effort"}
    assert "best_effort" in examine(store_dsn, **best)[1]["journal"]["message"]
    row = examine(store_dsn, **best, OTEL_ACTIVITY_DELIVERY_RULES="Invoice=durable")[1]["journal"]
    assert "best_effort" not in row["message"]


def test_what_dead_processes_left_is_said_wherever_one_asks(store_dsn: str, tmp_path: Path) -> None:
    """Events that only a dead process's journal has are not in the store: both views say where they are."""
    shop = World(tmp_path / "shop-1")
    dead = shop.delivery(shop.road("postgres", down=True))
    bracket(dead, unit(1, 2, 3))
    here = {"OTEL_ACTIVITY_JOURNAL_DIR": str(tmp_path)}
    assert "left behind" not in examine(store_dsn, **here)[1]
    shop.close()
    status, checks = examine(store_dsn, **here)
    assert (status, checks["left behind"]["status"]) == (0, "warn")
    assert checks["left behind"]["message"].startswith("3 events of dead processes not delivered yet")
    assert f"relay --journal {tmp_path}" in checks["left behind"]["fix"]
    assert "3 events of dead processes" in run("doctor", "--gaps", dsn=store_dsn, **here).stderr


def test_settings_lists_every_setting_masked() -> None:
    """--settings shows each variable with value, default and help, and no password."""
    dsn = "postgresql://audit:s3cret@h/app"
    rows = json_lines(run("doctor", "--settings", "--json", dsn=dsn, OTEL_ACTIVITY_INCLUDE="a,b").stdout)
    assert [row["variable"] for row in rows] == [field.variable for field in FIELDS]
    values = {row["variable"]: row["value"] for row in rows if row["value"] is not None}
    assert values == {
        "OTEL_ACTIVITY_POSTGRES_DSN": "postgresql://audit:***@h/app",
        "OTEL_ACTIVITY_INCLUDE": "a,b",
    }
    text = run("doctor", "--settings", dsn=dsn).stdout
    assert all(field.variable in text for field in FIELDS)
    assert "s3cret" not in text
