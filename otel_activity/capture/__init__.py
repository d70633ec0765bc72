"""Capture: what SQLAlchemy's unit of work wrote, and whether it was committed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from otel_activity.capture.action import ActionRecorder
from otel_activity.capture.asking import AskingHooks
from otel_activity.capture.bracket import Bracket
from otel_activity.capture.dialects import DialectHooks
from otel_activity.capture.internals import InternalHooks, problems
from otel_activity.capture.mapper import MapperHooks
from otel_activity.capture.patterns import Known, misspelt
from otel_activity.capture.plan import Planner
from otel_activity.capture.pools import Pools, PoolUsage
from otel_activity.capture.proof import ProofReader
from otel_activity.capture.timing import WaitHooks
from otel_activity.classes import Classes

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_activity.capture.timing import Timings
    from otel_activity.ports import Delivery

__all__ = ["PoolUsage", "ProofReader", "SQLAlchemyCapture", "check"]

check = problems


class SQLAlchemyCapture:
    """Everything that is hooked into SQLAlchemy, installed and removed as one.

    Args:
        delivery: where finished units go.
        redactor: tells secret columns and cleans nested values, see `otel_activity.redaction.Redactor`.
        include: patterns of table names to capture; empty means all.
        exclude: patterns of table names to leave out.
        fetch_before: read unknown before-values from the database.
        value_length_limit: longest value kept whole.
        proofs: reads the databases' own ids of transactions; None for no proofs.
        timings: is told how long statements take; None when nobody wants to know.
        classes: knows the delivery classes of entities and actions; without it all have the default.
        forked: called in a process of which nobody has told that it was forked, before anything is captured.
    """

    def __init__(
        self,
        delivery: Delivery,
        *,
        redactor: Any,
        include: tuple[str, ...] = (),
        exclude: tuple[str, ...] = (),
        fetch_before: bool = False,
        value_length_limit: int = 65_536,
        proofs: ProofReader | None = None,
        timings: Timings | None = None,
        classes: Classes | None = None,
        forked: Callable[[], object] | None = None,
    ) -> None:
        classes = classes or Classes()
        self._include, self._exclude, self._classes = include, exclude, classes
        planner = Planner(
            redactor=redactor, include=include, exclude=exclude, limit=value_length_limit, classes=classes
        )
        self._bracket = Bracket(delivery, proofs, forked)
        self._parts: tuple[Any, ...] = (
            *(() if proofs is None else (proofs,)),
            DialectHooks(self._bracket, timings),
            *(() if timings is None else (WaitHooks(timings),)),
            AskingHooks(),
            MapperHooks(self._bracket, planner, fetch_before=fetch_before),
            InternalHooks(self._bracket, planner, fetch_before=fetch_before),
        )
        self.actions = ActionRecorder(self._bracket, planner, redactor, value_length_limit, classes)
        self.installed = False

    @property
    def pools(self) -> Pools:
        """Connection pools of the engines that were audited."""
        return self._bracket.pools

    def install(self) -> None:
        """Hook into SQLAlchemy: sessions and engines of before and after, sync and async."""
        if not self.installed:
            for part in self._parts:
                part.install()
            self.installed = True

    def uninstall(self) -> None:
        """Restore every attribute that `install` changed."""
        if self.installed:
            for part in reversed(self._parts):
                part.uninstall()
            self.installed = False

    def misspelt(self) -> list[str]:
        """One line for each pattern of the settings that named nothing until now; to be asked at the end."""
        unmatched = self._classes.unmatched
        if not (self._include or self._exclude or unmatched):
            return []
        return list(misspelt(Known(), include=self._include, exclude=self._exclude, rules=unmatched))

    def after_fork(self) -> None:
        """Forget the parent's open transactions."""
        self._bracket.after_fork()
