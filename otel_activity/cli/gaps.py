"""``otel-activity doctor --gaps``: what is missing in the store, and what explains it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from otel_activity.cli.render import json_line, many, note, printable, say
from otel_activity.store.gaps import Kind, examine

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from otel_activity.store.gaps import Examined, Finding

__all__ = ["report_gaps"]


def report_gaps(
    dsn: str, schema: str, *, since: datetime, until: datetime | None, grace: timedelta, as_json: bool
) -> bool:
    """Write what is missing; whether all of it is explained.

    Raises:
        ActivityError: the store cannot be asked.
    """
    examined = examine(dsn, schema, since=since, until=until, grace=grace)
    for finding in examined.findings:
        say(json_line(_as_json(finding)) if as_json else _line(finding))
    open_ones = sum(finding.explanation is None for finding in examined.findings)
    if not as_json:
        span = f"since {_moment(since)}" + (f" until {_moment(until)}" if until else "")
        _sum_up(examined, span, open_ones)
    return open_ones == 0


def _sum_up(examined: Examined, span: str, open_ones: int) -> None:
    """Nothing found is an answer only together with what was looked at, and what could not show there."""
    if not examined.streams:
        note(f"{span}: no events, so nothing to judge")
        return
    looked_at = f"{many(examined.events, 'event')} of {many(examined.streams, 'stream')}"
    found = f"{many(len(examined.findings), 'gap')} found, {open_ones} of them unexplained"
    note(f"{span}: {looked_at}; {found}")
    if examined.silent:
        note(
            f"{examined.silent} of the streams without beats: a lost end of theirs would not show; "
            "set OTEL_ACTIVITY_HEARTBEAT=60 in the service (a relay needs none)"
        )


def _as_json(finding: Finding) -> dict[str, object]:
    return {
        "kind": finding.kind,
        "service": finding.service,
        "stream": str(finding.stream),
        "begin": finding.begin.isoformat(),
        "end": None if finding.end is None else finding.end.isoformat(),
        "first": finding.first,
        "last": finding.last,
        "count": finding.count,
        "explained": finding.explanation is not None,
        "explanation": finding.explanation,
    }


def _line(finding: Finding) -> str:
    level = "GAP " if finding.explanation is None else "ok  "
    why = finding.explanation or "NOT EXPLAINED"
    where = f"{finding.service} stream {finding.stream}"
    return printable(f"{level}  {finding.kind:<10} {_what(finding)}; {where}; {why}")


def _what(finding: Finding) -> str:
    if finding.kind is Kind.HOLE:
        places = f"{finding.first}" if finding.count == 1 else f"{finding.first} to {finding.last}"
        return f"{many(finding.count, 'event')} missing at {places}, before {_moment(finding.begin)}"
    if finding.kind is Kind.TAIL:
        return f"not closed, silent since {_moment(finding.begin)}"
    span = f"{_moment(finding.begin)} to {_moment(finding.end)}"
    if finding.kind is Kind.UNAUDITED:
        return f"no process was audited from {span}"
    if finding.count is None:
        return f"events lost, of which a gap record of {_moment(finding.begin)} does not say how many"
    return f"{many(finding.count, 'event')} lost, {span}"


def _moment(moment: datetime | None) -> str:
    return "now" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S}"
