"""What web requests have in common: their context, cleaning what clients sent, and who acts."""

from __future__ import annotations

import importlib
import inspect
import ipaddress
import logging
import re
import time
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import sqlalchemy
import uuid_utils
from sqlalchemy.orm import InstanceState

from otel_activity import semconv
from otel_activity.context import Actor, RequestContext, current_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "WebContext",
    "clean",
    "configure",
    "identify",
    "is_in_force",
    "mark",
    "marked",
    "outer_context",
    "warn",
]

_MARK: Final = "otel_activity.context"
"""Key of the request's context in its ASGI scope or WSGI environ. It survives a copy of the dict."""

_logger: Final = logging.getLogger("otel_activity")
_ID_LENGTH: Final = 256
_USER_AGENT_LENGTH: Final = 512
_FORWARDED_LENGTH: Final = 4_096
_HOPS: Final = 32
_ROLES: Final = 64
_WARN_EVERY: Final = 60.0
_METHODS: Final = frozenset(
    {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "QUERY"}
)
_OTHER_METHOD: Final = "_OTHER"
"""What the semantic conventions put for a method that is not standard: it is the client's free text."""
# C0, DEL, C1, line and paragraph separators, bidirectional controls, surrogates.
_CONTROL: Final = re.compile("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]+")
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:+/=-]{1,128}")
_IDS: Final = ("identity", "id", "user_id", "sub", "username")
_NAMES: Final = ("display_name", "name", "username")

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class _Options:
    """The settings that apply to requests, read when an event is made: instrument() may come late."""

    resolver: str | None = None
    resolve: Callable[[Any], Any] | None = None
    trusted: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()
    warned: float = -_WARN_EVERY


def configure(resolver: str | None, trusted_proxies: tuple[str, ...]) -> None:
    """Set who is asked and which proxies are believed, for all requests of the process.

    Args:
        resolver: ``module.name:function``; imported when it is first needed, because the module may be the
            application, which is not to be imported before its time.
        trusted_proxies: addresses and networks.
    """
    _Options.resolver = resolver
    _Options.resolve = None
    _Options.trusted = tuple(ipaddress.ip_network(network) for network in trusted_proxies)
    _Options.warned = -_WARN_EVERY


def outer_context() -> RequestContext | None:
    """What a new request inherits: contexts that the program opened around it, never another request's."""
    context = current_context()
    link = context
    while link is not None:
        if isinstance(link, WebContext):
            return None
        link = link.parent
    return context


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

    Attributes:
        native: the ASGI scope or the WSGI environ; what the resolver gets.
        header: gives the values of a request header by its lower-case name.
        peer: address of the other end of the connection, as the server told when the request began.
        route: gives the route's template; set by the framework's hook.
        users: gives what the framework knows as the user, by source; set by the framework's hook.
    """

    __slots__ = ("__weakref__", "_fixed", "header", "native", "peer", "route", "users")

    def __init__(self, native: Any, peer: Any, header: Callable[[Any, str], list[str]]) -> None:
        super().__init__(None, {}, outer_context())
        self.native = native
        self.peer = peer
        self.header = header
        self.route: Callable[[], Any] | None = None
        self.users: Callable[[], Iterable[tuple[str, Any]]] | None = None
        self._fixed: dict[str, Any] = {}

    def own_attributes(self) -> dict[str, Any]:
        """Method, route, client, user agent, request id."""
        try:
            self._read_once()
            found = {**self._fixed, **self.attributes}
            route = None if self.route is None else self.route()
            if isinstance(route, str) and route:
                found[semconv.ROUTE] = clean(route, _USER_AGENT_LENGTH)
        except Exception as error:  # noqa: BLE001 - what a client sent must not cost the event
            warn("the request could not be read", error)
            return self.attributes
        return found

    def _read_once(self) -> None:
        """What the client sent stays as it was when it was first read."""
        if semconv.REQUEST_ID in self._fixed:
            return
        found: dict[str, Any] = {}
        method = self.native.get("method") or self.native.get("REQUEST_METHOD")
        if method:
            found[semconv.REQUEST_METHOD] = method if method in _METHODS else _OTHER_METHOD
        address = self._client()
        if address:
            found[semconv.CLIENT_ADDRESS] = address
        agent = clean(next(iter(self.header(self.native, "user-agent")), ""), _USER_AGENT_LENGTH)
        if agent:
            found[semconv.USER_AGENT] = agent
        self._fixed.update(found)
        given = next(iter(self.header(self.native, "x-request-id")), "")
        good = _REQUEST_ID.fullmatch(given) is not None
        # Last, and atomic: two threads of one request must agree.
        self._fixed.setdefault(semconv.REQUEST_ID, given if good else str(uuid_utils.uuid7()))

    def _client(self) -> str:
        peer = clean(self.peer, _ID_LENGTH)
        address = _address(peer)
        if address is None or not _is_trusted(address):
            return peer
        hops = ",".join(self.header(self.native, "x-forwarded-for"))[-_FORWARDED_LENGTH:].split(",")
        for hop in reversed(hops[-_HOPS:]):
            found = _address(hop.strip())
            if found is None:
                break
            address = found
            if not _is_trusted(address):
                break
        return str(address)

    def actor_attributes(self) -> dict[str, Any] | None:
        """The actor: named on this context, else by the resolver, else by the framework."""
        if self.actor is not None:
            return self.actor.attributes()
        try:
            actor = self._ask_resolver()
            return self._ask_framework() if actor is None else actor.attributes()
        except Exception as error:  # noqa: BLE001 - code of the application; the request goes on
            warn("the actor of a request could not be found and is stored as unknown", error)
            return {semconv.ACTOR_TYPE: "unknown", semconv.ACTOR_ERROR_TYPE: type(error).__qualname__}

    def _ask_resolver(self) -> Actor | None:
        path = _Options.resolver
        if path is None:
            return None
        resolve = _Options.resolve
        if resolve is None:
            resolve = _Options.resolve = _load(path)
        answer = resolve(self.native)
        if answer is None:
            return None
        if inspect.iscoroutine(answer):
            answer.close()  # never awaited, and that is ours to say
        if not isinstance(answer, Actor) and not _is_id(answer):
            raise TypeError(f"{path} must return an Actor, an id or None, not {type(answer).__name__}")
        return identify(answer)

    def _ask_framework(self) -> dict[str, Any] | None:
        if self.users is None:
            return None
        actors = [(source, actor) for source, user in self.users() if (actor := identify(user)) is not None]
        named = [(source, actor) for source, actor in actors if actor.id is not None]
        if len({actor.id for _, actor in named}) > 1:
            return {
                semconv.ACTOR_TYPE: "unknown",
                semconv.ACTOR_CANDIDATES: [{"source": source, "id": actor.id} for source, actor in named],
            }
        for _, actor in named or actors:
            return actor.attributes()
        return None


def _load(path: str) -> Callable[[Any], Any]:
    module, _, names = path.partition(":")
    found: Any = importlib.import_module(module)
    for name in names.split("."):
        found = getattr(found, name)
    if not callable(found):
        raise TypeError(f"{path} is not a function")
    return found  # type: ignore[no-any-return]  # what it returns is checked at each call


# --- what clients sent ----------------------------------------------------------------------------


def clean(value: Any, length: int) -> str:
    """A text from outside: bounded, without control characters, and valid Unicode."""
    if isinstance(value, bytes):
        value = value[: length * 4].decode("utf-8", "replace")
    return _CONTROL.sub(" ", value[:length]).strip() if isinstance(value, str) else ""


def _address(text: str) -> _Address | None:
    """An IP address, with or without port; one of IPv4 in an IPv6 socket is what it is."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    return (found.ipv4_mapped or found) if isinstance(found, ipaddress.IPv6Address) else found


def _is_trusted(address: _Address) -> bool:
    return any(address in network for network in _Options.trusted)


# --- users ----------------------------------------------------------------------------------------


def identify(user: Any) -> Actor | None:
    """What an application's user object says about itself. Sends no SQL: a mapped object is not loaded.

    Raises:
        TypeError: nothing on it is an id.
        Exception: whatever its own code raises.
    """
    if user is None or isinstance(user, Actor):
        return user
    if _is_id(user):
        return Actor(id=clean(str(user), _ID_LENGTH))
    state: Any = sqlalchemy.inspect(user, raiseerr=False)
    if isinstance(state, InstanceState):
        return _mapped(state)
    read = user.get if isinstance(user, Mapping) else lambda name: _attribute(user, name)
    if read("is_authenticated") is False:
        return Actor(type="anonymous")
    key = next((found for name in _IDS if _is_id(found := read(name))), None)
    if key is None and callable(get_id := getattr(user, "get_id", None)):
        key = get_id()
    if not _is_id(key):
        raise TypeError(f"a user of type {type(user).__name__} has no id")
    return Actor(id=clean(str(key), _ID_LENGTH), name=_name(read), roles=_roles(read("roles")))


def _mapped(state: Any) -> Actor:
    """A mapped object: its primary key is known without loading anything, even when it is expired."""
    key: tuple[Any, ...] = state.identity or ()
    if len(key) != 1 or not _is_id(key[0]):
        raise TypeError(f"a user of type {state.class_.__name__} has no simple primary key")
    return Actor(id=clean(str(key[0]), _ID_LENGTH), name=_name(state.dict.get))


def _attribute(user: Any, name: str) -> Any:
    try:
        return getattr(user, name, None)
    except NotImplementedError:  # Starlette's BaseUser.identity
        return None


def _name(read: Callable[[str], Any]) -> str | None:
    found = next((value for name in _NAMES if isinstance(value := read(name), str) and value), None)
    return None if found is None else clean(found, _ID_LENGTH)


def _roles(value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple, set, frozenset)):
        return ()
    return tuple(clean(role, _ID_LENGTH) for role in list(value)[:_ROLES] if isinstance(role, str))


def _is_id(value: Any) -> bool:
    return (isinstance(value, (str, int, UUID)) and not isinstance(value, bool)) and value != ""


def warn(what: str, error: BaseException) -> None:
    """Log what went wrong with a request, at most once a minute. Call from ``except``."""
    now = time.monotonic()
    if now - _Options.warned >= _WARN_EVERY:
        _Options.warned = now
        _logger.warning("otel_activity: %s (%s)", what, type(error).__qualname__, exc_info=error)
