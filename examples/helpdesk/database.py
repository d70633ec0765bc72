"""The engine of the tickets. Django has connections of its own, to the same database."""

import os

from sqlalchemy import create_engine, make_url
from sqlalchemy.orm import sessionmaker

__all__ = ["engine", "sessions"]

engine = create_engine(
    make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+psycopg"), pool_size=5, max_overflow=15
)
sessions = sessionmaker(engine)
