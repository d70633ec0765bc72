"""The course of a demo: prepare, serve, use, stop, compare."""

from __future__ import annotations

import asyncio
import json
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import click
from rich.console import Console

from otel_activity.cli.demo_process import SERVICE_NAME, ProjectBoard
from otel_activity.cli.demo_reconcile import Reconciliation, reconcile
from otel_activity.cli.demo_store import EVENTS_SCHEMA, DemoStore
from otel_activity.cli.demo_users import FIXED_ACTIONS, Crowd, expected_events
from otel_activity.cli.demo_view import Watcher, result_table
from otel_activity.masking import mask_dsn
from otel_activity.store import ActivityStore, EventFilter

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Plan", "run"]

LOOKBACK: Final = timedelta(minutes=2)
"""How late an event may be stored and still appear in the live table; the comparison has no such limit."""


@dataclass(frozen=True)
class Plan:
    """What was asked for on the command line."""

    once: bool
    users: int
    seconds: float | None
    seed: int
    as_json: bool


def run(plan: Plan, dsn: str, directory: Path, *, own_server: bool) -> int:
    """Run the demo in a database; everything it starts has ended when it returns.

    Args:
        plan: what was asked for.
        dsn: the database.
        directory: for the application's working files.
        own_server: whether the server ends with the demo, so that its password is no secret.

    Returns:
        The exit status: 0 if every committed change has its event and every event its change.

    Raises:
        ActivityError: the database or the application cannot be used; says why.
    """
    console = Console(stderr=plan.as_json)
    with ExitStack() as stack:
        store = stack.enter_context(closing(DemoStore(dsn)))
        store.prepare()
        _say(plan, "Starting the application under opentelemetry-instrument ...")
        board = stack.enter_context(ProjectBoard(dsn, directory))
        board.wait_until_ready()
        store.watch()
        crowd = Crowd(board.url, users=plan.users, seed=plan.seed)
        reader = stack.enter_context(ActivityStore(dsn, schema=EVENTS_SCHEMA))
        follower = reader.follow(EventFilter(service=SERVICE_NAME), lookback=LOOKBACK)
        _say(plan, _introduction(plan, dsn, board, own_server=own_server))
        with Watcher(follower, crowd, console) as watcher:
            _use(plan, crowd, watcher)
            board.stop()
        result = reconcile(store.rows(), store.events(board.instance), store.types)
    wanted = expected_events(plan.users) if plan.once else 0
    _report(plan, console, result, crowd, wanted)
    return 0 if result.clean and result.events >= wanted else 1


def _use(plan: Plan, crowd: Crowd, watcher: Watcher) -> None:
    """Let the users work: the fixed scenario, or until the time is over or Ctrl-C."""
    title = "Events, as they are stored" + ("" if plan.once else " (Ctrl-C ends)")
    with watcher.live(title=title):
        try:
            asyncio.run(_work(plan, crowd))
        except KeyboardInterrupt:
            if plan.once:
                raise


async def _work(plan: Plan, crowd: Crowd) -> None:
    if plan.once:
        await crowd.work(actions=FIXED_ACTIONS)
        return
    try:
        async with asyncio.timeout(plan.seconds):
            await crowd.work(actions=None)
    except TimeoutError:
        return


def _introduction(plan: Plan, dsn: str, board: ProjectBoard, *, own_server: bool) -> str:
    if plan.once:
        return f"{plan.users} simulated users run a fixed scenario ..."
    shown = dsn if own_server else mask_dsn(dsn)
    return (
        f"{plan.users} simulated users work. Join them at {board.url}/docs\n"
        f"or look from another terminal: otel-activity search --dsn {shown}"
    )


def _say(plan: Plan, text: str) -> None:
    if not plan.as_json:
        click.echo(text, err=True)


def _report(plan: Plan, console: Console, result: Reconciliation, crowd: Crowd, wanted: int) -> None:
    if plan.as_json:
        click.echo(json.dumps(_as_json(result, crowd, wanted), indent=2))
        return
    console.print(result_table(result, crowd, wanted))
    for example in result.examples:
        console.print(f"  {example}", markup=False, highlight=False, soft_wrap=True)
    if not result.clean:
        console.print("The audit trail is NOT what the database committed.", style="bold red")
    elif result.events < wanted:
        console.print(f"Fewer events than the scenario must yield ({wanted:,}).", style="bold red")
    else:
        console.print("Every committed change has its event, and every event its change.", style="bold green")


def _as_json(result: Reconciliation, crowd: Crowd, wanted: int) -> dict[str, Any]:
    numbers = {"requests": dict(crowd.statuses), "expected_at_least": wanted}
    return result.as_json() | numbers | {"ok": result.clean and result.events >= wanted}
