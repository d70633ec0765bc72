"""Replace one method of a framework, now or as soon as the framework is imported, and put it back."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

import wrapt

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MethodHook"]


class MethodHook:
    """One wrapped method.

    Args:
        module: where the class is; it is never imported by us.
        owner: name of the class.
        method: name of the method.
        wrap: makes the replacement from the original.
    """

    def __init__(self, module: str, owner: str, method: str, wrap: Callable[[Any], Any]) -> None:
        self._module = module
        self._owner = owner
        self._method = method
        self._make = wrap
        self._original: Any = None
        self._active = False

    def install(self) -> None:
        """Wrap now if the module is loaded, else as soon as it is."""
        self._active = True
        if self._module in sys.modules:
            self._wrap(sys.modules[self._module])
        else:
            wrapt.when_imported(self._module)(self._wrap)

    def uninstall(self) -> None:
        """Put the method back."""
        self._active = False
        module = sys.modules.get(self._module)
        if module is not None and self._original is not None:
            setattr(getattr(module, self._owner), self._method, self._original)
            self._original = None

    def _wrap(self, module: Any) -> None:
        if not self._active or self._original is not None:
            return
        owner = getattr(module, self._owner)
        original = self._original = getattr(owner, self._method)
        setattr(owner, self._method, functools.wraps(original)(self._make(original)))
