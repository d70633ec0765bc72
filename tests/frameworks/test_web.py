"""What clients send, which proxies are believed, and what user objects say."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import uuid
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event
from sqlalchemy.orm import Session

from otel_activity import Actor, activity_context, semconv
from otel_activity.context import bind, current_context, unbind
from otel_activity.frameworks import WebHooks, web
from otel_activity.frameworks.asgi import ActivityASGIMiddleware
from otel_activity.frameworks.users import identify
from otel_activity.settings import Settings
from tests.frameworks.requests import configure, snapshot
from tests.frameworks.support import Account, memory

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def options() -> Iterator[None]:
    """No resolver and no trusted proxy before and after each test."""
    web.configure()
    yield
    web.configure()


def resolve_by_key(scope: Any) -> Any:
    """A resolver: the scope's own word."""
    found = scope["answer"]
    if isinstance(found, Exception):
        raise found
    return found() if callable(found) else found


RESOLVER = f"{__name__}:resolve_by_key"


# --- what clients sent ----------------------------------------------------------------------------


def test_a_request_is_described() -> None:
    """Method, peer, user agent and request id; the actor is unknown as long as nobody says."""
    assert snapshot((b"user-agent", b"curl/8"), (b"X-Request-ID", b"abc-1")) == {
        "http.request.method": "POST",
        "client.address": "192.0.2.7",
        "user_agent.original": "curl/8",
        "activity.request.id": "abc-1",
        "activity.actor.type": "unknown",
    }


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        (b"a" * (1 << 20), "a" * 512),
        (b"Mozilla \xff\xfe/5", "Mozilla \ufffd\ufffd/5"),
        (b"a\r\nSet-Cookie: x\x00\x1b[31mred\x7f", "a Set-Cookie: x [31mred"),
        ("\u202egnp.exe \ud800".encode("utf-8", "surrogatepass"), "gnp.exe \ufffd\ufffd\ufffd"),
        (b"", None),
        (b"\x00\x01", None),
    ],
)
def test_a_user_agent_is_bounded_and_cleaned(sent: bytes, stored: str | None) -> None:
    """Megabytes, invalid UTF-8 and control characters do no harm."""
    assert snapshot((b"user-agent", sent)).get(semconv.USER_AGENT) == stored


@pytest.mark.parametrize("sent", [b"", b"a b", b"x" * 129, b"a\nb", b"<script>", b"\xff", b"x" * (1 << 20)])
def test_a_request_id_that_is_not_sane_is_replaced(sent: bytes) -> None:
    """By a UUIDv7 of our own."""
    made = snapshot((b"x-request-id", sent))[semconv.REQUEST_ID]
    assert uuid.UUID(made).version == 7


def test_a_request_keeps_its_id_and_its_peer() -> None:
    """Two events of one request agree, whatever is done to the scope in between."""
    scope = {"method": "BREW", "headers": [], "client": ("192.0.2.1", 1)}
    context = web.WebContext(scope, "192.0.2.1", lambda native, name: [])
    first = context.snapshot()
    scope["client"] = ("203.0.113.9", 1)
    assert context.snapshot() == first
    assert first[semconv.REQUEST_METHOD] == "_OTHER"


@pytest.mark.parametrize(
    ("trusted", "peer", "forwarded", "expected"),
    [
        ((), "10.0.0.1", "198.51.100.1", "10.0.0.1"),
        (("192.0.2.0/24",), "10.0.0.1", "198.51.100.1", "10.0.0.1"),
        (("10.0.0.0/8",), "10.0.0.1", "198.51.100.1", "198.51.100.1"),
        (("10.0.0.0/8",), "10.0.0.1", "6.6.6.6, 198.51.100.1, 10.0.0.2", "198.51.100.1"),
        (("10.0.0.0/8",), "10.0.0.1", "198.51.100.1, garbage, 10.0.0.2", "10.0.0.2"),
        (("10.0.0.0/8",), "10.0.0.1", "", "10.0.0.1"),
        (("10.0.0.0/8",), "::ffff:10.0.0.1", "198.51.100.1:4711", "198.51.100.1"),
        (("10.0.0.0/8",), "10.0.0.1", "[2001:db8::1]:4711", "2001:db8::1"),
        (("10.0.0.0/8",), "10.0.0.1", "9.9.9.9," * 100_000 + "198.51.100.1", "198.51.100.1"),
        (("10.0.0.0/8",), "10.0.0.1", "fe80::1%<b>\x01", "fe80::1"),
        (("10.0.0.0/8",), "testclient", "198.51.100.1", "testclient"),
    ],
)
def test_forwarded_addresses(trusted: tuple[str, ...], peer: str, forwarded: str, expected: str) -> None:
    """Believed only from trusted hops, from the right, up to the first that is not trusted."""
    configure(trusted_proxies=trusted)
    found = snapshot((b"x-forwarded-for", forwarded.encode()), peer=(peer, 1))
    assert found[semconv.CLIENT_ADDRESS] == expected


V6 = 'for="[2001:db8::1]:4711"'


@pytest.mark.parametrize(
    ("forwarded", "expected"),
    [
        ("for=198.51.100.1", "198.51.100.1"),
        ("For=198.51.100.1;proto=http;by=10.0.0.1", "198.51.100.1"),
        ('proto=http; FOR="198.51.100.1:4711"', "198.51.100.1"),
        (V6, "2001:db8::1"),
        ("for=6.6.6.6, for=198.51.100.1, for=10.0.0.2", "198.51.100.1"),
        ("for=198.51.100.1, for=unknown, for=10.0.0.2", "10.0.0.2"),
        ("for=198.51.100.1, for=_hidden", "10.0.0.1"),
        ("for=198.51.100.1, proto=http", "10.0.0.1"),
        ("", "10.0.0.1"),
        ("for=", "10.0.0.1"),
        ("for", "10.0.0.1"),
        # What a client sends to break out of its own element, before the proxy adds the last one.
        (f'for="6.6.6.6, {V6}', "2001:db8::1"),
        (f'a=";for=6.6.6.6 , {V6}', "2001:db8::1"),
        (f'a=", for=6.6.6.6, b=", {V6}', "2001:db8::1"),
        (f'a="\\", for=6.6.6.6, {V6}', "2001:db8::1"),
        ('"' * 100_000 + ", for=198.51.100.1", "198.51.100.1"),
        ("for=9.9.9.9," * 100_000 + "for=198.51.100.1", "198.51.100.1"),
    ],
)
def test_the_standard_forwarded_header(forwarded: str, expected: str) -> None:
    """RFC 7239, read from the right like the other; whatever the client put in front of it."""
    configure(trusted_proxies=("10.0.0.0/8",), proxy_header="forwarded")
    other = (b"x-forwarded-for", b"6.6.6.6")
    found = snapshot((b"forwarded", forwarded.encode()), other, peer=("10.0.0.1", 1))
    assert found[semconv.CLIENT_ADDRESS] == expected


def test_only_one_header_is_believed() -> None:
    """A proxy that writes one of them passes on the other as the client sent it."""
    configure(trusted_proxies=("10.0.0.0/8",))
    found = snapshot((b"forwarded", b"for=6.6.6.6"), peer=("10.0.0.1", 1))
    assert found[semconv.CLIENT_ADDRESS] == "10.0.0.1"
    configure(proxy_header="forwarded")
    assert snapshot((b"forwarded", b"for=6.6.6.6"))[semconv.CLIENT_ADDRESS] == "192.0.2.7"


TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("sent", "named"),
    [
        (f"00-{TRACE}-{SPAN}-01", True),
        (f"cc-{TRACE}-{SPAN}-01-what the future adds", True),
        (f"ff-{TRACE}-{SPAN}-01", False),
        (f"00-{'0' * 32}-{SPAN}-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        (f"00-{TRACE.upper()}-{SPAN}-01", False),
        (f"00-{TRACE}-{SPAN}", False),
        (f"00-{TRACE}-{SPAN}-01\n", False),
        ("0" * (1 << 20), False),
    ],
)
def test_a_request_id_from_traceparent(sent: str, named: bool) -> None:
    """Trace and span as the sender names this one request, unless it has given it a name."""
    found = snapshot((b"traceparent", sent.encode()))[semconv.REQUEST_ID]
    if named:
        assert found == f"{TRACE}-{SPAN}"
    else:
        assert uuid.UUID(found).version == 7
    given = snapshot((b"traceparent", sent.encode()), (b"x-request-id", b"r-1"))
    assert given[semconv.REQUEST_ID] == "r-1"


def test_bombs_in_every_header() -> None:
    """Megabytes of nonsense in all that is read: the event is small, and its values are printable."""
    configure(
        trusted_proxies=("192.0.2.0/24",),
        proxy_header="forwarded",
        session_cookie="sid",
        redact_key="0123456789abcdef",
    )
    names = (b"user-agent", b"x-request-id", b"traceparent", b"forwarded", b"x-forwarded-for", b"cookie")
    for bomb in (b"\xff\x00\r\n\x1b[31m", b'",;="', b"sid=", b"a, "):
        found = snapshot(*((name, bomb * (1 << 20)) for name in names), method="X" * 1_000_000)
        assert found[semconv.REQUEST_METHOD] == "_OTHER"
        assert found[semconv.CLIENT_ADDRESS] == "192.0.2.7"
        assert sum(len(value) for value in found.values()) < 2_000
        assert all(value.isprintable() for value in found.values())


def test_many_headers() -> None:
    """Ten thousand values of one header are as many hops as count."""
    configure(trusted_proxies=("192.0.2.0/24",))
    found = snapshot(*[(b"x-forwarded-for", b"192.0.2.1")] * 10_000)
    assert found[semconv.CLIENT_ADDRESS] == "192.0.2.1"


def test_several_forwarded_headers_are_one_list() -> None:
    """In the order in which they came."""
    configure(trusted_proxies=("10.0.0.0/8",))
    found = snapshot(
        (b"x-forwarded-for", b"6.6.6.6"), (b"x-forwarded-for", b"198.51.100.1"), peer=("10.0.0.1", 1)
    )
    assert found[semconv.CLIENT_ADDRESS] == "198.51.100.1"


def test_a_unix_socket_has_no_address() -> None:
    """Nothing is made up."""
    assert semconv.CLIENT_ADDRESS not in snapshot(peer=None)


# --- contexts -------------------------------------------------------------------------------------


def test_an_explicit_actor_wins_over_the_resolver() -> None:
    """A context inside the request beats it, one around the program gives way to it."""
    configure(actor_resolver=RESOLVER)
    scope = {"method": "GET", "headers": [], "answer": "u-resolved"}
    with activity_context(actor="u-outer", tenant="t-1"):
        context = web.WebContext(scope, None, lambda native, name: [])
        token = bind(context)
        assert context.snapshot()[semconv.USER_ID] == "u-resolved"
        assert context.snapshot()[semconv.TENANT_ID] == "t-1"
        with activity_context(actor="u-inner") as inner:
            assert inner.snapshot()[semconv.USER_ID] == "u-inner"
        scope["answer"] = None  # type: ignore[assignment]
        assert context.snapshot()[semconv.USER_ID] == "u-outer"
        unbind(token)


def test_a_request_inside_a_request_inherits_nothing() -> None:
    """A request that an application sends to another one in the same process is not its sender's user."""
    outer = web.WebContext({"headers": []}, None, lambda native, name: [])
    outer.actor = Actor(id="u-outer")
    token = bind(outer)
    with activity_context(actor="u-explicit"):
        inner = web.WebContext({"headers": []}, None, lambda native, name: [])
    unbind(token)
    assert inner.snapshot()[semconv.ACTOR_TYPE] == "unknown"


def test_a_context_ends_with_an_exception() -> None:
    """The application's error goes on, and nothing stays in force."""

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        assert current_context() is not None
        raise LookupError

    with pytest.raises(LookupError):
        ActivityASGIMiddleware(broken)({"type": "http", "headers": []}, None, None).send(None)
    assert current_context() is None


def test_a_request_that_is_closed_elsewhere_raises_nothing() -> None:
    """As the garbage collector does it: a coroutine that never ended meets other context variables."""

    class Never:
        def __await__(self) -> Any:
            yield

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await Never()

    coroutine = ActivityASGIMiddleware(app)({"type": "http", "headers": []}, None, None)
    contextvars.copy_context().run(coroutine.send, None)
    contextvars.copy_context().run(coroutine.close)


def test_what_cannot_be_read_costs_nothing_else() -> None:
    """A session object or a route of the application's own that raises leaves the request its id."""
    configure(redact_key="k" * 32)

    class Broken:
        @property
        def sid(self) -> str:
            raise LookupError

    async def app(scope: Any, receive: Any, send: Any) -> None:
        context = current_context()
        assert isinstance(context, web.WebContext)
        context.session = Broken
        context.route = {}.popitem
        await send(context.snapshot())

    heard: list[Any] = []

    async def send(message: Any) -> None:
        heard.append(message)

    headers = [(b"x-request-id", b"r-1"), (b"user-agent", b"curl")]
    asyncio.run(
        ActivityASGIMiddleware(app)({"type": "http", "method": "GET", "headers": headers}, None, send)
    )
    assert heard == [
        {
            semconv.REQUEST_METHOD: "GET",
            semconv.USER_AGENT: "curl",
            semconv.REQUEST_ID: "r-1",
            semconv.ACTOR_TYPE: "unknown",
        }
    ]


def test_a_finished_request_is_freed_at_once() -> None:
    """Scope and context do not hold each other until the garbage collector comes."""

    class Scope(dict[str, Any]):
        pass

    async def nothing(scope: Any, receive: Any, send: Any) -> None:
        pass

    gc.disable()
    try:
        scope = Scope(type="http", headers=[])
        with pytest.raises(StopIteration):
            ActivityASGIMiddleware(nothing)(scope, None, None).send(None)
        alive = weakref.ref(scope)
        del scope
        assert alive() is None
    finally:
        gc.enable()


# --- resolver -------------------------------------------------------------------------------------


def test_a_resolver_names_the_actor() -> None:
    """An `Actor` or an id; None means that it does not know."""
    configure(actor_resolver=RESOLVER)
    assert snapshot(answer=Actor(id="svc", type="service"))[semconv.ACTOR_TYPE] == "service"
    assert snapshot(answer=42)[semconv.USER_ID] == "42"
    assert snapshot(answer=None)[semconv.ACTOR_TYPE] == "unknown"
    assert semconv.ACTOR_ERROR_TYPE not in snapshot(answer=None)


async def asynchronous() -> str:
    return "u-1"


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (KeyError("sub"), "KeyError"),
        ({"id": 1}, "TypeError"),
        (True, "TypeError"),
        ("", "TypeError"),
        (asynchronous, "TypeError"),
    ],
)
def test_a_resolver_that_fails_gives_an_unknown_actor(
    said: Any, error: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With the error's type on the event, and one warning a minute."""
    configure(actor_resolver=RESOLVER)
    with caplog.at_level(logging.WARNING, "otel_activity"):
        for _ in range(3):
            found = snapshot(answer=said)
            assert found[semconv.ACTOR_TYPE] == "unknown"
            assert found[semconv.ACTOR_ERROR_TYPE] == error
            assert semconv.USER_ID not in found
            assert semconv.ERROR_TYPE not in found
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("no_such_module:f", "ModuleNotFoundError"),
        ("os:no_such_name", "AttributeError"),
        ("os:sep", "TypeError"),
    ],
)
def test_a_resolver_that_cannot_be_loaded(path: str, error: str) -> None:
    """The event says why its actor is unknown; the request goes on."""
    configure(actor_resolver=path)
    assert snapshot()[semconv.ACTOR_ERROR_TYPE] == error


# --- users ----------------------------------------------------------------------------------------


class User:
    def __init__(self, **said: Any) -> None:
        self.__dict__.update(said)


class LoginUser(User):
    is_authenticated = True

    def get_id(self) -> str:
        return "login-1"


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        (None, None),
        ("u-1", Actor(id="u-1")),
        (7, Actor(id="7")),
        ({"sub": "u-2", "name": "Ada", "roles": ["admin", 5]}, Actor(id="u-2", name="Ada", roles=("admin",))),
        (User(id=uuid.UUID(int=1)), Actor(id="00000000-0000-0000-0000-000000000001")),
        (User(username="ada"), Actor(id="ada", name="ada")),
        (LoginUser(), Actor(id="login-1")),
        (User(is_authenticated=False, id=None), Actor(type="anonymous")),
        (User(id=" a", name="A\x00da" + "x" * 1000), Actor(id=" a", name="A da" + "x" * 252)),
    ],
)
def test_user_objects(user: Any, expected: Actor | None) -> None:
    """The usual ways in which an application describes a user."""
    assert identify(user) == expected


@pytest.mark.parametrize("user", [object(), {}, True, User(id=None), 1.5, [1]])
def test_a_user_without_an_id_is_not_guessed(user: Any) -> None:
    """Whoever asks gets an error, which makes the actor unknown."""
    with pytest.raises(TypeError):
        identify(user)


def test_a_mapped_user_is_never_loaded() -> None:
    """An expired object is known by its primary key; asking it would send SQL inside the transaction."""
    engine = memory()
    with Session(engine) as session:
        account = Account(number=7, name="Ada")
        session.add(account)
        session.commit()
        statements: list[str] = []
        event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
        assert identify(account) == Actor(id="7")
        assert statements == []
        assert account.name == "Ada"
        assert identify(account) == Actor(id="7", name="Ada")
        with pytest.raises(TypeError):
            identify(Account(name="not stored yet"))
    engine.dispose()


def test_hooks_come_off() -> None:
    """After `uninstall` every method of every framework is the framework's own."""
    import flask
    import starlette.applications
    import starlette.routing

    def methods() -> list[Any]:
        return [
            starlette.applications.Starlette.__call__,
            starlette.routing.Router.lifespan,
            starlette.routing.Router.__call__,
            flask.Flask.__call__,
            flask.Flask.full_dispatch_request,
            flask.Flask.dispatch_request,
        ]

    before = methods()
    hooks = WebHooks(Settings(), lambda: None)
    for _ in range(2):
        hooks.install()
        hooks.install()
        assert not set(before) & set(methods())
        hooks.uninstall()
        assert methods() == before
