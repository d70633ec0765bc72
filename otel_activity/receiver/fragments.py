"""Lines of COPY from attributes that are still encoded texts: the receiver's way to `codec.rows.copy_line`.

A receiver has an event's attributes as bytes. Making Python values of them, and bytes of those, is most of
the work of decoding. Here each attribute becomes a *fragment* on its own: the field of a column, or a
member of the column ``attributes``; fragments of attributes that repeat are kept by the caller. What is not
usual has no fragment, and then the event takes the long way. The bytes are the same either way; a test
compares them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from otel_activity import semconv
from otel_activity.codec.rows import (
    COLUMN_ATTRIBUTES,
    COLUMN_TEXT_LIMIT,
    COLUMNS,
    LABEL_LIMIT,
    is_uuid,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


__all__ = [
    "CHANGES",
    "ENTITY_ID",
    "FIELDS",
    "FLAGS",
    "ID",
    "MEMBER",
    "NAME",
    "OBSERVED",
    "ORIGIN",
    "SEQUENCE",
    "SEVERITY",
    "SPAN",
    "TIME",
    "TRACE",
    "WRAPPER",
    "Fragment",
    "fragment",
    "is_plain",
    "line",
    "name_field",
    "text_fragment",
]

Fragment = tuple[int, bytes]
"""The number of the field, or `MEMBER`; and its bytes."""
WRAPPER: Final = b"$json"
"""A name that `rows` gives a meaning: whatever has it takes the long way."""
MEMBER: Final = -1
"""Not a field but a member of the column ``attributes``."""

TIME: Final = COLUMNS.index("time")
ID: Final = COLUMNS.index("id")
OBSERVED: Final = COLUMNS.index("observed")
SEVERITY: Final = COLUMNS.index("severity")
FLAGS: Final = COLUMNS.index("trace_flags")
TRACE: Final = COLUMNS.index("trace_id")
SPAN: Final = COLUMNS.index("span_id")
NAME: Final = COLUMNS.index("name")
ORIGIN: Final = COLUMNS.index("service")
"""Field of `codec.lines.Origin.fields`, which is two columns."""
_SLOTS: Final = {
    attribute: COLUMNS.index(column) - (COLUMNS.index(column) > ORIGIN)
    for column, attribute in COLUMN_ATTRIBUTES.items()
}
CHANGES: Final = _SLOTS[semconv.CHANGES]
SEQUENCE: Final = _SLOTS[semconv.SEQUENCE]
ENTITY_ID: Final = _SLOTS[semconv.ENTITY_ID]
_UUIDS: Final = frozenset({_SLOTS[semconv.TRANSACTION_ID], _SLOTS[semconv.STREAM_ID]})
_TEXTS: Final = frozenset(_SLOTS.values()) - {SEQUENCE, CHANGES}
FIELDS: Final = tuple(b"0" if number in {SEVERITY, FLAGS} else b"" for number in range(len(COLUMNS) - 2))
"""The fields of a line that has nothing, but for the column ``attributes``."""
_NAMES: Final = {name.encode(): number for name, number in _SLOTS.items()} | {semconv.RECORD_UID.encode(): ID}

_encode: Final = msgspec.json.Encoder().encode


def is_plain(text: bytes) -> bool:
    """Whether a text in UTF-8 is the same in JSON, in a field of COPY and in itself.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
    """
    # The encoder escapes just what must be in JSON (control characters, quotation marks, backslashes), and
    # that includes all that COPY wants escaped. It looks at a text many times as fast as str.isprintable.
    return len(_encode(text.decode())) == len(text) + 2


def text_fragment(name: bytes, value: bytes) -> Fragment | None:
    """The fragment of an attribute that is a text, both in UTF-8; None if it is not usual.

    Raises:
        UnicodeDecodeError: they are not UTF-8.
    """
    # With a space between them: two damaged texts can make a whole one.
    if not is_plain(b"%b %b" % (name, value)):
        return None
    slot = _NAMES.get(name)
    if slot is None:
        return None if name == WRAPPER else (MEMBER, b'"%b":"%b"' % (name, value))
    if slot in _TEXTS:
        if not 0 < len(value) <= COLUMN_TEXT_LIMIT or (slot in _UUIDS and not is_uuid(value.decode())):
            return None
        return slot, value
    return (slot, value) if slot == ID and value else None


def fragment(name: str, value: Any) -> Fragment | None:
    """The fragment of an attribute with a plain JSON value that is no text; None if it is not usual."""
    slot = _SLOTS.get(name)
    if slot is None:
        member = _encode({name: value})[1:-1]
        if name == semconv.RECORD_UID or b"\\u0000" in member or b'$json"' in member:
            return None
        return MEMBER, member.replace(b"\\", b"\\\\")
    if slot == SEQUENCE and type(value) is int:
        return slot, b"%d" % value
    if slot == CHANGES and value is not None:
        document = _encode(value)
        odd = b"\\u0000" in document or b'$json"' in document
        return None if odd else (slot, document.replace(b"\\", b"\\\\"))
    return None


def line(fields: Sequence[bytes], members: Sequence[bytes]) -> bytes | None:
    """The line of an event whose parts are all known; None when only `rows.copy_line` can say.

    Args:
        fields: by their numbers; `FIELDS` is where to start.
        members: fragments of the column ``attributes``.
    """
    found = b"%b\t{%b}\n" % (b"\t".join(fields), b",".join(members))
    return found if fields[ID] else None


def name_field(name: bytes) -> bytes | None:
    """The field of an event's name, in UTF-8; None if it is not usual.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
    """
    return name if len(name) <= LABEL_LIMIT and is_plain(name) else None
