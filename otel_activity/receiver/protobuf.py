"""OTLP logs in protobuf to events, at a few microseconds a record.

The generated classes would make a Python object of every attribute, and of every value in it. So the messages
that hold records are taken apart by hand, a record is parsed by a message class whose attributes are left as
bytes, and equal attributes of one sender (most are) are decoded once.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from otel_activity.codec import encode
from otel_activity.events import Event, ResourceInfo
from otel_activity.receiver.records import (
    MAX_DEPTH,
    MAX_RECORDS,
    MAX_VALUES,
    BadRequest,
    Decoded,
    event_id,
    is_ours,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ProtobufDecoder"]

_LENGTH: Final = 2
"""Wire type of everything that has a length: texts, bytes, messages."""
_KEPT_ATTRIBUTES: Final = 8_192
_KEPT_LENGTH: Final = 160
"""Attributes that are remembered: so many, and so long at most."""
_KEPT_RESOURCES: Final = 64
_LIMIT: Final = 1 << 16
_DOUBLE: Final = struct.Struct("<d")


def _record_class() -> Any:
    """``LogRecord`` of OTLP without what events do not have (body, severity text) and with raw attributes."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="record.proto", package="otel_activity", syntax="proto3")
    message = file.message_type.add(name="Record")
    for name, number, kind, label in (
        ("time", 1, kinds.TYPE_FIXED64, kinds.LABEL_OPTIONAL),
        ("severity", 2, kinds.TYPE_INT32, kinds.LABEL_OPTIONAL),
        ("attributes", 6, kinds.TYPE_BYTES, kinds.LABEL_REPEATED),
        ("flags", 8, kinds.TYPE_FIXED32, kinds.LABEL_OPTIONAL),
        ("trace_id", 9, kinds.TYPE_BYTES, kinds.LABEL_OPTIONAL),
        ("span_id", 10, kinds.TYPE_BYTES, kinds.LABEL_OPTIONAL),
        ("observed", 11, kinds.TYPE_FIXED64, kinds.LABEL_OPTIONAL),
        ("name", 12, kinds.TYPE_STRING, kinds.LABEL_OPTIONAL),
    ):
        message.field.add(name=name, number=number, type=kind, label=label)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("otel_activity.Record"))


_Record: Final = _record_class()


class ProtobufDecoder:
    """Decodes requests of one thread; remembers attributes and resources from one to the next."""

    def __init__(self) -> None:
        self._attributes: dict[bytes, tuple[str, Any]] = {}
        self._resources: dict[bytes, ResourceInfo] = {}

    def decode(self, body: bytes) -> Decoded:
        """An ``ExportLogsServiceRequest``.

        Raises:
            BadRequest: it is none.
            TooLarge: it has too many records or values.
        """
        decoded = Decoded()
        try:
            for number, start, end in _fields(body, 0, len(body)):
                if number == 1:
                    self._resource_logs(decoded, body, start, end)
        except (DecodeError, IndexError, struct.error):
            raise BadRequest("the protobuf is damaged or cut off") from None
        except UnicodeDecodeError:
            raise BadRequest("a text is not UTF-8") from None
        return decoded

    def _resource_logs(self, decoded: Decoded, body: bytes, start: int, end: int) -> None:
        resource = b""
        scopes = []
        for number, first, last in _fields(body, start, end):
            if number == 1:
                resource = body[first:last]
            elif number == 2:
                scopes.append((first, last))
        events: list[Event] = []
        for first, last in scopes:
            self._scope_logs(decoded, events, body, first, last)
        if events:
            decoded.batches.append((events, self._resource(resource)))

    def _scope_logs(self, decoded: Decoded, events: list[Event], body: bytes, start: int, end: int) -> None:
        scope = ""
        records = []
        for number, first, last in _fields(body, start, end):
            if number == 2:
                # All of them, before any is looked at: the Collector writes the scope behind its records.
                records.append((first, last))
                if len(records) > MAX_RECORDS:
                    break  # count() refuses the request
            elif number == 1:
                scope = _scope_name(body, first, last)
        decoded.count(len(records))
        self._records(decoded, events, scope, body, records)

    def _records(
        self, decoded: Decoded, events: list[Event], scope: str, body: bytes, records: list[tuple[int, int]]
    ) -> None:
        parse = _Record.FromString
        for first, last in records:
            record = parse(body[first:last])
            name = record.name
            if not is_ours(scope, name):
                decoded.foreign += 1
                continue
            attributes = self._decoded(record.attributes)
            observed = record.observed
            trace_id, span_id = record.trace_id, record.span_id
            if len(trace_id) not in {0, 16} or len(span_id) not in {0, 8}:
                raise BadRequest("a trace id has not 16 bytes, or a span id not 8")
            events.append(
                Event(
                    id=event_id(attributes),
                    name=name,
                    time=(record.time or observed) // 1000 * 1000,
                    attributes=attributes,
                    observed=observed,
                    severity=record.severity,
                    trace_id=int.from_bytes(trace_id),
                    span_id=int.from_bytes(span_id),
                    trace_flags=record.flags & 0xFF,
                )
            )

    def _decoded(self, encoded: Any) -> dict[str, Any]:
        known = self._attributes
        attributes: dict[str, Any] = {}
        budget = _Budget()
        for item in encoded:
            pair = known.get(item)
            if pair is None:
                pair = _key_value(item, 0, len(item), MAX_DEPTH, budget)
                # A container is not shared between events: each may be changed on its own.
                if len(item) <= _KEPT_LENGTH and not isinstance(pair[1], (dict, list)):
                    if len(known) >= _KEPT_ATTRIBUTES:
                        known.clear()
                    known[item] = pair
            attributes[pair[0]] = pair[1]
        return attributes

    def _resource(self, encoded: bytes) -> ResourceInfo:
        known = self._resources.get(encoded)
        if known is None:
            attributes: dict[str, Any] = {}
            budget = _Budget()
            for number, start, end in _fields(encoded, 0, len(encoded)):
                if number == 1:
                    name, value = _key_value(encoded, start, end, MAX_DEPTH, budget)
                    attributes[name] = value
            if len(self._resources) >= _KEPT_RESOURCES:
                self._resources.clear()
            known = self._resources[encoded] = ResourceInfo(attributes)
        return known


class _Budget:
    """How many values one record may still have."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = MAX_VALUES

    def spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise BadRequest(f"a record has more than {MAX_VALUES} values")


def _fields(data: bytes, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The fields of a message that have a length: number, start and end. Others are passed over."""
    while position < end:
        tag, position = _varint(data, position)
        wire = tag & 7
        if wire == _LENGTH:
            size = data[position]
            if size < 0x80:
                position += 1
            else:
                size, position = _varint(data, position)
            start, position = position, position + size
            if position > end:
                raise IndexError
            yield tag >> 3, start, position
        else:
            position = _skip(data, position, wire)
    if position != end:
        raise IndexError


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = data[position]
    position += 1
    if value < 0x80:
        return value, position
    value &= 0x7F
    shift = 7
    while shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position
        shift += 7
    raise IndexError


def _skip(data: bytes, position: int, wire: int) -> int:
    if wire == 0:
        return _varint(data, position)[1]
    if wire == 1:
        return position + 8
    if wire == 5:
        return position + 4
    raise IndexError  # groups: OTLP has none


def _scope_name(data: bytes, start: int, end: int) -> str:
    name = ""
    for number, first, last in _fields(data, start, end):
        if number == 1:
            name = data[first:last].decode()
    return name


def _key_value(data: bytes, position: int, end: int, depth: int, budget: _Budget) -> tuple[str, Any]:
    budget.spend()
    key = ""
    value: Any = None
    for number, start, stop in _fields(data, position, end):
        if number == 1:
            key = data[start:stop].decode()
        elif number == 2:
            value = _any_value(data, start, stop, depth, budget)
    return key, value


def _any_value(data: bytes, position: int, end: int, depth: int, budget: _Budget) -> Any:
    """An ``AnyValue``. Its last field counts, and no field is null."""
    value: Any = None
    if depth <= 0:
        raise BadRequest(f"values are nested more than {MAX_DEPTH} deep")
    while position < end:
        tag, position = _varint(data, position)
        wire = tag & 7
        if wire == _LENGTH:
            size, position = _varint(data, position)
            start, position = position, position + size
            if position > end:
                raise IndexError
            value = _long_value(tag >> 3, data, start, position, depth, budget, value)
            continue
        start, position = position, _skip(data, position, wire)
        if position > end:
            raise IndexError
        if tag == 0x10:
            value = _varint(data, start)[0] != 0
        elif tag == 0x18:
            value = _varint(data, start)[0]
            if value >= 1 << 63:
                value -= 1 << 64
        elif tag == 0x21:
            value = _DOUBLE.unpack_from(data, start)[0]
            if not math.isfinite(value):
                value = encode(value, _LIMIT)
    return value


def _long_value(
    number: int, data: bytes, start: int, end: int, depth: int, budget: _Budget, other: Any
) -> Any:
    if number == 1:
        return data[start:end].decode()
    if number == 6:
        pairs = {}
        for field, first, last in _fields(data, start, end):
            if field == 1:
                key, value = _key_value(data, first, last, depth - 2, budget)
                pairs[key] = value
        return pairs
    if number == 5:
        values = []
        for field, first, last in _fields(data, start, end):
            if field == 1:
                budget.spend()
                values.append(_any_value(data, first, last, depth - 2, budget))
        return values
    if number == 7:
        return encode(data[start:end], _LIMIT)
    return other
