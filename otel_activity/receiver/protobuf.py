"""OTLP logs in protobuf to events, at a few microseconds a record.

The generated classes would make a Python object of every attribute, and of every value in it. So the messages
that hold records are taken apart by hand, a record is parsed by a message class whose attributes are left as
bytes, and equal attributes of one sender (most are) are decoded once.
"""

from __future__ import annotations

import math
import struct
import time
from binascii import b2a_base64
from typing import TYPE_CHECKING, Any, Final

import msgspec
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from otel_activity import semconv
from otel_activity.codec import encode
from otel_activity.codec.lines import Origin, Row, origin_of, row_of
from otel_activity.events import Event, ResourceInfo
from otel_activity.receiver.fragments import CHANGES, Fragment, fragment, text_fragment
from otel_activity.receiver.recordlines import KEPT, RecordLines
from otel_activity.receiver.records import (
    MAX_DEPTH,
    MAX_RECORDS,
    MAX_VALUES,
    PREFIX,
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
_KEPT_RESOURCES: Final = 64
_KEPT_RESOURCE_LENGTH: Final = 8_192
_LIMIT: Final = 1 << 16
_SMALL: Final = MAX_VALUES * 2
"""Bytes of a record that the fast way reads: a value has at least two, so there is nothing to count."""
_CHANGES: Final = semconv.CHANGES.encode()
_PREFIX: Final = PREFIX.encode()
_TRACE_SIZE: Final = 16
_SPAN_SIZE: Final = 8
_UNREADABLE: Final = (UnicodeDecodeError, BadRequest)
"""What one record does that is OTLP and yet cannot be read: the others of its request are not to blame."""
_DAMAGED: Final = (DecodeError, IndexError, struct.error)
"""What a request does that is not OTLP."""
_BREATH: Final = 256
_BREATH_BYTES: Final = 1 << 18
"""Fields or values, and bytes of records, between two chances for other threads."""
_encode: Final = msgspec.json.Encoder().encode
_DOUBLE: Final = struct.Struct("<d")


def _record_class() -> Any:
    """``LogRecord`` of OTLP without what events do not have (body, severity text), its texts undecoded."""
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
        ("name", 12, kinds.TYPE_BYTES, kinds.LABEL_OPTIONAL),
    ):
        message.field.add(name=name, number=number, type=kind, label=label)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("otel_activity.Record"))


_Record: Final = _record_class()


class ProtobufDecoder:
    """Decodes requests of one thread; remembers attributes and resources from one to the next.

    Args:
        kept: see `RecordLines`.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self._lines = RecordLines(_attribute, _member, kept)
        self._origins: dict[bytes, Origin] = {}

    def decode(self, body: bytes) -> Decoded:
        """An ``ExportLogsServiceRequest``.

        A record that cannot be read (a text is not UTF-8, it is nested too deep, it has too many values) is a
        row that cannot be stored, with the reason. A Collector joins the records of many senders and drops
        a request that is refused, so one of them must not cost the others.

        Raises:
            BadRequest: it is none.
            TooLarge: it has too many records.
        """
        decoded = Decoded()
        try:
            for number, start, end in _fields(body, 0, len(body)):
                if number == 1:
                    decoded.count_part()
                    self._resource_logs(decoded, body, start, end)
        except _DAMAGED:
            raise BadRequest("the protobuf is damaged or cut off") from None
        return decoded

    def _resource_logs(self, decoded: Decoded, body: bytes, start: int, end: int) -> None:
        resource = b""
        scopes = []
        for number, first, last in _fields(body, start, end):
            if number == 1:
                resource = body[first:last]
            elif number == 2:
                decoded.count_part()
                scopes.append((first, last))
        for first, last in scopes:
            self._scope_logs(decoded, resource, body, first, last)

    def _scope_logs(self, decoded: Decoded, resource: bytes, body: bytes, start: int, end: int) -> None:
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
        if not is_ours(scope, PREFIX):
            decoded.foreign += len(records)
            return
        if not records:
            return
        origin = self._origin(resource)
        rows = decoded.rows
        before = len(rows)
        left = _BREATH_BYTES
        for first, last in records:
            row = self._row(body[first:last], origin)
            if row is None:
                decoded.foreign += 1
            else:
                rows.append(row)
            left -= last - first
            if left < 0:
                left = _BREATH_BYTES
                _breathe()
        if len(rows) > before:
            decoded.resources[origin.key] = origin.resource

    def _row(self, data: bytes, origin: Origin) -> Row | None:
        """The row of a record; None if the record is not ours."""
        if len(data) <= _SMALL:
            try:
                found = self._lines.line(data, origin.fields)
            except _UNREADABLE:
                found = None
            if found is not None:
                return _WireRow(found[0], found[1], origin.key, "", data)
        record = _Record.FromString(data)
        if not record.name.startswith(_PREFIX):
            return None
        return _long_row(record, data, origin)

    def _origin(self, encoded: bytes) -> Origin:
        known = self._origins.get(encoded)
        if known is None:
            attributes: dict[str, Any] = {}
            budget = _Budget()
            for number, start, end in _fields(encoded, 0, len(encoded)):
                if number == 1:
                    try:
                        name, value = _key_value(encoded, start, end, MAX_DEPTH, budget)
                    except _UNREADABLE as error:
                        name, value = semconv.REFUSED, _reason(error)
                    attributes[name] = value
            known = origin_of(ResourceInfo(attributes))
            if len(encoded) <= _KEPT_RESOURCE_LENGTH:
                if len(self._origins) >= _KEPT_RESOURCES:
                    self._origins.clear()
                self._origins[encoded] = known
        return known


class _WireRow(Row):
    """A row whose event is decoded when somebody asks."""

    data: bytes = b""

    def event(self) -> Event:
        record = _Record.FromString(self.data)
        try:
            return _event(record)
        except _UNREADABLE:
            return _readable_part(record, self.data)


def _long_row(record: Any, data: bytes, origin: Origin) -> Row:
    try:
        event = _event(record)
    except _UNREADABLE as error:
        return _WireRow(_event_time(record), b"", origin.key, _reason(error), data)
    row = row_of(event, origin.service, origin.key)
    return _WireRow(row.time, row.line, row.resource, row.reason, data)


def _reason(error: Exception) -> str:
    """Why a part cannot be read; it quotes no value."""
    return "a text is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)


def _event_time(record: Any) -> int:
    found: int = record.time or record.observed
    return found // 1000 * 1000


def _event(record: Any) -> Event:
    attributes: dict[str, Any] = {}
    budget = _Budget()
    for item in record.attributes:
        key, value = _key_value(item, 0, len(item), MAX_DEPTH, budget)
        attributes[key] = value
    return _event_with(record, record.name.decode(), attributes)


def _readable_part(record: Any, data: bytes) -> Event:
    """The event as far as it can be read, for the quarantine, and with it the whole record as it came."""
    attributes: dict[str, Any] = {}
    budget = _Budget()
    for item in record.attributes:
        try:
            key, value = _key_value(item, 0, len(item), MAX_DEPTH, budget)
        except (*_UNREADABLE, *_DAMAGED):  # damaged as well, behind what is unreadable: nobody has looked yet
            if budget.left < 0:
                break
            continue
        attributes[key] = value
    attributes[semconv.RECORD_ORIGINAL] = b2a_base64(data, newline=False).decode()
    return _event_with(record, record.name.decode("utf-8", "backslashreplace"), attributes)


def _event_with(record: Any, name: str, attributes: dict[str, Any]) -> Event:
    return Event(
        id=event_id(attributes),
        name=name,
        time=_event_time(record),
        attributes=attributes,
        observed=record.observed,
        severity=record.severity,
        trace_id=_id(record.trace_id, _TRACE_SIZE),
        span_id=_id(record.span_id, _SPAN_SIZE),
        trace_flags=record.flags & 0xFF,
    )


def _id(found: bytes, size: int) -> int:
    """A trace or span id. One of another length is none, says OTLP, and the record is not to be refused."""
    return int.from_bytes(found) if len(found) == size else 0


# --- fragments ------------------------------------------------------------------------------------


def _attribute(item: bytes) -> Fragment | None:
    """The fragment of an attribute of any kind; None if it has none."""
    found = None
    place = _place(item, 0, len(item))
    if place is None:
        return fragment(*_key_value(item, 0, len(item), MAX_DEPTH, _Budget()))
    first, last, start, end = place
    if end - start < 0x80 and item[start] == 0x0A and item[start + 1] == end - start - 2:
        found = text_fragment(item[first:last], item[start + 2 : end])
    elif item[first:last] == _CHANGES:
        found = _changes(item, start, end)
    if found is None:
        return fragment(item[first:last].decode(), _any_value(item, start, end, MAX_DEPTH, _Budget()))
    return found


def _member(item: bytes) -> bytes | None:
    """A pair in changes as a member of a JSON object, with a comma; None if something must be escaped."""
    document = _checked(b"\x0a%b%b" % (_encoded_size(len(item)), item), 0, MAX_DEPTH - 4)
    return None if document is None else document[1:-1] + b","


def _encoded_size(size: int) -> bytes:
    """Of at most two bytes."""
    return bytes((size,)) if size < 0x80 else bytes((size & 0x7F | 0x80, size >> 7))


def _changes(data: bytes, start: int, end: int) -> Fragment | None:
    """``activity.changes`` as JSON, from bytes to bytes; None if a text in it would have to be escaped."""
    size, first = _size(data, start + 1)
    if data[start] != 0x32 or first + size != end:
        return None
    document = _checked(data[:end], first, MAX_DEPTH - 2)
    return None if document is None else (CHANGES, document)


def _checked(data: bytes, first: int, depth: int) -> bytes | None:
    """The pairs from `first` to the end of the data as JSON; None if it is not usual."""
    parts: list[bytes] = []
    quotes = _document(data, first, len(data), depth, parts)
    if quotes < 0:
        return None
    document = b"".join(parts)
    # All texts at once: every quotation mark is one of ours, and nothing else grows.
    plain = len(_encode(document.decode())) == len(document) + quotes + 2
    return document if plain and b'$json"' not in document else None


def _document(  # noqa: C901 - one frame: changes are most of what there is to decode
    data: bytes, position: int, end: int, depth: int, parts: list[bytes]
) -> int:
    """Write the pairs of a ``KeyValueList`` as JSON; how many quotation marks that took.

    Negative for what is not written as the SDK or the Collector write it, with sizes of at most two bytes:
    `_fields` and its kin take every form that protobuf has.
    """
    if depth <= 0:
        return -1
    quotes = 0
    mark = b"{"
    while position < end:
        size = data[position + 1]
        if data[position] != 0x0A or size < 4:
            return -1
        position += 2
        if size > 0x7F:
            if data[position] > 0x7F:
                return -1
            size += (data[position] - 1) << 7
            position += 1
        stop = position + size
        if stop > end:
            return -1
        size = data[position + 1]
        if data[position] == 0x0A:  # the key comes first
            name = position + 2
            last = name + size
            if size > 0x7F or last + 1 >= stop or data[last] != 0x12:
                return -1
            start = last + 2
            size = data[last + 1]
            if size > 0x7F:
                if data[start] > 0x7F:
                    return -1
                size += (data[start] - 1) << 7
                start += 1
            close = start + size
            if close != stop:
                return -1
        elif data[position] == 0x12:  # the value does
            start = position + 2
            if size > 0x7F:
                if data[start] > 0x7F:
                    return -1
                size += (data[start] - 1) << 7
                start += 1
            close = start + size
            name = close + 2
            last = stop
            if name > stop or data[close] != 0x0A or data[close + 1] != stop - name or stop - name > 0x7F:
                return -1
        else:
            return -1
        position = stop
        if start == close:
            parts.append(b'%b"%b":null' % (mark, data[name:last]))
            quotes += 2
            mark = b","
            continue
        tag = data[start]
        if tag == 0x0A or tag == 0x32:
            size = data[start + 1]
            first = start + 2
            if size > 0x7F:
                if data[first] > 0x7F:
                    return -1
                size += (data[first] - 1) << 7
                first += 1
            if first + size != close:
                return -1
            if tag == 0x0A:
                parts.append(b'%b"%b":"%b"' % (mark, data[name:last], data[first:close]))
                quotes += 4
            else:
                parts.append(b'%b"%b":' % (mark, data[name:last]))
                inner = _document(data, first, close, depth - 2, parts)
                if inner < 0:
                    return -1
                quotes += inner + 2
        else:
            value = _encode(_any_value(data, start, close, depth, _Budget()))
            parts.append(b'%b"%b":%b' % (mark, data[name:last], value))
            quotes += 2 + value.count(b'"')
        mark = b","
    parts.append(b"{}" if mark == b"{" else b"}")
    return quotes


def _place(data: bytes, position: int, stop: int) -> tuple[int, int, int, int] | None:
    """Where a ``KeyValue`` has its key and its value: start and end of each.

    None for what neither the SDK (key first) nor the Collector (value first) writes, and for no value.
    """
    if stop - position < 4:
        return None
    if data[position] == 0x0A:
        last = position + 2 + data[position + 1]
        if data[position + 1] > 0x7F or last + 2 >= stop or data[last] != 0x12:
            return None
        size, start = _size(data, last + 1)
        return (position + 2, last, start, stop) if start + size == stop and size > 1 else None
    if data[position] != 0x12:
        return None
    size, start = _size(data, position + 1)
    close = start + size
    name = close + 2
    if size < 2 or name > stop or data[close] != 0x0A or data[close + 1] != stop - name or stop - name > 0x7F:
        return None
    return name, stop, start, close


def _size(data: bytes, position: int) -> tuple[int, int]:
    size = data[position]
    return (size, position + 1) if size < 0x80 else _varint(data, position)


# --- every form -----------------------------------------------------------------------------------


def _breathe() -> None:
    """Let other threads run. Compiled code does not do that by itself, however long it takes."""
    time.sleep(0)


class _Budget:
    """How many values one record may still have."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = MAX_VALUES

    def spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise BadRequest(f"a record has more than {MAX_VALUES} values")
        if not self.left % _BREATH:
            _breathe()


def _fields(data: bytes, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The fields of a message that have a length: number, start and end. Others are passed over."""
    left = _BREATH
    while position < end:
        left -= 1
        if not left:
            left = _BREATH
            _breathe()
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
            name = data[first:last].decode("utf-8", "replace")  # then it is not ours
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
