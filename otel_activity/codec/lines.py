"""Lines of COPY, each with what its writer must know of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from otel_activity.codec.rows import copy_line, escaped, plain_resource, resource_id

if TYPE_CHECKING:
    from otel_activity.events import Event, ResourceInfo

__all__ = ["EventRow", "Origin", "Row", "origin_of", "row_of"]


class Row(msgspec.Struct, gc=False):
    """An event as it goes to the table.

    Attributes:
        time: of the event, nanoseconds since the epoch.
        line: for COPY; empty when the event cannot be a row.
        resource: id of its resource.
        reason: why it cannot be a row.
    """

    time: int
    line: bytes
    resource: str
    reason: str = ""

    def event(self) -> Event:
        """The event itself, for the quarantine."""
        raise NotImplementedError


class EventRow(Row):
    """The row of an event that is at hand."""

    source: Any = None

    def event(self) -> Event:
        found: Event = self.source
        return found.unpacked()


class Origin(NamedTuple):
    """A resource, and what its events have of it in their rows."""

    resource: ResourceInfo
    """As it can be stored."""
    key: str
    service: str
    fields: bytes
    """Service and id of the resource, as a line has them."""


def origin_of(resource: ResourceInfo) -> Origin:
    """What the rows of a resource's events need of it."""
    plain = plain_resource(resource)
    key, service = resource_id(plain), plain.service_name
    return Origin(plain, key, service, f"{escaped(service)}\t{key}".encode())


def row_of(event: Event, service: str, key: str) -> Row:
    """The row of any event, by `rows.copy_line`; `service` and `key` are its `Origin`'s."""
    try:
        return EventRow(event.time, copy_line(event, service, key), key, "", event)
    except Exception as error:  # noqa: BLE001 - one odd record must never cost the batch
        return EventRow(event.time, b"", key, f"{type(error).__name__}: {error}", event)
