"""From rounds to rows: measured, budget and verdict, for people and for programs."""

from __future__ import annotations

from statistics import quantiles
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.runner import Round

__all__ = ["Row", "as_text", "component_row", "ratio_rows", "row"]

LATENCY: Final = "latency"
FAST: Final = "latency, fastest tenth"
CLIENT_CPU: Final = "client CPU"
DATABASE_CPU: Final = "database CPU"
CPU_AN_EVENT: Final = "CPU an event"
THREAD_AN_EVENT: Final = "of it capture + enqueue"

# Against the same work without auditing. They bind our variants; triggers are what we compare with.
RATIO_BUDGETS: Final[dict[tuple[str, str], float]] = {
    ("request", LATENCY): 1.03,
    ("request", CLIENT_CPU): 1.08,
    ("request", DATABASE_CPU): 1.20,
    ("insert", LATENCY): 1.08,
}
PROVEN_NEARBY: Final = 1.06
"""Latency of a request with proof of commit, where a round trip is short against the query itself."""
STRICT: Final = 1.15
"""Latency of a request whose transaction writes its own events."""
EVENT_BUDGETS: Final = {CPU_AN_EVENT: 25.0, THREAD_AN_EVENT: 10.0}
"""Microseconds of client CPU beyond that of the work: from capture to the confirmed row, and in the thread
that does the work."""
PART_BUDGETS: Final = {
    "export / plain COPY": 1.25,  # 0.8 of its speed
    "export: OTLP / stock encoder": 0.25,
}
HEADINGS: Final = ("what", "variant", "measure", "median", "middle half", "budget", "verdict")


class Row(msgspec.Struct, kw_only=True, frozen=True):
    """One line of the result.

    Attributes:
        what: the work.
        variant: the way of auditing.
        measure: what was measured.
        unit: ``x`` for a ratio (to no auditing, if nothing else is said), ``us`` for microseconds an event,
            ``/s`` for events a second, ``MB``.
        value: the median of all pairs; None when it cannot be measured here.
        low, high: the quartiles: half of the pairs lie between them.
        budget: the most it may be, of events a second the least; None where there is none.
    """

    what: str
    variant: str
    measure: str
    unit: str
    value: float | None
    low: float | None = None
    high: float | None = None
    budget: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the median keeps the budget; None without budget or measurement."""
        if self.budget is None or self.value is None:
            return None
        return self.value >= self.budget if self.unit == "/s" else self.value <= self.budget

    def cells(self) -> tuple[str, ...]:
        """The line as texts, in the order of `HEADINGS`."""
        spread = (
            ""
            if self.low is None or self.high is None
            else f"{self._text(self.low)}..{self._text(self.high)}"
        )
        verdict = {True: "met", False: "NOT MET", None: ""}[self.met]
        budget = "" if self.budget is None else f"{self._text(self.budget)} {self.unit}"
        value = "n/a" if self.value is None else f"{self._text(self.value)} {self.unit}"
        return (self.what, self.variant, self.measure, value, spread, budget, verdict)

    def _text(self, number: float) -> str:
        if self.unit == "x":
            return f"{number:.3f}"
        return f"{number:,.1f}" if self.unit == "us" else f"{number:,.0f}"


def ratio_rows(rounds: Sequence[Round]) -> list[Row]:
    """The rows of all the rounds of one plan and one variant."""
    plan = rounds[0].plan
    variant = rounds[0].variant
    pairs = [pair for one in rounds for pair in one.pairs]
    measures: dict[str, list[float | None]] = {
        LATENCY: [pair.latency for pair in pairs],
        FAST: [pair.fast for pair in pairs],
        CLIENT_CPU: [pair.client_cpu for pair in pairs],
        DATABASE_CPU: [pair.server_cpu for pair in pairs],
    }
    rows = [
        row(
            plan.name,
            variant,
            name,
            "x",
            values,
            _ratio_budget(plan.workload, variant, name, nearby=not plan.round_trip),
        )
        for name, values in measures.items()
    ]
    if variant != "triggers" and not plan.round_trip:
        event_rows: dict[str, list[float | None]] = {
            CPU_AN_EVENT: [pair.cpu_an_event for pair in pairs],
            THREAD_AN_EVENT: [pair.thread_an_event for pair in pairs],
        }
        rows += [
            row(plan.name, variant, name, "us", values, EVENT_BUDGETS[name])
            for name, values in event_rows.items()
        ]
    return rows


def component_row(workload: str, part: str, values: Sequence[float]) -> Row:
    """The row of one part of the pipeline, driven alone, in several repetitions."""
    return row(workload, "parts", part, "x" if "/" in part else "us", values, PART_BUDGETS.get(part))


def as_text(rows: Sequence[Row]) -> str:
    """The rows as a table for people."""
    lines = [HEADINGS, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    numbers = {3, 4, 5}
    out = []
    for line in lines:
        cells = [
            text.rjust(width) if column in numbers else text.ljust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ]
        out.append("  ".join(cells).rstrip())
    out.insert(1, "-" * max(len(line) for line in out))
    return "\n".join(out)


def row(
    what: str, variant: str, measure: str, unit: str, values: Sequence[float | None], budget: float | None
) -> Row:
    """The row of values that were measured again and again."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return Row(what=what, variant=variant, measure=measure, unit=unit, value=None, budget=budget)
    low, middle, high = quantiles(known, method="inclusive") if len(known) > 1 else known * 3
    return Row(
        what=what,
        variant=variant,
        measure=measure,
        unit=unit,
        value=middle,
        low=low,
        high=high,
        budget=budget,
    )


def _ratio_budget(workload: str, variant: str, measure: str, *, nearby: bool) -> float | None:
    if variant == "triggers" or (variant != "same" and measure == DATABASE_CPU):
        return None
    if variant == "proven" and (workload, measure) == ("request", LATENCY):
        return PROVEN_NEARBY if nearby else RATIO_BUDGETS[workload, measure]
    if variant == "strict" and (workload, measure) == ("request", LATENCY):
        return STRICT
    return RATIO_BUDGETS.get((workload, measure))
