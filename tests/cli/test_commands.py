"""The commands as people and programs use them, over a real store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import psycopg
import pytest

from otel_activity import __version__, semconv
from otel_activity.cli.eventview import NAMES
from otel_activity.events import ResourceInfo
from tests.cli.support import clean_environment, json_lines, run, start
from tests.delivery.test_scarce import dead_journals
from tests.otlp_sink import serving
from tests.store.support import BOARD, MINUTE, make_event, now, store

if TYPE_CHECKING:
    from pathlib import Path

    from otel_activity.events import Event

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e"
COMMANDS = (["search"], ["tail"], ["history", "task", "1"])


def fill(dsn: str) -> list[Event]:
    """Three events of task 1, oldest first, the last of them hostile."""
    base = now()
    events = [
        make_event(
            base - 2 * MINUTE,
            name=semconv.ENTITY_CREATED,
            activity__action="create",
            user__id="7",
            user__name="Ada",
            activity__changes={"title": {"after": "Report"}, "cost": {"after": {"$decimal": "1.50"}}},
        ),
        make_event(base - MINUTE, activity__changes={"title": {"before": "Report", "after": None}}),
        make_event(
            base, user__name=HOSTILE, activity__changes={HOSTILE: {"before": HOSTILE, "after": HOSTILE}}
        ),
    ]
    events[0].trace_id, events[0].observed = 7, base
    store(dsn, events)
    return events


# --- every command --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_output_holds_no_raw_control_characters(store_dsn: str, command: list[str]) -> None:
    """Audit data cannot inject terminal escapes, for people or in JSON."""
    fill(store_dsn)
    for extra in ([], ["--json"]):
        output = run(*command, *extra, dsn=store_dsn).output
        assert output.replace("\n", "").isprintable()
        assert "owned" in output


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_json_is_one_documented_object_a_line(store_dsn: str, command: list[str]) -> None:
    """Each line parses to an object with the documented keys, the data exact."""
    events = fill(store_dsn)
    found = {row["id"]: row for row in json_lines(run(*command, "--json", dsn=store_dsn).stdout)}
    assert found.keys() == {event.id for event in events}
    keys = ["id", "name", "time", "observed", "severity", "trace_id", "span_id", "service"]
    row = found[events[0].id]
    assert [key for key in row if key != "cursor"] == [*keys, "attributes", "resource"]
    assert row["attributes"] == events[0].attributes
    assert row["trace_id"] == f"{7:032x}"
    assert row["resource"] == BOARD.attributes
    assert row["time"].endswith("Z")
    assert found[events[2].id]["attributes"]["user.name"] == HOSTILE


@pytest.mark.parametrize("command", [*COMMANDS, ["schema", "status"], ["schema", "apply"]], ids=" ".join)
def test_store_that_is_away_is_one_line_and_status_1(command: list[str], free_port: int) -> None:
    """An unreachable store gives one line without the password and without a traceback."""
    result = run(*command, "--dsn", f"postgresql://audit:s3cret@127.0.0.1:{free_port}/app")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert "audit:***@" in result.stderr
    assert "s3cret" not in result.output


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_missing_schema_names_the_command(postgres_dsn: str, command: list[str]) -> None:
    """Without tables the one line says what to run."""
    result = run(*command, dsn=postgres_dsn)
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
    assert "otel-activity schema apply" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["search"], "OTEL_ACTIVITY_POSTGRES_DSN"),
        (["search", "--dsn", "localhost"], "--dsn"),
        (["search", "--dsn", "postgresql://u:s3cret@h/x?y=z"], "--dsn"),
        (["search", "--dsn", "postgresql://h/x", "--schema", 'a"b'], "--schema"),
        (["search", "--dsn", "postgresql://h/x", "--since", "soon"], "--since"),
        (["search", "--dsn", "postgresql://h/x", "--since", "1h", "--until", "2h"], "until"),
        (["search", "--dsn", "postgresql://h/x", "--trace-id", "12"], "trace_id"),
        (["search", "--dsn", "postgresql://h/x", "--limit", "0"], "--limit"),
        (["search", "--dsn", "postgresql://h/x", "--cursor", "abc"], "cursor"),
        (["tail", "--dsn", "postgresql://h/x", "--late", "0s"], "--late"),
        (["history", "task"], "ENTITY_ID"),
        (["schema", "sql", "--grants"], "--writer"),
        (["serach"], "Did you mean 'search'?"),
        (["xyzzy"], "No such command 'xyzzy'."),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(arguments: list[str], named: str) -> None:
    """Wrong options and settings are refused before anything is connected, by name."""
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert named in result.stderr
    assert "s3cret" not in result.stderr


# --- search ---------------------------------------------------------------------------------------


def test_search_table_for_people(store_dsn: str) -> None:
    """The table says when, who, what, to what, and what changed; newest first."""
    fill(store_dsn)
    lines = run("search", dsn=store_dsn).stdout.splitlines()
    assert lines[0].split() == ["TIME", "(UTC)", "ACTOR", "ACTION", "ENTITY", "CHANGES"]
    assert lines[3].endswith("cost: 1.50, title: Report")
    assert "Ada (7)" in lines[3]
    assert "title: Report -> null" in lines[2]
    assert "unknown" in lines[2]


@pytest.mark.parametrize("width", [60, 80, 109, 110, 160])
def test_search_fits_the_terminal(store_dsn: str, width: int) -> None:
    """No line is wider than the terminal, and the changes stay visible."""
    fill(store_dsn)
    output = run("search", dsn=store_dsn, COLUMNS=str(width)).stdout
    assert max(map(len, output.splitlines())) <= width
    assert "title: Report -> null" in output


def test_search_filters_reach_the_store(store_dsn: str) -> None:
    """Options narrow the search down."""
    events = fill(store_dsn)
    found = run("search", "--actor", "7", "--since", "1h", "--field", "cost", "--json", dsn=store_dsn).stdout
    assert [row["id"] for row in json_lines(found)] == [events[0].id]
    assert run("search", "--action", "nothing", "--count", dsn=store_dsn).stdout == "0\n"
    assert json.loads(run("search", "--count", "--json", dsn=store_dsn).stdout) == {"count": 3}


def test_search_pages_by_the_cursor_it_gives(store_dsn: str) -> None:
    """The cursor of the last line leads a program through all events, each once."""
    events = fill(store_dsn)
    found: list[str] = []
    cursor: list[str] = []
    while rows := json_lines(run("search", "-n", "2", "--json", *cursor, dsn=store_dsn).stdout):
        found += [row["id"] for row in rows]
        cursor = ["--cursor", rows[-1]["cursor"]]
    assert found == [event.id for event in reversed(events)]
    note = run("search", "-n", "2", dsn=store_dsn).stderr
    assert "--cursor " in note
    assert "--cursor " not in run("search", "-n", "3", dsn=store_dsn).stderr


def test_search_without_a_match_says_so_on_stderr(store_dsn: str) -> None:
    """Nothing found is no error, and programs see no line."""
    result = run("search", dsn=store_dsn)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "No events match" in result.stderr
    assert run("search", "--json", dsn=store_dsn).output == ""


def test_local_times_are_read_and_shown_in_the_local_zone(store_dsn: str) -> None:
    """--local reads zoneless times in the local zone and shows its offset."""
    store(store_dsn, [make_event(1_793_534_400 * 10**9)])  # 2026-11-01T12:00:00Z
    environment = clean_environment(store_dsn, TZ="Asia/Tokyo")
    search = [sys.executable, "-c", "from otel_activity.cli import main; main()", "search", "--local"]
    shown = subprocess.run(
        [*search, "--since", "2026-11-01T20:59"], env=environment, capture_output=True, text=True
    )
    assert "2026-11-01 21:00:00+0900" in shown.stdout
    later = subprocess.run(
        [*search, "--since", "2026-11-01T21:01"], env=environment, capture_output=True, text=True
    )
    assert later.stdout == ""


# --- history --------------------------------------------------------------------------------------


def test_history_is_a_timeline(store_dsn: str) -> None:
    """Each event has its time, actor and operation, and each field its before and after."""
    fill(store_dsn)
    store(
        store_dsn,
        [
            make_event(
                name=semconv.ENTITY_DELETED,
                activity__action="delete",
                activity__commit="unknown",
                activity__changes={"title": {"before": "gone"}},
            )
        ],
    )
    lines = run("history", "task", "1", dsn=store_dsn).stdout.splitlines()
    assert lines[0] == "task 1: 4 events, oldest first, times in UTC"
    text = "\n".join(lines)
    assert "create by Ada (7)\n    cost   1.50\n    title  Report\n" in text
    assert "update by unknown\n    title  Report -> null\n" in text
    assert text.endswith(
        "delete by unknown\n    commit  unknown, this may not have been committed\n    title   gone"
    )


def test_empty_text_is_not_unknown(store_dsn: str) -> None:
    """A text that is empty, or ends in a space, is seen as what it is; only a missing value is not known."""
    store(
        store_dsn,
        [
            make_event(
                name=semconv.ENTITY_CREATED,
                activity__action="create",
                activity__changes={"note": {"after": ""}, "other": {}},
            ),
            make_event(now() + 1000, activity__changes={"note": {"before": "", "after": "paid "}}),
        ],
    )
    output = run("history", "task", "1", dsn=store_dsn).stdout
    assert '    note   ""\n    other  (not known)\n' in output
    assert '    note  "" -> "paid "\n' in output
    assert 'note: "", other: (not known)' in run("search", dsn=store_dsn).stdout


def test_history_of_a_composite_key(store_dsn: str) -> None:
    """Rows of a many-to-many table are reached by their composite key."""
    link = make_event(
        name=semconv.ENTITY_CREATED,
        activity__entity__type="project_members",
        activity__entity__id="[1,7]",
        activity__changes={"project_id": {"after": 1}, "user_id": {"after": 7}},
    )
    store(store_dsn, [link])
    for typed in ("[1,7]", " [1, 7]"):
        output = run("history", "project_members", typed, dsn=store_dsn).stdout
        assert f"project_members {typed}: 1 event" in output
        assert "user_id     7" in output


def test_history_says_when_it_leaves_events_out(store_dsn: str) -> None:
    """A limit keeps the newest events and says that there are older ones."""
    events = fill(store_dsn)
    result = run("history", "task", "1", "-n", "2", "--json", dsn=store_dsn)
    assert [row["id"] for row in json_lines(result.stdout)] == [event.id for event in events[1:]]
    assert "older events" in run("history", "task", "1", "-n", "2", dsn=store_dsn).stderr
    assert "No events of task 9" in run("history", "task", "9", dsn=store_dsn).stderr


def test_history_says_where_it_was_done(store_dsn: str) -> None:
    """Who did it is half of an answer: the request or the job, and the client, are in the same line."""
    web = {"http__request__method": "PATCH", "http__route": "/tasks/{id}", "client__address": "10.0.0.7"}
    base = now()
    store(
        store_dsn,
        [
            make_event(base - MINUTE, user__id="7", **web),
            make_event(base, activity__job__name="nightly"),
        ],
    )
    output = run("history", "task", "1", dsn=store_dsn).stdout
    assert "update by 7, PATCH /tasks/{id} from 10.0.0.7\n" in output
    assert "update by unknown, job nightly" in output


def test_history_says_in_which_request_however_narrow_the_terminal(store_dsn: str) -> None:
    """The id of the request finds its other events and its logs; where it was done is wrapped, not cut."""
    event = make_event(
        user__id="7",
        http__request__method="PATCH",
        http__route="/organisations/{organisation}/projects/{project}/tasks/{id}",
        client__address="2001:db8:85a3:8d3:1319:8a2e:370:7348",
        activity__request__id="01a22471-5a18-71ef-8570-5a154a347d4d",
    )
    store(store_dsn, [event])
    where = (
        "PATCH /organisations/{organisation}/projects/{project}/tasks/{id} from "
        "2001:db8:85a3:8d3:1319:8a2e:370:7348, request 01a22471-5a18-71ef-8570-5a154a347d4d"
    )
    assert f"update by 7, {where}\n" in run("history", "task", "1", dsn=store_dsn).stdout
    for columns in (60, 80):
        lines = run("history", "task", "1", dsn=store_dsn, COLUMNS=str(columns)).stdout.splitlines()
        assert lines[2].endswith("update by 7")
        assert max(map(len, lines)) <= columns
        assert "…" not in "".join(lines)
        assert where.replace(" ", "") in "".join(lines).replace(" ", "")


def test_history_of_namesakes_can_be_told_apart(store_dsn: str) -> None:
    """One type and id in two tables or services is two entities: a remark says so, options choose."""
    base = now()
    store(store_dsn, [make_event(base - MINUTE, db__collection__name="tasks", user__id="7")])
    assert run("history", "task", "1", dsn=store_dsn).stderr == ""
    other = ResourceInfo({"service.name": "mail"})
    store(store_dsn, [make_event(base, db__collection__name="mails", user__id="8")], other)
    result = run("history", "task", "1", dsn=store_dsn)
    assert "several tables: board tasks, mail mails" in result.stderr
    for narrowed in (("--service", "mail"), ("--table", "mails")):
        result = run("history", "task", "1", *narrowed, dsn=store_dsn)
        assert ("by 8" in result.stdout, "by 7" in result.stdout, result.stderr) == (True, False, "")


@pytest.mark.parametrize("command", [["history", "Tasks", "1"], ["search", "--entity-type", "Tasks"]])
def test_a_type_that_does_not_exist_is_no_silent_nothing(store_dsn: str, command: list[str]) -> None:
    """Nothing found because of a wrong name must not look like nothing happened."""
    assert "type" not in run(*command, dsn=store_dsn).stderr
    store(store_dsn, [make_event(), make_event(activity__entity__type="User")])
    assert "did you mean task? Types are: User, task" in run(*command, dsn=store_dsn).stderr
    assert run(*command, "--json", dsn=store_dsn).stderr == ""
    assert "type" not in run("history", "task", "9", dsn=store_dsn).stderr


# --- tail -----------------------------------------------------------------------------------------


def test_tail_shows_the_newest_oldest_first(store_dsn: str) -> None:
    """Without --follow it shows the last events and ends."""
    events = fill(store_dsn)
    rows = json_lines(run("tail", "-n", "2", "--json", dsn=store_dsn).stdout)
    assert [row["id"] for row in rows] == [event.id for event in events[1:]]


def test_tail_follows_late_events_over_a_restarted_connection_until_ctrl_c(store_dsn: str) -> None:
    """A followed store shows late events, survives a lost session, and Ctrl-C ends it quietly with 130."""
    first, late, after = make_event(), make_event(now() - 30 * MINUTE), make_event()
    store(store_dsn, [first])
    process = start("tail", "-f", "--json", "--interval", "0.05", dsn=store_dsn)
    assert process.stdout is not None
    try:
        assert json.loads(process.stdout.readline())["id"] == first.id
        store(store_dsn, [late])
        assert json.loads(process.stdout.readline())["id"] == late.id
        with psycopg.connect(store_dsn, autocommit=True) as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                "WHERE application_name = 'otel_activity reader' AND datname = current_database()"
            )
        store(store_dsn, [after])
        assert json.loads(process.stdout.readline())["id"] == after.id
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, rest, errors) == (130, "", "")


@pytest.mark.parametrize("command", [["relay"], ["schema", "apply"]], ids=" ".join)
@pytest.mark.parametrize(
    ("dsn", "expected"),
    [("postgresql+psycopg://u:s3cret@h/shop", "leave out '+psycopg'"), ("", "postgresql://"), ("h", "=")],
)
def test_a_wrong_address_of_an_outbox_is_wrong_usage(command: list[str], dsn: str, expected: str) -> None:
    """It is held against the same rule as the store's; an empty one does not mean the store."""
    result = run(*command, "--outbox", dsn, "--dsn", "postgresql://127.0.0.1:1/none")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: Invalid value for '--outbox'")
    assert expected in result.stderr
    assert "s3cret" not in result.output


def test_blank_variables_are_as_if_they_were_not_set(store_dsn: str) -> None:
    """An empty value in a deployment's file means the default, for a service and for the command line."""
    blank = {"OTEL_ACTIVITY_POSTGRES_DSN": " ", "OTEL_ACTIVITY_POSTGRES_SCHEMA": " "}
    assert run("search", "--count", "--dsn", store_dsn, **blank).stdout == "0\n"
    result = run("search", **blank)
    assert (result.exit_code, "no store is named" in result.stderr) == (2, True)
    assert "not checked: no OTEL_ACTIVITY_POSTGRES_DSN" in run("doctor", **blank).stdout


def test_a_loss_and_a_stream_say_what_they_are(store_dsn: str) -> None:
    """The line of a gap record says how much was lost and why; that of a stream, whose it is."""
    base = now()
    gap = {"activity__gap__count": 132, "activity__gap__reason": "queue full"}
    killed = {"activity__gap__estimate": True, "activity__gap__exporter": "otlp"}
    store(
        store_dsn,
        [
            make_event(base, name=semconv.GAP, **gap),
            make_event(base + 1000, name=semconv.GAP, **gap, **killed),
            make_event(base + 2000, name=semconv.STREAM_CLOSED),
        ],
    )
    closed, estimate, lost = run("search", dsn=store_dsn).stdout.splitlines()[1:]
    assert closed.endswith("service: board")
    assert estimate.endswith("lost: about 132, queue full, exporter: otlp")
    assert lost.endswith("lost: 132, queue full")


def test_a_long_name_does_not_move_every_line_of_a_file(store_dsn: str) -> None:
    """In a file one long id widens its own line alone."""
    base = now()
    store(store_dsn, [make_event(base), make_event(base + 1000, activity__entity__id="x" * 150)])
    _, long, short = run("search", dsn=store_dsn).stdout.splitlines()
    assert long.count("x") == 150
    assert len(short) < 150


# --- the process ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["search", "--json", "-n", "10000"], ["tail", "-n", "10000", "--json"]]
)
def test_reader_that_goes_away_ends_it_quietly(store_dsn: str, arguments: list[str]) -> None:
    """``otel-activity ... | head -1`` prints its line and nothing else, and ends with 0."""
    store(store_dsn, [make_event(activity__details="x" * 1000) for _ in range(300)])
    process = start(*arguments, dsn=store_dsn)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        assert process.stdout.readline().startswith("{")
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=30) == 0
    finally:
        process.stderr.close()
        process.kill()
        process.wait()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_output_that_cannot_be_written_is_one_line_and_status_1(store_dsn: str) -> None:
    """A full disk under the output gives its reason instead of a traceback."""
    store(store_dsn, [make_event()])
    search = [sys.executable, "-c", "from otel_activity.cli import main; main()", "search"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            search, env=clean_environment(store_dsn), stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (1, "Error: No space left on device\n")


@pytest.mark.parametrize("arguments", [["search"], ["tail"], ["doctor"], ["schema", "status"]], ids=" ".join)
def test_without_standard_output_a_command_does_its_work(store_dsn: str, arguments: list[str]) -> None:
    """Started with it closed (``>&-``), a command ends as it would have: the status is its answer."""
    store(store_dsn, [make_event()])
    closing = "import os, sys; os.close(1); os.execv(sys.executable, sys.argv[1:])"
    program = "from otel_activity.cli import main; main()"
    command = [sys.executable, "-c", closing, sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, env=clean_environment(store_dsn), stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_terminal_that_cannot_show_a_character(store_dsn: str) -> None:
    """An encoding without the character gets an escape instead of a traceback."""
    store(store_dsn, [make_event(user__name="漢字")])
    environment = clean_environment(store_dsn, PYTHONIOENCODING="iso-8859-1")
    search = [sys.executable, "-c", "from otel_activity.cli import main; main()", "search"]
    shown = subprocess.run(search, env=environment, capture_output=True, text=True)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "\\u6f22\\u5b57" in shown.stdout


def test_help_and_version_load_nothing_heavy() -> None:
    """--help lists every command without importing what the commands need."""
    program = (
        "import sys\nfrom otel_activity.cli.app import cli\n"
        "cli(['--help'], standalone_mode=False)\n"
        "heavy = {'psycopg', 'sqlalchemy', 'opentelemetry', 'msgspec', 'rich', 'fastapi'}\n"
        "print('loaded:', sorted(heavy & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert all(name in shown for name in ("demo", "doctor", "schema", "search", "history", "tail"))
    assert shown.endswith("loaded: []\n")
    assert run("--version").stdout == f"otel-activity {__version__}\n"


# --- schema ---------------------------------------------------------------------------------------


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, store_dsn: str) -> None:
    """A command without its packages says which extra brings them, and not another one."""
    for module in [name for name in sys.modules if name.startswith("otel_activity.receiver")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    result = run("receive", "--http-port", "0", "--grpc-port", "0", dsn=store_dsn)
    assert result.exit_code == 2
    assert 'pip install "otel-activity[receiver]"' in result.stderr
    assert "binary" not in result.stderr


def test_a_relay_without_an_outbox_names_the_command_that_makes_it(
    store_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An outbox that is missing is not mended by the tables of the store."""
    result = run("relay", "--outbox", store_dsn, "--timeout", "1", dsn=store_dsn)
    assert result.exit_code == 1
    assert result.stdout.startswith("0 events found, not all delivered")
    assert "there is no activity.outbox" in caplog.text
    assert "schema apply --outbox DSN" in caplog.text


def test_a_relay_says_what_was_lost_and_that_nothing_is_left(tmp_path: Path) -> None:
    """What a receiver will never take is no reason to run the relay again, and not delivered either."""
    dead_journals(tmp_path / "shop", 3)
    with serving("http/protobuf") as (endpoint, protocol, sink):
        sink.never = frozenset(["1"])
        settings = {
            "OTEL_ACTIVITY_EXPORTERS": "otlp",
            "OTEL_ACTIVITY_OTLP_ENDPOINT": endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        }
        relay = ("relay", "--journal", str(tmp_path), "--without", "road")
        result = run(*relay, "--json", **settings)
        assert result.exit_code == 1
        assert json_lines(result.stdout) == [
            {"events": 3, "lost_records": 0, "left": False, "kept": 0, "lost": 1}
        ]
        dead_journals(tmp_path / "shop", 2)
        result = run(*relay, **settings)
        assert result.exit_code == 1
        assert result.stdout == "2 events found; 1 event lost: the lines above say why\n"
        result = run(*relay, **settings)
        assert (result.exit_code, result.stdout) == (0, "0 events found, all delivered\n")


def test_schema_apply_then_status(postgres_dsn: str) -> None:
    """Status fails before apply and succeeds after; a second apply changes nothing."""
    before = run("schema", "status", dsn=postgres_dsn)
    assert (before.exit_code, "otel-activity schema apply" in before.stdout) == (1, True)
    (applied,) = json_lines(run("schema", "apply", "--json", dsn=postgres_dsn).stdout)
    assert applied["applied"][0] == 1
    assert applied["ready"] is True
    assert "nothing to apply" in run("schema", "apply", dsn=postgres_dsn).stdout
    after = run("schema", "status", dsn=postgres_dsn)
    assert (after.exit_code, "up to date" in after.stdout) == (0, True)


def test_schema_sql_makes_the_same_tables(postgres_dsn: str, tmp_path: Path) -> None:
    """The printed SQL, run by hand, gives tables that the program takes for its own."""
    script = run("schema", "sql", "--schema", "audit_log").stdout
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        connection.execute(script)
    assert run("schema", "status", "--schema", "audit_log", dsn=postgres_dsn).exit_code == 0


def test_schema_sql_grants_are_enough_to_search(store_dsn: str) -> None:
    """A role with the printed reader's grants can search and not write."""
    role = f"auditor_{os.getpid()}"
    with psycopg.connect(store_dsn, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
        try:
            connection.execute(run("schema", "sql", "--grants", "--reader", role).stdout)
            poor = psycopg.conninfo.make_conninfo(store_dsn, user=role, password="x")
            fill(store_dsn)
            assert run("search", "--count", dsn=poor).stdout == "3\n"
            states = {
                row["check"]: row["status"] for row in json_lines(run("doctor", "--json", dsn=poor).stdout)
            }
            assert states["may store"] == "FAIL"
            assert states["schema"] == "ok"
        finally:
            connection.execute(f"DROP OWNED BY {role}")
            connection.execute(f"DROP ROLE {role}")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("delete", "activity.entity.deleted"),
        ("deleted", "activity.entity.deleted"),
        ("activity.entity.delete", "activity.entity.deleted"),
        ("login", "activity.auth.login"),
        ("beat", "activity.stream.beat"),
    ],
)
def test_a_name_that_no_event_has_is_told(store_dsn: str, typed: str, meant: str) -> None:
    """Nothing found must not be taken for nothing happened."""
    fill(store_dsn)
    result = run("search", "--name", typed, dsn=store_dsn)
    said = f"No events match. No event of ours is called {typed}; did you mean {meant}?\n"
    assert (result.exit_code, result.stderr) == (0, said)


def test_a_name_that_events_have_is_not_doubted(store_dsn: str) -> None:
    """Ours without such an event just now, and others' that came by OTLP."""
    assert run("search", "--name", semconv.AUTH_LOGIN, dsn=store_dsn).stderr == "No events match.\n"
    store(store_dsn, [make_event(name="billing.closed")])
    assert run("search", "--name", "billing.closed", dsn=store_dsn).stderr == ""


def test_a_name_in_the_place_of_an_id_is_told(store_dsn: str) -> None:
    """People type the name that they read; of an id that is known nothing is said."""
    fill(store_dsn)
    told = run("search", "--actor", "Ada", dsn=store_dsn).stderr
    assert told == (
        "No events match. There is no actor Ada; it is the id, which stands in brackets behind a name.\n"
    )
    assert run("search", "--actor", "7", "--until", "1d", dsn=store_dsn).stderr == "No events match.\n"


def test_every_name_of_ours_is_known() -> None:
    """Also those that will be added."""
    named = {
        value for name, value in vars(semconv).items() if name.startswith(("ENTITY_", "AUTH_", "STREAM_"))
    }
    events = {
        value
        for value in named
        if value.count(".") == 2 and value.endswith(("ed", ".login", ".logout", ".beat"))
    }
    assert events <= set(NAMES)
    assert {semconv.ACTION, semconv.REQUEST, semconv.GAP} <= set(NAMES)
