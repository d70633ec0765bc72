"""Events as OTLP bytes: the protobuf wire form of ``ExportLogsServiceRequest``, written by hand.

Pure: no connection. The bytes mean exactly what the SDK's encoder makes of the same record; building its
message objects first costs many times as much. What repeats from event to event is encoded once: names, and
the values of attributes that have few.

The wire form (https://protobuf.dev/programming-guides/encoding/): a field is a tag byte, which is the field's
number times 8 plus its kind, and a value; texts and messages are preceded by their length. A request of two
resources is two requests of one, joined.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from otel_activity import semconv
from otel_activity.codec.values import encode

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from otel_activity.events import Event

__all__ = ["Envelope", "envelope", "log_request"]

_REPEATED: Final = frozenset(
    {
        semconv.ACTIVITY_ACTION,
        semconv.ACTIVITY_OUTCOME,
        semconv.ACTIVITY_SCHEMA_VERSION,
        semconv.ACTOR_TYPE,
        semconv.CAPTURE,
        semconv.CLIENT_ADDRESS,
        semconv.COMMIT,
        semconv.DB_COLLECTION_NAME,
        semconv.DB_NAMESPACE,
        semconv.DB_OPERATION_NAME,
        semconv.DB_SYSTEM_NAME,
        semconv.ENTITY_TYPE,
        semconv.PROJECT_ID,
        semconv.REQUEST_ID,
        semconv.REQUEST_METHOD,
        semconv.ROUTE,
        semconv.STREAM_ID,
        semconv.TENANT_ID,
        semconv.TRANSACTION_ID,
        semconv.USER_AGENT,
        semconv.USER_ID,
        semconv.USER_NAME,
    }
)
"""Attributes whose values come again, at least within a request: encoded once, while remembered."""
_LONGEST_REMEMBERED: Final = 256
"""Characters of a value; what is remembered stays below a few megabytes."""

_VARINTS: Final = tuple(
    bytes((number,)) if number < 0x80 else bytes((number & 0x7F | 0x80, number >> 7))
    for number in range(2_048)
)
_DOUBLE: Final = Struct("<Bd").pack
_FIXED32: Final = Struct("<BI").pack
_FIXED64: Final = Struct("<BQ").pack
_NULL_BODY: Final = b"\x2a\x00"
"""The field is there and holds nothing, as the SDK writes it."""
_LEVELS: Final = ("TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL")


class Envelope(NamedTuple):
    """What a request has around its records."""

    resource: bytes
    resource_end: bytes
    scope: bytes
    scope_end: bytes


def envelope(
    resource: Mapping[str, Any], resource_schema_url: str, scope: str, version: str, schema_url: str
) -> Envelope:
    """What the records of one resource and one scope have in common.

    Args:
        resource: its attributes, as plain JSON values.
        resource_schema_url: may be empty.
        scope: name of the instrumentation scope.
        version: of the scope; may be empty.
        schema_url: of the scope; may be empty.
    """
    attributes = b"".join([_field(b"\x0a", _pair(key, value)) for key, value in resource.items()])
    return Envelope(
        resource=_field(b"\x0a", attributes),
        resource_end=_text(b"\x1a", resource_schema_url),
        scope=_field(b"\x0a", _text(b"\x0a", scope) + _text(b"\x12", version)),
        scope_end=_text(b"\x1a", schema_url),
    )


def log_request(around: Envelope, events: Iterable[Event]) -> bytes:
    """An ``ExportLogsServiceRequest`` with these events; several of them joined are one, too."""
    records = b"".join([_record(event) for event in events])
    scope_logs = _field(b"\x12", around.scope + records + around.scope_end)
    return _field(b"\x0a", around.resource + scope_logs + around.resource_end)


# --- a record -------------------------------------------------------------------------------------


def _record(event: Event) -> bytes:
    """One element of ``log_records``, with its tag and length."""
    try:
        record = _written(event, event.attributes)
    except Exception:  # noqa: BLE001 - a value that is not plain costs itself, not the batch
        record = _written(event, encode(event.plain_attributes()))
    return _field(b"\x12", record)


def _written(event: Event, attributes: Mapping[str, Any]) -> bytes:
    parts = [_FIXED64(0x09, event.time), _severity(event.severity), _NULL_BODY]
    for key, value in attributes.items():
        if key in _REPEATED and type(value) is str and len(value) <= _LONGEST_REMEMBERED:
            parts.append(_repeated(key, value))
        else:
            parts.append(_field(b"\x32", _pair(key, value)))
    parts.append(_field(b"\x32", _pair(semconv.RECORD_UID, event.id)))
    parts.append(_FIXED64(0x59, event.observed))
    parts.append(_name(event.name))
    if event.trace_id:
        parts.append(b"\x4a\x10" + event.trace_id.to_bytes(16, "big"))
    if event.span_id:
        parts.append(b"\x52\x08" + event.span_id.to_bytes(8, "big"))
    if event.trace_flags:
        parts.append(_FIXED32(0x45, event.trace_flags))
    return b"".join(parts)


@lru_cache(maxsize=8_192)
def _repeated(key: str, value: str) -> bytes:
    return _field(b"\x32", _pair(key, value))


@lru_cache(maxsize=32)
def _severity(number: int) -> bytes:
    """Number and text, which is the SDK's: INFO, INFO2, ..., WARN, ..."""
    level, step = divmod(number - 1, 4)
    name = f"{_LEVELS[level]}{step + 1 if step else ''}" if number else "UNSPECIFIED"
    return b"\x10" + _varint(number) + _text(b"\x1a", name)


@lru_cache(maxsize=256)
def _name(name: str) -> bytes:
    return _text(b"\x62", name)


# --- values ---------------------------------------------------------------------------------------


def _any(value: Any) -> bytes:
    """An ``AnyValue``.

    Raises:
        Exception: of any kind, when the value is not plain.
    """
    kind = type(value)
    if kind is str:
        text: bytes = value.encode()
        return b"\x0a" + _varint(len(text)) + text
    if kind is dict:
        return _field(b"\x32", b"".join([_field(b"\x0a", _pair(key, each)) for key, each in value.items()]))
    if value is None:
        return b""
    if kind is int:
        return b"\x18" + (_varint(value) if value >= 0 else _negative(value))
    if kind is bool:
        return b"\x10\x01" if value else b"\x10\x00"
    if kind is float:
        return _DOUBLE(0x21, value)
    if kind is list:
        return _field(b"\x2a", b"".join([_field(b"\x0a", _any(each)) for each in value]))
    if kind is msgspec.Raw:
        return _any(msgspec.json.decode(value))
    raise TypeError(f"{kind.__name__} is no plain value")


def _pair(key: str, value: Any) -> bytes:
    """A ``KeyValue``."""
    found = _any(value)
    return _key(key) + _varint(len(found)) + found


@lru_cache(maxsize=4_096)
def _key(key: str) -> bytes:
    """A ``KeyValue`` up to the length of its value."""
    return _text(b"\x0a", key) + b"\x12"


# --- the wire -------------------------------------------------------------------------------------


def _field(tag: bytes, content: bytes) -> bytes:
    size = len(content)
    return tag + (_VARINTS[size] if size < 2_048 else _varint(size)) + content


def _text(tag: bytes, text: str) -> bytes:
    """A field of text; nothing when it is empty, which is the default."""
    return _field(tag, text.encode()) if text else b""


def _varint(number: int) -> bytes:
    if number < 2_048:
        return _VARINTS[number]
    if number >= 1 << 63:
        raise OverflowError("beyond 64 bits")
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def _negative(number: int) -> bytes:
    """Two's complement in 64 bits: always ten bytes."""
    if number < -(1 << 63):
        raise OverflowError("beyond 64 bits")
    unsigned = number + (1 << 64)
    return bytes([unsigned >> shift & 0x7F | 0x80 for shift in range(0, 63, 7)]) + b"\x01"
