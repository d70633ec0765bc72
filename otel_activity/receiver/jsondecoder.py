"""OTLP logs in JSON to events.

The JSON of OTLP differs from protobuf's own: ids are hexadecimal, and enums are numbers. What is unknown is
passed over.
"""

from __future__ import annotations

import math
import re
from binascii import Error as Base64Error
from binascii import a2b_base64
from typing import TYPE_CHECKING, Any, Final

import msgspec

from otel_activity.codec import encode
from otel_activity.codec.lines import Row, origin_of, row_of
from otel_activity.events import Event, ResourceInfo
from otel_activity.receiver.records import MAX_DEPTH, BadRequest, Decoded, TooLarge, event_id, is_ours

if TYPE_CHECKING:
    from otel_activity.codec.lines import Origin

__all__ = ["JSONDecoder"]

MAX_OBJECTS: Final = 600_000
"""JSON objects in one request, about one for 25 bytes of a real one: a decoded object takes many times the
three bytes that it may have."""
_LIMIT: Final = 1 << 16
_INTEGER: Final = re.compile(r"-?[0-9]{1,20}")
_UINT64: Final = 1 << 64
_SPECIAL: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class _Message(msgspec.Struct, rename="camel", gc=False):
    """A message of OTLP. ``null`` stands for a field that is not there."""


class _KeyValue(_Message):
    key: str | None = None
    value: _AnyValue | None = None


class _ArrayValue(_Message):
    values: list[_AnyValue] | None = None


class _KeyValueList(_Message):
    values: list[_KeyValue] | None = None


class _AnyValue(_Message):
    string_value: str | None = None
    bool_value: bool | None = None
    int_value: int | str | None = None
    double_value: float | str | None = None
    array_value: _ArrayValue | None = None
    kvlist_value: _KeyValueList | None = None
    bytes_value: str | None = None


class _LogRecord(_Message):
    time_unix_nano: int | str | None = None
    observed_time_unix_nano: int | str | None = None
    severity_number: int | None = None
    event_name: str | None = None
    attributes: list[_KeyValue] | None = None
    flags: int | None = None
    trace_id: str | None = None
    span_id: str | None = None


class _Scope(_Message):
    name: str | None = None


class _ScopeLogs(_Message):
    scope: _Scope | None = None
    log_records: list[msgspec.Raw] | None = None


class _Resource(_Message):
    attributes: list[_KeyValue] | None = None


class _ResourceLogs(_Message):
    resource: _Resource | None = None
    scope_logs: list[_ScopeLogs] | None = None


class _Request(_Message):
    resource_logs: list[_ResourceLogs] | None = None


_request: Final = msgspec.json.Decoder(_Request).decode
_record: Final = msgspec.json.Decoder(_LogRecord).decode


class JSONDecoder:
    """Decodes requests of one thread."""

    def decode(self, body: bytes) -> Decoded:
        """An ``ExportLogsServiceRequest``.

        Raises:
            BadRequest: it is none.
            TooLarge: it has too many records or values.
        """
        if body.count(b"{") > MAX_OBJECTS:
            raise TooLarge(f"more than {MAX_OBJECTS} JSON objects; send smaller batches")
        decoded = Decoded()
        try:
            for logs in _request(body).resource_logs or ():
                _resource_logs(decoded, logs)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise BadRequest("this is not the JSON of OTLP logs") from None  # the reason may quote a value
        return decoded


def _resource_logs(decoded: Decoded, logs: _ResourceLogs) -> None:
    origin = None
    for scope_logs in logs.scope_logs or ():
        records = scope_logs.log_records or ()
        decoded.count(len(records))
        scope = (scope_logs.scope and scope_logs.scope.name) or ""
        for raw in records:
            record = _record(raw)
            if not is_ours(scope, record.event_name or ""):
                decoded.foreign += 1
                continue
            if origin is None:
                origin = _origin(logs.resource)
                decoded.resources[origin.key] = origin.resource
            row = row_of(_event(record), origin.service, origin.key)
            decoded.rows.append(_RawRow(row.time, row.line, row.resource, row.reason, raw))


def _origin(resource: _Resource | None) -> Origin:
    attributes = None if resource is None else resource.attributes
    return origin_of(ResourceInfo(_pairs(attributes, MAX_DEPTH)))


class _RawRow(Row):
    """A row whose event is decoded when somebody asks."""

    raw: msgspec.Raw = msgspec.Raw()

    def event(self) -> Event:
        return _event(_record(self.raw))


def _event(record: _LogRecord) -> Event:
    attributes = _pairs(record.attributes, MAX_DEPTH)
    observed = _integer(record.observed_time_unix_nano or 0, 0, _UINT64)
    time = _integer(record.time_unix_nano or 0, 0, _UINT64) or observed
    return Event(
        id=event_id(attributes),
        name=record.event_name or "",
        time=time // 1000 * 1000,
        attributes=attributes,
        observed=observed,
        severity=_integer(record.severity_number or 0, -(1 << 31), 1 << 31),
        trace_id=_hexadecimal(record.trace_id or "", 32),
        span_id=_hexadecimal(record.span_id or "", 16),
        trace_flags=_integer(record.flags or 0, 0, 1 << 32) & 0xFF,
    )


def _pairs(items: list[_KeyValue] | None, depth: int) -> dict[str, Any]:
    return {item.key or "": _value(item.value, depth) for item in items or ()}


def _value(value: _AnyValue | None, depth: int) -> Any:
    if value is None:
        return None
    if depth <= 0:
        raise BadRequest(f"values are nested more than {MAX_DEPTH} deep")
    if value.string_value is not None:
        return value.string_value
    if value.kvlist_value is not None:
        return _pairs(value.kvlist_value.values, depth - 2)
    if value.array_value is not None:
        return [_value(item, depth - 2) for item in value.array_value.values or ()]
    if value.int_value is not None:
        return _integer(value.int_value, -(1 << 63), 1 << 63)
    return _scalar(value)


def _scalar(value: _AnyValue) -> Any:
    if value.bool_value is not None:
        return value.bool_value
    if value.double_value is not None:
        return _double(value.double_value)
    if value.bytes_value is not None:
        return encode(_bytes(value.bytes_value), _LIMIT)
    return None


def _integer(value: int | str, low: int, high: int) -> int:
    """A number, or its digits: JSON's own numbers are not exact beyond 53 bit."""
    if isinstance(value, str):
        if not _INTEGER.fullmatch(value):
            raise BadRequest("an integer is not a number, or out of range")
        value = int(value)
    if not low <= value < high:
        raise BadRequest("an integer is out of range")
    return value


def _double(value: float | str) -> Any:
    if isinstance(value, str):
        try:
            if "_" in value:  # Python's own
                raise ValueError
            value = _SPECIAL[value] if value in _SPECIAL else float(value)
        except ValueError:
            raise BadRequest("a double is not a number") from None
    return value if math.isfinite(value) else encode(value, _LIMIT)


def _bytes(text: str) -> bytes:
    # Both alphabets, with and without padding, as the JSON of protobuf allows.
    try:
        return a2b_base64(text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4), strict_mode=True)
    except (Base64Error, ValueError):
        raise BadRequest("bytes are not base64") from None


def _hexadecimal(text: str, digits: int) -> int:
    if not text:
        return 0
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if len(text) == digits == 2 * len(found):  # spaces between digits are none
        return int.from_bytes(found)
    raise BadRequest(f"a trace or span id has not {digits} hexadecimal digits")
