"""``otel-activity export``: all that a search finds, as JSON lines and as rows of a spreadsheet."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from otel_activity import semconv
from otel_activity.cli import export as module
from otel_activity.cli.export import COLUMNS
from tests.cli.support import clean_environment, json_lines, run, start
from tests.store.support import MINUTE, make_event, now, store

DOCS = Path(__file__).parents[2] / "docs"


def rows(text: str) -> list[dict[str, str]]:
    """The rows of a CSV file, by the names of their columns."""
    return list(csv.DictReader(io.StringIO(text)))


def test_all_pages_are_written_newest_first(store_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, each event is there once, and a line says how many that is."""
    monkeypatch.setattr(module, "PAGE", 3)
    at = now()
    events = [make_event(at - number // 4 * MINUTE) for number in range(11)]
    store(store_dsn, events)
    result = run("export", dsn=store_dsn)
    written = json_lines(result.stdout)
    assert sorted(row["id"] for row in written) == sorted(event.id for event in events)
    assert [row["time"] for row in written] == sorted((row["time"] for row in written), reverse=True)
    assert result.stderr == "11 events written\n"


def test_a_line_is_what_search_writes(store_dsn: str) -> None:
    """Programs read both alike; only the cursor is missing, because nothing is left to page through."""
    store(
        store_dsn, [make_event(user__name="Ada", activity__changes={"cost": {"after": {"$decimal": "1.5"}}})]
    )
    (found,) = json_lines(run("search", "--json", dsn=store_dsn).stdout)
    del found["cursor"]
    assert json_lines(run("export", dsn=store_dsn).stdout) == [found]


def test_the_options_of_search_choose(store_dsn: str) -> None:
    """A range and an actor, for example."""
    at = now()
    events = [make_event(at - number * MINUTE, user__id=actor) for number, actor in enumerate("ababa")]
    store(store_dsn, events)
    since = json_lines(run("search", "--json", dsn=store_dsn).stdout)[2]["time"]
    result = run("export", "--actor", "a", "--since", since, "--csv", dsn=store_dsn)
    assert [row["id"] for row in rows(result.stdout)] == [events[0].id, events[2].id]


def test_csv_has_a_row_for_each_changed_field(store_dsn: str) -> None:
    """Who, when, what, from what to what, in which request; null is not the same as not known."""
    event = make_event(
        user__id="7",
        user__name="Ada",
        client__address="10.0.0.7",
        http__route="/tasks/{number}",
        activity__reason="ticket 1",
        activity__details={"rows": 3},
        activity__changes={
            "cost": {"before": {"$decimal": "1.50"}, "after": {"$decimal": "-2.00"}},
            "note": {"before": None},
            "token": {"before": {"$redacted": True}, "after": {"$redacted": True}},
            "tags": {"before": ["a"], "after": ["a", "b"]},
        },
    )
    store(store_dsn, [event, make_event(now() - MINUTE, name=semconv.ACTION, activity__action="report")])
    *changes, action = rows(run("export", "--csv", dsn=store_dsn).stdout)
    assert [
        (row["field"], row["before"], row["after"]) for row in sorted(changes, key=lambda row: row["field"])
    ] == [
        ("cost", "1.50", "-2.00"),
        ("note", "null", ""),
        ("tags", '["a"]', '["a","b"]'),
        ("token", "[redacted]", "[redacted]"),
    ]
    for row in changes:
        assert (row["id"], row["actor_id"], row["actor_name"]) == (event.id, "7", "Ada")
        assert (row["client"], row["route"], row["reason"]) == ("10.0.0.7", "/tasks/{number}", "ticket 1")
        assert (row["entity_type"], row["entity_id"], row["details"]) == ("task", "1", '{"rows":3}')
    assert (action["action"], action["field"], action["before"]) == ("report", "", "")


def test_csv_of_one_field_has_that_field_alone(store_dsn: str) -> None:
    """Who asks for the salary does not get the address along."""
    changes = {"salary": {"before": 1, "after": 2}, "address": {"before": "a", "after": "b"}}
    store(store_dsn, [make_event(activity__changes=changes)])
    written = rows(run("export", "--csv", "--field", "salary", dsn=store_dsn).stdout)
    assert [(row["field"], row["before"], row["after"]) for row in written] == [("salary", "1", "2")]


@pytest.mark.parametrize("hostile", ["=cmd|' /C calc'!A0", "+1+cmd", "-2+3", "@SUM(A1)", " =1+1", "\t=1"])
def test_a_spreadsheet_runs_nothing(store_dsn: str, hostile: str) -> None:
    """What clients send stands in the cells as text, whichever column it comes to."""
    changes = {hostile: {"before": hostile, "after": {"$decimal": hostile}}}
    store(store_dsn, [make_event(user__name=hostile, activity__reason=hostile, activity__changes=changes)])
    (row,) = rows(run("export", "--csv", dsn=store_dsn).stdout)
    for name in ("actor_name", "reason", "field", "before", "after"):
        assert row[name]
        assert not row[name].lstrip().startswith(("=", "+", "-", "@")), name


def test_a_long_value_is_whole_and_stays_on_its_line(store_dsn: str) -> None:
    """Evidence is not cut; new lines and control characters are escaped, as everywhere."""
    text = 'line one\nline \x1b[2J two, with "quotes" ' + "x" * 5_000
    store(store_dsn, [make_event(activity__changes={"text": {"after": text}})])
    output = run("export", "--csv", dsn=store_dsn).stdout
    assert len(output.splitlines()) == 2
    assert output.replace("\n", "").isprintable()
    assert rows(output)[0]["after"] == text.replace("\n", "\\n").replace("\x1b", "\\x1b")


def test_nothing_found_is_a_heading_and_a_remark(store_dsn: str) -> None:
    """A program gets a file that it can read."""
    result = run("export", "--csv", dsn=store_dsn)
    assert (result.stdout, result.stderr) == (",".join(COLUMNS) + "\n", "0 events written\n")


def test_without_a_store_nothing_is_written(free_port: int) -> None:
    """A file with a heading alone would say that there are no events."""
    away = f"postgresql://u:s3cret@127.0.0.1:{free_port}/x"
    for dsn, status in ((None, 2), (away, 1)):
        result = run("export", "--csv", dsn=dsn)
        assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (status, "", 1)


def test_a_file_that_is_not_complete_says_so(store_dsn: str) -> None:
    """The store goes away between two pages: status 1, a line that says why, and none that says how many."""
    store(store_dsn, [make_event(activity__details="x" * 500) for _ in range(module.PAGE + 1)])
    process = start("export", dsn=store_dsn)
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        written = process.stdout.readline()  # the rest of the page does not fit into the pipe
        with psycopg.connect(store_dsn, autocommit=True) as owner:
            owner.execute("DROP SCHEMA activity CASCADE")
        written += process.stdout.read()
        said = process.stderr.read()
        assert process.wait(60) == 1
    assert len(json_lines(written)) == module.PAGE
    assert "written" not in said
    assert len(said.splitlines()) == 1


def test_each_column_is_documented() -> None:
    """docs/auditors.md is what people who get the file read."""
    page = (DOCS / "auditors.md").read_text("utf-8")
    assert [name for name in COLUMNS if f"`{name}`" not in page] == []


def test_the_package_runs_as_a_module() -> None:
    """Where the scripts of the environment are not in PATH, the interpreter still finds them."""
    command = [sys.executable, "-m", "otel_activity", "--version"]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, check=True)
    assert done.stdout.startswith("otel-activity ")
