"""Encoded values back to Python (`decode`) and as short text for people (`display`)."""

from __future__ import annotations

import binascii
import datetime as dt
import ipaddress
import re
import uuid
from array import array
from decimal import Decimal
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from otel_activity.codec.kinds import EnumValue, MultirangeValue, RangeValue, Replaced, Rest, Truncated
from otel_activity.events import Hashed, Redacted
from otel_activity.semconv import REDACTED_TAG

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["decode", "display"]

DISPLAY_LENGTH: Final = 200
"""Longest text that `display` returns."""

_ESCAPED = re.compile(r"\\(\\|u[0-9a-f]{4})")
_TINY_OFFSET = re.compile(r"(.+)([+-])00:00:00\.(\d{6})")
_DURATION = re.compile(r"P(-?)(\d+)DT(-?)(\d+)\.(\d{6})S")

# --- decode ---------------------------------------------------------------------------------------


def decode(encoded: Any) -> Any:
    """Turn the result of `encode` back into the Python value.

    Args:
        encoded: a plain JSON value, possibly stored in between.

    Returns:
        An equal value of the same type, or of its base class for a subclass; `bytes` for `bytearray` and
        `memoryview`; the classes of `otel_activity.codec.kinds` for enums, ranges and marks; `Redacted()` or
        `Hashed`.
        An object that is no tag of ours, or a damaged one, comes back as it is.
    """
    kind = type(encoded)
    if kind is list:
        return [decode(item) for item in encoded]
    if kind is not dict:
        return encoded
    if len(encoded) == 1:
        ((tag, payload),) = encoded.items()
        decoder = _DECODERS.get(tag)
        if decoder is not None:
            try:
                return decoder(payload)
            except Exception:  # noqa: BLE001 - damaged data is shown as it is, it must not hide the rest
                return encoded
    return {key: Rest(item) if key == "$rest" else decode(item) for key, item in encoded.items()}


def _unescape(text: str) -> str:
    return _ESCAPED.sub(lambda found: "\\" if found[1] == "\\" else chr(int(found[1][1:], 16)), text)


def _to_int(text: str) -> int:
    return int(text, 16) if "x" in text else int(text)


def _to_moment(kind: Any) -> Callable[[str], Any]:
    """`fromisoformat`, which takes an offset below one second for UTC."""

    def decoder(text: str) -> Any:
        tiny = _TINY_OFFSET.fullmatch(text)
        if tiny is None:
            return kind.fromisoformat(text)
        offset = dt.timedelta(microseconds=int(tiny[2] + tiny[3]))
        return kind.fromisoformat(tiny[1]).replace(tzinfo=dt.timezone(offset))

    return decoder


def _to_duration(text: str) -> dt.timedelta:
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(text)
    sign, days, _, seconds, microseconds = match.groups()
    duration = dt.timedelta(int(days), int(seconds), int(microseconds))
    return -duration if sign else duration


def _to_set(kind: type) -> Callable[[Any], Any]:
    def decoder(payload: list[Any]) -> Any:
        items = [decode(item) for item in payload]
        try:
            return kind(items)
        except TypeError:  # a hashable subclass of list or dict comes back as the unhashable base
            return tuple(items)

    return decoder


def _to_dict(payload: list[Any]) -> Any:
    pairs = [tuple(decoded) if type(decoded) is list else (decoded, None) for decoded in map(decode, payload)]
    try:
        return dict(pairs)
    except TypeError:  # as in _to_set
        return tuple(pairs)


def _to_redacted(payload: Any) -> Any:
    if payload is True:
        return Redacted()
    return Hashed(payload) if isinstance(payload, str) else {REDACTED_TAG: payload}


_DECODERS: Final[dict[str, Callable[[Any], Any]]] = {
    "$str": _unescape,
    "$int": _to_int,
    "$float": float,
    "$decimal": Decimal,
    "$datetime": _to_moment(dt.datetime),
    "$date": dt.date.fromisoformat,
    "$time": _to_moment(dt.time),
    "$duration": _to_duration,
    "$uuid": uuid.UUID,
    "$bytes": lambda text: binascii.a2b_base64(text, strict_mode=True),
    "$ip": ipaddress.ip_address,
    "$ipinterface": ipaddress.ip_interface,
    "$ipnetwork": ipaddress.ip_network,
    "$tuple": lambda payload: tuple([decode(item) for item in payload]),
    "$set": _to_set(set),
    "$frozenset": _to_set(frozenset),
    "$map": _to_dict,
    "$array": lambda payload: array(payload["typecode"], decode(payload["items"])),
    "$enum": lambda payload: EnumValue(payload["type"], decode(payload["name"]), decode(payload["value"])),
    "$range": lambda payload: RangeValue(
        decode(payload["lower"]), decode(payload["upper"]), payload["bounds"], payload["empty"]
    ),
    "$multirange": lambda payload: MultirangeValue(tuple([decode(item) for item in payload])),
    "$truncated": lambda payload: Truncated(**payload),
    "$replaced": lambda payload: Replaced(**payload),
    "$rest": Rest,
    REDACTED_TAG: _to_redacted,
}


# --- display --------------------------------------------------------------------------------------

_SHOWN_ITEMS: Final = 10
_SHOWN_DEPTH: Final = 4
_SHOWN_HEAD: Final = 40
_SHOWN_HASH: Final = 12


def display(encoded: Any) -> str:
    """Short text of an encoded value, for a person, on one line; at most `DISPLAY_LENGTH` characters.

    Control characters are escaped: a stored value must not be able to steer a terminal.
    """
    text = _show(encoded, 0)
    if len(text) > DISPLAY_LENGTH:
        text = text[: DISPLAY_LENGTH - 3] + "..."
    return text


def _show(encoded: Any, depth: int) -> str:
    if encoded is None:
        return "null"
    if encoded is True or encoded is False:
        return "true" if encoded else "false"
    if isinstance(encoded, str):
        return _printable(encoded) if depth == 0 else f'"{_printable(encoded)}"'
    if isinstance(encoded, list):
        return _show_items("[", encoded, "]", depth)
    if not isinstance(encoded, dict):
        return str(encoded)
    if len(encoded) == 1:
        ((tag, payload),) = encoded.items()
        shower = _SHOWERS.get(tag)
        if shower is not None:
            try:
                return shower(payload, depth)
            except Exception:  # noqa: BLE001 - damaged data is shown as it is
                return _show_object(encoded, depth)
    return _show_object(encoded, depth)


def _printable(text: str) -> str:
    text = text[: DISPLAY_LENGTH + 1]
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _show_items(opening: str, items: list[Any], closing: str, depth: int) -> str:
    if depth >= _SHOWN_DEPTH:
        return f"{opening}...{closing}"
    shown = [_show(item, depth + 1) for item in items[:_SHOWN_ITEMS]]
    if len(items) > _SHOWN_ITEMS:
        shown.append("...")
    return f"{opening}{', '.join(shown)}{closing}"


def _show_object(encoded: dict[str, Any], depth: int) -> str:
    if depth >= _SHOWN_DEPTH:
        return "{...}"
    shown = []
    for key, item in islice(encoded.items(), _SHOWN_ITEMS):
        if key == "$rest" and type(item) is int:
            shown.append(f"... and {item} more")
        else:
            shown.append(f"{_printable(key)}: {_show(item, depth + 1)}")
    if len(encoded) > _SHOWN_ITEMS:
        shown.append("...")
    return f"{{{', '.join(shown)}}}"


def _show_text(payload: Any, depth: int) -> str:
    return _printable(payload)


def _show_map(payload: Any, depth: int) -> str:
    shown = [
        f"{_show(pair[0], depth + 1)}: {_show(pair[1], depth + 1)}"
        if isinstance(pair, list)
        else _show(pair, depth)
        for pair in payload[:_SHOWN_ITEMS]
    ]
    return "{...}" if depth >= _SHOWN_DEPTH else f"{{{', '.join(shown)}}}"


def _show_range(payload: Any, depth: int) -> str:
    if payload["empty"]:
        return "empty"
    sides = ["" if payload[side] is None else _show(payload[side], depth) for side in ("lower", "upper")]
    return f"{payload['bounds'][0]}{sides[0]}, {sides[1]}{payload['bounds'][1]}"


def _show_bytes(payload: Any, depth: int) -> str:
    data = binascii.a2b_base64(payload)
    return f"0x{data[:_SHOWN_HEAD].hex()}{'...' if len(data) > _SHOWN_HEAD else ''}"


def _show_truncated(payload: Any, depth: int) -> str:
    return f"{_printable(payload['head'][:_SHOWN_HEAD])}... ({_size(payload['length'])})"


def _show_redacted(payload: Any, depth: int) -> str:
    """The beginning of a hash is enough to tell two values apart."""
    if payload is True:
        return "[redacted]"
    return f"[redacted, hash {_printable(payload.rpartition(':')[2][:_SHOWN_HASH])}]"


def _size(length: int) -> str:
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if length >= unit:
            return f"{length / unit:.1f} {name}"
    return f"{length} B"


_TEXT_TAGS: Final = (
    *("$int", "$float", "$decimal", "$datetime", "$date", "$time", "$duration"),
    *("$uuid", "$ip", "$ipinterface", "$ipnetwork"),
)
_SHOWERS: Final[dict[str, Callable[[Any, int], str]]] = {
    **dict.fromkeys(_TEXT_TAGS, _show_text),
    "$str": lambda payload, depth: _show(_unescape(payload), depth),
    "$bytes": _show_bytes,
    "$tuple": lambda payload, depth: _show_items("(", payload, ")", depth),
    "$set": lambda payload, depth: _show_items("{", payload, "}", depth),
    "$frozenset": lambda payload, depth: _show_items("{", payload, "}", depth),
    "$multirange": lambda payload, depth: _show_items("{", payload, "}", depth),
    "$array": lambda payload, depth: _show_items("[", payload["items"], "]", depth),
    "$map": _show_map,
    "$enum": lambda payload, depth: _printable(f"{payload['type']}.{payload['name']}"),
    "$range": _show_range,
    "$truncated": _show_truncated,
    "$replaced": lambda payload, depth: _printable(f"[{payload['type']}: {payload['reason']}]"),
    "$rest": lambda payload, depth: f"... and {payload:d} more",
    REDACTED_TAG: _show_redacted,
}
