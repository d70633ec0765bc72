"""What changed in a row, as JSON: rows of one table have the same columns and types over and over.

What is around the values in that JSON, and what has to be looked at in each of them, depends on the columns
and on the types alone. So these are a key, and what it leads to is worked out once: a form, which the values
are put into one by one, and which of them need a call before that.
"""

from __future__ import annotations

import datetime as dt
import uuid
from decimal import Decimal
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from otel_activity.codec.values import INT_MAX, INT_MIN, SCALARS, encode, isoformat
from otel_activity.interruptions import pass_on

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["AFTER", "BEFORE", "BOTH", "changes_json"]

BEFORE: Final = ("before",)
AFTER: Final = ("after",)
BOTH: Final = ("before", "after")

_KNOWN_SHAPES: Final = 2_048
"""Bound on remembered shapes: a program that makes classes on the fly must not fill the memory."""
_PLAIN: Final = frozenset({str, int, bool, type(None)})
_WRITTEN: Final = {
    dt.datetime: "$datetime",
    dt.date: "$date",
    uuid.UUID: "$uuid",
    Decimal: "$decimal",
}
"""Types of which msgspec writes just what stands behind their tag; of times, what `isoformat` gives."""
_json: Final = msgspec.json.Encoder().encode


class _Shape(NamedTuple):
    """What to do with values of certain types in certain columns.

    Attributes:
        form: JSON with ``%b`` for each value.
        size: of the form without values.
        numbers: takes the integers out, to be looked at together.
        called: position of each value that does not stay as it is, and its encoder; None is the caller's
            business.
    """

    form: bytes
    size: int
    numbers: Callable[[Sequence[Any]], Sequence[int]] | None
    called: tuple[tuple[int, Callable[[Any, int], Any] | None], ...]


_shapes: Final[dict[tuple[tuple[str, ...], tuple[str, ...], tuple[type, ...]], _Shape]] = {}


def changes_json(
    names: tuple[str, ...],
    sides: tuple[str, ...],
    values: Sequence[Any],
    odd: Callable[[Any], Any],
    limit: int = 65_536,
) -> bytes:
    """``{"column": {"before": ..., "after": ...}}``, each value as `codec.encode` gives it. Never raises.

    Args:
        names: of the columns.
        sides: `BEFORE`, `AFTER` or `BOTH`.
        values: of each column its sides.
        odd: is called for values of types that are no scalars; `encode` itself, or something that knows more
            types. What it gives `msgspec.UNSET` for does not appear.
        limit: see `encode`.
    """
    kinds = tuple(map(type, values))
    form, size, numbers, called = _shapes.get((names, sides, kinds)) or _learn(names, sides, kinds)
    found = values
    try:
        if numbers is not None:
            together = numbers(values)
            if min(together) < INT_MIN or max(together) > INT_MAX:
                return _one_by_one(names, sides, values, odd, limit)
        if called:
            found = list(values)
            for index, encoder in called:
                value = values[index]
                found[index] = odd(value) if encoder is None else encoder(value, limit)
        data = form % tuple(map(_json, found))
    except Exception as raised:  # noqa: BLE001 - one odd value must never cost the others
        pass_on(raised)
        return _one_by_one(names, sides, values, odd, limit)
    if (
        len(data) - size > limit or b"\\u0000" in data
    ):  # perhaps a text that is too long, or that jsonb refuses
        return _one_by_one(names, sides, values, odd, limit)
    return data


def _one_by_one(
    names: tuple[str, ...],
    sides: tuple[str, ...],
    values: Sequence[Any],
    odd: Callable[[Any], Any],
    limit: int,
) -> bytes:
    encoded = iter([encode(value, limit) if type(value) in SCALARS else odd(value) for value in values])
    changes = {name: dict(zip(sides, encoded, strict=False)) for name in names}
    return _json(
        {
            name: {side: value for side, value in found.items() if value is not msgspec.UNSET}
            for name, found in changes.items()
        }
    )


def _learn(names: tuple[str, ...], sides: tuple[str, ...], kinds: tuple[type, ...]) -> _Shape:
    called = tuple((index, _encoder(kind)) for index, kind in enumerate(kinds) if kind not in _WRITTEN_AS_IS)
    form = _form(names, sides, kinds)
    size = len(form % ((b"",) * len(kinds)))
    numbers = [index for index, kind in enumerate(kinds) if kind is int]
    shape = _Shape(form, size, _getter(numbers), called)
    if len(_shapes) >= _KNOWN_SHAPES:
        _shapes.clear()
    _shapes[names, sides, kinds] = shape
    return shape


def _form(names: tuple[str, ...], sides: tuple[str, ...], kinds: tuple[type, ...]) -> bytes:
    tags = iter([_WRITTEN.get(kind) for kind in kinds])
    columns = []
    for name in names:
        found = [_member(side, "%b" if (tag := next(tags)) is None else f'{{"{tag}":%b}}') for side in sides]
        columns.append(_member(name, f"{{{','.join(found)}}}"))
    return f"{{{','.join(columns)}}}".encode()


def _member(name: str, value: str) -> str:
    return f"{_json(name).decode().replace('%', '%%')}:{value}"


def _encoder(kind: type) -> Callable[[Any, int], Any] | None:
    return _isoformat if kind is dt.datetime else SCALARS.get(kind)


def _isoformat(value: dt.datetime, limit: int) -> str:
    return isoformat(value)


_WRITTEN_AS_IS: Final = (_PLAIN | _WRITTEN.keys()) - {dt.datetime}


def _getter(indexes: list[int]) -> Callable[[Sequence[Any]], Sequence[Any]] | None:
    """Takes the values at some positions, as a tuple."""
    if not indexes:
        return None
    # Of a single position it would give the bare value.
    return itemgetter(*(indexes if len(indexes) > 1 else indexes * 2))
