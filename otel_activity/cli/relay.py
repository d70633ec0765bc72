"""``otel-activity relay``: deliver what processes left behind that nobody will start again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from otel_activity.cli.app import EXIT_FAILED
from otel_activity.cli.options import json_option, outbox_option, store_options
from otel_activity.cli.render import json_line, many, say

if TYPE_CHECKING:
    from otel_activity.api import Relayed

__all__ = ["relay"]


@click.command()
@click.option(
    "--journal",
    "directory",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="OTEL_ACTIVITY_JOURNAL_DIR of the host that left it, or a copy of it.",
)
@outbox_option("The application's database, to deliver what strict delivery has left in its outbox.")
@click.option(
    "--timeout",
    type=click.FloatRange(0, 86_400),
    default=60.0,
    show_default=True,
    help="Seconds after which it gives up; what is left stays in the journals.",
)
@click.option(
    "--without-proof",
    is_flag=True,
    help="Ask no database what became of transactions that a crash left open: deliver them as unknown.",
)
@click.option(
    "--without",
    metavar="EXPORTER",
    multiple=True,
    help="Do not keep journals for this exporter, which dead processes had and which is not there any more.",
)
@json_option
@store_options
@click.pass_context
def relay(
    ctx: click.Context,
    dsn: str | None,
    schema: str,
    directory: Path | None,
    outbox: str | None,
    timeout: float,
    without_proof: bool,
    without: tuple[str, ...],
    as_json: bool,
) -> None:
    """Deliver the journals of dead processes, or an outbox, and remove what was delivered.

    They go where the OTEL_ACTIVITY_... variables say, as the service's own would. Journals that a living
    process holds are left alone; an outbox may have any number of relays at the same time. The exit status
    is 1 if something is left, or is lost because its receiver will never take it.
    """
    from otel_activity.api import relay_journals, relay_outbox

    store = {"postgres_dsn": dsn, "postgres_schema": schema}
    if directory is not None and outbox is None:
        proof = "off" if without_proof else None
        found = relay_journals(directory, timeout=timeout, without=without, **store, commit_proof=proof)
    elif outbox is not None and directory is None:
        found = relay_outbox(outbox, timeout=timeout, **store)
    else:
        raise click.UsageError("say what to deliver: either --journal DIR or --outbox DSN")
    if as_json:
        shown = {"events": found.events, "lost_records": found.lost_records}
        say(json_line({**shown, "left": found.left, "kept": found.kept, "lost": found.lost}))
    else:
        _write(found, "in the journals" if outbox is None else "in the outbox")
    if found.left or found.lost:
        ctx.exit(EXIT_FAILED)


def _write(found: Relayed, place: str) -> None:
    events = many(found.events, "event")
    if found.left:
        say(f"{events} found, not all delivered: something is left {place}; the lines above say why")
    elif found.lost:
        say(f"{events} found; {many(found.lost, 'event')} lost: the lines above say why")
    else:
        say(f"{events} found, all delivered")
    if found.kept:
        kept = many(found.kept, "transaction")
        say(f"{kept} kept for an exporter that is not here; configure it, or give it up: --without EXPORTER")
    if found.lost_records:
        say(f"{many(found.lost_records, 'record')} could not be read: the journals are damaged")
