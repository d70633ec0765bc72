"""What both encodings of OTLP are decoded to, and the rules that hold for both."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from otel_activity import semconv
from otel_activity.errors import ActivityError

if TYPE_CHECKING:
    from otel_activity.codec.lines import Row
    from otel_activity.events import ResourceInfo

__all__ = [
    "MAX_DEPTH",
    "MAX_RECORDS",
    "MAX_VALUES",
    "PREFIX",
    "BadRequest",
    "Decoded",
    "TooLarge",
    "event_id",
    "is_ours",
]

MAX_RECORDS: Final = 50_000
"""Records of one request. Tiny ones would otherwise take many times the memory of the request."""
MAX_VALUES: Final = 200_000
"""Values nested in one record, for the same reason."""
MAX_DEPTH: Final = 100
"""Nesting of messages, as every protobuf parser has it."""

PREFIX: Final = "activity."
"""Of the names of all our events."""


class BadRequest(ActivityError):
    """The request is not OTLP, and sending it again changes nothing. The message quotes no value of it."""


class TooLarge(BadRequest):
    """The request is larger than the receiver takes."""


@dataclass(slots=True)
class Decoded:
    """One request, decoded.

    Attributes:
        rows: our events.
        resources: theirs, by id.
        records: how many records there were.
        foreign: how many of them are not ours.
        parts: how many resources and scopes they stand in, empty ones included.
    """

    rows: list[Row] = field(default_factory=list)
    resources: dict[str, ResourceInfo] = field(default_factory=dict)
    records: int = 0
    foreign: int = 0
    parts: int = 0

    def count_part(self) -> None:
        """Add a resource or a scope.

        Raises:
            TooLarge: there are too many in the request; empty ones cost time, too.
        """
        self.parts += 1
        if self.parts > MAX_RECORDS:
            raise TooLarge(f"more than {MAX_RECORDS} resources and scopes; send smaller batches")

    def count(self, records: int) -> None:
        """Add records of one scope.

        Raises:
            TooLarge: there are too many in the request.
        """
        self.records += records
        if self.records > MAX_RECORDS:
            raise TooLarge(f"more than {MAX_RECORDS} records; send smaller batches")


def is_ours(scope: str, name: str) -> bool:
    """Whether a record is an audit event, by its scope's name and its event name."""
    return scope == semconv.SCOPE_NAME and name.startswith(PREFIX)


def event_id(attributes: dict[str, Any]) -> str:
    """Take the id out of the attributes; empty when there is none, and then it stays where it was."""
    uid = attributes.get(semconv.RECORD_UID)
    if type(uid) is not str:
        return ""
    del attributes[semconv.RECORD_UID]
    return uid
