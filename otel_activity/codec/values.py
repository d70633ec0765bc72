"""Python values as plain JSON values, and back.

A value that JSON, PostgreSQL's jsonb and OTLP's AnyValue all carry unchanged stays as it is. Everything else
becomes an object with a single key, a tag such as ``{"$decimal": "1.10"}``. docs/encoding.md lists them all.
"""

from __future__ import annotations

import binascii
import datetime as dt
import enum
import hashlib
import ipaddress
import math
import re
import uuid
from array import array
from collections.abc import Mapping
from decimal import Decimal
from itertools import islice
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

import msgspec

from otel_activity.codec.kinds import RangeValue
from otel_activity.codec.reading import decode, display
from otel_activity.events import Hashed, Redacted
from otel_activity.interruptions import pass_on
from otel_activity.semconv import REDACTED_TAG

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "ATOMIC",
    "INT_MAX",
    "INT_MIN",
    "REDACTED",
    "SCALARS",
    "decode",
    "display",
    "encode",
    "isoformat",
    "text_of",
]

REDACTED: Final[dict[str, Any]] = {REDACTED_TAG: True}
"""The mark of a redacted value, encoded. One shared object: never change it."""

MAX_ITEMS: Final = 10_000
"""Items kept of one container; ``{"$rest": n}`` stands for the others."""
MAX_DEPTH: Final = 80
"""Nesting of one value, counted in protobuf messages: a list is 2, an object 3, of the output.

Protobuf parsers refuse messages nested deeper than 100, and one refused value costs the whole batch. 87 of
them are left inside ``activity.changes``, and a mark at the bottom needs 6. This is 40 lists or 26 objects.
"""
TOTAL_FACTOR: Final = 16
"""The output of one value is cut at this many times the limit, in characters (at least `MIN_TOTAL`)."""
MIN_TOTAL: Final = 65_536
"""Room for one value even when the limit is small."""
HEAD_LENGTH: Final = 1_024
"""Characters or bytes kept of a value that is over the limit."""
_LONGEST_WORD: Final = 256
"""Characters at the end of a head that are left out when they are the beginning of a word."""
HASH_LIMIT: Final = 64 << 20
"""Longest value that is hashed; hashing costs about 1 ms a million bytes."""

INT_MIN: Final = -(1 << 63)
INT_MAX: Final = (1 << 63) - 1
_DECIMAL_BITS: Final = 1_024
"""Integers up to here are written in decimal; far beyond, Python refuses (4,300 digits by default)."""
_FLOAT_MAX: Final = 2.0**53
"""From here on jsonb may give back a float as an integer."""
_FLOAT_MIN: Final = 1e-15
"""jsonb writes numbers without exponent: 5e-324 would be 325 characters."""
_LIST: Final = 2
_OBJECT: Final = 3
_NODE_COST: Final = 8
_MARK_COST: Final = 96
_KNOWN_TYPES: Final = 1_024
"""Bound on remembered subclasses: a program that makes classes on the fly must not fill the memory."""

_UTC_NAMES: Final = frozenset({"UTC", "Etc/UTC", "Zulu", "Etc/Zulu", "Universal", "Etc/Universal"})
_to_builtins: Final = msgspec.to_builtins
_UNENCODABLE = re.compile("[\0\ud800-\udfff]")
_LAST_WORD = re.compile(r"(?<=[\s\"',;<>])[^\s\"',;<>]++\Z")


class _State:
    """What one call of `encode` may still do."""

    __slots__ = ("left", "limit", "open")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        total = limit * TOTAL_FACTOR
        self.left = total if total > MIN_TOTAL else MIN_TOTAL
        self.open: set[int] = set()
        """Containers being encoded, by id: one met again refers to itself."""


# --- encode ---------------------------------------------------------------------------------------


def encode(value: Any, limit: int = 65_536) -> Any:
    """Turn any Python value into a plain JSON value. Never raises; work and output are bounded.

    Args:
        value: anything. Its own methods are not called, except those of the types that have an encoding.
        limit: longest text (characters) or byte string (bytes) that is kept whole.

    Returns:
        None, bool, int within signed 64 bit, finite float, str that is valid UTF-8 without NUL, or a list or
        a dict (str keys) of these. Shared with the input only where it is immutable.
    """
    kind = type(value)
    try:
        if kind is str:
            if len(value) <= limit and value.isascii() and "\0" not in value:
                return value
        elif kind is int:
            if INT_MIN <= value <= INT_MAX:
                return value
        elif value is None or kind is bool:
            return value
        scalar = SCALARS.get(kind)
        if scalar is not None:
            return scalar(value, limit)
        return (_ENCODERS.get(kind) or _learn(kind))(value, _State(limit), 0)
    except Exception as error:  # noqa: BLE001 - one odd value must never cost the event
        try:
            pass_on(error)
            return _failed(kind, error)
        except RecursionError:  # called at the very end of the stack: no further call is possible
            return {"$replaced": {"type": "object", "reason": "raised RecursionError"}}


def _item(value: Any, state: _State, depth: int) -> Any:
    """Encode one value inside a container; what fails here costs only itself."""
    kind = type(value)
    if kind is str:
        size = len(value)
        if size <= state.limit and value.isascii() and "\0" not in value:
            state.left -= size + _NODE_COST
            return value
    elif kind is int:
        if INT_MIN <= value <= INT_MAX:
            state.left -= _NODE_COST
            return value
    elif value is None or kind is bool:
        state.left -= _NODE_COST
        return value
    try:
        scalar = SCALARS.get(kind)
        if scalar is not None:
            return _charge(scalar(value, state.limit), state)
        encoder = _ENCODERS.get(kind) or _learn(kind)
        return encoder(value, state, depth)
    except Exception as error:  # noqa: BLE001 - as in encode
        pass_on(error)
        state.left -= _MARK_COST
        return _failed(kind, error)


def _charge(encoded: Any, state: _State) -> Any:
    """Take the size of an encoded scalar, and the work of hashing a long one, from what is left."""
    state.left -= _NODE_COST
    if type(encoded) is str:
        state.left -= len(encoded)
    elif type(encoded) is dict:
        payload = next(iter(encoded.values()))
        if type(payload) is str:
            state.left -= len(payload)
        elif type(payload) is dict:  # truncated
            state.left -= _MARK_COST + len(payload["head"]) + (payload["length"] >> 6)
    return encoded


def text_of(value: Any, limit: int = 65_536) -> str:
    """A value as text, as entity ids show it: text as it is, a number or UUID as it is written, else JSON."""
    encoded = encode(value, limit)
    if isinstance(encoded, str):
        return encoded
    if isinstance(encoded, dict) and len(encoded) == 1:
        (inner,) = encoded.values()
        if isinstance(inner, str):
            return inner
    return msgspec.json.encode(encoded).decode()


# scalars: (value, limit) -> encoded


def _str(value: str, limit: int) -> Any:
    if len(value) > limit:
        return _long_text("str", value, limit)
    if _is_plain(value):
        return value
    escaped = value.replace("\\", "\\\\")
    return {"$str": _UNENCODABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", escaped)}


def _is_plain(text: str) -> bool:
    if "\0" in text:
        return False
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _int(value: int, limit: int) -> Any:
    if INT_MIN <= value <= INT_MAX:
        return value
    if value.bit_length() <= _DECIMAL_BITS:
        return {"$int": str(value)}
    return _number("int", "$int", hex(value), limit)


def _float(value: float, limit: int) -> Any:
    if _FLOAT_MIN <= abs(value) < _FLOAT_MAX:
        return value
    if value == 0.0 and math.copysign(1.0, value) > 0:
        return value
    if math.isinf(value):
        return {"$float": "Infinity" if value > 0 else "-Infinity"}
    return {"$float": "NaN" if math.isnan(value) else repr(value)}


def _decimal(value: Decimal, limit: int) -> Any:
    return _number("Decimal", "$decimal", Decimal.__str__(value), limit)


def _number(name: str, tag: str, text: str, limit: int) -> Any:
    return {tag: text} if len(text) <= limit else _long_text(name, text, limit)


def _datetime(value: dt.datetime, limit: int) -> Any:
    return {"$datetime": isoformat(value)}


def isoformat(value: dt.datetime) -> str:
    """`datetime.isoformat`, which takes a microsecond and more; msgspec takes a fraction of that."""
    zone = value.tzinfo
    if type(value) is dt.datetime:
        if zone is None:
            return _to_builtins(value)  # type: ignore[no-any-return]  # a str
        # Drivers give all values the zone of the session.
        if zone is dt.UTC or (type(zone) is ZoneInfo and zone.key in _UTC_NAMES):
            return f"{_to_builtins(value)[:-1]}+00:00"  # it writes Z
    return dt.datetime.isoformat(value)


def _date(value: dt.date, limit: int) -> Any:
    return {"$date": dt.date.isoformat(value)}


def _time(value: dt.time, limit: int) -> Any:
    return {"$time": dt.time.isoformat(value)}


def _timedelta(value: dt.timedelta, limit: int) -> Any:
    """ISO 8601 with a sign at each part, the form that PostgreSQL's interval reads."""
    total = (value.days * 86_400 + value.seconds) * 1_000_000 + value.microseconds
    sign = "-" if total < 0 else ""
    seconds, microseconds = divmod(abs(total), 1_000_000)
    days, seconds = divmod(seconds, 86_400)
    return {"$duration": f"P{sign}{days}DT{sign}{seconds}.{microseconds:06}S"}


def _uuid(value: Any, limit: int) -> Any:
    return {"$uuid": str(value) if type(value) is uuid.UUID else _own_text(value)}


def _address(value: Any, limit: int) -> Any:
    return {"$ip": _own_text(value)}


def _interface(value: Any, limit: int) -> Any:
    return {"$ipinterface": _own_text(value)}


def _network(value: Any, limit: int) -> Any:
    return {"$ipnetwork": _own_text(value)}


def _own_text(value: Any) -> str:
    """`str()` of a type whose text is short, checked because a subclass may say anything."""
    text = str(value)
    if type(text) is not str or len(text) > HEAD_LENGTH or not _is_plain(text):
        raise ValueError("unusable text")
    return text


def _bytes(value: Any, limit: int) -> Any:
    view = memoryview(value)
    if view.nbytes > limit:
        return _long_bytes(view, limit, type(value).__name__)
    return {"$bytes": _base64(view.tobytes())}


def _base64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode("ascii")


def _redacted(value: Redacted, limit: int) -> Any:
    return REDACTED


def _hashed(value: Hashed, limit: int) -> Any:
    return {REDACTED_TAG: value.digest}


def _long_text(name: str, text: str, limit: int) -> Any:
    digest = None
    if len(text) <= HASH_LIMIT:
        sha = hashlib.sha256()
        for start in range(0, len(text), 1 << 20):  # in parts: no second copy of the whole
            sha.update(text[start : start + (1 << 20)].encode("utf-8", "surrogatepass"))
        digest = sha.hexdigest()
    head = text[: min(HEAD_LENGTH, limit)]
    # A secret that was cut in two would not be recognised any more: end with a whole word, if there is one.
    end = _LAST_WORD.search(head, max(len(head) - _LONGEST_WORD, 1))
    head = _UNENCODABLE.sub("\ufffd", head if end is None else head[: end.start()])
    return _truncated(name, len(text), head, digest)


def _long_bytes(view: memoryview, limit: int, name: str) -> Any:
    whole = view.tobytes()
    digest = hashlib.sha256(whole).hexdigest() if len(whole) <= HASH_LIMIT else None
    return _truncated(name, len(whole), _base64(whole[: min(HEAD_LENGTH, limit)]), digest)


def _truncated(name: str, length: int, head: str, digest: str | None) -> Any:
    return {"$truncated": {"type": name, "length": length, "head": head, "sha256": digest}}


# containers: (value, state, depth) -> encoded


def _container(cost: int, build: Callable[[Any, _State, int], Any]) -> Callable[[Any, _State, int], Any]:
    """Guard a container's encoder against depth and self-reference; `cost` is its own share of the depth."""

    def encoder(value: Any, state: _State, depth: int) -> Any:
        depth += cost
        state.left -= _NODE_COST
        if depth > MAX_DEPTH:
            state.left -= _MARK_COST
            return _replaced(type(value), "nested too deeply")
        key = id(value)
        if key in state.open:
            state.left -= _MARK_COST
            return _replaced(type(value), "refers to itself")
        state.open.add(key)
        try:
            return build(value, state, depth)
        finally:
            state.open.discard(key)

    return encoder


def _items(values: Iterable[Any], total: int, state: _State, depth: int) -> list[Any]:
    """Encode until the room is used up, at least one; say how many of the total are missing."""
    encoded = []
    for value in values:
        encoded.append(_item(value, state, depth))
        if state.left <= 0:
            break
    if len(encoded) < total:
        encoded.append({"$rest": total - len(encoded)})
    return encoded


# The base classes' own methods are called, not the value's: a subclass may override them with anything.


def _list(value: list[Any], state: _State, depth: int) -> Any:
    return _items(list.__getitem__(value, slice(MAX_ITEMS)), list.__len__(value), state, depth)


def _tuple(value: tuple[Any, ...], state: _State, depth: int) -> Any:
    part = tuple.__getitem__(value, slice(MAX_ITEMS))
    return {"$tuple": _items(part, tuple.__len__(value), state, depth)}


def _set(value: set[Any], state: _State, depth: int) -> Any:
    return {"$set": _items(_members(set.__iter__(value)), set.__len__(value), state, depth)}


def _frozenset(value: frozenset[Any], state: _State, depth: int) -> Any:
    part = _members(frozenset.__iter__(value))
    return {"$frozenset": _items(part, frozenset.__len__(value), state, depth)}


def _members(members: Iterable[Any]) -> list[Any]:
    """In order where there is one, so that equal sets have equal encodings in every process."""
    part = list(islice(members, MAX_ITEMS))
    if (
        len({type(member) for member in part} - _SORTABLE) == 0
        and len({type(member) for member in part}) == 1
    ):
        part.sort()
    return part


def _dict(value: dict[Any, Any], state: _State, depth: int) -> Any:
    if value is REDACTED:
        return value
    size = dict.__len__(value)
    pairs = dict.items(value)
    return _pairs(list(pairs if size <= MAX_ITEMS else islice(pairs, MAX_ITEMS)), size, state, depth)


def _mapping(value: Mapping[Any, Any], state: _State, depth: int) -> Any:
    return _pairs(list(islice(iter(value.items()), MAX_ITEMS)), len(value), state, depth)


def _pairs(pairs: list[tuple[Any, Any]], total: int, state: _State, depth: int) -> Any:
    if not _plain_keys(pairs, state.limit):
        return _map(pairs, total, state, depth)
    encoded: dict[str, Any] = {}
    for key, value in pairs:
        state.left -= len(key)
        encoded[key] = _item(value, state, depth)
        if state.left <= 0:
            break
    if len(encoded) < total:
        encoded["$rest"] = total - len(encoded)
    return encoded


def _plain_keys(pairs: list[tuple[Any, Any]], limit: int) -> bool:
    for key, _ in pairs:
        if type(key) is not str or len(key) > limit:
            return False
        if (
            key.isidentifier()
        ):  # one call that rules out "$", NUL and surrogates for nearly every key there is
            continue
        if key[:1] == "$" or not _is_plain(key):
            return False
    return True


def _map(pairs: list[tuple[Any, Any]], total: int, state: _State, depth: int) -> Any:
    depth += 2 * _LIST
    if depth > MAX_DEPTH:
        return _replaced(dict, "nested too deeply")
    encoded: list[Any] = []
    for key, value in pairs:
        encoded.append([_item(key, state, depth), _item(value, state, depth)])
        if state.left <= 0:
            break
    if len(encoded) < total:
        encoded.append({"$rest": total - len(encoded)})
    return {"$map": encoded}


def _array(value: array[Any], state: _State, depth: int) -> Any:
    part = array.__getitem__(value, slice(MAX_ITEMS)).tolist()
    items = _items(part, array.__len__(value), state, depth)
    return {"$array": {"typecode": value.typecode, "items": items}}


def _enum(value: enum.Enum, state: _State, depth: int) -> Any:
    name = _item(value._name_, state, depth)
    return {
        "$enum": {"type": _type_name(type(value)), "name": name, "value": _item(value._value_, state, depth)}
    }


def _range(value: Any, state: _State, depth: int) -> Any:
    found = RangeValue.of(value)
    lower, upper = _item(found.lower, state, depth), _item(found.upper, state, depth)
    return {"$range": {"lower": lower, "upper": upper, "bounds": found.bounds, "empty": found.empty}}


def _multirange(value: Any, state: _State, depth: int) -> Any:
    return {"$multirange": _items(list(islice(iter(value), MAX_ITEMS)), len(value), state, depth)}


def _unknown(value: Any, state: _State, depth: int) -> Any:
    state.left -= _MARK_COST
    return _replaced(type(value), "no encoding for this type")


def _failed(kind: type, error: Exception) -> Any:
    """The mark for a value that raised. The error's message may quote the value, its type cannot."""
    return _replaced(kind, f"raised {_type_name(type(error))}")


def _replaced(kind: type, reason: str) -> Any:
    return {"$replaced": {"type": _type_name(kind), "reason": reason}}


def _type_name(kind: type) -> str:
    """The class's name as `type` itself knows it: a metaclass may answer anything."""
    name: str = _NAME_OF_TYPE(kind)
    return name[:HEAD_LENGTH] if _is_plain(name) else "?"


_NAME_OF_TYPE: Final[Callable[[type], str]] = type.__dict__["__name__"].__get__


# which encoder for which type

SCALARS: Final[dict[type, Callable[[Any, int], Any]]] = {
    str: _str,
    int: _int,
    float: _float,
    Decimal: _decimal,
    dt.datetime: _datetime,
    dt.date: _date,
    dt.time: _time,
    dt.timedelta: _timedelta,
    uuid.UUID: _uuid,
    bytes: _bytes,
    bytearray: _bytes,
    memoryview: _bytes,
    ipaddress.IPv4Address: _address,
    ipaddress.IPv6Address: _address,
    ipaddress.IPv4Interface: _interface,
    ipaddress.IPv6Interface: _interface,
    ipaddress.IPv4Network: _network,
    ipaddress.IPv6Network: _network,
    Redacted: _redacted,
    Hashed: _hashed,
}
_CONTAINERS: Final[dict[type, Callable[[Any, _State, int], Any]]] = {
    dict: _container(_OBJECT, _dict),
    list: _container(_LIST, _list),
    tuple: _container(_OBJECT + _LIST, _tuple),
    set: _container(_OBJECT + _LIST, _set),
    frozenset: _container(_OBJECT + _LIST, _frozenset),
    array: _container(2 * _OBJECT + _LIST, _array),
    RangeValue: _container(2 * _OBJECT, _range),
}
_ENUM: Final = _container(2 * _OBJECT, _enum)
_RANGE: Final = _CONTAINERS[RangeValue]
_MULTIRANGE: Final = _container(_OBJECT + _LIST, _multirange)
_MAPPING: Final = _container(_OBJECT, _mapping)

_ENCODERS: Final = dict(_CONTAINERS)
"""Also remembers the subclasses that were met."""
_SORTABLE: Final = frozenset({str, int, bytes, dt.date, uuid.UUID})
_DRIVERS: Final = frozenset({"sqlalchemy", "psycopg", "psycopg2", "asyncpg"})

ATOMIC: Final[frozenset[type]] = frozenset({type(None), bool, *SCALARS} - {bytearray, memoryview})
"""Types (exactly these, no subclass) whose instances never change: a snapshot may keep the reference."""


def _learn(kind: type) -> Callable[[Any, _State, int], Any]:
    encoder = _find(kind)
    if len(_ENCODERS) < _KNOWN_TYPES:
        _ENCODERS[kind] = encoder
    return encoder


def _find(kind: type) -> Callable[[Any, _State, int], Any]:
    """The encoder for a type met for the first time. Looks at the class, never at an instance."""
    bases = type.__dict__["__mro__"].__get__(kind)
    if enum.Enum in bases:
        return _ENUM
    names = {base.__name__ for base in bases if base.__module__.partition(".")[0] in _DRIVERS}
    if names & {"MultiRange", "Multirange"}:
        return _MULTIRANGE
    if "Range" in names:
        return _RANGE
    for base in bases:
        if base in _CONTAINERS:
            return _CONTAINERS[base]
        if base in SCALARS:
            return _subclass(base)
    if kind.__module__ == "uuid_utils" and kind.__name__ == "UUID":
        return _subclass(uuid.UUID)
    return _MAPPING if issubclass(kind, Mapping) else _unknown


_PLAIN: Final[dict[type, Callable[[Any], Any]]] = {
    str: str.__str__,
    int: int.__int__,
    float: float.__float__,
}
"""A subclass's value as the base class, by the base class's own method."""


def _subclass(base: type) -> Callable[[Any, _State, int], Any]:
    scalar, plain = SCALARS[base], _PLAIN.get(base)

    def encoder(value: Any, state: _State, depth: int) -> Any:
        return _charge(scalar(value if plain is None else plain(value), state.limit), state)

    return encoder
