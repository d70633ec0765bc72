"""Hooks into a module of a framework, now or as soon as it is imported, and out of it again."""

from __future__ import annotations

import functools
import logging
import sys
from typing import TYPE_CHECKING, Any, Final

import wrapt

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Hooks", "MethodHook", "SignalHook"]


_logger: Final = logging.getLogger("otel_activity")


class _ModuleHook:
    """What waits for a module.

    Args:
        module: its name; it is never imported by us.
    """

    def __init__(self, module: str) -> None:
        self._module = module
        self._active = False

    def install(self) -> None:
        """Apply now if the module is loaded, else as soon as it is."""
        self._active = True
        if self._module in sys.modules:
            self._apply(sys.modules[self._module])
        else:
            wrapt.when_imported(self._module)(self._imported)

    def uninstall(self) -> None:
        """Put everything back."""
        self._active = False
        module = sys.modules.get(self._module)
        if module is not None:
            self._remove(module)

    def _imported(self, module: Any) -> None:
        if self._active:
            self._apply(module)

    def _apply(self, module: Any) -> None:
        raise NotImplementedError

    def _remove(self, module: Any) -> None:
        raise NotImplementedError


class MethodHook(_ModuleHook):
    """One wrapped method.

    Args:
        module: where the class is.
        owner: name of the class.
        method: name of the method.
        wrap: makes the replacement from the original.
    """

    def __init__(self, module: str, owner: str, method: str, wrap: Callable[[Any], Any]) -> None:
        super().__init__(module)
        self._owner = owner
        self._method = method
        self._make = wrap
        self._original: Any = None

    def _apply(self, module: Any) -> None:
        if self._original is not None:
            return
        owner = getattr(module, self._owner, None)
        original = self._original = getattr(owner, self._method, None)
        if original is None:  # a version of the framework that nobody knew: it must import all the same
            _logger.warning(
                "otel_activity: %s has no %s.%s; what is read there stays unknown",
                self._module,
                self._owner,
                self._method,
            )
            return
        setattr(owner, self._method, functools.wraps(original)(self._make(original)))

    def _remove(self, module: Any) -> None:
        if self._original is not None:
            setattr(getattr(module, self._owner), self._method, self._original)
            self._original = None


class SignalHook(_ModuleHook):
    """One receiver of one signal, Django's, Celery's or blinker's.

    Args:
        module: where the signal is.
        signal: its name there.
        receiver: called with the sender, and with what is said by keyword. What it raises would reach the
            application.
    """

    def __init__(self, module: str, signal: str, receiver: Callable[..., None]) -> None:
        super().__init__(module)
        self._signal = signal
        self._receiver = receiver

    def _apply(self, module: Any) -> None:
        getattr(module, self._signal).connect(self._receiver, weak=False)

    def _remove(self, module: Any) -> None:
        getattr(module, self._signal).disconnect(self._receiver)


class Hooks:
    """Several hooks, installed and removed as one."""

    def __init__(self, *hooks: MethodHook | SignalHook | Hooks) -> None:
        self._hooks = hooks

    def install(self) -> None:
        """Install each, in order."""
        for hook in self._hooks:
            hook.install()

    def uninstall(self) -> None:
        """Remove each, the last one first."""
        for hook in reversed(self._hooks):
            hook.uninstall()
