"""The doctor's checks of the store."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from otel_activity.cli.checks import Check, Level
from otel_activity.cli.render import many
from otel_activity.cli.schema import describe
from otel_activity.errors import ActivityError
from otel_activity.masking import mask_dsn
from otel_activity.postgres import schema as store_schema
from otel_activity.postgres.outbox import outbox_facts
from otel_activity.store.health import inspect_contents, inspect_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_activity.postgres.schema import SchemaStatus
    from otel_activity.settings import Settings
    from otel_activity.store.health import Contents, Server

__all__ = ["outbox_check", "store_checks"]

CLOCK_LIMIT: Final = 2.0
"""Seconds that two clocks may differ: more, and the order of events of two machines misleads."""
LATE: Final = 10.0
"""Seconds after which nobody seems to empty an outbox: a process that does looks every second."""
OLDEST_SERVER: Final = 15
APPLY: Final = "run `otel-activity schema apply`"


def store_checks(dsn: str, schema: str, *, exporting: bool) -> list[Check]:
    """Check the store from the connection down to its newest event; stops where there is nothing further.

    Args:
        dsn: the store.
        schema: schema of its tables.
        exporting: whether services with this environment store there, so that the user must be allowed to.
    """
    checks: list[Check] = []
    try:
        server = inspect_server(dsn, schema)
        checks += _server(server, dsn, exporting=exporting)
        state = store_schema.status(dsn, schema)
        ready = Level.OK if state.ready else Level.FAIL
        checks.append(Check("schema", ready, f"{schema}: {describe(state)}"))
        if state.ready:
            checks += _permissions(server, exporting=exporting)
            checks += _contents(inspect_contents(dsn, schema, server), state, searching=server.can_select)
    except ActivityError as error:
        text, _, fix = str(error).rpartition("; ")
        checks.append(Check("store", Level.FAIL, text or fix, fix if text else None))
    return checks


def outbox_check(settings: Settings) -> Check:
    """Whether the transactions of strict events would find their outbox."""
    dsn, schema = settings.proof_dsn, settings.postgres_schema
    if dsn is None:
        text = "not checked: strict delivery needs one in the application's database, which is not named"
        return Check("outbox", Level.WARN, text, "set OTEL_ACTIVITY_PROOF_DSN to have it checked")
    try:
        facts = outbox_facts(dsn, schema)
    except ActivityError as error:
        text, _, fix = str(error).rpartition("; ")
        return Check("outbox", Level.FAIL, text or fix, fix if text else None)
    if not facts.exists:
        text = f"there is no {schema}.outbox in {facts.database}: no transaction with a strict event commits"
        return Check("outbox", Level.FAIL, text, "run `otel-activity schema apply --outbox DSN`")
    if not facts.can_insert:
        text = f"{facts.role} may not write into {schema}.outbox of {facts.database}"
        fix = (
            "grant the application's role USAGE on the schema, INSERT on the table and USAGE on its sequence"
        )
        return Check("outbox", Level.WARN, text, fix)
    text = f"{schema}.outbox in {facts.database}"
    if not facts.waiting:
        return Check("outbox", Level.OK, text if facts.waiting is None else f"{text}, empty")
    age = facts.oldest or 0.0
    text = f"{text}: {many(facts.waiting, 'event')} not delivered yet, the oldest for {_age(age)}"
    if age < LATE:
        return Check("outbox", Level.OK, text)
    fix = "start the service, which delivers them, or run `otel-activity relay --outbox DSN`"
    return Check("outbox", Level.WARN, text, fix)


def _server(server: Server, dsn: str, *, exporting: bool) -> Iterator[Check]:
    reached = (
        f"{mask_dsn(dsn)} as {server.role}: connected in {server.connect_seconds * 1000:.0f} ms, "
        f"answers in {server.answer_seconds * 1000:.1f} ms"
    )
    level = Level.FAIL if exporting else Level.WARN
    if server.standby:
        fix = "name the primary, or add target_session_attrs=read-write"
        yield Check("store", level, f"{reached}; it is a standby and stores nothing", fix)
    elif server.read_only:
        text = f"{reached}; default_transaction_read_only is on, so it stores nothing"
        yield Check("store", level, text, "switch it off; hosted servers set it when their disk is full")
    else:
        yield Check("store", Level.OK, reached)
    if int(server.version.split(".")[0].split("beta")[0].split("rc")[0]) < OLDEST_SERVER:
        yield Check("server", Level.FAIL, f"PostgreSQL {server.version}", f"use {OLDEST_SERVER} or newer")
    else:
        yield Check("server", Level.OK, f"PostgreSQL {server.version}")
    yield _clock(server)


def _clock(server: Server) -> Check:
    difference = server.clock_difference
    if abs(difference) <= max(CLOCK_LIMIT, server.answer_seconds):
        return Check("clock", Level.OK, f"within {max(abs(difference), 0.001):.3f} s of the server's")
    side = "ahead of" if difference > 0 else "behind"
    text = f"the server's clock is {abs(difference):.1f} s {side} this machine's"
    return Check("clock", Level.WARN, text, "synchronise both clocks (NTP)")


def _permissions(server: Server, *, exporting: bool) -> Iterator[Check]:
    command = "run the SQL of `otel-activity schema sql --grants --writer {}` as the owner"
    if server.can_insert:
        yield Check("may store", Level.OK, f"{server.role} may store events")
    else:
        level = Level.FAIL if exporting else Level.WARN
        yield Check("may store", level, f"{server.role} may not store events", command.format(server.role))
    if server.can_change and exporting:
        text = f"{server.role} may also change and delete events"
        yield Check("append only", Level.WARN, text, f"use a role of its own: {command.format('ROLE')}")
    if not server.can_select:
        reader = "search, history and tail need a role of --reader"
        yield Check("may search", Level.OK, f"{server.role} may not search, as a writer should; {reader}")


def _contents(contents: Contents, state: SchemaStatus, *, searching: bool) -> Iterator[Check]:
    yield _partitions(state)
    if contents.outside:
        yield Check("months", Level.WARN, "some events lie outside the months that have a partition", APPLY)
    if contents.quarantined:
        text = f"{many(contents.quarantined, 'record')} that the server refused"
        fix = f"look at their sqlstate and message in {state.schema}.quarantine"
        yield Check("quarantine", Level.WARN, text, fix)
    elif contents.quarantined == 0:
        yield Check("quarantine", Level.OK, "empty")
    if contents.newest is not None:
        age = (datetime.now(UTC) - contents.newest).total_seconds()
        yield Check("newest event", Level.OK, f"{contents.newest:%Y-%m-%d %H:%M:%S} UTC, {_age(age)} ago")
    elif searching:
        text = "there is none yet"
        yield Check("newest event", Level.WARN, text, "run a service with these settings, and change a row")


def _partitions(state: SchemaStatus) -> Check:
    now = datetime.now(UTC)
    months = (
        f"events_{now.year + (now.month - 1 + n) // 12}_{(now.month - 1 + n) % 12 + 1:02d}" for n in range(24)
    )
    ahead = 0
    for ahead, month in enumerate(months):  # noqa: B007 - counts the months that follow without a hole
        if month not in state.partitions:
            break
    if ahead == 0:
        return Check("partitions", Level.WARN, "this month has none of its own", APPLY)
    if ahead == 1:
        return Check("partitions", Level.WARN, "none for next month yet", APPLY)
    return Check("partitions", Level.OK, f"this month's and {ahead - 1} ahead")


def _age(seconds: float) -> str:
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{max(seconds, 0) / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} days"
