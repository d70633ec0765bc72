"""The values of a row at once: rows of one table have the same types over and over.

What has to be looked at in each value depends on its type alone. So the types of a row are a key, and what
it leads to is worked out once: where the texts stand, where the numbers, and which values need a call.
"""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from otel_activity.codec.values import INT_MAX, INT_MIN, SCALARS, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["encode_all"]

_KNOWN_SHAPES: Final = 2_048
"""Bound on remembered shapes: a program that makes classes on the fly must not fill the memory."""
_PLAIN: Final = frozenset({str, int, bool, type(None)})


class _Shape(NamedTuple):
    """What to look at in values of certain types."""

    texts: Callable[[Sequence[Any]], Sequence[str]] | None
    numbers: Callable[[Sequence[Any]], Sequence[int]] | None
    others: tuple[tuple[int, Callable[[Any, int], Any] | None], ...]
    """Position and encoder of each value that does not stay as it is; None is the caller's business."""


_shapes: Final[dict[tuple[type, ...], _Shape]] = {}


def encode_all(values: Sequence[Any], odd: Callable[[Any], Any], limit: int = 65_536) -> list[Any]:
    """As `codec.encode` for each value, with one look at all texts together.

    Args:
        values: a list or tuple of anything.
        odd: is called for values of types that are no scalars; `encode` itself, or something that knows more
            types.
        limit: see `encode`.
    """
    kinds = tuple(map(type, values))
    shape = _shapes.get(kinds) or _learn(kinds)
    texts, numbers, others = shape
    encoded = list(values)
    try:
        if texts is not None:
            together = "".join(texts(values))
            if len(together) > limit or "\0" in together:
                return _one_by_one(values, odd, limit)
            if not together.isascii():
                together.encode()  # raises for lone surrogates
        if numbers is not None:
            found = numbers(values)
            if min(found) < INT_MIN or max(found) > INT_MAX:
                return _one_by_one(values, odd, limit)
        for index, encoder in others:
            value = values[index]
            encoded[index] = odd(value) if encoder is None else encoder(value, limit)
    except Exception:  # noqa: BLE001 - one odd value must never cost the others
        return _one_by_one(values, odd, limit)
    return encoded


def _one_by_one(values: Sequence[Any], odd: Callable[[Any], Any], limit: int) -> list[Any]:
    return [encode(value, limit) if type(value) in SCALARS else odd(value) for value in values]


def _learn(kinds: tuple[type, ...]) -> _Shape:
    texts = [index for index, kind in enumerate(kinds) if kind is str]
    numbers = [index for index, kind in enumerate(kinds) if kind is int]
    shape = _Shape(
        _getter(texts),
        _getter(numbers),
        tuple((index, SCALARS.get(kind)) for index, kind in enumerate(kinds) if kind not in _PLAIN),
    )
    if len(_shapes) >= _KNOWN_SHAPES:
        _shapes.clear()
    _shapes[kinds] = shape
    return shape


def _getter(indexes: list[int]) -> Callable[[Sequence[Any]], Sequence[Any]] | None:
    """Takes the values at some positions, as a tuple."""
    if not indexes:
        return None
    # Of a single position it would give the bare value.
    return itemgetter(*(indexes if len(indexes) > 1 else indexes * 2))
