"""Proof of commit: the database's own id of a transaction, read while the transaction writes.

A process that dies between COMMIT and the mark of its journal leaves a unit whose fate nobody saw. With the
transaction's id the database can be asked later (`pg_xact_status`). An id means something in one cluster and
on one timeline only, so both are kept with it.

What is sent: one query on each new connection, outside of any transaction, that finds out whether the
functions may be used at all, because a refused function would abort the transaction it is called in. And one
query with the first write of a transaction, in the same round trip where the driver can pipeline.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from importlib import resources
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import event
from sqlalchemy.pool import Pool

from otel_activity.capture.guard import internal_error
from otel_activity.events import Proof
from otel_activity.interruptions import pass_on

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import URL

    from otel_activity.capture.transaction import Transaction

__all__ = ["Cluster", "ProofReader"]

_logger: Final = logging.getLogger("otel_activity")
_KEY: Final = "otel_activity.cluster"
_FUNCTION: Final = "pg_current_xact_id_if_assigned"
_DENIED: Final = "42501"
NEAR: Final = 0.0005
"""Seconds. psycopg's pipeline costs about 0.15 ms of CPU for each transaction, on the request's thread."""
_DRIVERS: Final = ("psycopg.", "psycopg2.", "sqlalchemy.dialects.postgresql.")


_SAVEPOINT: Final = b"otel_activity_proof"
_GO_BACK: Final = b"ROLLBACK TO %b; RELEASE %b" % (_SAVEPOINT, _SAVEPOINT)


def _sql(name: str) -> str:
    return resources.files("otel_activity.capture").joinpath("sql", f"{name}.sql").read_text(encoding="utf-8")


class Cluster(NamedTuple):
    """Where a connection leads to, as its proofs will say."""

    system: str
    timeline: int
    database: str
    run: str
    refusals: int = 0
    """Of that database until then: what was found out before another one no longer counts."""
    near: bool = False
    """A round trip to the server takes less than a pipeline costs here."""


class ProofReader:
    """Probes new connections, and reads the ids of transactions on those that can prove their commits.

    Args:
        seen: is told, once for each, the system identifier of a cluster and the URL of an engine on it.
        near: seconds. Where a round trip takes less, the id is asked for by itself rather than in a pipeline.
    """

    def __init__(self, seen: Callable[[str, URL], None] | None = None, *, near: float = NEAR) -> None:
        self._seen = seen
        self._near = near
        self._known: set[tuple[str, URL]] = set()
        self._probe = _sql("probe_proof")
        self._read = _sql("read_transaction")
        self._guarded = b"SAVEPOINT %b; %b; RELEASE %b" % (
            _SAVEPOINT,
            self._read.strip().rstrip(";").encode(),
            _SAVEPOINT,
        )
        self._told = False
        self._refusals: dict[tuple[str, str], int] = {}
        self._noticed: set[tuple[str, str, int, bool]] = set()

    def install(self) -> None:
        """Listen to all pools there are and will be; connections that are open already stay unproven."""
        event.listen(Pool, "connect", self._connected)

    def uninstall(self) -> None:
        """Listen no more."""
        event.remove(Pool, "connect", self._connected)

    def cluster_of(self, fairy: Any, url: URL) -> Cluster | None:
        """What was found out about a pooled connection; None when its commits cannot be proven."""
        found = fairy.info.get(_KEY)
        if not isinstance(found, Cluster):
            return None
        if self._refusals and self._refused(found):
            return None
        if self._seen is not None and (found.system, url) not in self._known:
            self._known.add((found.system, url))
            self._seen(found.system, url)
        return found

    def _refused(self, cluster: Cluster) -> bool:
        """Whether the database has refused the function since the connection was probed."""
        return cluster.refusals != self._refusals.get((cluster.system, cluster.database), 0)

    # --- probing -----------------------------------------------------------------------------

    def _connected(self, connection: Any, record: Any) -> None:
        if not f"{type(connection).__module__}.".startswith(_DRIVERS):
            return
        try:
            cluster = self._ask(connection)
            if cluster is not None:
                record.info[_KEY] = cluster
        except Exception:  # noqa: BLE001 - hooks never raise into the application
            internal_error("the probe of a new connection")

    def _ask(self, connection: Any) -> Cluster | None:
        try:
            row = _row(connection, self._probe)
        except Exception as error:  # noqa: BLE001 - refused, or no PostgreSQL at all behind this driver
            pass_on(error)
            self._tell(type(error).__name__)
            return None
        finally:
            started = perf_counter()
            connection.rollback()
            elapsed = perf_counter() - started
        system, timeline, database, allowed, run = row
        if not allowed:
            self._tell("EXECUTE on pg_current_xact_id_if_assigned() is revoked")
            return None
        if timeline is None:
            return None
        refusals = self._refusals.get((system, database), 0)
        near = elapsed < self._near
        return Cluster(system, int(timeline, 16), database, run or "", refusals, near)

    def _tell(self, why: str) -> None:
        if not self._told:
            self._told = True
            _logger.warning(
                "otel_activity: commits on this database cannot be proven (%s); what a crash during COMMIT "
                "leaves open will be unknown; grant what docs/delivery.md names, or set "
                "OTEL_ACTIVITY_COMMIT_PROOF=off if that is meant",
                why,
            )

    # --- reading -----------------------------------------------------------------------------

    def wanted(self, transaction: Transaction) -> bool:
        """Whether the next write is the one that the id is read with."""
        if transaction.cluster is None or transaction.xid is not None or transaction.autocommit:
            return False
        return not self._refusals or not self._refused(transaction.cluster)

    def can_pipeline(self, transaction: Transaction, raw: Any) -> bool:
        """Whether the query is to go with the statement, in one round trip."""
        cluster = transaction.cluster
        return cluster is not None and not cluster.near and _is_psycopg(transaction.dialect, raw)

    def execute(self, transaction: Transaction, raw: Any, send: Callable[[], Any]) -> Any:
        """Send the application's statement and the query together (psycopg)."""
        before = sys.exc_info()[1]
        try:
            with raw.pipeline() as pipeline:
                try:
                    result = send()
                    cursor = raw.cursor(row_factory=None)
                    cursor.execute(self._read, prepare=False)
                except Exception as error:
                    _settle(pipeline, error)
                    raise
        except Exception as error:
            interruption = error.__context__
            if not (interruption is before or interruption is None or isinstance(interruption, Exception)):
                # A timeout, or the like. What psycopg says then is that it cannot end its pipeline, and
                # SQLAlchemy would take the connection, in the middle of an answer, for one that can go on.
                raise interruption from None
            self._notice(transaction, error)
            raise
        try:
            self._note(transaction, cursor.fetchone())
        except Exception:  # noqa: BLE001 - the statement succeeded; its transaction only stays unproven
            internal_error("the id of a transaction")
        return result

    def read(self, transaction: Transaction, raw: Any) -> None:
        """Send the query by itself, after the application's statement.

        Raises:
            Exception: the server refuses it. Its transaction is over then, and a COMMIT would roll it back
                without a word: the application must hear of it.
        """
        try:
            row = (
                self._ask_libpq(transaction, raw)
                if _is_psycopg(transaction.dialect, raw)
                else _row(raw, self._read)
            )
        except Exception as error:
            self._notice(transaction, error)
            raise
        try:
            self._note(transaction, row)
        except Exception:  # noqa: BLE001 - the statement succeeded; its transaction only stays unproven
            internal_error("the id of a transaction")

    def _ask_libpq(self, transaction: Transaction, raw: Any) -> tuple[Any, ...] | None:
        """By libpq's own calls: half of what a cursor costs.

        Behind a savepoint, in the same message, so that a refusal does not end the transaction.
        """
        from psycopg import errors, pq  # it is there: the connection is one of its
        from psycopg.generators import execute

        pgconn = raw.pgconn
        if pgconn.pipeline_status != pq.PipelineStatus.OFF:
            return _row(raw, self._read)  # type: ignore[no-any-return]
        pgconn.send_query(self._guarded)
        # Compiled, psycopg does not let go of the interpreter's lock while it waits in get_result.
        results = iter(pgconn.get_result, None) if pq.__impl__ == "python" else raw.wait(execute(pgconn))
        row, failed = None, None
        for result in results:
            if result.status == pq.ExecStatus.TUPLES_OK:
                row = (result.get_value(0, 0),)
            elif result.status != pq.ExecStatus.COMMAND_OK:
                failed = result
        if failed is None:
            return row
        if raw.closed:  # as psycopg's own cursor says it
            raise errors.OperationalError(failed.get_error_message())
        error = errors.error_from_result(failed, raw.info.encoding)
        if pgconn.exec_(_GO_BACK).status != pq.ExecStatus.COMMAND_OK:
            raise error
        self._notice(transaction, error, survived=True)
        return None

    def _notice(self, transaction: Transaction, error: Exception, *, survived: bool = False) -> None:
        """If EXECUTE was revoked after the probe, that is to end no other transaction than this one."""
        code = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
        cluster = transaction.cluster
        if cluster is None or code != _DENIED or _FUNCTION not in str(error):
            return
        self._refusals[cluster.system, cluster.database] = cluster.refusals + 1
        notice = (cluster.system, cluster.database, cluster.refusals, survived)
        if notice in self._noticed:
            return  # another thread came here at the same moment
        self._noticed.add(notice)
        _logger.error(
            "otel_activity: %s EXECUTE on %s was revoked while its connection was "
            "open; transactions on other open connections are not proven from here on; grant it again, or "
            "set OTEL_ACTIVITY_COMMIT_PROOF=off",
            "a transaction is not proven because" if survived else "a transaction failed because",
            _FUNCTION,
        )

    @staticmethod
    def _note(transaction: Transaction, row: Any) -> None:
        if row is not None and row[0] is not None:
            transaction.xid = int(row[0])

    @staticmethod
    def proof(transaction: Transaction) -> Proof | None:
        """By what the transaction's end can be asked; None when it cannot."""
        cluster, xid = transaction.cluster, transaction.xid
        if cluster is None or xid is None:
            return None
        return Proof(cluster.system, cluster.timeline, cluster.database, xid, cluster.run)


def _settle(pipeline: Any, error: Exception) -> None:
    """Fetch what the server says of the query behind a statement that failed: that it skipped it.

    Left to the end of the pipeline, psycopg writes a warning about it into the application's log.
    """
    import psycopg

    if isinstance(error, psycopg.Error):  # else the connection may be in the middle of an answer
        with contextlib.suppress(psycopg.Error):
            pipeline.sync()


def _is_psycopg(dialect: Any, raw: Any) -> bool:
    return dialect.driver == "psycopg" and not dialect.is_async and hasattr(raw, "pipeline")


def _row(connection: Any, query: str) -> Any:
    cursor = connection.cursor()
    try:
        cursor.execute(query)
        return cursor.fetchone()
    finally:
        cursor.close()
