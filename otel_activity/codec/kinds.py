"""What `decode` returns where the original Python object cannot, or must not, be built again."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["EnumValue", "MultirangeValue", "RangeValue", "Replaced", "Rest", "Truncated"]


@dataclass(frozen=True, slots=True, eq=False)
class EnumValue:
    """An enum member by what is known of it; importing the class named in stored data would not be safe.

    Equal to another `EnumValue`, and to a member of `enum.Enum`, with the same class name, name and value.

    Attributes:
        type: name of the enum class, without its module.
        name: name of the member; None for a flag without one.
        value: the member's value, decoded.
    """

    type: str
    name: str | None
    value: Any

    def __eq__(self, other: object) -> bool:
        if isinstance(other, EnumValue):
            return (self.type, self.name, self.value) == (other.type, other.name, other.value)
        if isinstance(other, enum.Enum):
            found = (type(other).__name__, other._name_, other._value_)
            return (self.type, self.name, self.value) == found
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self.name)  # what enum.Enum hashes, so that a member finds its decoded twin


@dataclass(frozen=True, slots=True, eq=False)
class RangeValue:
    """A PostgreSQL range in the server's own form: an unbounded side is never inclusive.

    Equal to any range object (SQLAlchemy, psycopg, psycopg2, asyncpg) that means the same.

    Attributes:
        lower: the lower bound; None when there is none.
        upper: the upper bound; None when there is none.
        bounds: ``[)``, ``[]``, ``(]`` or ``()``.
        empty: whether the range holds nothing; the rest then says nothing.
    """

    lower: Any
    upper: Any
    bounds: str
    empty: bool = False

    @classmethod
    def of(cls, other: Any) -> RangeValue:
        """The same range as any driver's object.

        Raises:
            AttributeError: it is not a range.
        """
        if type(other) is cls:
            return other
        if other.isempty:
            return cls(None, None, "()", empty=True)
        lower, upper = other.lower, other.upper
        opening = "[" if lower is not None and other.lower_inc else "("
        closing = "]" if upper is not None and other.upper_inc else ")"
        return cls(lower, upper, opening + closing)

    def __eq__(self, other: object) -> bool:
        try:
            that = RangeValue.of(other)
        except AttributeError:
            return NotImplemented
        mine = (self.empty, self.lower, self.upper, self.bounds)
        return mine == (that.empty, that.lower, that.upper, that.bounds)

    def __hash__(self) -> int:
        return hash((self.empty, self.lower, self.upper))


@dataclass(frozen=True, slots=True, eq=False)
class MultirangeValue:
    """A PostgreSQL multirange; equal to any sequence of equal ranges.

    Attributes:
        ranges: its ranges, in order.
    """

    ranges: tuple[Any, ...]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, MultirangeValue):
            return self.ranges == other.ranges
        if not isinstance(other, Sequence):
            return NotImplemented
        return self.ranges == tuple(other)

    def __hash__(self) -> int:
        return hash(self.ranges)


@dataclass(frozen=True, slots=True)
class Truncated:
    """A text, byte string or number that was longer than the limit.

    Attributes:
        type: name of its Python type.
        length: characters of a text, bytes of a byte string, digits of a number's text.
        head: the beginning; base64 for a byte string.
        sha256: hex digest of the whole (UTF-8 for text), None when it was too large to hash.
    """

    type: str
    length: int
    head: str
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Replaced:
    """A value that could not be encoded. Its `repr` is not kept, because it may hold secrets.

    Attributes:
        type: name of its Python type.
        reason: why, without any part of the value.
    """

    type: str
    reason: str


@dataclass(frozen=True, slots=True)
class Rest:
    """Stands for the items that a container had beyond the limits.

    Attributes:
        count: how many were left out.
    """

    count: int
