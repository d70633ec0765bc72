"""What web requests have in common: their context, what clients sent, and who acts."""

from __future__ import annotations

import logging
import re
import time
import traceback
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import uuid_utils
from opentelemetry import trace

from otel_activity import actors, semconv
from otel_activity.actors import Actor, Finding, clean, is_id, settle
from otel_activity.context import RequestContext, asking, current_context, is_asking
from otel_activity.frameworks import claims, sessions
from otel_activity.frameworks.proxies import Proxies
from otel_activity.frameworks.resolver import Resolver
from otel_activity.frameworks.users import identify
from otel_activity.interruptions import pass_on
from otel_activity.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.context import Context

    from otel_activity.frameworks.requests import Watch

__all__ = ["WebContext", "configure", "is_in_force", "mark", "marked", "warn"]

_MARK: Final = "otel_activity.context"
"""Key of the request's context in its ASGI scope or WSGI environ. It survives a copy of the dict."""

_logger: Final = logging.getLogger("otel_activity")
_TEXT_LENGTH: Final = 512
_SPANS: Final = 4
"""Spans of a request that are remembered: the server's, and what middleware may have put around it."""
_WARN_EVERY: Final = 60.0
_METHODS: Final = frozenset(
    {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "QUERY"}
)
_OTHER_METHOD: Final = "_OTHER"
"""What the semantic conventions put for a method that is not standard: it is the client's free text."""
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:+/=-]{1,128}")
_TRACEPARENT: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(?:-.*)?"
)


class _Options:
    """The settings that apply to requests, read when an event is made: instrument() may come late."""

    resolver: Resolver | None = None
    proxies = Proxies()
    key: str | None = None
    cookie: str | None = None
    warned: float = -_WARN_EVERY


def configure(settings: Settings | None = None) -> None:
    """Set who is asked and what is believed, for all requests of the process; None for the defaults."""
    given = Settings() if settings is None else settings
    path = given.actor_resolver
    _Options.resolver = None if path is None else Resolver(path, given.actor_resolver_timeout)
    _Options.proxies = Proxies(given.trusted_proxies, given.proxy_header)
    _Options.key = given.redact_key
    _Options.cookie = given.session_cookie
    _Options.warned = -_WARN_EVERY
    actors.configure(given.actor_sources)


def _is_inside_another() -> bool:
    """Whether a request or a job is in force."""
    link = current_context()
    while link is not None and not link.boundary:
        link = link.parent
    return link is not None


def mark(native: Any, context: WebContext) -> WebContext:
    """Note in a scope or environ whose it is; weakly, because the context holds it in turn."""
    native[_MARK] = weakref.ref(context)
    return context


def marked(native: Any) -> WebContext | None:
    """The context of a scope or environ, or None."""
    found = native.get(_MARK)
    return found() if isinstance(found, weakref.ref) else None


def is_in_force(context: RequestContext) -> bool:
    """Whether a context, or one inside it, is the current one."""
    link = current_context()
    while link is not None and link is not context:
        link = link.parent
    return link is not None


class WebContext(RequestContext):
    """One request. What it says is read just before COMMIT, when the route and the user are known.

    What a framework's hook may set, each a function that is asked late:

    Attributes:
        route: gives the route's template.
        users: gives what the framework knows as the user, by source.
        claims: gives verified claims of a token, by source: mappings, or objects that have one.
        session: gives the session object, or its id.
        secret: gives the application's own secret, for the session's hash where no key is set.
        native: the ASGI scope or the WSGI environ; what the resolver gets.
        header: gives the values of a request header by its lower-case name.
        peer: address of the other end of the connection, as the server told when the request began.
        watch: what waits for the end of the request, to report it.
    """

    __slots__ = (
        "__weakref__",
        "_baggage",
        "_fixed",
        "_foreign",
        "_former",
        "_spans",
        "claims",
        "header",
        "native",
        "peer",
        "route",
        "secret",
        "session",
        "users",
        "watch",
    )

    asks_otel = True
    boundary = True

    def __init__(self, native: Any, peer: Any, header: Callable[[Any, str], list[str]]) -> None:
        # A request inherits what the program opened around it, and nothing from another request or a job.
        inner = _is_inside_another()
        super().__init__(None, {}, None if inner else current_context())
        self.native = native
        self.peer = peer
        self.header = header
        self.route: Callable[[], Any] | None = None
        self.users: Callable[[], Iterable[tuple[str, Any]]] | None = None
        self.claims: Callable[[], Iterable[tuple[str, Any]]] | None = None
        self.session: Callable[[], Any] | None = None
        self.secret: Callable[[], Any] | None = None
        self.watch: Watch | None = None
        self._fixed: dict[str, Any] = {}
        self._former: list[tuple[str, Actor]] = []
        self._foreign = trace.get_current_span() if inner else None
        self._spans: list[trace.Span] = []
        self._baggage: set[tuple[str, str]] = set()
        self.see_span()

    def see_span(self) -> None:
        """Remember the current span as the request's: what it says when it is asked counts, unless the
        request's baggage said it first.
        """
        self._baggage |= actors.brought()
        span = trace.get_current_span()
        if span not in (self._foreign, trace.INVALID_SPAN, *self._spans) and len(self._spans) < _SPANS:
            self._spans.append(span)

    def keep(self, source: str, actor: Actor | None) -> None:
        """Remember who acted until the application logged somebody in or out in the midst of the request.

        Whose hands these are has not changed: after a logout they are still theirs, and after a login of
        somebody else it may be an impersonation, so nobody can tell.
        """
        if actor is not None and actor.id is not None:
            self._former.append((source, actor))

    @property
    def former(self) -> Actor | None:
        """Whom `keep` was told last."""
        return self._former[-1][1] if self._former else None

    @property
    def span(self) -> trace.Span | None:
        """The innermost span that was remembered: it may be gone when the request ends."""
        return self._spans[-1] if self._spans else None

    def own_attributes(self) -> dict[str, Any]:
        """Method, route, client, user agent, request id, session. What cannot be read costs nothing else."""
        found: dict[str, Any] = {}  # not `_fixed` itself
        for read in (self._read_once, self._read_route, self._read_session):
            try:
                found.update(read())
            except Exception as error:  # noqa: BLE001 - a client's text, or code of the application
                warn("a part of the request could not be read", error)
        found.update(self.attributes)
        return found

    def _read_route(self) -> dict[str, Any]:
        route = None if self.route is None else self.route()
        return {semconv.ROUTE: clean(route, _TEXT_LENGTH)} if isinstance(route, str) and route else {}

    def _read_session(self) -> dict[str, Any]:
        session = self._session()
        return {} if session is None else {semconv.SESSION_ID: session}

    def _read_once(self) -> dict[str, Any]:
        """What the client sent stays as it was when it was first read."""
        if semconv.REQUEST_ID in self._fixed:
            return self._fixed
        found: dict[str, Any] = {}
        method = self.native.get("method") or self.native.get("REQUEST_METHOD")
        if method:
            found[semconv.REQUEST_METHOD] = method if method in _METHODS else _OTHER_METHOD
        peer, proxies = clean(self.peer), _Options.proxies
        address = proxies.client(peer, self.header(self.native, proxies.header)) if peer else ""
        if address:
            found[semconv.CLIENT_ADDRESS] = address
        agent = clean(self._first("user-agent"), _TEXT_LENGTH)
        if agent:
            found[semconv.USER_AGENT] = agent
        self._fixed.update(found)
        # Last, and atomic: two threads of one request must agree.
        self._fixed.setdefault(semconv.REQUEST_ID, self._request_id())
        return self._fixed

    def _first(self, header: str) -> str:
        return next(iter(self.header(self.native, header)), "")

    def _request_id(self) -> str:
        """The sender's name for this request, or one of ours."""
        given = self._first("x-request-id")
        if _REQUEST_ID.fullmatch(given):
            return given
        parent = _TRACEPARENT.fullmatch(self._first("traceparent"))
        return f"{parent[1]}-{parent[2]}" if parent else str(uuid_utils.uuid7())

    def _session(self) -> str | None:
        key = _Options.key or (self.secret() if self.secret is not None else None)
        if not isinstance(key, (str, bytes)) or not key:
            return None
        session = self.session() if self.session is not None else None
        raw = str(session) if is_id(session) else sessions.session_key(session)
        if raw is None and _Options.cookie is not None:
            raw = sessions.cookie(self.header(self.native, "cookie"), _Options.cookie)
        return None if raw is None else sessions.hashed(raw, key)

    def find_actor(self, otel: Context | None, memo: dict[Any, Any] | None) -> Finding | None:
        """The actor: named on this context, else by the resolver, else what the other sources agree on."""
        if self.actor is not None:
            return self.actor.finding()
        try:
            actor = self._ask_resolver({} if memo is None else memo)
            if actor is not None:
                return actor.finding()
            if is_asking():
                raise RecursionError("a user object logs an action, or commits, when it is read")
            return settle(asking(lambda: self._candidates(otel)))
        except Exception as error:  # noqa: BLE001 - code of the application; the request goes on
            warn("the actor of a request could not be found and is stored as unknown", error)
            return Finding(
                {semconv.ACTOR_TYPE: "unknown", semconv.ACTOR_ERROR_TYPE: type(error).__qualname__}
            )

    def _ask_resolver(self, memo: dict[Any, Any]) -> Actor | None:
        """Once for each transaction, whether it answers or fails."""
        if _Options.resolver is None:
            return None
        if self not in memo:
            try:
                memo[self] = _Options.resolver.ask(self.native)
            except Exception as error:  # noqa: BLE001 - raised below, for each event that asks
                pass_on(error)
                memo[self] = error
        if isinstance(memo[self], Exception):
            raise memo[self]
        return memo[self]  # type: ignore[no-any-return]  # what `ask` returns

    def _candidates(self, otel: Context | None) -> list[tuple[str, Actor]]:
        found: list[tuple[str, Actor]] = []
        if actors.is_asked("framework") and self.users is not None:
            asked = ((source, identify(user)) for source, user in self.users())
            found += [(source, actor) for source, actor in asked if actor is not None]
            found += self._former
        if actors.is_asked("claims"):
            found += [(f"claims:{source}", claims.actor_of(token)) for source, token in self._tokens()]
        return found + actors.candidates(otel, self._spans, self._foreign, self._baggage)

    def _tokens(self) -> Iterable[tuple[str, Mapping[str, Any]]]:
        place = "environ" if "REQUEST_METHOD" in self.native else "scope"
        yield from claims.claims_in(self.native, f"{place}.")
        state = self.native.get("state")
        if isinstance(state, Mapping):
            yield from claims.claims_in(state, "request.state.")
        for source, token in () if self.claims is None else self.claims():
            found = claims.mapping_of(token)
            if found:
                yield source, found


def warn(what: str, error: BaseException) -> None:
    """At most once a minute. No message of the error: it may quote what must not be in a log.

    Raises:
        BaseException: the error, if it is none of ours: see `interruptions.pass_on`.
    """
    pass_on(error)
    now = time.monotonic()
    if now - _Options.warned >= _WARN_EVERY:
        _Options.warned = now
        frames = traceback.extract_tb(error.__traceback__, limit=-1)
        where = f" in {frames[0].filename}:{frames[0].lineno}" if frames else ""
        _logger.warning("otel_activity: %s (%s%s)", what, type(error).__qualname__, where)
