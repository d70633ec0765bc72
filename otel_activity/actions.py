"""What users do, told by the application: `log_user_action` and `with_activity_logging`.

Both cost next to nothing while auditing is not active, and work whenever it becomes active later.
"""

from __future__ import annotations

import inspect
import time
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from otel_activity.blocks import Block
from otel_activity.capture.guard import internal_error
from otel_activity.classes import delivery_class
from otel_activity.events import Performed

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from otel_activity.capture.action import ActionRecorder
    from otel_activity.declare import DeliveryClass

__all__ = ["RunningAction", "log_user_action", "use", "with_activity_logging"]

_F = TypeVar("_F", bound="Callable[..., Any]")

_MARK: Final = "__otel_activity_actions__"
"""Attribute of a decorated function: the actions that a call of it logs. `functools.wraps` hands it on."""

_recorder: ActionRecorder | None = None


def use(recorder: ActionRecorder | None) -> None:
    """Where actions go; None switches logging off. For the composition root."""
    global _recorder
    _recorder = recorder


def log_user_action(
    action: str,
    *,
    entity_type: str | None = None,
    entity_id: Any = None,
    user_id: str | None = None,
    details: Any = None,
    outcome: Literal["success", "failure"] = "success",
    session: Any = None,
    connection: Any = None,
    delivery: DeliveryClass | None = None,
    **attributes: Any,
) -> None:
    """Log that a user did something. Never raises; does nothing while auditing is not active.

    Without `session` and `connection` the event is released at once. With one of them that is in a
    transaction, the event is released with that transaction's row changes and shares their
    ``activity.transaction.id``; is the transaction (or the savepoint) rolled back, the action is reported as
    failed, with ``error.type`` ``rolled back``.

    Args:
        action: what was done, low-cardinality (``invoice.approve``).
        entity_type: type of the entity, best the name of the mapped class.
        entity_id: its primary key; a tuple for a composite key.
        user_id: who did it, if not the actor of the current context.
        details: free text, or a JSON-like value; secrets are removed by the names of keys.
        outcome: ``success`` or ``failure``; anything else is stored as ``unknown``.
        session: SQLAlchemy session, sync, async or scoped.
        connection: SQLAlchemy connection, sync or async; beats `session`.
        delivery: ``strict``, ``durable`` or ``best_effort``, whatever the settings say; anything else is
            logged once and ignored.
        **attributes: further attributes by name; their values are redacted as `details` are. At most 64.

    >>> log_user_action("invoice.approve", entity_type="Invoice", entity_id=4711, details={"by": "phone"})
    """
    recorder = _recorder
    if recorder is not None:
        performed = Performed(
            action=action,
            entity_type=entity_type,
            entity_id=entity_id,
            user_id=user_id,
            details=details,
            outcome=outcome,
            delivery=delivery,
            attributes=attributes,
        )
        recorder.record(performed, connection if connection is not None else session)


class RunningAction:
    """An action in progress: what the block knows only while it runs.

    Attributes:
        entity_id: primary key of the entity; a tuple for a composite key.
        details: free text, or a JSON-like value.
        attributes: further attributes by name.
    """

    __slots__ = ("_entered", "_options", "_started", "attributes", "details", "entity_id")

    def __init__(self, options: with_activity_logging) -> None:
        self._options = options
        self.entity_id = None if callable(options.entity_id) else options.entity_id
        self.details = options.details
        self.attributes = dict(options.attributes)
        self._started = time.perf_counter()
        recorder, where = _recorder, options.where
        self._entered = None if recorder is None or where is None else recorder.transaction_of(where)

    def _returned(self, result: Any) -> None:
        """The call succeeded: compute the entity id from its result, if asked."""
        compute = self._options.entity_id
        if _recorder is None or not callable(compute):
            return
        try:
            self.entity_id = compute(result)
        except Exception:  # noqa: BLE001 - the application's call has succeeded, whatever this says
            internal_error("the entity id of a user action")

    def _end(self, error: BaseException | None) -> None:
        recorder, options = _recorder, self._options
        if recorder is None:
            return
        performed = Performed(
            action=options.action,
            entity_type=options.entity_type,
            entity_id=self.entity_id,
            details=self.details,
            outcome="success" if error is None else "failure",
            duration=time.perf_counter() - self._started,
            error=error,
            delivery=options.delivery,
            attributes=self.attributes,
        )
        recorder.record(performed, options.where, entered=self._entered)


class with_activity_logging(Block[RunningAction]):
    """Log an action with its outcome and duration: a decorator, and a context manager (also ``async with``).

    An exception is a failure with the exception's type as ``error.type``; it goes on unchanged. The event
    is logged when the call or block ends; ``activity.action.duration`` is in seconds. Stacked on one
    function, decorators with the same action log once, by the innermost.

    Args:
        action: what is done, low-cardinality (``invoice.approve``).
        entity_type: type of the entity.
        entity_id: its primary key, or for a decorator a callable that takes the call's result and gives it.
        details: free text, or a JSON-like value.
        session: as in `log_user_action`; a transaction that the block begins itself counts if it is still
            open at the end and something was written in it.
        connection: as in `log_user_action`.
        delivery: as in `log_user_action`.
        **attributes: further attributes by name.

    Raises:
        ValueError: there is no such delivery class.
        TypeError: it decorates a generator function, whose work is not done when the call returns. Use it as
            a context manager inside instead.
        RuntimeError: one object is used for two blocks at the same time.

    >>> @with_activity_logging("invoice.create", entity_type="Invoice", entity_id=lambda made: made["id"])
    ... def create():
    ...     return {"id": 4711}
    >>> with with_activity_logging("report.export") as running:
    ...     running.details = {"rows": 12}
    """

    def __init__(
        self,
        action: str,
        *,
        entity_type: str | None = None,
        entity_id: Any = None,
        details: Any = None,
        session: Any = None,
        connection: Any = None,
        delivery: DeliveryClass | None = None,
        **attributes: Any,
    ) -> None:
        self.action = action
        self.delivery = None if delivery is None else delivery_class(delivery)
        self.entity_type = entity_type
        self.entity_id = entity_id
        self.details = details
        self.where = connection if connection is not None else session
        self.attributes = attributes
        self._open: RunningAction | None = None

    def __call__(self, function: _F) -> _F:
        """Decorate a function or coroutine function."""
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                f"with_activity_logging cannot decorate the generator {function.__qualname__}; "
                "write `with with_activity_logging(...):` inside it"
            )
        logged: frozenset[str] = getattr(function, _MARK, frozenset())
        if self.action in logged:
            return function
        wrapper = self._decorate(function)
        setattr(wrapper, _MARK, logged | {self.action})
        return wrapper  # type: ignore[no-any-return]  # the same signature, which functools.wraps keeps

    def __enter__(self) -> RunningAction:
        if self._open is not None:
            raise RuntimeError(
                f"with_activity_logging({self.action!r}) is in use; make a new one for each block"
            )
        self._open = RunningAction(self)
        return self._open

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        running, self._open = self._open, None
        if running is not None:
            running._end(exc)

    def _begin(self) -> RunningAction:
        return RunningAction(self)

    def _returned(self, running: RunningAction, result: Any) -> None:
        running._returned(result)

    def _end(self, running: RunningAction, error: BaseException | None) -> None:
        running._end(error)

    def _idle(self) -> bool:
        return _recorder is None
