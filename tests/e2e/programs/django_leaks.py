"""A Django program that knows nothing of auditing, under WSGI and ASGI. Each row says who asked: `owner`.

Users are found late: by a lazy object, in the view, or by Django REST framework. Connections are few.
"""

import asyncio
import os
import threading

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import path
from django.utils.functional import SimpleLazyObject
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.pool import NullPool

settings.configure(
    SECRET_KEY="for tests",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=[f"{__name__}.who"],
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth"],
    USE_TZ=True,
)


class Base(DeclarativeBase):
    pass


class Task(Base):
    __tablename__ = "task"
    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str]
    kind: Mapped[str]


dsn = os.environ["DATABASE_URL"]
engine = create_engine(dsn, pool_size=3, max_overflow=0)
# Under WSGI each async view has an event loop of its own, so its connections cannot be kept.
async_engine = create_async_engine(dsn.replace("+psycopg", "+asyncpg"), poolclass=NullPool)


async def connect_once():
    async with async_engine.connect():
        pass


# Under WSGI each async view has a loop of its own. SQLAlchemy makes an engine's first connection under an
# asyncio lock, which two loops must not wait for at once: so it is made before there are requests.
first = threading.Thread(target=lambda: asyncio.run(connect_once()))
first.start()
first.join()


class User:
    def __init__(self, key):
        self.id = key


def who(get_response):
    """Sync: under ASGI Django runs it in a thread."""

    def middleware(request):
        owner = request.headers.get("X-User")
        request.owner = owner
        request.user = SimpleLazyObject(lambda: User(owner))
        return get_response(request)

    return middleware


def save(request, kind):
    with Session(engine) as session:
        session.add(Task(owner=request.owner, kind=kind))
        session.flush()
        assert request.user.id == request.owner
        session.commit()


async def save_async(request, kind):
    async with AsyncSession(async_engine) as session:
        session.add(Task(owner=request.owner, kind=kind))
        await session.flush()
        await asyncio.sleep(0)
        assert request.user.id == request.owner
        await session.commit()


def ready(request):
    Base.metadata.create_all(engine)
    return HttpResponse("ready")


def sync(request, number):
    save(request, "sync")
    return HttpResponse("done")


def late(request, number):
    with Session(engine) as session:
        session.add(Task(owner=request.owner, kind="late"))
        session.flush()
        request.user = User(request.owner)
        session.commit()
    return HttpResponse("done")


async def in_the_loop(request, number):
    await save_async(request, "async")
    return HttpResponse("done")


async def gather(request, number):
    await asyncio.gather(*(save_async(request, "gather") for _ in range(3)))
    return HttpResponse("done")


def stream(request, number):
    def parts():
        save(request, "stream")
        yield b"x"

    return StreamingHttpResponse(parts())


def error(request, number):
    save(request, "error")
    raise RuntimeError("after the commit")


async def executor(request, number):
    _ = request.user.id
    await asyncio.get_running_loop().run_in_executor(None, save, request, "executor")
    return HttpResponse("done")


urlpatterns = [
    path("ready", ready),
    path("sync/<int:number>", sync),
    path("async/<int:number>", in_the_loop),
    path("late/<int:number>", late),
    path("gather/<int:number>", gather),
    path("stream/<int:number>", stream),
    path("error/<int:number>", error),
    path("executor/<int:number>", executor),
]

application = get_wsgi_application()
asgi = get_asgi_application()
