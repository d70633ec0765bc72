"""Celery: a task acts for whoever enqueued it. The message carries that, and a task run puts it in force.

Tasks are found by Celery's own signals, which both sides send in every pool and whenever they are connected.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from otel_activity import semconv
from otel_activity.actors import (
    ID_LENGTH,
    Actor,
    Finding,
    clean,
    default_actor,
    has_served,
    nobody,
    wrong_with,
)
from otel_activity.context import RequestContext, bind, circumstances, current_context, stands_alone
from otel_activity.frameworks.hook import Hooks, SignalHook
from otel_activity.frameworks.web import warn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextvars import Token

    from opentelemetry.context import Context

__all__ = ["HEADER", "CeleryTasks", "JobContext", "carried_now", "scrub_with"]

HEADER: Final = "otel_activity"
"""The message header: one text, because brokers disagree about what else a header may be."""
_SIGNALS: Final = "celery.signals"
_HEADER_LENGTH: Final = 16_384
_REASON_LENGTH: Final = 1_024
_ROLES: Final = 64
_UNKNOWN: Final = '{"version":1,"actor":{"type":"unknown"}}'
_TRACEPARENT: Final = "traceparent"
_LOCK_TIMEOUT: Final = 1.0
"""Seconds; only a fork at the very moment of a process's first task can leave the lock taken for ever."""
_propagator: Final = TraceContextTextMapPropagator()


class _Actor(msgspec.Struct, omit_defaults=True):
    type: str
    id: str | None = None
    name: str | None = None
    roles: list[str] = []
    on_behalf_of: str | None = None


class _Carried(msgspec.Struct, omit_defaults=True):
    """What a message carries. Whoever has the broker can read it, and may have written it."""

    version: Literal[1]
    actor: _Actor | None = None
    tenant: str | None = None
    project: str | None = None
    reason: str | None = None
    request: str | None = None
    traceparent: str | None = None


class JobContext(RequestContext):
    """One run of a task.

    Attributes:
        id: the task's id, which its retries share.
        header: what a retry's message carries: the same as this one's. None for an eager run, which has none.
        outer: what was in force before.
        trace: undoes that the trace of the request was put in force.
    """

    __slots__ = ("_malformed", "header", "id", "outer", "trace")
    boundary = True

    def __init__(self, name: str, key: str, parent: RequestContext | None) -> None:
        super().__init__(None, {semconv.JOB_NAME: name, semconv.JOB_ID: clean(key)}, parent)
        self.id = key
        self.header: str | None = None
        self.outer = current_context()
        self.trace: Token[Any] | None = None
        self._malformed: str | None = None

    def find_actor(self, otel: Context | None, memo: dict[Any, Any] | None) -> Finding | None:
        """The actor that was carried, or that it cannot be told."""
        if self.actor is None and self._malformed is not None:
            return Finding({semconv.ACTOR_TYPE: "unknown", semconv.ACTOR_ERROR_TYPE: self._malformed})
        return super().find_actor(otel, memo)

    def restore(self, header: Any) -> None:
        """Take over what the message's header says; one that cannot be read makes the actor unknown."""
        self.header = header or ""
        self.fallback = default_actor()
        if not header:
            return
        try:
            carried = _read(header)
            self.actor = None if carried.actor is None else _actor(carried.actor)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it, the task runs
            self._malformed = type(error).__qualname__
            self.header = _UNKNOWN
            warn("the header of a task's message cannot be read and its actor is stored as unknown", error)
            return
        for attribute, value, length in (
            (semconv.TENANT_ID, carried.tenant, ID_LENGTH),
            (semconv.PROJECT_ID, carried.project, ID_LENGTH),
            (semconv.REASON, carried.reason, _REASON_LENGTH),
            (semconv.REQUEST_ID, carried.request, ID_LENGTH),
        ):
            if cleaned := clean(value, length):
                self.attributes[attribute] = cleaned
        if carried.traceparent is not None and not trace.get_current_span().get_span_context().is_valid:
            self.trace = otel_context.attach(_propagator.extract({_TRACEPARENT: carried.traceparent}))


def _read(header: Any) -> _Carried:
    if not isinstance(header, str):
        raise TypeError(f"{HEADER} is a text")
    if len(header) > _HEADER_LENGTH:
        raise ValueError(f"{HEADER} has at most {_HEADER_LENGTH} characters")
    return msgspec.json.decode(header, type=_Carried)


def _actor(carried: _Actor) -> Actor:
    """The actor, cleaned as what a web client sends is.

    Raises:
        ValueError: the type is none, or an id cannot be one.
    """
    found = Actor(
        id=carried.id,
        name=None if carried.name is None else clean(carried.name),
        type=carried.type,
        roles=tuple(clean(role) for role in carried.roles[:_ROLES]),
        on_behalf_of=carried.on_behalf_of,
    )
    if any(key is not None and wrong_with(key) for key in (found.id, found.on_behalf_of)):
        raise ValueError("an id is empty, too long or not printable")
    return found


class _Scrubbing:
    """What removes secrets from attributes. Of the process: Celery's signals carry nothing of ours."""

    of: Callable[[dict[str, Any]], dict[str, Any]] = dict


def scrub_with(scrub: Callable[[dict[str, Any]], dict[str, Any]] | None) -> None:
    """Set what removes secrets from what messages carry; None for nothing."""
    _Scrubbing.of = scrub or dict


def carried_now() -> str:
    """The header of a message that is published here and now; empty if there is nothing to carry.

    It leaves the process: what looks like a secret does not go with it.
    """
    context = current_context()
    late = context is not None and context.over() is not None
    said = _Scrubbing.of(circumstances(context, otel_context.get_current(), late=late) or nobody())
    span: dict[str, str] = {}
    _propagator.inject(span)
    carried = _Carried(
        version=1,
        actor=None if _is_unsaid(context, said) else _actor_said(said),
        tenant=_text(said, semconv.TENANT_ID),
        project=_text(said, semconv.PROJECT_ID),
        reason=_text(said, semconv.REASON, _REASON_LENGTH),
        request=_text(said, semconv.REQUEST_ID),
        traceparent=span.get(_TRACEPARENT),
    )
    header = _encoded(carried)
    if len(header) > _HEADER_LENGTH and carried.actor is not None:
        carried.actor.roles = []
        header = _encoded(carried)
    return "" if carried == _Carried(version=1) else header


def _is_unsaid(context: RequestContext | None, said: Mapping[str, Any]) -> bool:
    """A program that serves nobody and names nobody leaves it to the worker whose its tasks are."""
    if said[semconv.ACTOR_TYPE] != "unknown" or semconv.ACTOR_CANDIDATES in said:
        return False
    return stands_alone(context) and not has_served()


def _actor_said(said: Mapping[str, Any]) -> _Actor:
    return _Actor(
        type=said[semconv.ACTOR_TYPE],
        id=_key(said, semconv.USER_ID),
        name=_text(said, semconv.USER_NAME),
        roles=[clean(role) for role in said.get(semconv.USER_ROLES, ())[:_ROLES]],
        on_behalf_of=_key(said, semconv.ACTOR_ON_BEHALF_OF),
    )


def _key(said: Mapping[str, Any], name: str) -> str | None:
    """An id as it is; not what stands for one that looked like a secret."""
    key = said.get(name)
    return key if isinstance(key, str) else None


def _text(said: Mapping[str, Any], name: str, length: int = ID_LENGTH) -> str | None:
    return clean(said.get(name), length) or None


def _encoded(carried: _Carried) -> str:
    return msgspec.json.encode(carried).decode()


def _running(key: Any) -> JobContext | None:
    """The innermost run in force, if it is the one of this task."""
    link = current_context()
    while link is not None and not (isinstance(link, JobContext) and link.id == key):
        link = link.parent
    return link


# --- Celery's signals -----------------------------------------------------------------------------


def _publishing(headers: Any = None, **_: Any) -> None:
    try:
        running = _running(headers.get("id"))
        # A retry, or what the task is replaced with, is the same job and goes on for the same actor.
        header = carried_now() if running is None or running.header is None else running.header
        headers.pop(HEADER, None)  # whatever the caller forwarded from another message
        if header:
            headers[HEADER] = header
    except Exception as error:  # noqa: BLE001 - the task is enqueued, whatever happens here
        warn("a task is enqueued without its actor", error)


def _beginning(task_id: Any = None, task: Any = None, **_: Any) -> None:
    try:
        request = task.request
        if request.is_eager:  # it runs inside whatever called it
            parent = current_context()
            job = JobContext(task.name, task_id, parent)
            job.fallback = default_actor() if stands_alone(parent) else None
        else:
            job = JobContext(task.name, task_id, None)
            job.restore(request.get(HEADER))
        bind(job)
    except Exception as error:  # noqa: BLE001 - the task runs, whatever happens here
        warn("the actor of a task is unknown", error)


def _ended(task_id: Any = None, **_: Any) -> None:
    try:
        job = _running(task_id)
        if job is not None:
            bind(job.outer)  # and so ends what the task left open
            job.end()
            if job.trace is not None:
                otel_context.detach(job.trace)
    except Exception as error:  # noqa: BLE001 - the task has run
        warn("the context of a task could not be ended", error)


class CeleryTasks(Hooks):
    """Connects to Celery's signals.

    Args:
        flush: called at the end of a worker process of the prefork pool, which neither `atexit` nor the
            finalizers of `multiprocessing` see; None for nothing.
    """

    def __init__(self, flush: Callable[[], object] | None = None) -> None:
        self._flush = flush
        self._lock = threading.Lock()
        self._pid = 0
        self._ending = Hooks(
            SignalHook(_SIGNALS, "task_postrun", _ended),
            SignalHook(_SIGNALS, "worker_process_shutdown", self._shutting_down),
        )
        super().__init__(
            SignalHook(_SIGNALS, "before_task_publish", _publishing),
            SignalHook(_SIGNALS, "task_prerun", self._first),
            SignalHook(_SIGNALS, "task_prerun", _beginning),
            self._ending,
        )

    def _first(self, **_: Any) -> None:
        """At a process's first task everything else is connected: what ends something is moved to the end."""
        # Two tasks may be the first, in two threads: neither may end before this is done.
        if self._pid == os.getpid() or not self._lock.acquire(timeout=_LOCK_TIMEOUT):
            return
        try:
            if self._pid != os.getpid():
                self._ending.uninstall()
                self._ending.install()
                self._pid = os.getpid()
        finally:
            self._lock.release()

    def _shutting_down(self, **_: Any) -> None:
        if self._flush is not None:
            try:
                self._flush()
            except Exception as error:  # noqa: BLE001 - the process ends anyway
                warn("what is queued could not be delivered", error)
