"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import re
from datetime import UTC, datetime, time, timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
from click.core import ParameterSource

from otel_activity.errors import ConfigurationError
from otel_activity.settings import FIELDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_activity.store import EventFilter

__all__ = [
    "DURATION",
    "SINCE_HELP",
    "WHEN",
    "filter_options",
    "json_option",
    "local_option",
    "outbox_option",
    "parse_when",
    "require_dsn",
    "store_options",
    "the_filter",
    "unchecked_store_options",
]

F = TypeVar("F", bound="Callable[..., Any]")

_SETTINGS: Final = {field.name: field for field in FIELDS}
_AGO: Final = re.compile(r"(\d{1,9})\s*([smhdw])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_DAYS: Final = {"today": 0, "yesterday": 1}
DSN_EXAMPLE: Final = "postgresql://user:password@host:5432/database"


def parse_when(text: str, *, now: datetime, local: bool = False) -> datetime:
    """Read a time: ``15m``, ``2h``, ``7d``, ``4w`` ago, ``now``, or an ISO date or time.

    ``today`` and ``yesterday`` are the beginnings of these days.

    Args:
        text: what the user typed.
        now: what ``15m`` is counted back from, with a time zone.
        local: whether a time without a zone is local time; otherwise it is UTC.

    Raises:
        ValueError: it is none of these; the message names the fix.
    """
    word = text.strip().lower()
    if word == "now":
        return now
    ago = _AGO.fullmatch(word)
    try:
        if ago:
            return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        if word in _DAYS:
            today = now.astimezone(None if local else UTC).date()
            moment = datetime.combine(today - timedelta(days=_DAYS[word]), time.min)
        else:
            moment = datetime.fromisoformat(text.strip())
        if moment.tzinfo is None:
            moment = moment.astimezone() if local else moment.replace(tzinfo=UTC)
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(
            "not a time; use 15m, 2h, 7d, now, today, yesterday, 2026-05-01 or 2026-05-01T09:30+02:00"
        ) from None


if TYPE_CHECKING:
    _DatetimeType = click.ParamType[datetime]
    _TimedeltaType = click.ParamType[timedelta]
else:  # click before 8.5 has no type parameter here
    _DatetimeType = _TimedeltaType = click.ParamType


class _When(_DatetimeType):
    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        local = bool(ctx is not None and ctx.params.get("local"))
        try:
            return parse_when(value, now=datetime.now(UTC), local=local)
        except ValueError as error:
            self.fail(f"{value!a}: {error}", param, ctx)


class _Duration(_TimedeltaType):
    name = "DURATION"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        duration = _duration(value)
        if duration is None:
            self.fail(f"{value!a}: not a duration; use for example 30s, 15m, 2h or 7d", param, ctx)
        return duration


def _duration(text: str) -> timedelta | None:
    found = _AGO.fullmatch(text.strip().lower())
    try:
        return timedelta(**{_UNITS[found[2]]: int(found[1])}) if found and int(found[1]) else None
    except OverflowError:
        return None


WHEN: Final = _When()
"""Option type of a time."""
DURATION: Final = _Duration()
"""Option type of a duration."""


def _set(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """The value; a blank variable is as if it were not set, which it is for a service."""
    named = ctx.get_parameter_source(param.name or "")
    if value is None or value.strip() or named is not ParameterSource.ENVIRONMENT:
        return value
    return str(param.get_default(ctx)) if param.name == "schema" else None


def _checked(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Hold an option against the same rule as the setting of that name."""
    setting = _SETTINGS["postgres_schema" if param.name == "schema" else "postgres_dsn"]
    value = _set(ctx, param, value)
    if value is None:
        return None
    try:
        return str(setting.parse(value))
    except ValueError as error:
        raise click.BadParameter(f"{setting.shown(value)!r}: {error}", ctx, param) from None


def outbox_option(text: str) -> Callable[[F], F]:
    """Add ``--outbox``, the DSN of an application's database; the command gets ``outbox``."""
    return click.option("--outbox", metavar="DSN", callback=_checked, help=text)


def store_options(command: F) -> F:
    """Add ``--dsn`` and ``--schema``; the command gets ``dsn`` (may be `None`) and ``schema``."""
    return _store_options(command, _checked)


def unchecked_store_options(command: F) -> F:
    """`store_options` for a command that reports a wrong value itself."""
    return _store_options(command, _set)


def _store_options(command: F, check: Any) -> F:
    dsn = click.option(
        "--dsn",
        envvar="OTEL_ACTIVITY_POSTGRES_DSN",
        metavar="DSN",
        callback=check,
        help="The PostgreSQL that holds the events. [env: OTEL_ACTIVITY_POSTGRES_DSN]",
    )
    schema = click.option(
        "--schema",
        envvar="OTEL_ACTIVITY_POSTGRES_SCHEMA",
        default="activity",
        show_default=True,
        metavar="NAME",
        callback=check,
        help="Schema of its tables. [env: OTEL_ACTIVITY_POSTGRES_SCHEMA]",
    )
    return dsn(schema(command))


def require_dsn(dsn: str | None) -> str:
    """The DSN.

    Raises:
        ConfigurationError: there is none.
    """
    if dsn is None:
        raise ConfigurationError(
            "OTEL_ACTIVITY_POSTGRES_DSN", "", "no store is named", f"set it, or use --dsn {DSN_EXAMPLE}"
        )
    return dsn


def json_option(command: F) -> F:
    """Add ``--json``; the command gets ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for programs.")(
        command
    )


def local_option(command: F) -> F:
    """Add ``--local``; the command gets ``local``. Read before the times that are typed in its zone."""
    return click.option(
        "--local", is_flag=True, is_eager=True, help="Read and show times in the local time zone, not in UTC."
    )(command)


SINCE_HELP: Final = "From this time on: 15m, 2h, 7d (ago), today, yesterday, or an ISO date or time."
_FILTERS: Final = (
    click.option("--since", type=WHEN, help=SINCE_HELP),
    click.option("--until", type=WHEN, help="Before this time."),
    click.option("--name", "names", multiple=True, metavar="NAME", help="Event name; may be repeated."),
    click.option("--action", "actions", multiple=True, metavar="ACTION", help="Action; may be repeated."),
    click.option(
        "--outcome",
        "outcomes",
        multiple=True,
        type=click.Choice(["success", "failure"]),
        help="Outcome of the action.",
    ),
    click.option("--actor-id", "--actor", metavar="ID", help="Id of the user or service that did it."),
    click.option(
        "--actor-type",
        type=click.Choice(["user", "service", "system", "anonymous", "unknown"]),
        help="Kind of actor.",
    ),
    click.option("--entity-type", metavar="TYPE", help="Type of the entity."),
    click.option("--entity-id", metavar="ID", help="Id of the entity; a composite key is a JSON array."),
    click.option("--tenant-id", "--tenant", metavar="ID", help="Tenant."),
    click.option("--project-id", "--project", metavar="ID", help="Project."),
    click.option("--service", metavar="NAME", help="Service that recorded the event."),
    click.option("--table", metavar="NAME", help="Table that was changed."),
    click.option("--field", "changed_field", metavar="NAME", help="Field that was changed."),
    click.option("--trace-id", "--trace", metavar="HEX", help="Trace, 32 hexadecimal digits."),
    click.option(
        "--span-id", "--span", metavar="HEX", help="Span, 16 hexadecimal digits; give its trace too."
    ),
    click.option("--transaction-id", metavar="UUID", help="Transaction."),
    click.option("--text", metavar="TEXT", help="Text anywhere in the event; slow without --since."),
)


_HEXADECIMAL: Final = ("trace_id", "span_id", "transaction_id")
"""Stored in lower case; other tools may show them in upper case."""


def filter_options(command: F) -> F:
    """Add an option for each field of `EventFilter`, with the field's name as parameter."""
    for option in reversed(_FILTERS):
        command = option(command)
    return command


def the_filter(options: dict[str, Any]) -> EventFilter:
    """The filter that the options of `filter_options` ask for.

    Raises:
        ConfigurationError: one of them is wrong in itself.
    """
    from otel_activity.store import EventFilter

    lowered = {name: options[name].lower() for name in _HEXADECIMAL if options[name]}
    return EventFilter(**{**options, **lowered})
