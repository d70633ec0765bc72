"""User actions: what was done, with which outcome, joined to a transaction if the caller names one."""

from __future__ import annotations

import logging
import math
import re
import time
from typing import TYPE_CHECKING, Any, Final

import uuid_utils
from opentelemetry import context as otel_context
from opentelemetry import trace
from sqlalchemy.engine import Connection

from otel_activity import semconv
from otel_activity.actors import Actor, nobody
from otel_activity.capture.guard import internal_error
from otel_activity.codec import encode
from otel_activity.context import current_context
from otel_activity.events import Commit, Event, Severity
from otel_activity.interruptions import pass_on

if TYPE_CHECKING:
    from collections.abc import Mapping

    from otel_activity.capture.bracket import Bracket
    from otel_activity.capture.plan import Planner
    from otel_activity.capture.rules import Redacts
    from otel_activity.classes import Classes
    from otel_activity.context import RequestContext
    from otel_activity.events import Performed, Unit
    from otel_activity.redaction import Redactor

__all__ = ["Action", "ActionRecorder"]

_logger: Final = logging.getLogger("otel_activity")
_WARN_EVERY: Final = 60.0
_NAME_LENGTH: Final = 256
_MAX_ATTRIBUTES: Final = 64
_OUTCOMES: Final = ("success", "failure")
_UNUSABLE: Final = re.compile("[\0\ud800-\udfff]")
_UNSET: Final = object()
_ACTOR_ATTRIBUTES: Final = (
    semconv.ACTOR_TYPE,
    semconv.USER_ID,
    semconv.USER_NAME,
    semconv.USER_ROLES,
    semconv.ACTOR_ON_BEHALF_OF,
    semconv.ACTOR_CANDIDATES,
    semconv.ACTOR_ERROR_TYPE,
)


class Action:
    """One action, encoded when it was logged: an `events.Entry` that survives a rollback as failed."""

    __slots__ = (
        "actor",
        "attributes",
        "context",
        "delivery",
        "joined",
        "name",
        "otel",
        "redactor",
        "said",
        "time",
    )
    survives = True

    def __init__(
        self,
        name: str,
        said: dict[str, Any],
        actor: Mapping[str, Any] | None,
        redactor: Redacts,
        *,
        joined: bool,
        delivery: str | None = None,
    ) -> None:
        self.name = name
        self.said = said
        self.actor = actor
        self.redactor = redactor
        self.joined = joined
        self.delivery = delivery
        self.time = time.time_ns()
        self.context: RequestContext | None = current_context()
        self.attributes: dict[str, Any] | None = None
        self.otel = otel_context.get_current()

    def rolled_back(self) -> None:
        """What it did to the database did not happen. An error of its own stays the reason."""
        self.joined = False
        self.said[semconv.ACTIVITY_OUTCOME] = "failure"
        self.said.setdefault(semconv.ERROR_TYPE, semconv.ROLLED_BACK)

    def to_event(self, unit: Unit, commit: Commit) -> Event:
        """Put the event together; see `otel_activity.events.Entry`."""
        attributes = dict(nobody() if self.attributes is None else self.attributes)
        if self.actor is not None:
            _name_actor(attributes, self.actor)
        attributes.update(self.said)
        attributes = self.redactor.scrub_attributes(attributes)
        if self.joined:
            attributes[semconv.TRANSACTION_ID] = unit.transaction_id
            attributes[semconv.COMMIT] = commit.value
            if unit.proof is not None:
                attributes[semconv.DATABASE_TRANSACTION] = str(unit.proof)
            attributes[semconv.DB_SYSTEM_NAME] = unit.system
            attributes[semconv.DB_NAMESPACE] = unit.database
            if unit.error is not None:
                attributes.setdefault(semconv.ERROR_TYPE, unit.error)
        attributes[semconv.ACTIVITY_SCHEMA_VERSION] = semconv.SCHEMA_VERSION
        event = Event(
            id=str(uuid_utils.uuid7()),
            name=self.name,
            time=self.time // 1000 * 1000,
            attributes=attributes,
            observed=time.time_ns(),
            severity=Severity.INFO if attributes[semconv.ACTIVITY_OUTCOME] == "success" else Severity.WARN,
        )
        span = trace.get_current_span(self.otel).get_span_context()
        if span.is_valid:
            event.trace_id = span.trace_id
            event.span_id = span.span_id
            event.trace_flags = int(span.trace_flags)
        return event


def _name_actor(attributes: dict[str, Any], actor: Mapping[str, Any]) -> None:
    """The caller names the actor: what the context knows about somebody else does not belong to them."""
    user_id = actor.get(semconv.USER_ID)
    if user_id is not None and attributes.get(semconv.USER_ID) == user_id:
        return
    for name in _ACTOR_ATTRIBUTES:
        attributes.pop(name, None)
    attributes.update(actor)


class ActionRecorder:
    """Turns what callers say into entries and hands them to the bracket. Its methods never raise.

    Args:
        bracket: knows the open transactions.
        planner: knows which primary keys are secret.
        redactor: removes secrets from attributes and details.
        limit: longest value kept whole.
        classes: knows the delivery class of actions.
    """

    def __init__(
        self, bracket: Bracket, planner: Planner, redactor: Redactor, limit: int, classes: Classes
    ) -> None:
        self._bracket = bracket
        self._planner = planner
        self._redactor = redactor
        self._limit = limit
        self._classes = classes

    def record(self, performed: Performed, session: Any = None, *, entered: Any = _UNSET) -> None:
        """Log an action.

        Args:
            performed: what the caller said.
            session: session or connection, sync or async, whose transaction it belongs to, if it is in one.
            entered: the transaction that `transaction_of` found when the action began. Given, a transaction
                that began during the action counts only if something was written in it: after a commit of
                its own an action may read, and that transaction's end says nothing about it.
        """
        try:
            connection = None if session is None else self._find(session, entered)
            transaction = None if connection is None else self._bracket.transaction(connection)
            joined = transaction is not None and not transaction.autocommit
            action = Action(
                performed.name,
                self._said(performed),
                _actor(performed),
                self._redactor,
                joined=joined,
                delivery=self._delivery(performed),
            )
            if transaction is not None and joined:
                self._bracket.join(transaction, action)
            else:
                self._bracket.release([action])
        except Exception:  # noqa: BLE001 - logging an action never raises into the application
            internal_error("a user action")

    def _delivery(self, performed: Performed) -> str | None:
        action = _text(performed.action, _NAME_LENGTH)
        asked = self._classes.asked(performed.delivery, f"user action {action!r}")
        return self._classes.of(asked, (action, performed.name))

    def transaction_of(self, session: Any) -> Any:
        """The transaction that a session or connection is in; None when it is in none."""
        try:
            return _sync(session).get_transaction()
        except Exception:  # noqa: BLE001 - as above
            internal_error("the transaction of a user action")
            return None

    def _find(self, session: Any, entered: Any) -> Connection | None:
        """The connection whose transaction the action belongs to. What cannot be had is done without."""
        try:
            return self._connection(_sync(session), entered)
        except Exception as error:  # noqa: BLE001 - no default bind, or async and not connected yet
            pass_on(error)
            _warn_unjoined(error)
            return None

    def _connection(self, session: Any, entered: Any) -> Connection | None:
        transaction = session.get_transaction()
        if transaction is None:
            return None
        if isinstance(session, Connection):
            connection, pending = session, False
        else:
            pending = bool(session.new or session.dirty or session.deleted)
            connection = session.connection()
        if pending or entered is _UNSET or entered is transaction:
            return connection
        found = self._bracket.find_for(connection)
        return connection if found is not None and found.unit is not None else None

    def _said(self, performed: Performed) -> dict[str, Any]:
        said = self._extra(performed.attributes)
        said[semconv.ACTIVITY_ACTION] = _text(performed.action, _NAME_LENGTH)
        said[semconv.ACTIVITY_OUTCOME] = (
            performed.outcome
            if isinstance(performed.outcome, str) and performed.outcome in _OUTCOMES
            else "unknown"
        )
        if performed.entity_type is not None:
            said[semconv.ENTITY_TYPE] = _text(performed.entity_type, _NAME_LENGTH)
        if performed.entity_id is not None:
            key = performed.entity_id
            # By its type: a proxy may raise when it is asked for its class.
            identity = tuple(key) if issubclass(type(key), (tuple, list)) else (key,)
            said[semconv.ENTITY_ID] = self._planner.entity_id(performed.entity_type, identity)
        if performed.details is not None:
            said[semconv.DETAILS] = encode(self._redactor.clean(performed.details), self._limit)
        if performed.duration is not None:
            said[semconv.ACTION_DURATION] = performed.duration
        if performed.error is not None:
            error = performed.error
            said[semconv.ERROR_TYPE] = error if isinstance(error, str) else _type_name(error)
        return said

    def _extra(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """The caller's own attributes, bounded; names of ours are overwritten afterwards."""
        extra: dict[str, Any] = {}
        for name, value in list(attributes.items())[:_MAX_ATTRIBUTES]:
            if value is None:
                continue
            appears, encoded = self._redactor.encoded(name, value, self._limit)
            if appears:
                extra[_text(name, _NAME_LENGTH)] = encoded
        return extra


def _actor(performed: Performed) -> Mapping[str, Any] | None:
    if performed.actor is not None or performed.user_id is None:
        return performed.actor
    return Actor(id=performed.user_id).attributes()


_warned = -math.inf


def _warn_unjoined(error: BaseException) -> None:
    """At most once a minute."""
    global _warned
    now = time.monotonic()
    if now - _warned >= _WARN_EVERY:
        _warned = now
        _logger.warning(
            "otel_activity: a user action is logged without its transaction, because the connection of its "
            "session cannot be had (%s); flush the session first, or pass connection=",
            _type_name(error),
        )


def _sync(session: Any) -> Any:
    """The sync object behind an async session or connection, and the session behind a scoped one."""
    registry = getattr(session, "registry", None)
    if registry is not None:
        session = registry()
    for name in ("sync_session", "sync_connection"):
        session = getattr(session, name, None) or session
    return session


def _text(value: Any, length: int) -> str:
    """A name as text that every exporter takes; of an object that has none, what it is."""
    try:
        text = str(value)
    except Exception as raised:  # noqa: BLE001 - code of the application
        pass_on(raised)
        text = f"<{type(value).__qualname__}>"
    return _UNUSABLE.sub("\ufffd", text[:length])


def _type_name(error: BaseException) -> str:
    """The exception's type as OpenTelemetry names it; its message may hold secrets and stays here."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
