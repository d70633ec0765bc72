"""Asks databases what became of transactions: ``pg_xact_status()`` on a connection of its own.

An answer counts only from the cluster and the timeline that the id comes from. After a failover to a replica
that lagged, the same id is given out again, to another transaction. So it may be after a crash of the server:
an id is in the log only with the first record that was flushed. "Aborted" is then still true (who had
committed had flushed its id); "committed" may be the other one's, and is unknown. A crash shows in the
statistics, which the server discards when it recovers from one, and keeps over an orderly restart.
"""

from __future__ import annotations

import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg.conninfo import make_conninfo

from otel_activity.errors import ActivityError, StoreUnavailable
from otel_activity.events import Verdict
from otel_activity.postgres.connection import connect
from otel_activity.postgres.statements import statement

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sqlalchemy import URL

    from otel_activity.events import Proof
    from otel_activity.postgres.connection import PatientConnection

__all__ = ["TransactionResolver", "conninfo_of"]

_PATIENCE: Final = 10.0
_VERDICTS: Final = {
    "committed": Verdict.COMMITTED,
    "aborted": Verdict.ABORTED,
    "in progress": Verdict.IN_PROGRESS,
    None: Verdict.UNKNOWN,  # so old that the server has forgotten it
}
_LIBPQ_NAMES: Final = {"database": "dbname", "ssl": "sslmode"}
"""asyncpg's names for what libpq calls otherwise; the values are the same."""
_KEYWORDS: Final = frozenset(option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults())
_IN_THE_FUTURE: Final = "22023"


class TransactionResolver:
    """A `ports.Resolver` for PostgreSQL.

    Args:
        dsns: addresses to ask, whichever cluster they turn out to be; the first are tried first. Addresses of
            the application's own engines are added with `know`. None of them is ever written anywhere.
    """

    def __init__(self, dsns: Iterable[str] = ()) -> None:
        self._given = tuple(dict.fromkeys(dsns))
        self._reset()

    def _reset(self) -> None:
        self._known: dict[str, tuple[str, ...]] = {}
        self._lock = threading.Lock()

    def after_fork(self) -> None:
        """In a forked child: connections live for one question only, so there is nothing to drop."""
        self._lock = threading.Lock()

    def know(self, system: str, url: URL) -> None:
        """Remember where a live engine finds a cluster, by the cluster's system identifier."""
        with self._lock:
            known = self._known.get(system, ())
            found = conninfo_of(url)
            if found not in known:
                self._known[system] = (found, *known)[:4]

    def resolve(self, proofs: Sequence[Proof]) -> list[Verdict]:
        """One verdict for each proof, in the same order.

        Raises:
            StoreUnavailable: none of the clusters could be asked.
        """
        verdicts = [Verdict.IN_PROGRESS] * len(proofs)
        systems = dict.fromkeys(proof.system for proof in proofs)
        trouble: ActivityError | None = None
        asked = 0
        for system in systems:
            mine = [index for index, proof in enumerate(proofs) if proof.system == system]
            try:
                found = self._ask(system, [proofs[index] for index in mine])
            except ActivityError as error:
                trouble = error
                continue
            asked += 1
            for index, verdict in zip(mine, found, strict=True):
                verdicts[index] = verdict
        if trouble is not None and not asked:
            raise trouble
        return verdicts

    def _ask(self, system: str, proofs: list[Proof]) -> list[Verdict]:
        trouble: ActivityError | None = None
        for dsn in self._addresses(system):
            try:
                with closing(connect(dsn, connect_timeout=_PATIENCE, patience=_PATIENCE)) as connection:
                    where = _whereabouts(connection, system)
                    if where is not None:
                        return [_verdict(connection, proof, *where) for proof in proofs]
            except psycopg.Error as error:
                trouble = StoreUnavailable(
                    f"the database of undecided transactions cannot be asked ({type(error).__name__})"
                )
            except ActivityError as error:
                trouble = error
        raise trouble or StoreUnavailable(
            "nobody knows where the database of undecided transactions is; "
            "set OTEL_ACTIVITY_PROOF_DSN to its primary"
        )

    def _addresses(self, system: str) -> Iterator[str]:
        yield from self._given
        yield from self._known.get(system, ())


def _whereabouts(connection: PatientConnection, system: str) -> tuple[int, str] | None:
    """Timeline and run of the cluster; None when it is another one, or a standby, which knows no end."""
    row: Any = connection.execute(statement("read_cluster", "")).fetchone()
    if row is None or row[0] != system or row[1] is None:
        return None
    return int(row[1], 16), row[2] or ""


def _verdict(connection: PatientConnection, proof: Proof, timeline: int, run: str) -> Verdict:
    if timeline != proof.timeline:
        return Verdict.UNKNOWN
    try:
        row: Any = connection.execute(statement("transaction_status", ""), {"xid": str(proof.xid)}).fetchone()
    except psycopg.Error as error:
        if error.sqlstate == _IN_THE_FUTURE:
            return Verdict.UNKNOWN
        raise
    verdict = _VERDICTS.get(None if row is None else row[0], Verdict.UNKNOWN)
    return Verdict.UNKNOWN if verdict is Verdict.COMMITTED and run != proof.run else verdict


def conninfo_of(url: URL) -> str:
    """What libpq needs to reach the database of an SQLAlchemy engine.

    Args:
        url: of the engine. Its dialect says what the driver is given: a URL has several places for hosts and
            ports. What libpq does not know is left out, and nothing else: not the ``sslmode`` beside it.
    """
    _, arguments = url.get_dialect()().create_connect_args(url)
    given = {_LIBPQ_NAMES.get(name, name): _text(value) for name, value in arguments.items()}
    return make_conninfo("", **{name: value for name, value in given.items() if name in _KEYWORDS})


def _text(value: object) -> str:
    """asyncpg takes several hosts and ports as lists."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
