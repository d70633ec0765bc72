"""`python -m benchmarks`: what auditing costs, without, with triggers and with us, side by side."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from benchmarks import components, machine
from benchmarks.proxy import DelayProxy, round_trip
from benchmarks.report import Row, as_text, ratio_rows
from benchmarks.runner import ClientFailed, Plan, Runner
from benchmarks.server import open_server
from benchmarks.variants import BASE, VARIANTS, Databases, Variant, WrongCount
from benchmarks.workloads import EVENTS as WORKLOADS
from otel_activity.masking import mask_dsn

if TYPE_CHECKING:
    from benchmarks.runner import Round
    from benchmarks.server import Server

__all__ = ["main"]

# A block lasts longer than the pause between two exports, so that exports happen while work is timed.
PLANS: Final = (
    Plan(name="request", workload="request", round_trip=0, block=500, pairs=4, warm_up=300, rounds=3),
    Plan(
        name="request, 1 ms away", workload="request", round_trip=1, block=100, pairs=3, warm_up=50, rounds=3
    ),
    Plan(name="insert of 2,000", workload="insert", round_trip=0, block=5, pairs=4, warm_up=2, rounds=3),
)
QUICK: Final = (
    Plan(name="request", workload="request", round_trip=0, block=20, pairs=1, warm_up=5, rounds=1),
    Plan(name="request, 1 ms away", workload="request", round_trip=1, block=10, pairs=1, warm_up=5, rounds=1),
    Plan(name="insert of 2,000", workload="insert", round_trip=0, block=1, pairs=1, warm_up=1, rounds=1),
)
"""Enough to see that everything runs and counts right; its times mean nothing."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--dsn", help="Server to measure on; its user may create databases. Default: an embedded one.")
@click.option("--rounds", type=click.IntRange(1), help="Pairs of clients for each workload and variant.")
@click.option("--workload", "workloads", multiple=True, type=click.Choice(list(WORKLOADS)))
@click.option("--loopback", is_flag=True, help="Leave out what is 1 ms away.")
@click.option("--variant", "names", multiple=True, type=click.Choice([each.name for each in VARIANTS]))
@click.option("--components/--no-components", "parts", default=True, help="Microseconds of each component.")
@click.option("--pin/--no-pin", default=False, help="Client on one core, server on the others (Linux).")
@click.option("--seed", default=20_260_101, show_default=True, help="Of the random numbers.")
@click.option("--quick", is_flag=True, help="Seconds instead of minutes: checks the counts, not the times.")
@click.option("--strict", is_flag=True, help="Exit status 3 when a budget is missed.")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, writable=True, path_type=Path))
def main(
    dsn: str | None,
    rounds: int | None,
    workloads: tuple[str, ...],
    loopback: bool,
    names: tuple[str, ...],
    parts: bool,
    pin: bool,
    seed: int,
    quick: bool,
    strict: bool,
    json_file: Path | None,
) -> None:
    """Measure what auditing costs against the same work without auditing, on this machine, in one run.

    Exit status 1 when a variant did not record exactly what was done: then its times mean nothing.
    """
    plans = [
        msgspec.structs.replace(plan, rounds=rounds or plan.rounds)
        for plan in (QUICK if quick else PLANS)
        if (not workloads or plan.workload in workloads) and not (loopback and plan.round_trip)
    ]
    variants = tuple(each for each in VARIANTS if not names or each.name in names)
    started = time.monotonic()
    try:
        with open_server(dsn) as server:
            facts = _introduce(server, pin, seed)
            rows = _measure(server, plans, variants, seed=seed, core=facts["client core"])
            if parts:
                rows += components.measure(server, seed=seed, quick=quick, core=facts["client core"])
    except (WrongCount, ClientFailed) as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(1) from None
    click.echo(f"\n{as_text(rows)}\n")
    click.echo(_summary(rows, time.monotonic() - started, quick=quick))
    if json_file is not None:
        json_file.write_bytes(_as_json(facts, rows, quick=quick))
    if strict and any(row.met is False for row in rows):
        raise SystemExit(3)


def _introduce(server: Server, pin: bool, seed: int) -> dict[str, Any]:
    """Everything a reader must know of the machine and the run; printed, and part of the JSON."""
    facts: dict[str, Any] = {"command": "python -m benchmarks " + " ".join(map(mask_dsn, sys.argv[1:]))}
    facts |= machine.facts()
    facts["server"] = "PostgreSQL " + ", ".join(f"{key} {value}" for key, value in server.facts().items())
    facts["seed"] = seed
    facts["client core"], facts["pinning"] = _pin(server) if pin else (None, "off")
    if server.postmaster is None:
        facts["database CPU"] = "n/a: the server is not on this machine, or this is not Linux"
    for key, value in facts.items():
        click.echo(f"{key:14} {value}")
    return facts


def _pin(server: Server) -> tuple[int | None, str]:
    """Give the clients a core of their own; which one, and what to say about it."""
    if not hasattr(os, "sched_setaffinity"):
        return None, "not possible on this system"
    first, *others = sorted(os.sched_getaffinity(0))
    if not others:
        return None, "not possible with one core"
    os.sched_setaffinity(0, others)  # this process, and the proxy that it will start
    if server.pin(set(others)):
        return first, f"client on core {first}, server and proxy on {others}"
    return first, f"client on core {first}; the server is not ours to pin"


def _measure(
    server: Server, plans: list[Plan], variants: tuple[Variant, ...], *, seed: int, core: int | None
) -> list[Row]:
    attachments = max((plan.executions for plan in plans), default=0)
    databases = Databases(server, attachments, f"activity_bench_{os.getpid()}")
    try:
        databases.create_templates(variants)
        runner = Runner(server, databases, seed=seed, core=core)
        rows: list[Row] = []
        for plan in plans:
            rows += _measure_plan(server, runner, plan, variants)
        return rows
    finally:
        databases.drop_all((BASE, *variants))


def _measure_plan(server: Server, runner: Runner, plan: Plan, variants: tuple[Variant, ...]) -> list[Row]:
    """All rounds of one workload, the variants in turn within each round."""
    with contextlib.ExitStack() as stack:
        port = None
        if plan.round_trip:
            port = stack.enter_context(DelayProxy(server.host, server.port, plan.round_trip)).port
            here, there = round_trip(server.dsn("template1")), round_trip(server.dsn("template1", port=port))
            click.echo(
                f"{plan.name}: a round trip takes {here:.2f} ms directly, {there:.2f} ms through the proxy"
            )
        found: dict[str, list[Round]] = {variant.name: [] for variant in variants}
        for number in range(plan.rounds):
            for variant in variants:
                one = runner.round(plan, variant, number, port)
                found[variant.name].append(one)
                click.echo(f"{plan.name}, round {number + 1}, {variant.name}: {one.describe()}")
    return [row for variant in variants for row in ratio_rows(found[variant.name])]


def _summary(rows: list[Row], seconds: float, *, quick: bool) -> str:
    lines = [f"{variant.name}: {variant.title}" for variant in VARIANTS]
    lines.append(
        "x: ratio to the same work without auditing; half of all pairs of blocks lie in the middle half"
    )
    lines.append("us: microseconds an event; events recorded were counted for every client, and are right")
    judged = [row.met for row in rows if row.met is not None]
    if quick:
        lines.append("--quick: too short for times to mean anything")
    lines.append(f"{judged.count(True)} of {len(judged)} budgets met; {seconds:.0f} s")
    return "\n".join(lines)


def _as_json(facts: dict[str, Any], rows: list[Row], *, quick: bool) -> bytes:
    lines = [msgspec.to_builtins(row) | {"met": row.met} for row in rows]
    return msgspec.json.format(msgspec.json.encode({"machine": facts, "quick": quick, "rows": lines})) + b"\n"


if __name__ == "__main__":
    main()
