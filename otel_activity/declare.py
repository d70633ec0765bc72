"""`audited`: what a mapped class or a table says about its own columns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from otel_activity.classes import delivery_class
from otel_activity.semconv import RedactionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["Declaration", "DeliveryClass", "audited", "declarations", "declared_deliveries"]

_T = TypeVar("_T")

_ON_CLASS: Final = "__activity__"
_ON_TABLE: Final = "activity"
"""Key in ``Table.info``."""

Names = str | Iterable[str]
DeliveryClass = Literal["best_effort", "durable", "strict"]

_deliveries: Final[set[str]] = set()


@dataclass(frozen=True)
class Declaration:
    """What one call of `audited` said. Names are those of attributes or columns, checked when they are used.

    Attributes:
        include: the only columns to audit; None means all.
        exclude: columns to leave out.
        modes: what is done to the values of a column; None keeps them, whatever its name looks like.
        delivery: delivery class of its events; None leaves that to the settings.
    """

    include: frozenset[str] | None = None
    exclude: frozenset[str] = frozenset()
    modes: Mapping[str, RedactionMode | None] = field(default_factory=dict)
    delivery: str | None = None

    def names(self) -> Iterator[tuple[str, str]]:
        """Every name with the argument that it was given in."""
        yield from (("include", name) for name in sorted(self.include or ()))
        yield from (("exclude", name) for name in sorted(self.exclude))
        yield from (("keep" if mode is None else mode.value, name) for name, mode in self.modes.items())


def audited(
    target: _T | None = None,
    *,
    include: Names | None = None,
    exclude: Names = (),
    mask: Names = (),
    hash: Names = (),
    drop: Names = (),
    keep: Names = (),
    delivery: DeliveryClass | None = None,
) -> Any:
    """Say which columns of a mapped class or table are audited, which are secret, and how events travel.

    A decorator for a class (its subclasses inherit it), and a function for a `Table`:
    ``audited(customers, mask=["iban"])``. It changes nothing but what events hold, whenever it is called
    before the first change of the entity is captured.

    A name that is no column is reported when the first change is captured, and until it is corrected every
    column of the entity is masked: a typing error must not show a secret.

    Args:
        target: class or `Table`; without it, the call gives a decorator.
        include: names of the only attributes or columns to audit.
        exclude: left out of events. The entity id still holds the primary key.
        mask: shown as ``{"$redacted": true}``.
        hash: shown as a keyed hash (``OTEL_ACTIVITY_REDACT_KEY``), which is equal for equal values.
        drop: left out, also of the entity id.
        keep: shown, although the name looks secret.
        delivery: ``strict``, ``durable`` or ``best_effort``, whatever the settings say (docs/delivery.md).

    Raises:
        TypeError: the target is neither a class nor a table.
        ValueError: one name has two modes, or there is no such delivery class.

    >>> @audited(mask=["iban"], hash="email")
    ... class Customer: ...
    """
    modes: dict[str, RedactionMode | None] = {}
    for mode, names in (
        (RedactionMode.MASK, mask),
        (RedactionMode.HASH, hash),
        (RedactionMode.DROP, drop),
        (None, keep),
    ):
        for name in _names(names):
            if name in modes:
                raise ValueError(
                    f"audited(): {name!r} is named twice; leave it in one of mask, hash, drop, keep"
                )
            modes[name] = mode
    said = Declaration(
        include=None if include is None else frozenset(_names(include)),
        exclude=frozenset(_names(exclude)),
        modes=modes,
        delivery=None if delivery is None else _declared(delivery),
    )
    return _decorator(said) if target is None else _decorator(said)(target)


def declared_deliveries() -> frozenset[str]:
    """Delivery classes that were declared in this process so far."""
    return frozenset(_deliveries)


def _declared(delivery: str) -> str:
    try:
        _deliveries.add(delivery_class(delivery))
    except ValueError as error:
        raise ValueError(f"audited(): {error}") from None
    return delivery


def declarations(target: Any) -> tuple[Any, ...]:
    """What was said of a class itself (not of its bases), or of a table.

    `Declaration` each, unless somebody else wrote to the same place.
    """
    if isinstance(target, type):
        said = vars(target).get(_ON_CLASS, ())
    else:
        said = getattr(target, "info", {}).get(_ON_TABLE, ())
    return said if isinstance(said, tuple) else (said,)


def _decorator(said: Declaration) -> Callable[[_T], _T]:
    def decorate(target: _T) -> _T:
        if isinstance(target, type):
            setattr(target, _ON_CLASS, (*declarations(target), said))
        elif isinstance(info := getattr(target, "info", None), dict) and hasattr(target, "columns"):
            info[_ON_TABLE] = (*declarations(target), said)
        else:
            raise TypeError(f"audited() is for a mapped class or a Table, not for {type(target).__name__}")
        return target

    return decorate


def _names(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)
