"""A Django project in one file, as the tests use it: Django's users and sessions, SQLAlchemy's rows."""

# ruff: noqa: E402 - Django is set up before its models are imported
from __future__ import annotations

import atexit
import shutil
import tempfile
from typing import TYPE_CHECKING, Any

import django
from django.conf import settings

__all__ = ["AnonymousUser", "Shop", "User", "application", "authenticate", "prepare", "user_logged_in"]

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from sqlalchemy import Engine

_folder = tempfile.mkdtemp(prefix="otel-activity-django-")
atexit.register(shutil.rmtree, _folder, ignore_errors=True)
settings.configure(
    SECRET_KEY="for tests",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    USE_TZ=True,
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": f"{_folder}/users.db"}},
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "django.contrib.sessions"],
    MIDDLEWARE=[
        f"{__name__}.Spans",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        f"{__name__}.impersonation",
        f"{__name__}.maintenance",
    ],
    AUTHENTICATION_BACKENDS=[
        "django.contrib.auth.backends.ModelBackend",
        "django.contrib.auth.backends.RemoteUserBackend",
    ],
    PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
    REST_FRAMEWORK={"DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"]},
)
django.setup()

from django.contrib import auth
from django.contrib.auth import authenticate
from django.contrib.auth.models import AnonymousUser, User
from django.contrib.auth.signals import user_logged_in
from django.core.exceptions import PermissionDenied
from django.core.management import call_command
from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.http import HttpResponse, StreamingHttpResponse
from django.test.utils import CaptureQueriesContext
from django.urls import include, path, re_path
from django.utils.deprecation import MiddlewareMixin
from django.utils.functional import SimpleLazyObject
from opentelemetry import context as otel_context
from opentelemetry import trace
from rest_framework.authentication import BaseAuthentication
from rest_framework.response import Response
from rest_framework.views import APIView
from sqlalchemy.orm import Session

from tests.frameworks.support import SPAN, Task, save


class Shop:
    """What the views use."""

    engine: Engine
    user: Any = None
    """Who `own_user` says it is."""
    sent: int = 0
    """Statements that the last commit sent to Django's own database."""


def prepare() -> None:
    """Django's tables, and two users: ada (1) and bob (2)."""
    call_command("migrate", verbosity=0)
    for name in ("ada", "bob"):
        User.objects.filter(username=name).exists() or User.objects.create_user(name, password=f"{name}-pw")


def commit(name: str = "x") -> None:
    """One row; counts what it makes Django send."""
    with CaptureQueriesContext(connection) as queries:
        save(Shop.engine, name)
    Shop.sent = len(queries)


def impersonation(get_response: Any) -> Any:
    """What django-impersonate does, with nothing to check."""

    def middleware(request: Any) -> Any:
        name = request.headers.get("Impersonate")
        if name and request.user.is_authenticated:
            inner = request.user
            request.user = SimpleLazyObject(lambda: inner)
            request.impersonator = request.user if request.user.is_authenticated else None
            request.user = User.objects.get(username=name)
        return get_response(request)

    return middleware


class Spans(MiddlewareMixin):
    """A span as OpenTelemetry's instrumentation makes it: gone before the response begins."""

    def process_request(self, request: Any) -> None:
        """Open it."""
        request.token = otel_context.attach(trace.set_span_in_context(SPAN))

    def process_response(self, request: Any, response: Any) -> Any:
        """End it."""
        otel_context.detach(request.token)
        return response


def maintenance(get_response: Any) -> Any:
    """A middleware that Django runs in a thread under ASGI, because it says nothing about async."""

    def middleware(request: Any) -> Any:
        if "Closed" in request.headers:
            return HttpResponse("closed", status=503)
        return get_response(request)

    return middleware


def create(request: Any, number: int) -> HttpResponse:
    """Looks at the user after the flush, before the commit."""
    with Session(Shop.engine) as session:
        session.add(Task(name=request.headers.get("Name", "x")))
        session.flush()
        _ = request.user.is_authenticated
        with CaptureQueriesContext(connection) as queries:
            session.commit()
    Shop.sent = len(queries)
    return HttpResponse("done")


def quiet(request: Any, **parts: str) -> HttpResponse:
    """Never looks at the user."""
    commit()
    return HttpResponse("done")


def deferred(request: Any) -> HttpResponse:
    """A user object of which only the key is loaded."""
    request.user = User.objects.only("id").get(username="ada")
    commit()
    return HttpResponse("done")


def remote(request: Any) -> HttpResponse:
    """What RemoteUserMiddleware does, with a name that the backend shortens."""
    request.user = authenticate(request, remote_user=request.META["REMOTE_USER"].partition("@")[0])
    commit()
    return HttpResponse("done")


def hijacked(request: Any) -> HttpResponse:
    """What django-hijack does: a login, and a note in the session."""
    ada, bob = request.user.pk, User.objects.get(username="bob")
    auth.login(request, bob, "django.contrib.auth.backends.ModelBackend")
    request.session["hijack_history"] = [str(ada), "7"]
    commit()
    auth.logout(request)
    return HttpResponse("done")


def leaving(request: Any) -> HttpResponse:
    """Writes before and after the logout."""
    _ = request.user.is_authenticated
    with Session(Shop.engine) as session:
        session.add(Task(name="before"))
        session.flush()
        auth.logout(request)
        session.commit()
    commit("after")
    return HttpResponse("bye")


def own_impersonation(request: Any) -> HttpResponse:
    """What a project's own middleware does: another user in the place of the session's."""
    if request.user.is_authenticated:
        request.user = User.objects.get(username="bob")
    if "Token" in request.headers:  # as Django REST framework notes it
        request.auth = {"sub": "2"}
    commit()
    return HttpResponse("done")


def own_user(request: Any) -> HttpResponse:
    """An object that is no row of Django's."""
    request.user = Shop.user
    commit()
    return HttpResponse("done")


def stream(request: Any) -> StreamingHttpResponse:
    """Writes while the response is read."""

    def parts() -> Iterator[bytes]:
        _ = request.user.is_authenticated
        commit()
        yield b"done"

    return StreamingHttpResponse(parts())


async def async_stream(request: Any) -> StreamingHttpResponse:
    """The same, asynchronously."""

    async def parts() -> AsyncIterator[bytes]:
        await request.auser()
        save(Shop.engine)
        yield b"done"

    return StreamingHttpResponse(parts())


async def in_the_loop(request: Any) -> HttpResponse:
    """An async view: `request.auser()` answers, `request.user` is not asked."""
    await request.auser()
    save(Shop.engine)
    return HttpResponse("done")


def error(request: Any) -> HttpResponse:
    """Fails after the commit."""
    commit()
    raise RuntimeError("after the commit")


def refuse(request: Any) -> HttpResponse:
    """Not for this user."""
    raise PermissionDenied


def login(request: Any) -> HttpResponse:
    """Name and password from the form."""
    user = authenticate(request, username=request.POST["username"], password=request.POST["password"])
    if user is None:
        return HttpResponse("no", status=401)
    auth.login(request, user)
    return HttpResponse("yes")


def logout(request: Any) -> HttpResponse:
    """Ends the session, whether there is one or not."""
    auth.logout(request)
    return HttpResponse("bye")


async def async_login(request: Any) -> HttpResponse:
    """The same, asynchronously."""
    user = await auth.aauthenticate(
        request, username=request.POST["username"], password=request.POST["password"]
    )
    if user is None:
        return HttpResponse("no", status=401)
    await auth.alogin(request, user)
    return HttpResponse("yes")


class Key(BaseAuthentication):
    """Believes a header; good enough for a test."""

    def authenticate(self, request: Any) -> Any:
        name = request.headers.get("Key")
        return (User.objects.get(username=name), None) if name else None


class Rest(APIView):
    """Django REST framework finds the user when the view asks for it, after the flush."""

    authentication_classes = [Key]

    def perform_authentication(self, request: Any) -> None:
        """Not yet."""

    def post(self, request: Any) -> Response:
        """Writes before it knows for whom."""
        with Session(Shop.engine) as session:
            session.add(Task(name="rest"))
            session.flush()
            _ = request.user
            session.commit()
        return Response("done")


urlpatterns = [
    path("tasks/<int:number>/", create),
    path("quiet/", quiet),
    path("blog/", include([re_path(r"^(?P<year>[0-9]{4})/$", quiet)])),
    path("deferred/", deferred),
    path("remote/", remote),
    path("hijacked/", hijacked),
    path("own/", own_user),
    path("leaving/", leaving),
    path("own-impersonation/", own_impersonation),
    path("stream/", stream),
    path("async-stream/", async_stream),
    path("async/", in_the_loop),
    path("error/", error),
    path("refuse/", refuse),
    path("login/", login),
    path("async-login/", async_login),
    path("logout/", logout),
    path("rest/", Rest.as_view()),
]

application = get_wsgi_application()
