"""Applications built on SQLModel and on Flask-SQLAlchemy, without a change."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

import flask
import flask_login
import pytest
import sqlmodel
from fastapi import Depends, FastAPI, Request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import ForeignKey
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.pool import StaticPool
from sqlmodel.ext.asyncio.session import AsyncSession

from otel_activity import semconv
from otel_activity.testing import Recorder, recorded_events
from tests.frameworks.heroes import Hero, HeroBase, Team
from tests.frameworks.test_flask import User
from tests.frameworks.test_starlette import post

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    """Auditing is active and kept in memory."""
    with recorded_events() as made:
        yield made


def told(recorder: Recorder) -> list[tuple[Any, ...]]:
    """What happened to what, the changed values and by whom; the recorder is empty afterwards."""
    found = [
        (
            event.attributes[semconv.ACTIVITY_ACTION],
            event.attributes[semconv.ENTITY_TYPE],
            event.attributes[semconv.ENTITY_ID],
            event.attributes[semconv.CHANGES],
            event.attributes.get(semconv.USER_ID),
            event.attributes.get(semconv.ROUTE),
        )
        for event in recorder.events
    ]
    recorder.clear()
    return found


# --- SQLModel -------------------------------------------------------------------------------------


@pytest.fixture
def models() -> Iterator[Any]:
    """SQLModel's database."""
    engine = sqlmodel.create_engine(
        "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
    )
    sqlmodel.SQLModel.metadata.create_all(engine)
    yield engine
    engine.dispose()


def opened(request: Request) -> Iterator[sqlmodel.Session]:
    """A session for each request."""
    with sqlmodel.Session(request.app.state.engine) as made:
        yield made


Opened = Annotated[sqlmodel.Session, Depends(opened)]


def hero_app(engine: Any) -> FastAPI:
    """The application of SQLModel's tutorial, with a user."""
    app = FastAPI()
    app.state.engine = engine

    def login(request: Request) -> None:
        request.state.user = request.headers["user"]

    @app.post("/heroes/{name}", dependencies=[Depends(login)])
    def create(name: str, session: Opened) -> Hero:
        team = Team(name="A")
        hero = Hero.model_validate(HeroBase(name=name, password="pw-of-a-hero"), update={"team": team})
        session.add(hero)
        session.commit()
        session.refresh(hero)
        return hero

    @app.post("/heroes/{number}/rename", dependencies=[Depends(login)])
    def rename(number: int, session: Opened) -> None:
        hero = session.exec(sqlmodel.select(Hero).where(Hero.id == number)).one()
        hero.sqlmodel_update({"name": "Bolt", "price": Decimal("1.50")})
        session.add(hero)
        session.commit()

    @app.post("/heroes/{number}/delete", dependencies=[Depends(login)])
    def delete(number: int, session: Opened) -> None:
        session.delete(session.get(Hero, number))
        session.commit()

    return app


def test_sqlmodel(recorder: Recorder, models: Any) -> None:
    """Create, change and delete by models that are pydantic's, too; actor and route are the request's."""
    app = hero_app(models)
    assert post(app, "/heroes/Ray", user="ada") == 200
    first, second = told(recorder)
    team = {"id": {"after": 1}, "name": {"after": "A"}}
    assert first == ("create", "Team", "1", team, "ada", "/heroes/{name}")
    assert second[:3] == ("create", "Hero", "1")
    assert second[3]["team_id"] == {"after": 1}
    assert "pw-of-a-hero" not in str(second)
    assert post(app, "/heroes/1/rename", user="bob") == 200
    ((action, entity, key, changes, user, route),) = told(recorder)
    assert (action, entity, key, user, route) == ("update", "Hero", "1", "bob", "/heroes/{number}/rename")
    assert changes["name"] == {"before": "Ray", "after": "Bolt"}
    assert set(changes) == {"name", "price"}
    assert post(app, "/heroes/1/delete", user="eve") == 200
    assert [each[:3] + each[4:5] for each in told(recorder)] == [("delete", "Hero", "1", "eve")]


def test_sqlmodel_async(recorder: Recorder) -> None:
    """Its async session is captured like the other, and a rollback leaves nothing."""

    async def main() -> None:
        engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
        async with engine.begin() as connection:
            await connection.run_sync(sqlmodel.SQLModel.metadata.create_all)
        async with AsyncSession(engine) as session:
            session.add(Hero(name="Ray"))
            await session.flush()
            await session.rollback()
            session.add(Hero(name="Bolt"))
            await session.commit()
            assert (await session.exec(sqlmodel.select(Hero.name))).all() == ["Bolt"]
        await engine.dispose()

    asyncio.run(main())
    assert [(each[0], each[3]["name"]) for each in told(recorder)] == [("create", {"after": "Bolt"})]


# --- Flask-SQLAlchemy -----------------------------------------------------------------------------


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base)


class Author(db.Model):  # type: ignore[name-defined]  # the model class is made when the program runs
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    books: Mapped[list[Book]] = relationship(back_populates="author", cascade="all, delete-orphan")


class Book(db.Model):  # type: ignore[name-defined]  # as above
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    author_id: Mapped[int] = mapped_column(ForeignKey("author.id"))
    author: Mapped[Author] = relationship(back_populates="books")


class Note(db.Model):  # type: ignore[name-defined]  # as above
    __bind_key__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


@pytest.fixture
def library() -> Iterator[flask.Flask]:
    """A program in the style of the documentation of Flask-SQLAlchemy, with a second database."""
    app = flask.Flask("library")
    options = {"poolclass": StaticPool, "connect_args": {"check_same_thread": False}}
    app.config |= {
        "SECRET_KEY": "for tests",
        "SQLALCHEMY_DATABASE_URI": "sqlite://",
        "SQLALCHEMY_BINDS": {"notes": {"url": "sqlite://", **options}},
        "SQLALCHEMY_ENGINE_OPTIONS": options,
        "TESTING": True,
    }
    app.extensions.pop("sqlalchemy", None)
    db.init_app(app)
    manager = flask_login.LoginManager(app)
    manager.request_loader(lambda request: User(request.headers["User"]))

    @app.before_request
    def login() -> None:
        assert flask_login.current_user.is_authenticated

    @app.post("/authors/<name>")
    def create(name: str) -> str:
        db.session.add(Author(name=name, books=[Book(title="one"), Book(title="two")]))
        db.session.add(Note(text="in the other database"))
        db.session.commit()
        return "done"

    @app.post("/authors/<int:number>/rename")
    def rename(number: int) -> str:
        author = db.get_or_404(Author, number)
        author.name = "Bob"
        db.session.commit()
        return "done"

    @app.post("/authors/<int:number>/delete")
    def delete(number: int) -> str:
        db.session.delete(db.session.execute(db.select(Author).filter_by(id=number)).scalar_one())
        db.session.commit()
        return "done"

    @app.post("/forgotten")
    def forgotten() -> str:
        db.session.add(Author(name="never committed"))
        db.session.flush()
        return "done"

    with app.app_context():
        db.create_all()
    yield app
    with app.app_context():
        for engine in db.engines.values():
            engine.dispose()


def test_flask_sqlalchemy(recorder: Recorder, library: flask.Flask) -> None:
    """Its scoped session, binds and cascades; what a request did not commit is not reported."""
    client = library.test_client()
    assert client.post("/authors/Ada", headers={"User": "ada"}).status_code == 200
    found = told(recorder)
    assert sorted(each[:2] for each in found) == [
        ("create", "Author"),
        ("create", "Book"),
        ("create", "Book"),
        ("create", "Note"),
    ]
    assert {each[4:] for each in found} == {("ada", "/authors/<name>")}
    client.post("/authors/1/rename", headers={"User": "bob"})
    change = {"name": {"before": "Ada", "after": "Bob"}}
    assert told(recorder) == [("update", "Author", "1", change, "bob", "/authors/<int:number>/rename")]
    client.post("/authors/1/delete", headers={"User": "eve"})
    assert [(*each[:3], each[4]) for each in told(recorder)] == [
        ("delete", "Book", "1", "eve"),
        ("delete", "Book", "2", "eve"),
        ("delete", "Author", "1", "eve"),
    ]
    client.post("/forgotten", headers={"User": "ada"})
    assert told(recorder) == []
