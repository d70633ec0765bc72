"""A Flask program with Flask-Login that knows nothing of auditing. Each row says who asked: `owner`."""

import os

import flask
import flask_login
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column


class Base(DeclarativeBase):
    pass


class Task(Base):
    __tablename__ = "task"
    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str]


class User(flask_login.UserMixin):
    def __init__(self, key):
        self.id = key


engine = create_engine(os.environ["DATABASE_URL"], pool_size=2, max_overflow=0)
app = flask.Flask(__name__)
app.secret_key = "for tests"
manager = flask_login.LoginManager(app)
manager.request_loader(lambda request: User(request.headers["X-User"]))


@app.get("/ready")
def ready():
    Base.metadata.create_all(engine)
    return "ready"


served = {"now": 0, "most": 0}


@app.before_request
def begin():
    served["now"] += 1
    served["most"] = max(served.values())


@app.teardown_request
def end(error):
    served["now"] -= 1


@app.post("/tasks/<int:number>")
def create(number):
    with Session(engine) as session:
        session.add(Task(owner=flask.request.headers["X-User"]))
        session.flush()
        assert flask_login.current_user.is_authenticated
        session.commit()
    return str(served["most"])
