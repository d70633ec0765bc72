"""The bytes of a journal segment: a header, then records, each found and checked on its own."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "FORMAT",
    "HEADER_SIZE",
    "RECORD_SIZE",
    "Damage",
    "Record",
    "frame",
    "parse",
    "read_header",
    "scan",
    "segment_header",
]

FORMAT: Final = 1
"""Version of the format. A reader takes its own and older ones, and leaves newer ones alone."""

_MAGIC: Final = b"\x93OTACTJ\n"
_HEADER: Final = struct.Struct("<8sIQI")
"""Magic, format, number of the first record, CRC-32 of what stands before."""
HEADER_SIZE: Final = _HEADER.size

_MARKER: Final = b"\xf5\xf9\xf5R"
"""Begins each record. 0xF5 is in no UTF-8 text, so values that people store cannot look like a record."""
_FIELDS: Final = struct.Struct("<IQB")
"""Length of the payload, number of the record, kind."""
_CRC: Final = struct.Struct("<I")
RECORD_SIZE: Final = len(_MARKER) + _CRC.size + _FIELDS.size
_FIELDS_AT: Final = len(_MARKER) + _CRC.size

_HEAD: Final = struct.Struct("<4sIIQB")
"""All of it: marker, CRC-32, and the fields."""

_crc32 = zlib.crc32
_new = tuple.__new__


class Record(NamedTuple):
    """One whole record, and where it stands in its segment."""

    number: int
    kind: int
    payload: bytes
    start: int
    end: int


class Damage(NamedTuple):
    """Bytes of a segment that are no record."""

    start: int
    end: int
    torn: bool
    """The end of the segment, as an interrupted write leaves it: no record was finished there."""


def segment_header(first: int) -> bytes:
    """The header of a segment whose first record will have the number `first`."""
    head = _HEADER.pack(_MAGIC, FORMAT, first, 0)[: -_CRC.size]
    return head + _CRC.pack(_crc32(head))


def read_header(data: bytes) -> tuple[int, int] | None:
    """Format and number of the first record; None when the header is damaged or incomplete."""
    if len(data) < HEADER_SIZE:
        return None
    magic, version, first, crc = _HEADER.unpack_from(data)
    if magic != _MAGIC or crc != _crc32(data[: HEADER_SIZE - _CRC.size]):
        return None
    return version, first


def frame(number: int, kind: int, payload: bytes, payload_crc: int) -> bytes:
    """The record as it is written.

    Args:
        number: counts the records of a journal, so that a reader knows how many are missing.
        kind: 0 to 255.
        payload: any bytes.
        payload_crc: CRC-32 of the payload, which the caller computed outside of its lock.
    """
    fields = _FIELDS.pack(len(payload), number, kind)
    return _MARKER + _CRC.pack(_crc32(fields, payload_crc)) + fields + payload


def parse(data: bytes, at: int) -> Record | None:
    """The record that begins at `at`; None when there is no whole and intact one."""
    start = at + RECORD_SIZE
    if start > len(data):
        return None
    marker, crc, length, number, kind = _HEAD.unpack_from(data, at)
    end = start + length
    if marker != _MARKER or end > len(data):
        return None
    payload = data[start:end]
    if crc != _crc32(data[at + _FIELDS_AT : start], _crc32(payload)):
        return None
    return _new(Record, (number, kind, payload, at, end))


def scan(data: bytes, start: int = HEADER_SIZE) -> Iterator[Record | Damage]:
    """All records from `start` on, and the damage between them, in the order of the bytes."""
    at = start
    size = len(data)
    while at < size:
        record = parse(data, at)
        if record is not None:
            yield record
            at = record.end
            continue
        following = _next_record(data, at + 1)
        if following is None:
            yield Damage(at, size, _is_torn(data, at))
            return
        yield Damage(at, following, False)
        at = following


def _next_record(data: bytes, at: int) -> int | None:
    while (at := data.find(_MARKER, at)) >= 0:
        if parse(data, at) is not None:
            return at
        at += 1
    return None


def _is_torn(data: bytes, at: int) -> bool:
    """Whether the rest is a record that was not written to its end, or space that never was written."""
    rest = data[at:]
    if len(rest) < RECORD_SIZE:
        return rest.startswith(_MARKER) or _MARKER.startswith(rest) or not rest.strip(b"\0")
    if rest.startswith(_MARKER):
        length, _, _ = _FIELDS.unpack_from(rest, _FIELDS_AT)
        return bool(RECORD_SIZE + length > len(rest))
    return not rest.strip(b"\0")
