"""The web side: ``flask --app order_desk.web run``. It believes the header X-User: an example."""

import flask
import flask_login

from . import jobs
from .models import Base, Order, Session, engine

__all__ = ["app"]

app = flask.Flask(__name__)
app.secret_key = "for an example"
manager = flask_login.LoginManager(app)


class User(flask_login.UserMixin):
    """Who is logged in."""

    def __init__(self, key: str) -> None:
        self.id = key


@manager.request_loader
def load(request: flask.Request) -> User | None:
    """The user that the header names."""
    key = request.headers.get("X-User")
    return User(key) if key else None


@app.get("/ready")
def ready() -> str:
    """Create what is missing in the database."""
    Base.metadata.create_all(engine)
    return "ready"


@app.post("/orders/<item>")
@flask_login.login_required
def order(item: str) -> dict[str, int]:
    """Take an order; a worker does the rest."""
    with Session.begin() as session:
        made = Order(owner=flask_login.current_user.id, item=item)
        session.add(made)
        session.flush()
        key = made.id
    (jobs.pack.s(key) | jobs.ship.si(key)).delay()
    return {"id": key}
