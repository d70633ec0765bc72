"""The transaction bracket: which captured changes were committed, decided where COMMIT is sent.

Session events lie about commits (a released savepoint fires ``after_commit``; a transaction in error
commits nothing and says nothing), so units belong to a (DBAPI connection, transaction) pair. What guards
the dialects' methods and the statements (`dialects`, `statements`) only routes; the fates are decided here.
"""

from __future__ import annotations

from os import getpid
from typing import TYPE_CHECKING, Any, Final

import uuid_utils

from otel_activity.capture import autocommit, drivers
from otel_activity.capture.guard import internal_error
from otel_activity.capture.pools import Pools
from otel_activity.capture.transaction import Transaction, anchor_of
from otel_activity.capture.updates import Mistaken
from otel_activity.context import circumstances
from otel_activity.errors import ActivityError
from otel_activity.events import Commit, Outlet, Unit
from otel_activity.interruptions import pass_on

if TYPE_CHECKING:
    from collections.abc import Callable

    from otel_activity.capture.proof import ProofReader
    from otel_activity.events import Entry
    from otel_activity.ports import Delivery

__all__ = ["Bracket"]

_UNSEEN = "ended outside SQLAlchemy"
_MOST_REFUSED = 100
"""Refused two-phase transactions that are remembered until SQLAlchemy ends them, which it does at once."""
_UNDEFINED_OBJECT = "42704"  # COMMIT PREPARED of an id that is not there


class Bracket:
    """Knows the open transactions and hands finished units to a `Delivery`.

    Args:
        delivery: where units go.
        proofs: reads the databases' own ids of transactions; None for no proofs.
        forked: called in a process of which nobody has told that it was forked, before anything is captured.
    """

    def __init__(
        self,
        delivery: Delivery,
        proofs: ProofReader | None = None,
        forked: Callable[[], object] | None = None,
    ) -> None:
        self.delivery = delivery
        self.proofs = proofs
        self._process = getpid()
        self._forked = forked or self.after_fork
        self.pools: Final = Pools()
        self.mistaken: Final = Mistaken()
        self.open: Final[dict[int, Transaction]] = {}
        """Transactions that have captured something, by ``id()`` of the DBAPI connection. For hooks that run
        for every row or statement and can afford no call to find out that there is nothing to do."""
        self._idle: dict[int, Transaction] = {}
        self._prepared: dict[tuple[Any, ...], Unit] = {}
        self._refused_keys: dict[tuple[Any, ...], None] = {}

    def clear(self) -> None:
        """Forget everything; open transactions end unrecorded."""
        self.open.clear()
        self._idle.clear()
        self._prepared.clear()
        self._refused_keys.clear()

    def after_fork(self) -> None:
        """In a forked child: the parent's transactions are the parent's to report."""
        self.clear()
        self._process = getpid()

    # --- finding the transaction -------------------------------------------------------------

    def transaction(self, connection: Any) -> Transaction:
        """The open transaction of an SQLAlchemy `Connection`, opened here if this is its first change."""
        fairy = connection.connection
        raw = fairy.dbapi_connection
        found = self.open.get(id(raw))
        if found is not None and (found.anchor() is raw or found.owns(raw)):
            return found
        return self._adopt(raw, connection, fairy)

    def _adopt(self, raw: Any, connection: Any, fairy: Any) -> Transaction:
        if getpid() != self._process:
            self._forked()
        dialect = connection.dialect
        key = id(raw)

        transaction = self._idle.pop(key, None)
        if transaction is not None and transaction.dialect is dialect and transaction.owns(raw):
            transaction.reset()
        else:

            def gone(_: object) -> None:
                self.open.pop(key, None)
                self._idle.pop(key, None)

            anchor, via = anchor_of(raw, fairy, gone)
            engine = connection.engine
            self.pools.see(engine)
            transaction = Transaction(key, anchor, via, dialect, engine.url.database or "")
            transaction.url = engine.url
            if self.proofs is not None:
                transaction.cluster = self.proofs.cluster_of(fairy, engine.url)
        transaction.schemas = connection.get_execution_options().get("schema_translate_map")
        transaction.autocommit = drivers.is_autocommit(dialect, fairy)
        if transaction.autocommit:
            self.look(transaction)
        self.open[key] = transaction
        return transaction

    def find(self, connection: Any) -> Transaction | None:
        """The open transaction of a pooled or raw DBAPI connection, if it has captured anything."""
        if not self.open:
            return None
        raw = getattr(connection, "dbapi_connection", connection)
        found = self.open.get(id(raw))
        return found if found is not None and found.owns(raw) else None

    def find_for(self, connection: Any) -> Transaction | None:
        """As `find`, for an SQLAlchemy `Connection`."""
        if not self.open:
            return None
        try:
            raw = connection.connection.dbapi_connection
        except Exception as raised:  # noqa: BLE001 - an invalidated connection has no transaction
            pass_on(raised)
            return None
        found = self.open.get(id(raw))
        return found if found is not None and found.owns(raw) else None

    def find_running(self, connection: Any) -> Transaction | None:
        """As `find_for` and `watch` in one frame: asked before every statement there is."""
        try:
            raw = connection.connection.dbapi_connection
            transaction = self.open.get(id(raw))
            if transaction is None:
                return None
            anchor = transaction.anchor()
            if anchor is not raw and not transaction.owns(raw):
                return None
            if transaction.unit is not None and not transaction.autocommit:
                try:  # psycopg, without a detour
                    ended = raw.pgconn.transaction_status == 0
                except Exception as raised:  # noqa: BLE001 - another driver, or a closed connection: `watch` asks it
                    pass_on(raised)
                    ended = True
                if ended:
                    self.watch(transaction)
        except Exception:  # noqa: BLE001 - hooks never raise into the application
            internal_error("the look before a statement")
            return None
        return transaction

    def _forget(self, transaction: Transaction) -> Unit | None:
        if self.open.get(transaction.key) is transaction:
            del self.open[transaction.key]
            # The connection will be used again: what is known of it need not be found out again.
            self._idle[transaction.key] = transaction
        return transaction.take()

    def mark(self, connection: Any, name: str) -> None:
        """A savepoint was set."""
        try:
            self.transaction(connection).mark(name)
        except Exception:  # noqa: BLE001 - hooks never raise into the application
            internal_error("a savepoint")

    # --- looking at the server ---------------------------------------------------------------

    def look(self, transaction: Transaction) -> None:
        """After a statement: the driver knows whether it stands in a transaction or was committed already.

        That is better than any setting: a BEGIN by hand under AUTOCOMMIT, and statements that follow a
        COMMIT by hand on drivers that do not notice it, are then what they are.
        """
        state = drivers.state_of(transaction)
        if state is drivers.State.ENDED:
            transaction.autocommit = True
        elif state is not drivers.State.UNKNOWN:
            transaction.autocommit = False

    def watch(self, transaction: Transaction) -> None:
        """Before a statement: entries whose transaction is over belong to nothing that comes now."""
        if transaction.unit is None or transaction.inside or transaction.autocommit:
            return
        if drivers.state_of(transaction) is drivers.State.ENDED:
            held, updates = dict(transaction.held), transaction.noted  # of the step whose statement this is
            unit = transaction.take()
            transaction.held.update(held)
            transaction.noted = updates
            if unit is not None:
                self._unseen(unit, _UNSEEN)

    # --- handing over ------------------------------------------------------------------------

    def _deliver(self, method: Callable[..., None], unit: Unit, *args: Any) -> None:
        try:
            method(unit, *args)
        except Exception:  # noqa: BLE001 - hooks never raise into the application
            internal_error(f"delivery ({getattr(method, '__name__', method)})")

    def _prepare(
        self, unit: Unit, transaction: Transaction | None = None, raw: Any = None, *, joins: bool = False
    ) -> None:
        """Freeze and prepare; only a refusal that the user asked for gets out."""
        try:
            if transaction is not None and transaction.xid is not None and self.proofs is not None:
                unit.proof = self.proofs.proof(transaction)
            _freeze(unit)
            if transaction is not None and raw is not None:
                unit.outlet = Outlet(raw, unit.system, transaction.dialect.driver, transaction.url, joins)
            self.delivery.prepare(unit)
        except ActivityError:
            raise
        except Exception:  # noqa: BLE001 - hooks never raise into the application
            internal_error("prepare")
        finally:
            unit.outlet = None

    def _prepare_after(self, unit: Unit) -> None:
        """Prepare what is committed already: too late to refuse."""
        try:
            self._prepare(unit)
        except ActivityError:
            internal_error("prepare after the fact")

    def _committed(self, unit: Unit) -> None:
        unit.commit = Commit.REPORTED
        try:
            self.delivery.committed(unit)
        except Exception:  # noqa: BLE001 - hooks never raise into the application
            internal_error("delivery (committed)")

    def _aborted(self, unit: Unit) -> None:
        self._deliver(self.delivery.aborted, unit)
        kept = [entry for entry in unit.entries if entry.survives]
        if kept:
            for entry in kept:
                entry.rolled_back()
            self.release(kept)

    def _undecided(self, unit: Unit, why: str, error: BaseException | None = None) -> None:
        unit.commit = Commit.UNKNOWN
        unit.error = why
        self._deliver(self.delivery.undecided, unit, error)

    def _unseen(self, unit: Unit, why: str) -> None:
        """The transaction ended where nobody saw how."""
        self._prepare_after(unit)
        self._undecided(unit, why)

    def settle(self, transaction: Transaction, *, midst: bool = False) -> None:
        """Under AUTOCOMMIT each statement was committed as it ran: release what is there.

        Args:
            transaction: in whose name.
            midst: a flush step is still reporting its rows.
        """
        transaction.close_batch()
        transaction.admit()
        if not midst:
            transaction.announced.clear()
            transaction.written.clear()
        unit, transaction.unit = transaction.unit, None
        if unit is not None and unit.entries:
            self._prepare_after(unit)
            self._committed(unit)

    def salvage(self, transaction: Transaction) -> None:
        """Under AUTOCOMMIT a flush failed: release what its statements had committed until then."""
        if not transaction.announced:
            return
        try:
            sure, unsure = autocommit.salvage(transaction)
        except Exception:  # noqa: BLE001 - hooks never raise into the application
            internal_error("changes of a failed flush")
            return
        if sure is not None:
            self._prepare_after(sure)
            self._committed(sure)
        if unsure is not None:
            self._unseen(unsure, "a flush failed under AUTOCOMMIT")

    def _settle_all(self, transaction: Transaction) -> None:
        self.salvage(transaction)
        self.settle(transaction)
        self._forget(transaction)

    # --- entries that are no changes -----------------------------------------------------------

    def join(self, transaction: Transaction, entry: Entry) -> None:
        """Add an entry to an open transaction, not one under AUTOCOMMIT; it shares the transaction's fate."""
        if transaction.unit is None and drivers.state_of(transaction) is drivers.State.ENDED:
            # Drivers send BEGIN with the first statement. Until then nothing tells this transaction from one
            # that was ended behind our back, so the entry waits aside.
            transaction.early.append(entry)
        else:
            transaction.add(entry)

    def release(self, entries: list[Entry]) -> None:
        """Release entries that belong to no transaction."""
        if getpid() != self._process:
            self._forked()
        unit = Unit(str(uuid_utils.uuid7()), system="", database="")
        unit.entries = entries
        self._prepare_after(unit)
        self._committed(unit)

    # --- the fates ---------------------------------------------------------------------------

    def begin(self, transaction: Transaction) -> None:
        """A new transaction begins on a connection that has entries of an older one.

        Nobody rolled that back (a pool that does not reset): if it is still open, both end together.
        """
        if transaction.autocommit:
            self._settle_all(transaction)
        elif drivers.transaction_state(transaction) in (drivers.State.ENDED, drivers.State.UNKNOWN):
            unit = self._forget(transaction)
            if unit is not None:
                self._unseen(unit, _UNSEEN)

    def commit(
        self,
        transaction: Transaction,
        send: Callable[[], Any],
        undo: Callable[[], Any] | None = None,
        *,
        raw: Any,
        joins: bool = False,
    ) -> Any:
        """Bracket one COMMIT.

        Args:
            transaction: the transaction it ends.
            send: sends the COMMIT.
            undo: rolls back; called when delivery refuses, because a COMMIT that was refused must not be
                made up for by the next one on the same connection.
            raw: the DBAPI connection, for a delivery that writes into the transaction.
            joins: `send` does nothing but the connection's own ``commit()``.

        Raises:
            ActivityError: delivery refused (fail closed); nothing was committed.
        """
        if transaction.autocommit:
            self._settle_all(transaction)
            return send()
        untouched = transaction.admit()
        unit, doubt = transaction.unit, transaction.doubt
        if unit is None or not unit.entries:
            self._forget(transaction)
            return send()
        state = drivers.transaction_state(transaction)
        if state is drivers.State.FAILED:
            # The server answers COMMIT with ROLLBACK and no error: nothing is committed.
            return self.abort(transaction, send)
        unseen = state is drivers.State.ENDED and not untouched
        why = _UNSEEN if unseen else doubt
        try:
            # A transaction that is not surely the unit's own must not vouch for it.
            self._prepare(unit, transaction, None if why is not None else raw, joins=joins)
            result = self._send_prepared(transaction, unit, send)
            self._answered(unit, why)
        except BaseException as error:
            try:
                self._cut_short(transaction, unit, error, why, undo)
            except BaseException:  # interrupted, perhaps once more: whatever was done is not done twice
                self._cut_short(transaction, unit, error, why, undo)
                raise
            raise
        return result

    def _cut_short(
        self,
        transaction: Transaction,
        unit: Unit,
        error: BaseException,
        why: str | None,
        undo: Callable[[], Any] | None,
    ) -> None:
        """A COMMIT was refused, failed or answered, and in the last case somebody was interrupted since."""
        if unit.answered:
            if transaction.unit is unit:
                self._forget(transaction)
            self._answered(unit, why)
        elif isinstance(error, ActivityError):
            self._refused(transaction, unit, undo)
        else:
            self._failed(transaction, unit, error)

    def _answered(self, unit: Unit, why: str | None) -> None:
        """COMMIT succeeded; `why` says why that does not tell what became of the unit."""
        if why is None:
            self._committed(unit)
        else:
            self._undecided(unit, why)

    def _refused(self, transaction: Transaction, unit: Unit, undo: Callable[[], Any] | None) -> None:
        """Delivery refuses the unit: its COMMIT was not sent, or not executed."""
        self._forget(transaction)
        self._aborted(unit)
        if undo is not None:
            try:
                undo()
            except Exception:  # noqa: BLE001 - the refusal is what the application must see
                internal_error("rollback after a refused commit")

    def _send_prepared(self, transaction: Transaction, unit: Unit, send: Callable[[], Any]) -> Any:
        """Send the COMMIT or PREPARE of a prepared unit; afterwards the transaction is over."""
        courier, unit.courier = unit.courier, None
        transaction.inside = True
        try:
            unit.sent = True
            result = send() if courier is None else courier(send)
            unit.answered = True
        finally:
            transaction.inside = False
        self._forget(transaction)
        return result

    def _failed(self, transaction: Transaction, unit: Unit, error: BaseException) -> None:
        """A COMMIT failed, or somebody was interrupted (Ctrl-C, a timeout, a cancelled task) around it."""
        mine = transaction.unit is unit
        if not mine and (transaction.unit is not None or not unit.sent):
            return  # the transaction is another one already, or was over before
        # Not sent, or nothing happened yet (SQLite: database is locked). The next COMMIT or ROLLBACK decides.
        if mine and (not unit.sent or drivers.state_of(transaction) is drivers.State.OPEN):
            again = Unit(unit.transaction_id, system=unit.system, database=unit.database)
            again.entries = list(unit.entries)
            again.encoded = unit.encoded
            self._deliver(self.delivery.aborted, unit)  # its entries live on in the new unit
            transaction.unit = again
            return
        self._forget(transaction)
        if drivers.certainly_aborted(error):
            self._aborted(unit)
        else:
            self._undecided(unit, type(error).__name__, error)

    def abort(self, transaction: Transaction, send: Callable[[], Any]) -> Any:
        """Bracket one ROLLBACK. A rollback that fails (connection lost) is still a rollback."""
        if transaction.autocommit:
            self._settle_all(transaction)
            return send()
        unit = transaction.unit
        ended = unit is not None and drivers.state_of(transaction) is drivers.State.ENDED
        transaction.inside = True
        try:
            return send()
        finally:
            transaction.inside = False
            unit = self._forget(transaction)
            if unit is not None:
                if ended:
                    # Somebody ended the transaction on the driver's connection: commit or rollback, unseen.
                    self._unseen(unit, _UNSEEN)
                else:
                    self._aborted(unit)

    def released(self, transaction: Transaction, name: str) -> None:
        """A savepoint was released. SQLite commits when that was the outermost and nothing began before."""
        transaction.release(name)
        if transaction.unit is not None:
            state = drivers.state_of(transaction)
            if state is drivers.State.ENDED:
                self.settle(transaction)

    def split(self, transaction: Transaction, why: str) -> None:
        """End the unit with an unknown fate; the transaction object goes with it."""
        unit = self._forget(transaction)
        if unit is not None:
            self._unseen(unit, why)

    # --- two-phase ---------------------------------------------------------------------------

    def prepare_twophase(
        self,
        transaction: Transaction,
        key: tuple[Any, ...],
        send: Callable[[], Any],
        undo: Callable[[], Any],
        *,
        raw: Any,
    ) -> Any:
        """Bracket PREPARE TRANSACTION; the unit waits under its global id.

        Raises:
            ActivityError: delivery refused (fail closed); the transaction was rolled back.
        """
        transaction.admit()
        unit = transaction.unit
        if unit is None or not unit.entries:
            self._forget(transaction)
            return send()
        if drivers.transaction_state(transaction) is drivers.State.FAILED:
            return self.abort(transaction, send)
        try:
            self._prepare(unit, transaction, None if transaction.doubt is not None else raw)
            self._prepared[key] = unit  # before, so that no interruption can come between
            return self._send_prepared(transaction, unit, send)
        except ActivityError:
            self._prepared.pop(key, None)
            self._refused(transaction, unit, undo)
            raise
        except BaseException as error:
            if transaction.unit is unit:
                self._prepared.pop(key, None)
            self._failed(transaction, unit, error)
            raise

    def remember_refused(self, key: tuple[Any, ...]) -> None:
        """SQLAlchemy takes the transaction, which was rolled back, for one that is open still."""
        self._refused_keys[key] = None
        while len(self._refused_keys) > _MOST_REFUSED:
            self._refused_keys.pop(next(iter(self._refused_keys)), None)

    def was_refused(self, key: tuple[Any, ...], driver: Any) -> bool:
        """Whether the transaction is over because delivery refused it; asked once, at what ends it."""
        if not self._refused_keys or key not in self._refused_keys:
            return False
        del self._refused_keys[key]
        return drivers.driver_state(driver) is drivers.State.ENDED

    def commit_prepared(self, key: tuple[Any, ...], send: Callable[[], Any]) -> Any:
        """Bracket COMMIT PREPARED, from whichever connection it comes."""
        unit = self._prepared.get(key)
        if unit is None:
            return send()
        unit.sent = unit.answered = False  # that was PREPARE
        try:
            # Taken out first: some dialects send the text, which comes by here again.
            self._prepared.pop(key, None)
            unit.sent = True
            result = send()
            unit.answered = True
            self._committed(unit)
        except BaseException as error:
            try:
                self._second_phase_cut_short(key, unit, error)
            except BaseException:  # as in `commit`
                self._second_phase_cut_short(key, unit, error)
                raise
            raise
        return result

    def _second_phase_cut_short(self, key: tuple[Any, ...], unit: Unit, error: BaseException) -> None:
        refused = drivers.certainly_aborted(error) and drivers.sqlstate(error) != _UNDEFINED_OBJECT
        if unit.answered:
            self._committed(unit)
        elif refused or not unit.sent:
            # The transaction is still prepared on the server: its end is to come.
            self._prepared[key] = unit
        else:
            self._undecided(unit, type(error).__name__, error)

    def rollback_prepared(self, key: tuple[Any, ...], send: Callable[[], Any]) -> Any:
        """Bracket ROLLBACK PREPARED; one that fails leaves the unit waiting."""
        unit = self._prepared.pop(key, None)
        if unit is None:
            return send()
        try:
            result = send()
        except BaseException:
            self._prepared[key] = unit
            raise
        self._aborted(unit)
        return result


def _freeze(unit: Unit) -> None:
    """Read each change's request context now, just before COMMIT: late authentication counts."""
    context: Any = None
    otel: Any = None
    frozen: dict[str, Any] | None = None
    over: int | None = None
    late = False
    memo: dict[Any, Any] = {}
    for entry in unit.entries:
        found = entry.context
        if found is None and not entry.otel:
            continue  # nothing to read
        if entry.attributes is not None:  # it was read for a COMMIT that did not get through
            continue
        other = found is not context
        if other:
            over = None if found is None else found.over()
        is_late = over is not None and entry.time > over
        if other or entry.otel is not otel or is_late is not late:
            context, otel, late = found, entry.otel, is_late
            frozen = circumstances(found, otel, memo, late=late)
        entry.attributes = frozen
        entry.context = None
