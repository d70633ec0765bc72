"""An event as one line of PostgreSQL's COPY text format, and back from a row.

Pure: no connection. The rule for typed columns: an attribute that has a column is not repeated in the
``attributes`` column, unless the column cannot hold it exactly (a number where the column holds text, a text
that is too long for an index, an id that is no UUID). Then the column holds the nearest text, or NULL, and
``attributes`` the value itself, which wins when the row is read.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import msgspec

from otel_activity import semconv
from otel_activity.events import Event, ResourceInfo

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "COLUMNS",
    "COLUMN_ATTRIBUTES",
    "COLUMN_TEXT_LIMIT",
    "LABEL_LIMIT",
    "column_text",
    "copy_line",
    "escaped",
    "event_from_row",
    "fields_to_name",
    "is_uuid",
    "json_text",
    "plain_resource",
    "resource_id",
    "timestamp",
]

_TEXT_COLUMNS: Final = {
    "action": semconv.ACTIVITY_ACTION,
    "outcome": semconv.ACTIVITY_OUTCOME,
    "actor_type": semconv.ACTOR_TYPE,
    "actor_id": semconv.USER_ID,
    "entity_type": semconv.ENTITY_TYPE,
    "entity_id": semconv.ENTITY_ID,
    "tenant_id": semconv.TENANT_ID,
    "project_id": semconv.PROJECT_ID,
}

COLUMN_ATTRIBUTES: Final[Mapping[str, str]] = {
    **_TEXT_COLUMNS,
    "transaction_id": semconv.TRANSACTION_ID,
    "stream_id": semconv.STREAM_ID,
    "sequence": semconv.SEQUENCE,
    "changes": semconv.CHANGES,
}
"""The attribute that each typed column holds."""

COLUMNS: Final[tuple[str, ...]] = (
    "time",
    "id",
    "observed",
    "severity",
    "trace_flags",
    "trace_id",
    "span_id",
    "name",
    *_TEXT_COLUMNS,
    "transaction_id",
    "stream_id",
    "sequence",
    "service",
    "resource_id",
    "changes",
    "attributes",
)
"""The order of the fields in a line of `copy_line`."""

COLUMN_TEXT_LIMIT: Final = 256
"""Characters of a text column. An index entry may have 2,704 bytes; two such columns take at most 2,048."""

LABEL_LIMIT: Final = 256
"""Characters of a text that may be remembered: what others send must not fill the memory."""

_TEXT_ATTRIBUTES: Final = tuple(_TEXT_COLUMNS.values())
_HELD: Final = frozenset(COLUMN_ATTRIBUTES.values())
_TEXTS: Final = len(_TEXT_ATTRIBUTES)
_INT64: Final = 1 << 63
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_UUID_LENGTH: Final = 36
_WRAPPER: Final = "$json"
"""Marks JSON that ``jsonb`` refuses as it is (NUL characters): ``{"$json": "<the JSON as text>"}``."""

_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder().decode


# --- writing --------------------------------------------------------------------------------------


def copy_line(event: Event, service: str, resource_id: str) -> bytes:
    """The event as one line for ``COPY events (COLUMNS) FROM STDIN WITH (NULL '')``, format text.

    Args:
        event: a finished event; its times are cut to whole microseconds.
        service: ``service.name`` of the resource.
        resource_id: as `resource_id` gives it.

    Raises:
        ValueError, TypeError, OverflowError, RecursionError: the event cannot be a row at all: its time is
            outside the years 1 to 9999, or a value is not what `Event` promises.
    """
    # Runs once for every event, beside the application's own threads: each line here was measured.
    attributes = event.attributes
    rest = attributes.copy()
    pop = rest.pop
    texts = [pop(name, "") for name in _TEXT_ATTRIBUTES]
    transaction_id = pop(semconv.TRANSACTION_ID, "")
    stream_id = pop(semconv.STREAM_ID, "")
    sequence = pop(semconv.SEQUENCE, None)
    changes = pop(semconv.CHANGES, None)
    held = len(attributes) - len(rest)
    if held != (
        _TEXTS
        - texts.count("")
        + (transaction_id != "")
        + (stream_id != "")
        + (sequence is not None)
        + (changes is not None)
    ):  # an attribute that is null or empty is not the same as none
        rest.update((name, attributes[name]) for name in _HELD if attributes.get(name, 0) in (None, ""))
    if transaction_id != "" and not (type(transaction_id) is str and is_uuid(transaction_id)):
        rest[semconv.TRANSACTION_ID], transaction_id = transaction_id, ""
    if stream_id != "" and not (type(stream_id) is str and is_uuid(stream_id)):
        rest[semconv.STREAM_ID], stream_id = stream_id, ""
    if sequence is not None and (type(sequence) is not int or not -_INT64 <= sequence < _INT64):
        rest[semconv.SEQUENCE], sequence = sequence, None
    observed = event.observed
    head = (
        f"{timestamp(event.time)}\t{escaped(event.id)}\t{timestamp(observed) if observed else ''}\t"
        f"{fields_to_name(event)}\t{_text_columns(texts, rest)}\t"
        f"{transaction_id}\t{stream_id}\t{'' if sequence is None else sequence}\t"
        f"{_label(service)}\t{resource_id}\t"
    )
    documents = _fields(changes, rest)
    if b"\\" in documents or b'$json"' in documents:
        if b"\\u0000" in documents or b'$json"' in documents:
            if type(changes) is msgspec.Raw:
                changes = _decode(changes)
            documents = _fields(_storable(changes), _storable(rest))
        documents = documents.replace(b"\\", b"\\\\")
    return head.encode() + documents


def fields_to_name(event: Event) -> str:
    """The fields from ``severity`` to ``name``, joined by tabs.

    Raises:
        ValueError, TypeError, OverflowError: see `copy_line`.
    """
    # + 0 makes a plain number of an enum's member, at half the cost of int().
    trace_id, span_id = event.trace_id, event.span_id
    return (
        f"{event.severity + 0}\t{event.trace_flags & 0xFF}\t"
        f"{trace_id.to_bytes(16).hex() if trace_id else ''}\t{span_id.to_bytes(8).hex() if span_id else ''}\t"
        f"{_label(event.name)}"
    )


def _fields(changes: Any, rest: Any) -> bytes:
    """The two JSON columns that end a line, not yet escaped."""
    return b"%b\t%b\n" % (b"" if changes is None else _encode(changes), _encode(rest))


def _text_columns(values: list[Any], rest: dict[str, Any]) -> str:
    """The text columns, escaped and joined by tabs; what they cannot hold goes to `rest`."""
    try:
        together = "".join(values)
    except TypeError:  # not all are text
        return _odd_text_columns(values, rest)
    # One look at all values together instead of one at each: hardly any needs more.
    if len(together) <= COLUMN_TEXT_LIMIT and together.isprintable() and "\\" not in together:
        return "\t".join(values)
    return _odd_text_columns(values, rest)


def _odd_text_columns(values: list[Any], rest: dict[str, Any]) -> str:
    """`_text_columns` for values of any kind, one by one."""
    fields = []
    for name, value in zip(_TEXT_ATTRIBUTES, values, strict=True):
        text = column_text(value) or ""
        if text != value:
            rest[name] = value
        fields.append(escaped(text))
    return "\t".join(fields)


def column_text(value: object) -> str | None:
    """What a text column holds for a value, and therefore what a filter on that column must compare with.

    A text of up to `COLUMN_TEXT_LIMIT` characters is itself. A longer one is its beginning, ``~`` and its
    SHA-256, so that equal columns still mean equal values. Other values are their JSON.
    """
    if value is None:
        return None
    text = value if isinstance(value, str) else _encode(value).decode()
    if len(text) > COLUMN_TEXT_LIMIT:
        digest = hashlib.sha256(text.encode()).hexdigest()
        text = f"{text[: COLUMN_TEXT_LIMIT - 1 - len(digest)]}~{digest}"
    return text.replace("\0", "\ufffd")


def json_text(value: object) -> str:
    """A JSON value as text that ``jsonb`` takes."""
    data = _encode(value)
    if b"\\u0000" in data or b'$json"' in data:
        data = _encode(_storable(value))
    return data.decode()


def plain_resource(resource: ResourceInfo) -> ResourceInfo:
    """The resource with JSON values only; it comes from the environment, which may hold any bytes."""
    plain: dict[str, Any] = _plain(resource.attributes)
    return ResourceInfo(plain)


def resource_id(resource: ResourceInfo) -> str:
    """The id of a plain resource: a UUID (version 8) from the SHA-256 of its attributes in canonical JSON."""
    canonical = msgspec.json.encode(resource.attributes, order="deterministic")
    digest = bytearray(hashlib.sha256(canonical).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x80
    digest[8] = digest[8] & 0x3F | 0x80
    return str(uuid.UUID(bytes=bytes(digest)))


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_plain(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, float)):
        return value
    return value if isinstance(value, int) and -_INT64 <= value < _INT64 else _plain(str(value))


def _storable(value: Any) -> Any:
    """The value with everything that ``jsonb`` refuses, or that looks like our wrapper, wrapped."""
    if isinstance(value, str):
        return _wrapped(value) if "\0" in value else value
    if isinstance(value, (list, tuple)):
        return [_storable(item) for item in value]
    if isinstance(value, dict):
        if _WRAPPER in value or any("\0" in key for key in value):
            return _wrapped(value)
        return {key: _storable(item) for key, item in value.items()}
    return value


def _wrapped(value: object) -> dict[str, str]:
    return {_WRAPPER: _encode(value).decode()}


def escaped(text: str) -> str:
    """The text with the characters escaped that end a field or a line. NUL cannot be stored as text."""
    if "\\" in text or "\t" in text or "\n" in text or "\r" in text or "\0" in text:
        return (
            text.replace("\\", "\\\\")
            .replace("\t", "\\t")
            .replace("\n", "\\n")
            .replace("\r", "\\r")
            .replace("\0", "\ufffd")
        )
    return text


def _label(text: str) -> str:
    """`escaped` for the few texts that every event repeats: event names, service names."""
    return _known_label(text) if len(text) <= LABEL_LIMIT else escaped(text)


_known_label: Final = lru_cache(maxsize=1024)(escaped)


def is_uuid(text: str) -> bool:
    """Whether the text is a UUID as PostgreSQL prints it."""
    return len(text) == _UUID_LENGTH and _known_uuid(text)


@lru_cache(maxsize=4096)
def _known_uuid(text: str) -> bool:
    """Events of a transaction repeat theirs."""
    return _UUID.fullmatch(text) is not None


def timestamp(nanoseconds: int) -> str:
    """A time in nanoseconds as PostgreSQL reads it, cut to microseconds, UTC."""
    second, micros = divmod(nanoseconds // 1000, 1_000_000)
    return f"{_second(second)}.{str(micros + 1_000_000)[1:]}+00"


@lru_cache(maxsize=1024)
def _second(second: int) -> str:
    """A whole second in ISO form, UTC. Events of a batch share theirs."""
    return (_EPOCH + timedelta(seconds=second)).strftime("%Y-%m-%d %H:%M:%S").rjust(19, "0")


# --- reading --------------------------------------------------------------------------------------


def event_from_row(row: Mapping[str, Any]) -> Event:
    """The event that `copy_line` was given, from a row of the table ``events``.

    Args:
        row: at least `COLUMNS`, with the types that psycopg loads: aware `datetime`, `UUID`, parsed JSON.
    """
    attributes = {
        attribute: str(value) if isinstance(value, uuid.UUID) else value
        for column, attribute in COLUMN_ATTRIBUTES.items()
        if (value := row[column]) is not None
    }
    if semconv.CHANGES in attributes:
        attributes[semconv.CHANGES] = _restored(attributes[semconv.CHANGES])
    attributes.update(_restored(row["attributes"]))
    return Event(
        id=str(row["id"]),
        name=row["name"],
        time=_nanoseconds(row["time"]),
        attributes=attributes,
        observed=0 if row["observed"] is None else _nanoseconds(row["observed"]),
        severity=row["severity"],
        trace_id=int(row["trace_id"] or "0", 16),
        span_id=int(row["span_id"] or "0", 16),
        trace_flags=row["trace_flags"],
    )


def _nanoseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND * 1000


def _restored(value: Any) -> Any:
    """The inverse of `_storable`. An integer beyond 64 bit was a float: ``jsonb`` prints 1e300 in full."""
    if isinstance(value, dict):
        if len(value) == 1 and isinstance(text := value.get(_WRAPPER), str):
            return _decode(text)
        return {key: _restored(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_restored(item) for item in value]
    if type(value) is int and not -_INT64 <= value < 2 * _INT64:
        return float(value)
    return value
