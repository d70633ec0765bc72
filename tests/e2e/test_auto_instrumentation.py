"""An unchanged program under ``opentelemetry-instrument``, with nothing but environment variables."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.request
from typing import TYPE_CHECKING

import psycopg
import pytest

from otel_activity.postgres import schema
from tests.e2e.support import EXPECTED, PROGRAMS, World, lines

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Server

pytestmark = pytest.mark.e2e


def test_an_unchanged_program_is_audited(world: World) -> None:
    """Every committed change is stored, nothing that was rolled back is, and the output is the program's."""
    status, output = world.run()
    assert (status, output) == (0, "program runs\nprogram done\n")
    assert world.stored() == EXPECTED


def test_our_variables_are_flags(world: World) -> None:
    """A DSN on the command line of ``opentelemetry-instrument`` works like the variable."""
    status, _ = world.run(flags=("--activity_postgres_dsn", world.store), OTEL_ACTIVITY_POSTGRES_DSN="")
    assert status == 0
    assert world.stored() == EXPECTED


@pytest.mark.parametrize("variable", ["OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER", "OTEL_LOGS_EXPORTER"])
def test_a_typo_in_another_signal_does_not_switch_auditing_off(world: World, variable: str) -> None:
    """The SDK fails to configure itself, the program runs on, and it is audited."""
    status, output = world.run(**{variable: "misspelt"})
    assert status == 0
    assert "program done" in output
    assert world.stored() == EXPECTED


@pytest.mark.parametrize("variable", ["OTEL_PYTHON_TRACER_PROVIDER", "OTEL_PYTHON_METER_PROVIDER"])
def test_a_typo_in_a_provider_does_not_switch_auditing_off(world: World, variable: str) -> None:
    """A provider of another signal that cannot be loaded neither stops the program nor its audit."""
    status, output = world.run(**{variable: "misspelt"})
    assert status == 0
    assert "program done" in output
    assert world.stored() == EXPECTED


def test_an_otlp_exporter_that_cannot_be_built_stops_the_start(world: World) -> None:
    """One line says which of the SDK's values is wrong."""
    status, output = world.run(
        OTEL_ACTIVITY_EXPORTERS="otlp",
        OTEL_EXPORTER_OTLP_PROTOCOL="grpc",
        OTEL_EXPORTER_OTLP_COMPRESSION="misspelt",
    )
    assert status == 2
    (line,) = output.splitlines()
    assert "OTEL_EXPORTER_OTLP_COMPRESSION" in line


def test_the_applications_provider_gets_the_last_events(world: World) -> None:
    """With the application's own provider, what was committed just before the end is exported by it."""
    status, output = world.run(
        OTEL_ACTIVITY_LOGGER_PROVIDER="global",
        OTEL_LOGS_EXPORTER="console",
        OTEL_BLRP_SCHEDULE_DELAY="60000",
        OTEL_ACTIVITY_POSTGRES_DSN="",
    )
    assert status == 0
    assert output.count('"event_name": "activity.entity.') == 7


def test_events_that_go_nowhere_are_said(world: World) -> None:
    """With the application's provider, and no such thing in the process, the API drops each event."""
    environment = world.environment(OTEL_ACTIVITY_LOGGER_PROVIDER="global", OTEL_ACTIVITY_POSTGRES_DSN="")
    program = "import otel_activity; otel_activity.instrument(); import plain"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        cwd=PROGRAMS,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "program runs\nprogram done\n")
    (line,) = done.stderr.splitlines()
    assert line.startswith("otel_activity: EVENTS GO NOWHERE")


LEFT = pytest.mark.parametrize(
    ("delivery", "line"),
    [
        ("best_effort", "7 events were not delivered to postgres before the process ended"),
        ("durable", "the next process of this service delivers them"),
    ],
)


@LEFT
def test_sigterm_with_the_store_down_says_what_is_left(world: World, delivery: str, line: str) -> None:
    """What a terminated process could not deliver is logged: as lost, or where it waits."""
    process = world.start(
        *("python", "plain.py", "wait"),
        OTEL_ACTIVITY_POSTGRES_DSN="postgresql://127.0.0.1:1/none",
        OTEL_ACTIVITY_SHUTDOWN_TIMEOUT="0.5",
        OTEL_ACTIVITY_DELIVERY=delivery,
    )
    output = ""
    for said in lines(process):
        output += said
        if said == "program done\n":
            process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == -signal.SIGTERM
    assert line in output


@pytest.mark.parametrize(
    "arguments", [("fork",), ("spawn",), ("forkserver",), ("spawn", "import"), ("forkserver", "import")]
)
def test_workers_that_start_auditing_themselves_lose_nothing(
    world: World, arguments: tuple[str, ...]
) -> None:
    """A worker of `multiprocessing` ends without ``atexit``; what it committed is stored all the same."""
    environment = world.environment(OTEL_BLRP_SCHEDULE_DELAY="60000")
    subprocess.run(
        [sys.executable, "workers.py", *arguments], env=environment, cwd=PROGRAMS, check=True, timeout=60
    )
    assert sorted(int(entity) for _, entity, _ in world.stored()) == list(range(1, 7))


@pytest.mark.parametrize("failure", ["raise RuntimeError('broken')", "raise ImportError('broken')"])
def test_another_instrumentation_that_fails_does_not_either(
    world: World, tmp_path: Path, failure: str
) -> None:
    """An instrumentor that comes before ours and raises ends the loading of all others, but not auditing."""
    (tmp_path / "aaa_broken.py").write_text(f"class Broken:\n    def __init__(self):\n        {failure}\n")
    info = tmp_path / "aaa_broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: aaa-broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[opentelemetry_instrumentor]\naaa = aaa_broken:Broken\n")
    status, output = world.run(PYTHONPATH=str(tmp_path))
    assert status == 0
    assert "program done" in output
    assert world.stored() == EXPECTED


def test_disabling_all_instrumentations_does_not_disable_auditing(world: World) -> None:
    """Only our own variable switches auditing off."""
    assert world.run(OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="*")[0] == 0
    assert world.stored() == EXPECTED


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"OTEL_ACTIVITY_DISABLED": "true"}, "OTEL_ACTIVITY_DISABLED"),
        ({"OTEL_ACTIVITY_EXPORTERS": "none"}, "auditing is off, because OTEL_ACTIVITY_EXPORTERS=none"),
        ({"OTEL_SDK_DISABLED": "true"}, "AUDITING IS OFF, because OTEL_SDK_DISABLED=true"),
        ({"OTEL_ACTIVITY_POSTGRES_DSN": ""}, "set OTEL_ACTIVITY_POSTGRES_DSN="),
    ],
)
def test_auditing_that_is_off_says_so(world: World, extra: dict[str, str], expected: str) -> None:
    """A process that runs unaudited says why, in one line, and runs."""
    status, output = world.run(**extra)
    assert status == 0
    assert len(output.splitlines()) == 3
    assert expected in output.splitlines()[0]
    assert world.stored() == []


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("OTEL_ACTIVITY_POSTGRES_DSN", "postgresql://u:s3cret@h:port/db", "the port is not a number"),
        ("OTEL_ACTIVITY_EXPORTERS", "postgress", "did you mean 'postgres'"),
        ("OTEL_BLRP_MAX_QUEUE_SIZE", "many", "whole number"),
        ("OTEL_BLRP_MAX_EXPORT_BATCH_SIZE", "100000", "larger than the queue"),
        ("OTEL_ACTIVITY_STARTUP", "requires", "did you mean 'require'"),
        ("OTEL_ACTIVITY_REDCAT", "iban", "no such setting"),
    ],
)
def test_a_wrong_setting_stops_the_start(world: World, variable: str, value: str, expected: str) -> None:
    """One line with variable, masked value and fix; exit status 2; the program's code does not run."""
    status, output = world.run(**{variable: value})
    assert status == 2
    (line,) = output.splitlines()
    assert line.startswith(f"otel_activity: {variable}=")
    assert expected in line
    assert "s3cret" not in line


@pytest.mark.parametrize("closed", ["1", "2", "1, 2"])
def test_closed_output_does_not_switch_auditing_off(world: World, closed: str) -> None:
    """A daemon that was started without standard output or standard error is audited like any other."""
    status, _ = world.run_without(closed)
    assert status == 0
    assert world.stored() == EXPECTED


@pytest.mark.parametrize("closed", ["1", "2", "1, 2"])
def test_closed_output_does_not_let_a_wrong_setting_pass(world: World, closed: str) -> None:
    """Where the line cannot be written, the program still does not run unaudited."""
    status, output = world.run_without(closed, OTEL_ACTIVITY_EXPORTERS="postgress")
    assert (status, "program runs" in output) == (2, False)


def test_startup_warn_runs_unaudited_and_says_so(world: World) -> None:
    """The user may choose availability over auditing, but not silently."""
    status, output = world.run(OTEL_ACTIVITY_EXPORTERS="postgress", OTEL_ACTIVITY_STARTUP="warn")
    assert status == 0
    assert "RUNS UNAUDITED" in output
    assert "program done" in output
    assert world.stored() == []


def test_a_dependency_that_cannot_be_loaded_stops_the_start(world: World, tmp_path: Path) -> None:
    """psycopg without a libpq fails to import; that must not mean running unaudited."""
    (tmp_path / "psycopg.py").write_text("raise ImportError('no pq wrapper available.')\n")
    status, output = world.run(PYTHONPATH=str(tmp_path))
    assert status == 2
    assert 'pip install "otel-activity[binary]"' in output
    assert "program runs" not in output


def test_the_switch_works_whatever_else_is_broken(world: World, tmp_path: Path) -> None:
    """Who has to get a program running again can switch auditing off; it is said, and nothing is loaded."""
    (tmp_path / "psycopg.py").write_text("raise ImportError('no pq wrapper available.')\n")
    status, output = world.run(
        PYTHONPATH=str(tmp_path), OTEL_ACTIVITY_DISABLED="true", OTEL_ACTIVITY_DELIVERY="misspelt"
    )
    # The program itself needs psycopg, so it ends with that error: but it has been started.
    assert (status, "program runs" in output) == (1, True)
    assert output.startswith("otel_activity: auditing is off, because OTEL_ACTIVITY_DISABLED says so\n")


def test_startup_require_ends_without_a_store(world: World) -> None:
    """Without a working store the program does not start, and the line says what is wrong."""
    status, output = world.run(
        OTEL_ACTIVITY_STARTUP="require",
        OTEL_ACTIVITY_STARTUP_TIMEOUT="0.5",
        OTEL_ACTIVITY_POSTGRES_DSN="postgresql://audit:s3cret@127.0.0.1:1/none",
    )
    assert status == 2
    assert "OTEL_ACTIVITY_STARTUP=require" in output
    assert "s3cret" not in output
    assert "program runs" not in output


def test_an_interruption_while_waiting_for_the_store_is_no_crash(world: World) -> None:
    """Ctrl-C ends a start that waits, as it ends any program: by the signal, and without a dump."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        process = world.start(
            *("python", "plain.py"),
            OTEL_ACTIVITY_STARTUP="require",
            OTEL_ACTIVITY_POSTGRES_DSN=f"postgresql://audit@127.0.0.1:{port}/none",
        )
        silent.settimeout(30)
        connection, _ = silent.accept()
        with connection:
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=30)
    assert (process.returncode, output) == (-signal.SIGINT, "")


def test_startup_require_starts_with_a_store(world: World) -> None:
    """With a working store nothing is different."""
    assert world.run(OTEL_ACTIVITY_STARTUP="require") == (0, "program runs\nprogram done\n")
    assert world.stored() == EXPECTED


@LEFT
def test_a_store_that_is_down_does_not_stop_the_program(world: World, delivery: str, line: str) -> None:
    """The program serves; one line says what is wrong, another what is lost, or where it waits."""
    status, output = world.run(
        OTEL_ACTIVITY_POSTGRES_DSN="postgresql://audit:s3cret@127.0.0.1:1/none",
        OTEL_ACTIVITY_SHUTDOWN_TIMEOUT="0.5",
        OTEL_ACTIVITY_DELIVERY=delivery,
    )
    assert status == 0
    assert "program done" in output
    assert line in output
    assert "s3cret" not in output


def test_events_wait_for_a_schema_that_comes_late(world: World, postgres_server: Server) -> None:
    """A store without schema refuses; once somebody applies it, what waited is stored. Both are said."""
    late = postgres_server.create_database("late_schema")
    try:
        process = world.start("python", "plain.py", "wait", OTEL_ACTIVITY_POSTGRES_DSN=late)
        for line in lines(process):
            if "takes no events" in line:
                assert "otel-activity schema apply" in line
                break
        schema.apply(late)
        assert any("postgres takes events again" in line for line in lines(process))
        world.store, kept = late, world.store
        wait_until_stored(world, 7)
        assert world.stored() == EXPECTED
        world.store = kept
    finally:
        world.close()
        postgres_server.drop_database("late_schema")


def test_sigterm_flushes_and_still_ends_the_process(world: World) -> None:
    """The default action of SIGTERM keeps its exit status; what was queued is stored first."""
    process = world.start("python", "plain.py", "wait", OTEL_BLRP_SCHEDULE_DELAY="60000")
    for line in lines(process):
        if line == "program done\n":
            break
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == -signal.SIGTERM
    assert world.stored() == EXPECTED


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.parametrize("way", ["fork", "multiprocessing"])
def test_a_forked_child_is_audited(world: World, way: str) -> None:
    """Parent and child each report their own rows once, in streams of their own."""
    status, output = world.run(way)
    assert status == 0, output
    created = {"fork": 2, "multiprocessing": 1}[way]
    stored = world.stored()
    assert len(stored) == len(EXPECTED) + created
    assert set(EXPECTED) <= set(stored)
    with psycopg.connect(world.store) as connection:
        row = connection.execute("SELECT count(DISTINCT stream_id) FROM activity.events").fetchone()
    assert row == (2,)


@pytest.mark.parametrize("workers", [1, 2])
def test_uvicorn_flushes_on_sigterm(world: World, free_port: int, workers: int) -> None:
    """uvicorn raises SIGTERM again after its shutdown; events of every worker are stored before."""
    process = world.start(
        *("uvicorn", "web:app", "--port", str(free_port), "--workers", str(workers)),
        OTEL_BLRP_SCHEDULE_DELAY="60000",
    )
    url = f"http://127.0.0.1:{free_port}"
    wait_until_ready(f"{url}/ready")
    for _ in range(20):
        urllib.request.urlopen(urllib.request.Request(f"{url}/tasks", method="POST")).close()
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=30)
    assert sorted(int(entity) for _, entity, _ in world.stored()) == list(range(1, 21))


def wait_until_ready(url: str) -> None:
    """Wait until a server answers; fail after 30 seconds."""
    deadline = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(url).close()
        except OSError:
            assert time.monotonic() < deadline, "the server never answered"
            time.sleep(0.1)
        else:
            return


def wait_until_stored(world: World, count: int) -> None:
    """Wait until so many events are stored; fail after 30 seconds."""
    deadline = time.monotonic() + 30
    while len(world.stored()) < count:
        assert time.monotonic() < deadline, "the events never arrived"
        time.sleep(0.1)
