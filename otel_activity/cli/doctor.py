"""``otel-activity doctor``: would this environment be audited, and does the store work?"""

from __future__ import annotations

import os
import textwrap
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import click

from otel_activity.cli.app import EXIT_FAILED
from otel_activity.cli.checks import Check, Level, environment_checks, left_behind
from otel_activity.cli.options import WHEN, json_option, require_dsn, unchecked_store_options
from otel_activity.cli.render import json_line, note, output_width, printable, say
from otel_activity.settings import FIELDS, Settings, on_terminal

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["doctor"]

_COLORS: Final = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "red"}
_TITLE: Final = 19
DEFAULT_RANGE: Final = timedelta(days=1)
"""What `--gaps` looks at unless told otherwise; each event of the range is read once."""


@click.command()
@click.option("--settings", "only_settings", is_flag=True, help="Print every setting instead of checking.")
@click.option("--gaps", is_flag=True, help="Look for what is missing in the store instead.")
@click.option("--since", type=WHEN, help="With --gaps: from this time on. [default: 1d]")
@click.option("--until", type=WHEN, help="With --gaps: before this time. [default: now]")
@click.option(
    "--grace",
    type=click.FloatRange(0, 86_400),
    default=60.0,
    show_default=True,
    help="With --gaps: seconds that an event may take to the store.",
)
@json_option
@unchecked_store_options
@click.pass_context
def doctor(
    ctx: click.Context,
    dsn: str | None,
    schema: str,
    only_settings: bool,
    gaps: bool,
    since: datetime | None,
    until: datetime | None,
    grace: float,
    as_json: bool,
) -> None:
    """Check the installation, the settings and the store; one line for each check.

    The exit status is 1 if any check fails, or if --gaps finds what nothing explains. Changes nothing.
    Secrets are masked.
    """
    if gaps:
        from otel_activity.cli.gaps import report_gaps

        since = since or datetime.now(UTC) - DEFAULT_RANGE
        wait = timedelta(seconds=grace)
        complete = report_gaps(
            require_dsn(dsn), schema, since=since, until=until, grace=wait, as_json=as_json
        )
        _note_left_behind()
        if not complete:
            ctx.exit(EXIT_FAILED)
        return
    if since or until:
        raise click.UsageError("--since and --until say where to look for gaps; add --gaps")
    if only_settings:
        _write_settings(as_json)
        return
    checks = environment_checks(os.environ, interactive=on_terminal(), dsn_given=dsn is not None)
    checks += _store_checks(dsn, schema)
    checks += _outbox_checks()
    _write(checks, as_json)
    if any(check.level is Level.FAIL for check in checks):
        ctx.exit(EXIT_FAILED)


def _store_checks(dsn: str | None, schema: str) -> list[Check]:
    if dsn is None:
        text = "not checked: no OTEL_ACTIVITY_POSTGRES_DSN"
        return [Check("store", Level.WARN, text, "set it, or use --dsn, to have it checked")]
    try:
        from otel_activity.cli.storechecks import store_checks
    except ImportError as error:
        fix = 'pip install "otel-activity[binary]"'
        return [Check("store", Level.FAIL, f"the driver does not load: {' '.join(str(error).split())}", fix)]
    exporting = "postgres" in _exporters()
    return store_checks(dsn, schema, exporting=exporting)


def _outbox_checks() -> list[Check]:
    settings = _readable_settings()
    if settings is None or not settings.active or "strict" not in settings.deliveries:
        return []
    try:
        from otel_activity.cli.storechecks import outbox_check
    except ImportError:  # reported by the check of the store
        return []
    return [outbox_check(settings)]


def _note_left_behind() -> None:
    """What is missing in a store may wait on this machine; to be said where people ask what is missing."""
    settings = _readable_settings()
    left = None if settings is None or not settings.active else left_behind(settings, os.environ)
    if left is not None:
        note(printable(f"{left.text}; {left.fix}"))


def _exporters() -> tuple[str, ...]:
    settings = _readable_settings()
    return () if settings is None else settings.exporters


def _readable_settings() -> Settings | None:
    from otel_activity.errors import ConfigurationError

    try:
        return Settings.from_env()
    except ConfigurationError:  # reported by the check of the settings
        return None


# --- output ---------------------------------------------------------------------------------------


def _write(checks: Sequence[Check], as_json: bool) -> None:
    if as_json:
        for check in checks:
            say(
                json_line(
                    {"check": check.name, "status": check.level, "message": check.text, "fix": check.fix}
                )
            )
        return
    for check in checks:
        for line in _lines(check, output_width()):
            say(line)
    failed, warned = (sum(check.level is level for check in checks) for level in (Level.FAIL, Level.WARN))
    say("")
    say(f"{len(checks)} checks: {failed} failed, {warned} with a warning")


def _lines(check: Check, width: int | None) -> list[str]:
    text = check.text if check.fix is None else f"{check.text}; {check.fix}"
    text = f"{check.name:<{_TITLE}}{printable(text)}"
    body = (
        [text]
        if width is None
        else textwrap.wrap(text, max(width - 6, 40), subsequent_indent=" " * _TITLE, break_on_hyphens=False)
    )
    label = f"{check.level:<4}"
    if "NO_COLOR" not in os.environ:
        label = click.style(label, fg=_COLORS[check.level], bold=check.level is Level.FAIL)
    return [f"{label}  {body[0]}", *(f"      {line}" for line in body[1:])]


def _write_settings(as_json: bool) -> None:
    defaults = Settings()
    for field in FIELDS:
        given = os.environ.get(field.variable, "").strip() or None
        row: dict[str, Any] = {
            "variable": field.variable,
            "value": field.shown(given) if given else given,
            "default": getattr(defaults, field.name),
            "help": field.help,
        }
        if as_json:
            say(json_line(row))
        else:
            _write_setting(row)


def _write_setting(row: dict[str, Any]) -> None:
    default = row["default"]
    shown = ",".join(default) if isinstance(default, tuple) else default
    if isinstance(shown, bool):
        shown = str(shown).lower()
    elif shown in (None, ""):
        shown = "unset"
    value = "(not set)" if row["value"] is None else printable(row["value"])
    say(f"{row['variable']} = {value}")
    for line in textwrap.wrap(f"{row['help']} Default: {shown}.", max((output_width() or 100) - 4, 40)):
        say(f"    {line}")
