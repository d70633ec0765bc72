"""The measured PostgreSQL server: its databases, its processes and their CPU time."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy import URL

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Server", "open_server", "sqlalchemy_url"]

SETTINGS: Final = {"autovacuum": "off", "max_wal_size": "4GB", "checkpoint_timeout": "1h"}
"""Work that the server does now and then would hit one variant and miss the other."""
PROC: Final = Path("/proc")
URL_PARTS: Final = ("user", "password", "host", "port", "dbname")
FACTS: Final = (
    "server_version",
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "autovacuum",
    "shared_buffers",
)


def sqlalchemy_url(dsn: str) -> str:
    """The same connection as an SQLAlchemy URL for psycopg 3, password included."""
    parts: dict[str, Any] = dict(conninfo_to_dict(dsn))
    user, password, host, port, database = (parts.pop(name, None) for name in URL_PARTS)
    if host is not None and str(host).startswith("/"):  # a directory with a Unix socket
        parts["host"], host = host, None
    url = URL.create(
        "postgresql+psycopg",
        username=user,
        password=password,
        host=host,
        port=int(port) if port else None,
        database=database,
        query={name: str(value) for name, value in parts.items()},
    )
    return url.render_as_string(hide_password=False)


@contextlib.contextmanager
def open_server(dsn: str | None) -> Iterator[Server]:
    """The server to measure on, an embedded one by default."""
    with contextlib.ExitStack() as stack:
        if dsn is None:
            from otel_activity.embedded import EmbeddedPostgres

            # Without waiting for the disk: its noise would hide what we measure, and every ratio is the
            # worse for it.
            embedded = EmbeddedPostgres(fsync=False, settings=SETTINGS)
            dsn = stack.enter_context(embedded).dsn()
        server = Server(dsn)
        stack.callback(server.close)
        yield server


class Server:
    """A server that `dsn` reaches with a user who may create databases."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._admin = psycopg.connect(dsn, autocommit=True)
        self.host = self._admin.info.host or "127.0.0.1"
        self.port = self._admin.info.port
        self.postmaster = self._find_postmaster()
        """Process id of the server when it runs on this machine under Linux, else None."""

    def close(self) -> None:
        """End the administrator's session."""
        self._admin.close()

    def dsn(self, database: str, *, port: int | None = None) -> str:
        """Connection string of a database, through a proxy on this machine when its `port` is given."""
        if port is None:
            return make_conninfo(self._dsn, dbname=database, host=self.host, port=self.port)
        return make_conninfo(self._dsn, dbname=database, host="127.0.0.1", port=port)

    def facts(self) -> dict[str, str]:
        """The settings that decide what a commit costs."""
        return {name: self._admin.execute(f"SHOW {name}").fetchone()[0] for name in FACTS}  # type: ignore[index]  # SHOW gives one row

    # --- databases ------------------------------------------------------------------------------------

    def create(self, name: str, template: str | None = None) -> str:
        """Create a database, as a copy of `template` if given; returns its connection string."""
        statement = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY")
        self._admin.execute(statement.format(sql.Identifier(name), sql.Identifier(template or "template1")))
        return self.dsn(name)

    def drop(self, names: Iterable[str]) -> None:
        """Drop databases with all their sessions; one that does not exist is fine."""
        for name in names:
            self._admin.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
            )

    def settle(self) -> None:
        """Write out what earlier work left behind, so that it does not count for the next."""
        with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
            self._admin.execute("CHECKPOINT")

    # --- processes ------------------------------------------------------------------------------------

    def pin(self, cores: set[int]) -> bool:
        """Keep the server's processes, and those it starts from now on, on these cores, if permitted."""
        if self.postmaster is None:
            return False
        try:
            for pid in (self.postmaster, *_children(self.postmaster)):
                os.sched_setaffinity(pid, cores)
        except (PermissionError, ProcessLookupError):
            return False
        return True

    def cpu_seconds(self) -> float | None:
        """CPU time of all the server's processes since it started, ended ones included; None: unknown."""
        if self.postmaster is None:
            return None
        while True:
            ended = _ended_ticks(self.postmaster)
            running = sum(_running_seconds(pid) for pid in (self.postmaster, *_children(self.postmaster)))
            # A process that ended between the two readings is in neither of them: read again.
            if _ended_ticks(self.postmaster) == ended:
                return ended / os.sysconf("SC_CLK_TCK") + running

    def session_cpu_seconds(self, backend: int) -> float:
        """CPU time of the process of one session; only if `cpu_seconds` is known."""
        return _running_seconds(backend)

    def _find_postmaster(self) -> int | None:
        backend = self._admin.info.backend_pid
        try:
            title = (PROC / str(backend) / "cmdline").read_bytes()
            status = (PROC / str(backend) / "stat").read_text()
        except OSError:
            return None
        # The number may be another process's when the server is in a container or on another machine.
        if not title.startswith(b"postgres: ") or os.fsencode(self._admin.info.dbname) not in title:
            return None
        return int(_stat_fields(status)[1])


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in (PROC / f"{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _stat_fields(text: str) -> list[str]:
    """The fields of /proc/PID/stat after the name, which may contain anything: state, parent, ..."""
    return text[text.rindex(")") + 2 :].split()


def _ended_ticks(pid: int) -> int:
    fields = _stat_fields((PROC / str(pid) / "stat").read_text())
    return int(fields[13]) + int(fields[14])  # cutime, cstime


def _running_seconds(pid: int) -> float:
    """CPU time of a living process of one thread, as PostgreSQL's are.

    utime and stime are counted in hundredths of a second; schedstat has the same in nanoseconds.
    """
    try:
        return int((PROC / str(pid) / "schedstat").read_text().split()[0]) / 1e9
    except FileNotFoundError:
        return _ticks_of_running(pid)
    except OSError:
        return 0.0


def _ticks_of_running(pid: int) -> float:
    try:
        fields = _stat_fields((PROC / str(pid) / "stat").read_text())
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
