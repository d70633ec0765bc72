"""``otel-activity schema apply|status|sql``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from otel_activity.cli.app import EXIT_FAILED
from otel_activity.cli.options import json_option, outbox_option, require_dsn, store_options
from otel_activity.cli.render import json_line, say
from otel_activity.postgres import schema as store_schema
from otel_activity.postgres.outbox import apply_outbox

if TYPE_CHECKING:
    from otel_activity.postgres.schema import SchemaStatus

__all__ = ["schema"]


@click.group()
def schema() -> None:
    """Create, upgrade and inspect the store's tables."""


@schema.command()
@click.option(
    "--months-ahead",
    type=click.IntRange(0, 12),
    default=store_schema.MONTHS_AHEAD,
    show_default=True,
    help="Months after this one to make partitions for.",
)
@outbox_option("Make the outbox of strict delivery in the application's database instead, and nothing else.")
@json_option
@store_options
def apply(dsn: str | None, schema: str, months_ahead: int, outbox: str | None, as_json: bool) -> None:
    """Make or migrate the tables, and partitions ahead.

    Brings them to the version of this program, with partitions for the coming months.
    Doing it again changes nothing. The user must be allowed to create the tables.
    """
    if outbox is not None:
        apply_outbox(outbox, schema)
        say(json_line({"outbox": f"{schema}.outbox"}) if as_json else f"outbox {schema}.outbox: ready")
        return
    target = require_dsn(dsn)
    applied = store_schema.apply(target, schema, months_ahead=months_ahead)
    state = store_schema.status(target, schema)
    if as_json:
        say(json_line({"applied": applied, **_status_json(state)}))
        return
    done = f"applied {', '.join(map(str, applied))}" if applied else "nothing to apply"
    say(f"schema {schema}: {done}; version {state.current}, {len(state.partitions)} partitions")


@schema.command()
@json_option
@store_options
@click.pass_context
def status(ctx: click.Context, dsn: str | None, schema: str, as_json: bool) -> None:
    """Compare the tables with this version.

    The exit status is 1 unless they fit. Changes nothing.
    """
    state = store_schema.status(require_dsn(dsn), schema)
    if as_json:
        say(json_line(_status_json(state)))
    else:
        say(f"schema {schema}: {describe(state)}")
        for name in state.partitions:
            say(f"  partition {name}")
    if not state.ready:
        ctx.exit(EXIT_FAILED)


@schema.command()
@click.option("--grants", is_flag=True, help="Only the grants for the roles, not the tables.")
@click.option("--writer", multiple=True, metavar="ROLE", help="Role that stores events; may be repeated.")
@click.option("--reader", multiple=True, metavar="ROLE", help="Role that searches; may be repeated.")
@store_options
def sql(dsn: str | None, schema: str, grants: bool, writer: tuple[str, ...], reader: tuple[str, ...]) -> None:
    """Print the SQL of the tables and grants.

    For those who run it themselves.
    With --writer and --reader it also grants these roles what they need and no more. Needs no database.
    """
    if grants and not (writer or reader):
        raise click.UsageError("--grants needs roles: add --writer ROLE or --reader ROLE")
    if not grants:
        say(store_schema.sql(schema).rstrip("\n"))
    if writer or reader:
        say(store_schema.grants(schema, writer=writer, reader=reader).rstrip("\n"))


def describe(state: SchemaStatus) -> str:
    """One sentence: whether this version of the code can use the tables, and if not, what to do."""
    if state.newer:
        return f"version {state.current} is newer than this program's {state.latest}; upgrade otel-activity"
    if not state.current:
        return "is missing; run `otel-activity schema apply`"
    if state.pending:
        return f"version {state.current} of {state.latest}; run `otel-activity schema apply`"
    return f"version {state.current}, up to date"


def _status_json(state: SchemaStatus) -> dict[str, Any]:
    return {
        "schema": state.schema,
        "version": state.current,
        "latest": state.latest,
        "ready": state.ready,
        "pending": list(state.pending),
        "partitions": list(state.partitions),
    }
