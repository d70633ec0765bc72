"""For the tests of applications: see the audit events that a piece of code commits, without a store."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from otel_activity import actions, semconv
from otel_activity.capture import SQLAlchemyCapture
from otel_activity.events import Commit
from otel_activity.frameworks import WebHooks
from otel_activity.redaction import Redactor
from otel_activity.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from otel_activity.events import Event, Unit

__all__ = ["Recorder", "recorded_events"]


class Recorder:
    """A `ports.Delivery` that keeps in memory what was committed.

    Attributes:
        events: committed events, in the order of their release.
        aborted_changes: how many changes were rolled back with their transaction.
        undecided_changes: how many changes have an unknown fate; their events are in `events`, too.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.aborted_changes = 0
        self.undecided_changes = 0

    def prepare(self, unit: Unit) -> None:
        """Nothing to do: memory needs no preparation."""

    def committed(self, unit: Unit) -> None:
        """Keep the events of the unit."""
        self.events.extend(unit.events())

    def aborted(self, unit: Unit) -> None:
        """Count what was rolled back."""
        self.aborted_changes += len(unit)

    def undecided(self, unit: Unit, error: BaseException | None) -> None:
        """Keep the events, which say that their commit is unknown."""
        unit.commit = Commit.UNKNOWN
        self.undecided_changes += len(unit)
        self.events.extend(unit.events())

    def of(self, entity_type: str) -> list[Event]:
        """The events of one type of entity."""
        return [event for event in self.events if event.attributes.get(semconv.ENTITY_TYPE) == entity_type]

    def clear(self) -> None:
        """Forget everything recorded so far."""
        self.events.clear()
        self.aborted_changes = self.undecided_changes = 0


@contextmanager
def recorded_events(**settings: Any) -> Iterator[Recorder]:
    """Record the audit events of everything that is committed inside, of user actions and logins.

    The environment is not read. Do not use it while the process is instrumented: each change would be
    captured by both.

    Args:
        **settings: those of `Settings` that say what is captured, and who acts.

    Raises:
        ConfigurationError: a setting is unknown or wrong.

    >>> with recorded_events() as recorder:  # doctest: +SKIP
    ...     session.add(Task(name="write tests"))
    ...     session.commit()
    >>> [event.name for event in recorder.events]  # doctest: +SKIP
    ['activity.entity.created']
    """
    resolved = Settings.from_env({}, **settings)
    recorder = Recorder()
    redactor = Redactor.configured(resolved)
    capture = SQLAlchemyCapture(
        recorder,
        redactor=redactor,
        include=resolved.include,
        exclude=resolved.exclude,
        fetch_before=resolved.fetch_before,
        value_length_limit=resolved.value_length_limit,
    )
    capture.install()
    actions.use(capture.actions)
    web = WebHooks(resolved, sink=capture.actions, scrub=redactor.scrub_attributes)
    web.install()
    try:
        yield recorder
    finally:
        web.uninstall()
        actions.use(None)
        capture.uninstall()
