"""Lines of COPY from attributes that are still encoded texts: the receiver's way to `rows.copy_line`.

A receiver has an event's attributes as bytes. Making Python values of them, and bytes of those, is most of
the work of decoding. Here each attribute becomes a *fragment* on its own: the field of a column, or a
member of the column ``attributes``; fragments of attributes that repeat are kept by the caller. What is not
usual has no fragment, and then the event takes the long way. The bytes are the same either way; a test
compares them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from otel_activity import semconv
from otel_activity.codec.rows import (
    COLUMN_ATTRIBUTES,
    COLUMN_TEXT_LIMIT,
    LABEL_LIMIT,
    copy_line,
    escaped,
    is_uuid,
    plain_resource,
    resource_id,
    timestamp,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otel_activity.events import Event, ResourceInfo

__all__ = [
    "CHANGES",
    "FIELDS",
    "ID",
    "Fragment",
    "Origin",
    "Row",
    "fragment",
    "is_plain",
    "line",
    "origin_of",
    "row_of",
    "text_fragment",
]

Fragment = tuple[int, bytes]
"""The number of the field, or `MEMBER`; and its bytes."""
MEMBER: Final = -1
"""Not a field but a member of the column ``attributes``."""

_SLOTS: Final = {name: number for number, name in enumerate(COLUMN_ATTRIBUTES.values())}
CHANGES: Final = _SLOTS[semconv.CHANGES]
_SEQUENCE: Final = _SLOTS[semconv.SEQUENCE]
_UUIDS: Final = frozenset({_SLOTS[semconv.TRANSACTION_ID], _SLOTS[semconv.STREAM_ID]})
ID: Final = len(_SLOTS)
"""The field of the event's id, after those of the attributes."""
FIELDS: Final = (b"",) * (ID + 1)
"""All fields, empty."""
_NAMES: Final = {name.encode(): number for name, number in _SLOTS.items()} | {semconv.RECORD_UID.encode(): ID}

_encode: Final = msgspec.json.Encoder().encode


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


class _EventRow(Row):
    source: Any = None

    def event(self) -> Event:
        found: Event = self.source
        return found


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
        return _EventRow(event.time, copy_line(event, service, key), key, "", event)
    except Exception as error:  # noqa: BLE001 - one odd record must never cost the batch
        return _EventRow(event.time, b"", key, f"{type(error).__name__}: {error}", event)


def is_plain(text: str) -> bool:
    """Whether a text is the same in JSON, in a field of COPY and in itself."""
    return text.isprintable() and '"' not in text and "\\" not in text


def text_fragment(name: bytes, value: bytes) -> Fragment | None:
    """The fragment of an attribute that is a text, both in UTF-8; None if it is not usual.

    Raises:
        UnicodeDecodeError: they are not UTF-8.
    """
    # With a space between them: two damaged texts can make a whole one.
    if not is_plain((b"%b %b" % (name, value)).decode()):
        return None
    slot = _NAMES.get(name)
    if slot is None:
        return MEMBER, b'"%b":"%b"' % (name, value)
    if slot < CHANGES and slot != _SEQUENCE:
        if not 0 < len(value) <= COLUMN_TEXT_LIMIT or (slot in _UUIDS and not is_uuid(value.decode())):
            return None
        return slot, value
    return (slot, value) if slot == ID and value else None


def fragment(name: str, value: Any) -> Fragment | None:
    """The fragment of an attribute with a plain JSON value that is no text; None if it is not usual."""
    slot = _SLOTS.get(name)
    if slot is None:
        member = _encode({name: value})[1:-1]
        if name == semconv.RECORD_UID or b"\\u0000" in member:
            return None
        return MEMBER, member.replace(b"\\", b"\\\\")
    if slot == _SEQUENCE and type(value) is int:
        return slot, b"%d" % value
    if slot == CHANGES and value is not None:
        document = _encode(value)
        return None if b"\\u0000" in document else (slot, document.replace(b"\\", b"\\\\"))
    return None


def line(
    record: Any, time: int, fields: Sequence[bytes], members: Sequence[bytes], origin: bytes
) -> bytes | None:
    """The line of a record whose attributes all have fragments; None when only `rows.copy_line` can say.

    Args:
        record: with the names of ``LogRecord``'s fields that an event has.
        time: of the event, nanoseconds since the epoch.
        fields: bytes by the numbers of fragments.
        members: fragments of the column ``attributes``.
        origin: `Origin.fields`.
    """
    observed, trace, span, name = record.observed, record.trace_id, record.span_id, record.name
    found = b"%b\t%b\t%b\t%d\t%d\t%b\t%b\t%b\t%b\t%b\t%b\t{%b}\n" % (
        timestamp(time).encode(),
        fields[ID],
        timestamp(observed).encode() if observed else b"",
        record.severity,
        record.flags & 0xFF,
        trace.hex().encode() if trace and any(trace) else b"",
        span.hex().encode() if span and any(span) else b"",
        _name(name) if len(name) <= LABEL_LIMIT else escaped(name).encode(),
        b"\t".join(fields[:CHANGES]),
        origin,
        fields[CHANGES],
        b",".join(members),
    )
    return None if not fields[ID] or b'$json"' in found else found


@lru_cache(maxsize=1_024)
def _name(name: str) -> bytes:
    return escaped(name).encode()
