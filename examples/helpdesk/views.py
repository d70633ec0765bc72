"""The views: sync ones, an async one, and a stream. Sign in at /session; staff may export and delete."""

import json
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

from asgiref.sync import sync_to_async
from django.contrib import auth
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.views.decorators.csrf import ensure_csrf_cookie
from django.views.decorators.http import require_http_methods
from sqlalchemy import select
from sqlalchemy.orm import Session

from helpdesk.database import sessions
from helpdesk.models import Reply, Status, Ticket

__all__ = ["export", "health", "replies", "session", "ticket", "tickets"]

_View = Callable[..., HttpResponse]


def signed_in(view: _View) -> _View:
    """Refuse who is not signed in with 401."""

    @wraps(view)
    def wrapper(request: HttpRequest, **arguments: Any) -> HttpResponse:
        if not request.user.is_authenticated:
            return JsonResponse({"detail": "sign in first"}, status=401)
        return view(request, **arguments)

    return wrapper


def found(db: Session, number: int) -> Ticket:
    """The ticket, locked until the end of the transaction, or 404."""
    ticket = db.get(Ticket, number, with_for_update=True)
    if ticket is None:
        raise Http404
    return ticket


def shown(ticket: Ticket) -> dict[str, Any]:
    """A ticket as JSON."""
    return {"id": ticket.id, "subject": ticket.subject, "status": ticket.status.value}


@require_http_methods(["GET"])
def health(request: HttpRequest) -> HttpResponse:
    """Whether the application and its database answer."""
    with sessions() as db:
        db.execute(select(1))
    return JsonResponse({"status": "ok"})


@ensure_csrf_cookie
@require_http_methods(["GET", "POST", "DELETE"])
def session(request: HttpRequest) -> HttpResponse:
    """Who is signed in (GET), sign in (POST), sign out (DELETE)."""
    if request.method == "POST":
        given = json.loads(request.body)
        user = auth.authenticate(request, username=given["username"], password=given["password"])
        if user is None:
            return JsonResponse({"detail": "wrong name or password"}, status=401)
        auth.login(request, user)
    elif request.method == "DELETE":
        auth.logout(request)
    return JsonResponse({"id": request.user.pk, "name": request.user.get_username()})


@require_http_methods(["POST"])
@signed_in
def tickets(request: HttpRequest) -> HttpResponse:
    """Open a ticket."""
    with sessions() as db:
        made = Ticket(subject=json.loads(request.body)["subject"], opened_by=request.user.pk)
        db.add(made)
        db.commit()
        return JsonResponse(shown(made), status=201)


@require_http_methods(["POST", "DELETE"])
@signed_in
def ticket(request: HttpRequest, number: int) -> HttpResponse:
    """Close a ticket (POST), or delete it with its replies (DELETE, staff)."""
    if request.method == "DELETE" and not request.user.is_staff:
        raise PermissionDenied
    with sessions() as db:
        one = found(db, number)
        if request.method == "DELETE":
            db.delete(one)
        else:
            one.status, one.closed_by = Status.CLOSED, request.user.pk
        db.commit()
    return HttpResponse(status=204)


@require_http_methods(["POST"])
async def replies(request: HttpRequest, number: int) -> HttpResponse:
    """Reply to a ticket. An async view: under WSGI Django runs an event loop for it."""
    user = await request.auser()
    if not user.is_authenticated:
        return JsonResponse({"detail": "sign in first"}, status=401)
    text = json.loads(request.body)["text"]
    return JsonResponse({"id": await sync_to_async(_reply)(number, user.pk, text)}, status=201)


def _reply(number: int, author: int, text: str) -> int:
    with sessions() as db:
        made = Reply(ticket_id=found(db, number).id, author=author, text=text)
        db.add(made)
        db.commit()
        return made.id


@require_http_methods(["GET"])
@signed_in
def export(request: HttpRequest) -> HttpResponse:
    """All tickets as CSV, row by row (staff)."""
    if not request.user.is_staff:
        raise PermissionDenied

    def rows() -> Iterator[str]:
        with sessions() as db:
            for one in db.scalars(select(Ticket).order_by(Ticket.id)):
                yield f"{one.id},{one.status.value}\n"

    return StreamingHttpResponse(rows(), content_type="text/csv")
