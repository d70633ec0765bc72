"""ASGI lifespan of Starlette and FastAPI: flush before the server is told that shutdown is complete.

uvicorn raises SIGTERM again after it has shut down, so nothing that waits for a normal exit would run.
"""

from __future__ import annotations

import functools
import logging
import sys
from typing import TYPE_CHECKING, Any, Final

import wrapt

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LifespanFlush"]

_logger: Final = logging.getLogger("otel_activity")
_MODULE: Final = "starlette.routing"
_DONE: Final = frozenset({"lifespan.shutdown.complete", "lifespan.shutdown.failed"})


async def _in_thread(flush: Callable[[], object]) -> None:
    """Run it off the event loop, whichever that is (Starlette needs anyio). The host shuts down anyway."""
    try:
        from anyio import to_thread

        await to_thread.run_sync(flush)
    except Exception:
        _logger.exception("otel_activity: internal error while flushing")


class LifespanFlush:
    """Wraps `starlette.routing.Router.lifespan`, now or when Starlette is imported.

    Args:
        flush: called once, in a thread, when the application's own shutdown is done.
    """

    def __init__(self, flush: Callable[[], object]) -> None:
        self._flush = flush
        self._original: Any = None
        self._active = False

    def install(self) -> None:
        """Wrap now if Starlette is loaded, else as soon as it is."""
        self._active = True
        if _MODULE in sys.modules:
            self._wrap(sys.modules[_MODULE])
        else:
            wrapt.when_imported(_MODULE)(self._wrap)

    def uninstall(self) -> None:
        """Put the method back."""
        self._active = False
        module: Any = sys.modules.get(_MODULE)
        if module is not None and self._original is not None:
            module.Router.lifespan = self._original
            self._original = None

    def _wrap(self, module: Any) -> None:
        if not self._active or self._original is not None:
            return
        original = self._original = module.Router.lifespan
        flush = self._flush

        @functools.wraps(original)
        async def lifespan(router: Any, scope: Any, receive: Any, send: Any) -> None:
            async def flushing(message: Any) -> None:
                if message.get("type") in _DONE:
                    await _in_thread(flush)
                await send(message)

            await original(router, scope, receive, flushing)

        module.Router.lifespan = lifespan
