"""The application.

DATABASE_URL=postgresql://... SECRET_KEY=... flask --app invoices.app run
"""

import os
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import click
from flask import Flask, Response, abort, jsonify, request
from flask_login import LoginManager, current_user, login_required, login_user, logout_user
from sqlalchemy import create_engine, make_url, select
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from werkzeug.security import check_password_hash, generate_password_hash

from .models import Base, Invoice, Status, User

__all__ = ["app"]

app = Flask(__name__)
app.secret_key = os.environ["SECRET_KEY"]
engine = create_engine(
    make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+psycopg"), pool_size=5, max_overflow=15
)
db = scoped_session(sessionmaker(engine))
logins = LoginManager(app)


@logins.user_loader
def load_user(key: str) -> User | None:
    """The user of a session."""
    return db.get(User, int(key))


@app.teardown_appcontext
def close(_: BaseException | None) -> None:
    """Roll back what was not committed, and give the connection back."""
    db.remove()


@app.cli.command()
@click.option("--user", "users", multiple=True, metavar="NAME:PASSWORD[:approver]")
def setup(users: tuple[str, ...]) -> None:
    """Create tables and users."""
    Base.metadata.create_all(engine)
    for given in users:
        name, password, *role = given.split(":")
        hashed = generate_password_hash(password)
        db.add(User(name=name, password_hash=hashed, approver=role == ["approver"]))
    db.commit()


def found(number: int) -> Invoice:
    """The invoice, locked until the end of the transaction, or 404."""
    return db.get(Invoice, number, with_for_update=True) or abort(404)


def shown(invoice: Invoice) -> dict[str, Any]:
    """An invoice as JSON."""
    return {"id": invoice.id, "amount": str(invoice.amount), "status": invoice.status.value}


@app.get("/health")
def health() -> dict[str, str]:
    """Whether the application and its database answer."""
    db.execute(select(1))
    return {"status": "ok"}


@app.post("/session")
def sign_in() -> dict[str, Any]:
    """Sign in."""
    given = request.get_json()
    user = db.scalar(select(User).where(User.name == given["username"]))
    if user is None or not check_password_hash(user.password_hash, given["password"]):
        abort(401)
    login_user(user)
    return {"id": user.id, "name": user.name}


@app.delete("/session")
@login_required
def sign_out() -> dict[str, Any]:
    """Sign out."""
    logout_user()
    return {}


@app.post("/invoices")
@login_required
def create() -> tuple[Response, int]:
    """A draft."""
    given = request.get_json()
    invoice = Invoice(customer=given["customer"], amount=Decimal(given["amount"]), created_by=current_user.id)
    db.add(invoice)
    db.commit()
    return jsonify(shown(invoice)), 201


@app.post("/invoices/<int:number>/approval")
@login_required
def approve(number: int) -> dict[str, Any]:
    """Approve a draft. Nobody approves an invoice of their own; that is found out after the write."""
    if not current_user.approver:
        abort(403)
    invoice = found(number)
    invoice.status, invoice.approved_by = Status.APPROVED, current_user.id
    db.flush()
    if invoice.created_by == current_user.id:
        abort(409)
    db.commit()
    return shown(invoice)


@app.delete("/invoices/<int:number>")
@login_required
def delete(number: int) -> tuple[str, int]:
    """Delete a draft."""
    invoice = found(number)
    if invoice.status is not Status.DRAFT:
        abort(409)
    db.delete(invoice)
    db.commit()
    return "", 204


@app.get("/invoices/export")
@login_required
def export() -> Response:
    """All invoices as CSV, row by row."""

    def rows() -> Iterator[str]:
        with Session(engine) as session:
            for invoice in session.scalars(select(Invoice).order_by(Invoice.id)):
                yield f"{invoice.id},{invoice.amount},{invoice.status.value}\n"

    return Response(rows(), mimetype="text/csv")
