"""What an error of the server means: bad data, a store that is away, or one that refuses."""

from __future__ import annotations

from typing import Final

import psycopg

from otel_activity.errors import ExportError, StoreRefused, StoreUnavailable

__all__ = ["connect_failure", "is_data_error", "refused_schema", "store_failure"]

_DATA_CLASSES: Final = frozenset(
    {
        "21",  # cardinality violation
        "22",  # data exception: what a type cannot hold
        "23",  # integrity constraint violation
        "44",  # WITH CHECK OPTION violation
        "54",  # program limit exceeded: too deep, too long
        "P0",  # a trigger on the table raised
    }
)

_REFUSALS: Final = {
    "0A": "the server cannot do this; use PostgreSQL 15 or newer",
    "0L": "the role is not valid",
    "0P": "the role is not valid",
    "28": "check user, password and pg_hba.conf",
    "3D": "check the database name in the DSN",
    "3F": "run `otel-activity schema apply`",
    "42": "run `otel-activity schema status`",
}
"""SQLSTATE classes that only a person can mend, each with what to do."""

_PERMISSION_DENIED: Final = "42501"
_CHECK_VIOLATION: Final = "23514"
_READ_ONLY: Final = "25006"
_MISSING: Final = frozenset({"42P01", "3F000", "42883"})  # table, schema, function

# A connection that fails has no SQLSTATE, only text. These are the refusals that pass by themselves.
_PASSING: Final = (
    "starting up",
    "shutting down",
    "recovery",
    "not yet accepting",
    "too many clients",
    "too many connections",
    "connection slots",
    "no more connections",
)
_REFUSED_TEXTS: Final = (
    "FATAL",
    "no password supplied",
    "password authentication failed",
    "does not support SSL",
    "certificate",
    "authentication method",
)


def is_data_error(error: psycopg.Error) -> bool:
    """Whether a record is to blame: without it, the rest of the batch can be stored."""
    if error.sqlstate == _CHECK_VIOLATION and not error.diag.constraint_name:
        return False  # no partition takes the row: the table is to blame
    return (error.sqlstate or "")[:2] in _DATA_CLASSES


def store_failure(error: psycopg.Error, schema: str) -> ExportError:
    """The export error for an error of an open connection. Its message holds no value of any record."""
    state = error.sqlstate or ""
    reason = _first_line(error.diag.message_primary or str(error))
    if state in _MISSING:
        return refused_schema(schema, "is missing or incomplete")
    if state == _PERMISSION_DENIED:
        return StoreRefused(
            f"the store refuses: {reason}; run the SQL of `otel-activity schema sql --grants --writer ROLE` "
            f"(schema {schema!r}) for this role"
        )
    if state == _READ_ONLY:
        return StoreRefused(
            f"the store is read-only: {reason}; connect to the primary, "
            "or add target_session_attrs=read-write to the DSN"
        )
    if state == _CHECK_VIOLATION:
        return refused_schema(
            schema, f"takes no event ({reason})", "attach its partition events_default again"
        )
    fix = _REFUSALS.get(state[:2])
    if fix:
        return StoreRefused(f"the store refuses ({state}): {reason}; {fix}")
    return StoreUnavailable(f"the store is unavailable ({state or 'connection'}): {reason}")


def connect_failure(error: psycopg.Error, masked_dsn: str) -> ExportError:
    """The export error for a connection that could not be made."""
    if isinstance(error, psycopg.ProgrammingError):  # its text quotes the DSN, password included
        return StoreRefused(
            f"{masked_dsn} is not a connection string; use postgresql://user:password@host:5432/database"
        )
    text = str(error)
    reason = _attempt(text)
    if any(part in text for part in _REFUSED_TEXTS) and not any(part in text for part in _PASSING):
        return StoreRefused(f"the store at {masked_dsn} refuses: {reason}; check user, password and database")
    return StoreUnavailable(f"the store at {masked_dsn} cannot be reached: {reason}")


def refused_schema(schema: str, problem: str, fix: str = "run `otel-activity schema apply`") -> StoreRefused:
    """The refusal for a schema that does not fit, with the command that mends it."""
    return StoreRefused(f"schema {schema!r} {problem}; {fix}")


def _attempt(text: str) -> str:
    """libpq names every address it tried; the last one's reason is shown, without the hints below it."""
    lines = [line.strip() for line in text.splitlines() if "failed:" in line]
    return lines[-1] if lines else _first_line(text)


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0].strip() if lines else "no reason given"
