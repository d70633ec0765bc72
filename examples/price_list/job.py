"""Read a price list, article by article, in transactions of many rows.

DATABASE_URL=postgresql://... python -m price_list.job --articles 10000

What it has on purpose: every transaction inserts, changes and deletes; one in ten finds a price that cannot
be right and is rolled back whole. Each transaction is one span, for who has tracing switched on.
"""

import argparse
import os
import time
from collections.abc import Iterator
from decimal import Decimal

from opentelemetry import trace
from sqlalchemy import Engine, Identity, Numeric, create_engine, make_url, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

__all__ = ["Article", "Base", "main"]

tracer = trace.get_tracer("price_list")


class Base(DeclarativeBase):
    """The job's only table."""


class Article(Base):
    """Something that is for sale."""

    __tablename__ = "articles"

    id: Mapped[int] = mapped_column(Identity(), primary_key=True)
    number: Mapped[str] = mapped_column(unique=True)
    price: Mapped[Decimal] = mapped_column(Numeric(10, 2))


class ImpossiblePrice(Exception):
    """A price below zero: nothing of its transaction may stay."""


def numbers(count: int, size: int) -> Iterator[list[int]]:
    """The articles of the list, in portions."""
    for start in range(0, count, size):
        yield list(range(start, min(start + size, count)))


def bring_up_to_date(session: Session, portion: list[int], label: str, *, broken: bool) -> None:
    """Insert a portion's articles, raise the price of each fifth, delete each tenth."""
    session.add_all(
        Article(number=f"{label}-{number:06}", price=Decimal(number % 900) + 1) for number in portion
    )
    session.flush()
    articles = session.scalars(
        select(Article).where(Article.number.in_(f"{label}-{number:06}" for number in portion[::5]))
    ).all()
    for place, article in enumerate(articles):
        if place % 2:
            session.delete(article)
        else:
            article.price += 1
    session.flush()
    if broken:
        raise ImpossiblePrice(f"{label}-{portion[0]:06}")
    session.commit()


def run(engine: Engine, options: argparse.Namespace) -> None:
    """Work through the list; say how many transactions were committed, and how many were not."""
    done = refused = 0
    for place, portion in enumerate(numbers(options.articles, options.size)):
        with tracer.start_as_current_span("bring up to date"), Session(engine) as session:
            try:
                bring_up_to_date(session, portion, options.label, broken=place % 10 == 9)
                done += 1
            except ImpossiblePrice as error:
                session.rollback()
                refused += 1
                print(f"refused: {error}", flush=True)
        time.sleep(options.pause)
    print(f"{done} transactions committed, {refused} rolled back", flush=True)


def main() -> None:
    """Create the table if it is missing, and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--articles", type=int, default=1000, help="length of the price list")
    parser.add_argument("--size", type=int, default=250, help="articles in a transaction")
    parser.add_argument("--label", default="A", help="first part of every article number")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between two transactions")
    options = parser.parse_args()
    engine = create_engine(make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+psycopg"))
    Base.metadata.create_all(engine)
    run(engine, options)
    engine.dispose()


if __name__ == "__main__":
    main()
