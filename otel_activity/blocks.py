"""What can stand around a piece of work: a block (``with``, ``async with``) and a decorator, of one shape."""

from __future__ import annotations

import functools
import inspect
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["Block", "around_steps"]

_T = TypeVar("_T")


class Block(AbstractContextManager[_T], AbstractAsyncContextManager[_T], Generic[_T]):
    """Base of context managers that are decorators as well.

    A subclass writes `_begin` and `_end`. A decorated function begins anew at each call, so one decorator
    serves any number of calls at the same time.
    """

    def _begin(self) -> _T:
        """The work begins; what is given here is handed to `_end`."""
        raise NotImplementedError

    def _end(self, running: _T, error: BaseException | None) -> None:
        """The work has ended, or raised."""
        raise NotImplementedError

    def _returned(self, running: _T, result: Any) -> None:
        """A decorated call succeeded; comes before `_end`."""

    def _put_off(self, running: _T) -> None:
        """A decorated call gave a coroutine: the work has not begun, and begins when that is awaited."""

    def _idle(self) -> bool:
        """Whether a decorated call need not begin at all."""
        return False

    async def __aenter__(self) -> _T:
        return self.__enter__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(exc_type, exc, traceback)

    def _decorate(self, function: Callable[..., Any]) -> Any:
        """A function with the same signature, or a coroutine function if it is one."""
        return self._around_async(function) if _is_async(function) else self._around(function)

    def _around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if self._idle():
                return function(*args, **kwargs)
            running = self._begin()
            try:
                result = function(*args, **kwargs)
            except BaseException as error:
                self._end(running, error)
                raise
            if inspect.iscoroutine(
                result
            ):  # another decorator hides that the function is a coroutine function
                self._put_off(running)
                return self._around_async(lambda: result)()
            self._returned(running, result)
            self._end(running, None)
            return result

        return wrapper

    def _around_async(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            if self._idle():
                return await function(*args, **kwargs)
            running = self._begin()
            try:
                result = await function(*args, **kwargs)
            except BaseException as error:
                self._end(running, error)
                raise
            self._returned(running, result)
            self._end(running, None)
            return result

        return wrapper


def _is_async(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - an object whose call is a coroutine function
    )


def around_steps(
    function: Callable[..., Any], begin: Callable[[], Callable[[], AbstractContextManager[object]]]
) -> Callable[..., Any] | None:
    """Wrap a generator function so that each step, and nothing between two, is inside a block.

    Args:
        function: what is wrapped. What its generators yield, get, raise and return passes unchanged.
        begin: called when a generator takes its first step; gives what makes the block for each step.

    Returns:
        A generator function of the same kind; None if `function` is not a generator function.
    """
    if inspect.isgeneratorfunction(function):
        return functools.wraps(function)(_steps(function, begin))
    if inspect.isasyncgenfunction(function):
        return functools.wraps(function)(_async_steps(function, begin))
    return None


def _steps(function: Callable[..., Any], begin: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        around, generator = begin(), function(*args, **kwargs)
        step: Callable[[], Any] = functools.partial(next, generator)
        while True:
            try:
                with around():
                    part = step()
            except StopIteration as end:
                return end.value
            try:
                step = functools.partial(generator.send, (yield part))
            except GeneratorExit:
                with around():
                    generator.close()
                raise
            except BaseException as error:  # noqa: BLE001 - thrown in by the caller, and handed on
                step = functools.partial(generator.throw, error)

    return wrapper


def _async_steps(function: Callable[..., Any], begin: Callable[..., Any]) -> Callable[..., Any]:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        around, generator = begin(), function(*args, **kwargs)
        step: Callable[[], Any] = functools.partial(anext, generator)
        while True:
            try:
                with around():
                    part = await step()
            except StopAsyncIteration:
                return
            try:
                step = functools.partial(generator.asend, (yield part))
            except GeneratorExit:
                with around():
                    await generator.aclose()
                raise
            except BaseException as error:  # noqa: BLE001 - thrown in by the caller, and handed on
                step = functools.partial(generator.athrow, error)

    return wrapper
