"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from otel_activity.errors import ConfigurationError
from otel_activity.settings import FIELDS, mask_dsn

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["WHEN", "json_option", "local_option", "parse_when", "require_dsn", "store_options"]

F = TypeVar("F", bound="Callable[..., Any]")

_SETTINGS: Final = {field.name: field for field in FIELDS}
_AGO: Final = re.compile(r"(\d{1,9})\s*([smhdw])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
DSN_EXAMPLE: Final = "postgresql://user:password@host:5432/database"


def parse_when(text: str, *, now: datetime, local: bool = False) -> datetime:
    """Read a time: ``15m``, ``2h``, ``7d``, ``4w`` ago, ``now``, or an ISO date or time.

    Args:
        text: what the user typed.
        now: what ``15m`` is counted back from, with a time zone.
        local: whether a time without a zone is local time; otherwise it is UTC.

    Raises:
        ValueError: it is none of these; the message names the fix.
    """
    if text.strip().lower() == "now":
        return now
    ago = _AGO.fullmatch(text.strip().lower())
    try:
        if ago:
            return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        moment = datetime.fromisoformat(text.strip())
        if moment.tzinfo is None:
            moment = moment.astimezone() if local else moment.replace(tzinfo=UTC)
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError("not a time; use 15m, 2h, 7d, now, 2026-05-01 or 2026-05-01T09:30+02:00") from None


if TYPE_CHECKING:
    _DatetimeType = click.ParamType[datetime]
else:  # click before 8.5 has no type parameter here
    _DatetimeType = click.ParamType


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


WHEN: Final = _When()
"""Option type of a time."""


def _checked(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Hold an option against the same rule as the setting of that name."""
    setting = _SETTINGS[f"postgres_{param.name}"]
    if value is None:
        return None
    try:
        return str(setting.parse(value))
    except ValueError as error:
        shown = mask_dsn(value) if setting.secret else value
        raise click.BadParameter(f"{shown!r}: {error}", ctx, param) from None


def store_options(command: F) -> F:
    """Add ``--dsn`` and ``--schema``; the command gets ``dsn`` (may be `None`) and ``schema``."""
    dsn = click.option(
        "--dsn",
        envvar="OTEL_ACTIVITY_POSTGRES_DSN",
        metavar="DSN",
        callback=_checked,
        help="The PostgreSQL that holds the events. [env: OTEL_ACTIVITY_POSTGRES_DSN]",
    )
    schema = click.option(
        "--schema",
        envvar="OTEL_ACTIVITY_POSTGRES_SCHEMA",
        default="activity",
        show_default=True,
        metavar="NAME",
        callback=_checked,
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
