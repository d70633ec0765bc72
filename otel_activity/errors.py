"""The exception tree. A message names what was wrong, the value (secrets masked) and the fix."""

from __future__ import annotations

import traceback
from typing import Final

__all__ = [
    "ActivityError",
    "ConfigurationError",
    "DeliveryRefused",
    "ExportError",
    "OutboxError",
    "SchemaError",
    "StoreRefused",
    "StoreUnavailable",
    "without_messages",
]


LONGEST_SHOWN: Final = 200
"""Characters of a wrong value that a message shows."""


def without_messages(error: BaseException | None) -> str:
    """The traceback of an error and of its causes, for a log. No messages: they may quote values."""
    if error is None:
        return ""
    lines: list[str] = []
    seen: set[int] = set()
    part: BaseException | None = error
    while part is not None and id(part) not in seen:
        seen.add(id(part))
        kind = type(part)
        stack = "".join(traceback.format_tb(part.__traceback__))
        lines.insert(0, f"{stack}{kind.__module__}.{kind.__qualname__}")
        part = part.__cause__ or (None if part.__suppress_context__ else part.__context__)
    return "\n".join(lines)


class ActivityError(Exception):
    """Anything that otel_activity raises on purpose."""


class ConfigurationError(ActivityError):
    """A setting is wrong in itself.

    Attributes:
        variable: the environment variable (or argument) that is wrong.
        value: what it was set to, secrets masked.
        fix: what to do instead.
    """

    def __init__(self, variable: str, value: str, problem: str, fix: str) -> None:
        shown = value if len(value) <= LONGEST_SHOWN else f"{value[:LONGEST_SHOWN]}..."
        super().__init__(f"{variable}={shown!r}: {problem}; {fix}")
        self.variable = variable
        self.value = value
        self.problem = problem
        self.fix = fix


class DeliveryRefused(ActivityError):
    """A transaction's events cannot be kept, so it is not committed (``OTEL_ACTIVITY_OVERFLOW=fail``)."""


class OutboxError(ActivityError):
    """A transaction's events cannot be written to its outbox, so it is not committed (strict delivery)."""


class ExportError(ActivityError):
    """A batch was not taken by an exporter and may be sent again.

    Attributes:
        pause: seconds that the receiver asks to be left alone before that.
    """

    def __init__(self, *args: object, pause: float = 0.0) -> None:
        super().__init__(*args)
        self.pause = pause


class StoreUnavailable(ExportError):
    """The store cannot be reached or went away: no server, connection lost, shutting down."""


class StoreRefused(ExportError):
    """The store answered and refuses: wrong password, no permission, missing or newer schema.

    Kept apart from `StoreUnavailable` because only a person can mend it; delivery retries both.
    """


class SchemaError(ActivityError):
    """The store's schema cannot be applied or does not fit this version of the code."""
