"""Sources of the actor: claims of verified tokens, spans, baggage; and what happens when they disagree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy.orm import Session

from otel_activity import Actor, activity_context, log_user_action, semconv
from otel_activity.actors import settle
from otel_activity.context import bind, unbind
from otel_activity.frameworks import web
from otel_activity.frameworks.claims import actor_of
from otel_activity.frameworks.requests import watch
from otel_activity.frameworks.users import identify
from otel_activity.testing import recorded_events
from tests.frameworks.requests import configure, snapshot
from tests.frameworks.support import Task, memory, save

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.context import Context

tracer = TracerProvider().get_tracer("tests")


@pytest.fixture(autouse=True)
def options() -> Iterator[None]:
    """The defaults before and after each test."""
    web.configure()
    yield
    web.configure()


def who(found: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Type and id of the actor, and the user it acts for."""
    return (
        found[semconv.ACTOR_TYPE],
        found.get(semconv.USER_ID),
        found.get(semconv.ACTOR_ON_BEHALF_OF),
    )


def sources(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The candidates of an actor that is unknown."""
    assert found[semconv.ACTOR_TYPE] == "unknown"
    assert semconv.USER_ID not in found
    return [(each["source"], each["id"]) for each in found[semconv.ACTOR_CANDIDATES]]


# --- claims ---------------------------------------------------------------------------------------


class Token:
    """What a library may make of a token."""

    def __init__(self, **claims: Any) -> None:
        self.claims = claims


class Scopes:
    """Starlette's `AuthCredentials`, which has no claims."""

    scopes = ("read",)


@pytest.mark.parametrize(
    "scope",
    [
        {"auth": {"sub": "u-1"}},
        {"auth": Token(sub="u-1")},
        {"state": {"claims": {"sub": "u-1"}}},
        {"state": {"token_payload": {"user_id": "u-1"}}},
        {"state": {"jwt": {"sub": "u-1"}, "user": "u-1"}},
    ],
)
def test_claims_in_the_scope_name_the_actor(scope: dict[str, Any]) -> None:
    """A mapping, or an object that has one, where middleware and dependencies put it."""
    assert who(snapshot(**scope)) == ("user", "u-1", None)


@pytest.mark.parametrize(
    "scope",
    [
        {"auth": "eyJhbGciOiJub25lIn0.eyJzdWIiOiJyb290In0."},
        {"state": {"token": "eyJhbGciOiJub25lIn0.eyJzdWIiOiJyb290In0."}},
        {"auth": Scopes()},
        {"auth": {"scope": "read"}},
        {"auth": {}},
    ],
)
def test_nothing_is_read_from_a_token_itself(scope: dict[str, Any]) -> None:
    """Neither from a raw one that the application keeps, nor from the Authorization header."""
    token = b"Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJyb290In0."
    found = snapshot((b"authorization", token), **scope)
    assert who(found) == ("unknown", None, None)
    assert semconv.ACTOR_ERROR_TYPE not in found


@pytest.mark.parametrize(
    ("claims", "actor"),
    [
        (
            {"sub": "u-1", "name": "Ada", "realm_access": {"roles": ["admin", 5]}, "org_id": "t-1"},
            Actor(id="u-1", name="Ada", roles=("admin",), tenant="t-1"),
        ),
        ({"sub": "app", "client_id": "app"}, Actor(id="app", type="service")),
        ({"client_id": "app"}, Actor(id="app", type="service")),
        ({"sub": "u-1", "client_id": "app"}, Actor(id="u-1")),
        (
            {"sub": "u-7", "name": "Bob", "act": {"sub": "admin", "name": "Ada"}},
            Actor(id="admin", name="Ada", on_behalf_of="u-7"),
        ),
        (
            {"sub": "u-7", "act": {"sub": "gateway", "client_id": "gateway", "act": {"sub": "earlier"}}},
            Actor(id="gateway", type="service", on_behalf_of="u-7"),
        ),
        ({"sub": 7, "name": "A\x00da" + "x" * 1000, "tid": 8}, Actor("7", "A da" + "x" * 252, tenant="8")),
    ],
)
def test_who_a_token_names(claims: dict[str, Any], actor: Actor) -> None:
    """The subject, a client for itself, or the outermost `act`, who acts on behalf of the subject."""
    assert actor_of(claims) == actor


@pytest.mark.parametrize("act", [{}, "admin", {"iss": "x"}, []])
def test_an_act_that_names_nobody_is_not_passed_over(act: Any) -> None:
    """The subject does not act then: the actor is unknown."""
    found = snapshot(auth={"sub": "u-7", "act": act})
    assert found[semconv.ACTOR_ERROR_TYPE] == "TypeError"
    assert semconv.USER_ID not in found


def test_a_user_that_is_a_tokens_claims() -> None:
    """`request.state.user = claims` means the same as `request.state.claims`."""
    claims = {"sub": "u-7", "act": {"sub": "admin"}}
    assert identify(claims) == Actor(id="admin", on_behalf_of="u-7")


# --- several sources ------------------------------------------------------------------------------


def test_an_impersonation_is_no_conflict() -> None:
    """The framework knows only the user who is impersonated, or only who acts; the token knows both."""
    claims = {"sub": "u-7", "act": {"sub": "admin"}}
    admin = ("user", "admin", "u-7")
    for user in ("u-7", "admin"):
        assert who(framework(user, auth=claims)) == admin
    assert sources(framework("u-8", auth=claims)) == [("user", "u-8"), ("claims:scope.auth", "admin")]


def framework(user: Any, **scope: Any) -> dict[str, Any]:
    """What an event says of a request whose framework knows a user."""
    context = web.WebContext({"headers": [], **scope}, None, lambda native, name: [])
    context.users = lambda: [("user", user)]
    return context.snapshot(scope.get("otel"))


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        ([], None),
        ([Actor(type="anonymous")], ("anonymous", None, None)),
        ([Actor(type="anonymous"), Actor(id="a")], ("user", "a", None)),
        ([Actor(id="a"), Actor(id="a", type="service")], ("user", "a", None)),
        ([Actor(id="a"), Actor(id="b")], ("unknown", None, None)),
        ([Actor(id="a", on_behalf_of="c"), Actor(id="b", on_behalf_of="c")], ("unknown", None, None)),
        ([Actor(id="a", on_behalf_of="c"), Actor(id="a", on_behalf_of="d")], ("unknown", None, None)),
        ([Actor(id="c"), Actor(id="a", on_behalf_of="c"), Actor(id="a")], ("user", "a", "c")),
    ],
)
def test_what_sources_say_together(candidates: list[Actor], expected: Any) -> None:
    """They agree, or the actor is unknown; the order decides nothing but name and roles."""
    for order in (candidates, candidates[::-1]):
        found = settle([("source", actor) for actor in order])
        if expected is None:
            assert found is None
        else:
            assert found is not None
            if {actor.type for actor in candidates} <= {"user", "anonymous"}:
                assert who(found.attributes) == expected
            else:
                assert found.attributes[semconv.USER_ID] == expected[1]


def test_each_pair_of_sources_can_disagree() -> None:
    """Framework, claims and span are asked all, and named in the order of the documentation."""
    span = tracer.start_span("request", attributes={"enduser.id": "s"})
    found = framework("f", auth={"sub": "c"}, otel=trace.set_span_in_context(span))
    assert sources(found) == [("user", "f"), ("claims:scope.auth", "c"), ("span:enduser.id", "s")]


def test_sources_that_are_not_asked() -> None:
    """Where user table and tokens have different ids, a setting says which of them counts."""
    span = tracer.start_span("request", attributes={"enduser.id": "s"})
    otel = trace.set_span_in_context(span)
    for source, expected in (("framework", "f"), ("claims", "c"), ("span", "s")):
        configure(actor_sources=source)
        assert who(framework("f", auth={"sub": "c"}, otel=otel)) == ("user", expected, None)


def resolved(scope: Any) -> Any:
    return scope.get("resolved")


def test_what_is_explicit_wins_outright() -> None:
    """A context or the resolver beats all other sources, whatever they say."""
    configure(actor_resolver=f"{__name__}:resolved")
    assert who(framework("f", auth={"sub": "c"}, resolved="r")) == ("user", "r", None)
    context = web.WebContext({"headers": [], "resolved": "r"}, None, lambda native, name: [])
    token = bind(context)
    with activity_context(actor="explicit") as inner:
        assert who(inner.snapshot()) == ("user", "explicit", None)
    unbind(token)


# --- spans and baggage ----------------------------------------------------------------------------


def in_span(**attributes: Any) -> Context:
    """OpenTelemetry's context with a span that is recorded."""
    named = {name.replace("_", "."): value for name, value in attributes.items()}
    return trace.set_span_in_context(tracer.start_span("request", attributes=named))


def test_attributes_of_the_span() -> None:
    """`user.*` with name and roles, or `enduser.*`."""
    found = snapshot(otel=in_span(user_id="u-1", user_name="Ada", user_roles=("admin",)))
    assert who(found) == ("user", "u-1", None)
    assert (found[semconv.USER_NAME], found[semconv.USER_ROLES]) == ("Ada", ["admin"])
    found = snapshot(otel=in_span(enduser_id="u-2", enduser_role="clerk"))
    assert (found[semconv.USER_ID], found[semconv.USER_ROLES]) == ("u-2", ["clerk"])
    assert sources(snapshot(otel=in_span(user_id="a", enduser_id="b"))) == [
        ("span:user.id", "a"),
        ("span:enduser.id", "b"),
    ]
    assert who(snapshot(otel=in_span(http_route="/"))) == ("unknown", None, None)
    assert who(snapshot(otel=trace.set_span_in_context(trace.INVALID_SPAN))) == ("unknown", None, None)


def test_a_span_that_cannot_be_read_costs_only_the_actor() -> None:
    """Outside of requests, too: the event is there, and says why it names nobody."""

    class Broken(trace.NonRecordingSpan):
        @property
        def attributes(self) -> Any:
            raise LookupError

    engine = memory()
    with recorded_events() as recorder, trace.use_span(Broken(trace.INVALID_SPAN_CONTEXT)):
        save(engine)
    engine.dispose()
    (event,) = recorder.events
    assert event.attributes[semconv.ACTOR_ERROR_TYPE] == "LookupError"


def test_the_servers_span_counts_inside_another_span() -> None:
    """The user is set on the request's span, after the change was flushed in a span inside it."""
    engine = memory()
    with recorded_events() as recorder, tracer.start_as_current_span("server") as server:
        token = bind(web.WebContext({"headers": []}, None, lambda native, name: []))
        with tracer.start_as_current_span("inner"), Session(engine) as session:
            session.add(Task(name="x"))
            session.flush()
            server.set_attribute("user.id", "late")
            session.commit()
        unbind(token)
    engine.dispose()
    assert [who(event.attributes) for event in recorder.events] == [("user", "late", None)]


def test_a_request_inside_a_request_does_not_take_its_span() -> None:
    """The outer request's span is still current in the inner one, and is not its own."""
    engine = memory()
    with recorded_events() as recorder, tracer.start_as_current_span("outer") as span:
        span.set_attribute("user.id", "outer")
        outer = bind(web.WebContext({"headers": []}, None, lambda native, name: []))
        inner = bind(web.WebContext({"headers": []}, None, lambda native, name: []))
        save(engine)
        unbind(inner)
        save(engine)
        unbind(outer)
    engine.dispose()
    assert [who(event.attributes)[1] for event in recorder.events] == [None, "outer"]


def test_a_change_has_the_span_of_its_own_moment() -> None:
    """Work for two users in one transaction, outside any request: each change has its own span's user."""
    engine = memory()
    with recorded_events() as recorder, Session(engine) as session:
        for user in ("ada", "bob"):
            with tracer.start_as_current_span("item", attributes={"user.id": user}):
                session.add(Task(name=user))
                session.flush()
        with tracer.start_as_current_span("item", attributes={"user.id": "eve"}):
            session.commit()
            with activity_context(tenant="t-1"):
                log_user_action("done")
            with activity_context(actor="explicit"):
                log_user_action("done")
    engine.dispose()
    found = [event.attributes for event in recorder.events]
    assert [who(each)[1] for each in found] == ["ada", "bob", "eve", "explicit"]
    assert found[2][semconv.TENANT_ID] == "t-1"


def test_baggage_counts_only_if_it_is_allowed() -> None:
    """Any client can send it."""
    otel = baggage.set_baggage("user.id", "u-1")
    assert who(snapshot(otel=otel)) == ("unknown", None, None)
    configure(actor_sources="framework,claims,span,baggage")
    assert who(snapshot(otel=otel)) == ("user", "u-1", None)
    assert sources(snapshot(otel=otel, auth={"sub": "u-2"})) == [
        ("claims:scope.auth", "u-2"),
        ("baggage:user.id", "u-1"),
    ]


def test_baggage_does_not_come_in_by_way_of_a_span() -> None:
    """A span processor may copy what a client sent to each span as an attribute."""
    otel = baggage.set_baggage("user.id", "forged", in_span(user_id="forged"))
    assert who(snapshot(otel=otel)) == ("unknown", None, None)


def test_a_span_that_outlives_its_baggage_does_not_name_the_forger() -> None:
    """What the request's baggage said is remembered: at the end of a request only its span is left."""
    engine = memory()
    for named, actor in (({"user.id": "forged"}, None), ({}, "forged")):
        with recorded_events(requests=("*",)) as recorder:
            context = web.WebContext({"headers": []}, None, lambda native, name: [])
            watching = watch(context)
            assert watching is not None
            span = in_span(user_id="forged")
            for name, value in named.items():
                span = baggage.set_baggage(name, value, span)
            attached = otel_context.attach(span)
            context.see_span()
            otel_context.detach(attached)
            token = bind(context)
            save(engine)
            unbind(token)
            watching.end()
            found = [who(event.attributes)[1] for event in recorder.events]
        assert found == [actor, actor]
    engine.dispose()


# --- tenants --------------------------------------------------------------------------------------


def test_the_tenant_of_the_context_is_on_every_event() -> None:
    """On row changes and on actions, whoever the actor is."""
    engine = memory()
    with recorded_events() as recorder, activity_context(tenant="t-1"):
        save(engine)
        log_user_action("report.export", user_id="u-2")
        with activity_context(actor="u-1"):
            save(engine)
    engine.dispose()
    assert [event.attributes[semconv.TENANT_ID] for event in recorder.events] == ["t-1"] * 3


def test_a_resolver_names_the_tenant() -> None:
    """It counts even when the actor is named by hand, and gives way to a tenant that is named by hand."""
    configure(actor_resolver=f"{__name__}:resolved")
    with activity_context(tenant="t-outer"):
        context = web.WebContext(
            {"headers": [], "resolved": Actor(id="u-1", tenant="t-1")}, None, lambda native, name: []
        )
    token = bind(context)
    assert context.snapshot()[semconv.TENANT_ID] == "t-1"
    with activity_context(actor="support") as inner:
        assert inner.snapshot()[semconv.TENANT_ID] == "t-1"
        assert who(inner.snapshot()) == ("user", "support", None)
    with activity_context(tenant="t-2") as inner:
        assert inner.snapshot()[semconv.TENANT_ID] == "t-2"
    unbind(token)


def test_a_token_names_the_tenant_for_which_it_was_issued() -> None:
    """Two tokens that disagree name none."""
    assert snapshot(auth={"sub": "u-1", "org_id": "t-1"})[semconv.TENANT_ID] == "t-1"
    found = snapshot(auth={"sub": "u-1", "org_id": "t-1"}, claims={"sub": "u-1", "tid": "t-2"})
    assert semconv.TENANT_ID not in found
    assert who(found) == ("user", "u-1", None)
