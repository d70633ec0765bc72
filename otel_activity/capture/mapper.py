"""What the unit of work did, row by row: mapper events take a snapshot as each row is written.

Mapper events rather than ``after_flush``: they name the connection, they come when server-generated values
are there, and their order is the order of the statements.
"""

from __future__ import annotations

import enum
from itertools import compress
from operator import ne
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Mapper
from sqlalchemy.orm.base import LoaderCallableStatus, instance_state

from otel_activity.capture.autocommit import Announced, reported
from otel_activity.capture.change import CREATED, DELETED, UPDATED, Change, Row
from otel_activity.capture.drivers import sqlstate
from otel_activity.capture.guard import internal_error
from otel_activity.capture.plan import EXPRESSION, MISSING, is_expression
from otel_activity.capture.updates import announce
from otel_activity.codec import ATOMIC

if TYPE_CHECKING:
    from collections.abc import Iterable

    from otel_activity.capture.bracket import Bracket
    from otel_activity.capture.plan import Plan, Planner
    from otel_activity.capture.transaction import Transaction

__all__ = ["MapperHooks", "correct", "read_row", "record"]


_IN_FAILED_TRANSACTION: Final = "25P02"


class MapperHooks:
    """Listens to every mapper there is and will be."""

    def __init__(self, bracket: Bracket, planner: Planner, *, fetch_before: bool = False) -> None:
        self._bracket = bracket
        self._planner = planner
        self._fetch = fetch_before
        self._listeners: Final = {
            "before_insert": self._listener(self._before_insert, needed=fetch_before),
            "before_update": self._listener(self._before_update),
            "before_delete": self._listener(self._before_delete, needed=fetch_before),
            "after_insert": self._listener(self._after_insert),
            "after_update": self._listener(self._after_update),
            "after_delete": self._listener(self._after_delete),
        }

    def install(self) -> None:
        for name, listener in self._listeners.items():
            event.listen(Mapper, name, listener, raw=True, retval=True)

    def uninstall(self) -> None:
        for name, listener in self._listeners.items():
            event.remove(Mapper, name, listener)

    def _listener(self, hook: Any, *, needed: bool = True) -> Any:
        """A guarded hook. It runs for every row, so it looks up plan and transaction in one frame.

        Args:
            hook: what is to be done.
            needed: otherwise there is only something to be done when a step of the flush was just over, or
                each statement is a transaction of its own.
        """
        planner, plans = self._planner, self._planner.plans
        find, open_transactions = self._bracket.transaction, self._bracket.open

        def listener(mapper: Any, connection: Any, state: Any) -> None:
            try:
                try:
                    plan = plans[id(mapper)]
                except KeyError:
                    plan = planner.plan(mapper)
                if plan is not None:
                    raw = connection.connection.dbapi_connection
                    transaction = open_transactions.get(id(raw))
                    if transaction is None or transaction.anchor() is not raw:
                        transaction = find(connection)
                    if (
                        needed
                        or transaction.start >= 0
                        or transaction.autocommit
                        or transaction.matched is not None
                    ):
                        if transaction.schemas is not None:
                            plan = plan.translated(transaction.schemas)
                        hook(plan, transaction, connection, state)
            except Exception:  # noqa: BLE001 - hooks never raise into the application
                internal_error(hook.__name__)

        return listener

    def _announce(self, transaction: Transaction, verb: str, connection: Any, state: Any) -> None:
        report = self._listeners[f"after_{verb}"]
        transaction.announced.append(Announced(verb, report, (state.manager.mapper, connection, state)))

    # --- before the statement ----------------------------------------------------------------

    def _before_insert(self, plan: Plan, transaction: Transaction, connection: Any, state: Any) -> None:
        if transaction.start >= 0:
            transaction.close_batch()  # the previous step has reported: a new one begins
        if transaction.autocommit:
            self._announce(transaction, "insert", connection, state)
        if self._fetch:
            self._hold_replaced(transaction, plan, connection, state)

    def _before_update(self, plan: Plan, transaction: Transaction, connection: Any, state: Any) -> None:
        if transaction.start >= 0:
            transaction.close_batch()  # the previous step has reported: a new one begins
        if transaction.autocommit:
            self._announce(transaction, "update", connection, state)
        dict_ = state.dict
        committed = state.committed_state
        held: dict[str, Any] = {}
        types = map(type, map(dict_.get, committed))
        hooks = state.manager.mapper.dispatch.before_update
        # Those of single classes, and those that were added to all mappers after ours.
        hooked = hooks.listeners or len(hooks.parent_listeners) > 1
        if not hooked and not self._fetch and not plan.watched and ATOMIC.issuperset(types):
            return  # plain values, and nothing that the server changes by itself
        for column in plan.watched:
            old = committed.get(column.key, MISSING)
            if old is MISSING:
                old = dict_.get(column.key, MISSING)
            old = MISSING if type(old) is LoaderCallableStatus else old
            held[column.key] = self._bracket.mistaken.true(state, column.key, old)
        for key, old in committed.items():
            # The flush forgets the old value where it writes an SQL expression.
            if type(dict_.get(key)) not in ATOMIC and key in plan.by_key and is_expression(dict_[key]):
                held[key] = EXPRESSION if type(old) is LoaderCallableStatus else old
        if self._fetch:
            unknown = [key for key, old in (committed | held).items() if _uncertain(old)]
            for key, value in read_row(connection, plan, state, unknown).items():
                unseen = held.get(key) is MISSING and key not in committed
                held[key] = _Unseen(value) if unseen else value
        if held:
            transaction.held[state] = held
        if hooked or plan.generated:
            self._note_updates(plan, transaction, connection, state, hooked=bool(hooked))

    def _note_updates(
        self, plan: Plan, transaction: Transaction, connection: Any, state: Any, *, hooked: bool
    ) -> None:
        """Ask for notes of the statements that follow, see `updates`. With hooks of the application, which
        are yet to run, hold what the row is known to be."""
        updates = announce(transaction, plan)
        if not hooked:
            return
        known = state.dict | state.committed_state
        if self._fetch:
            unknown = [key for key in plan.keys if _uncertain(known.get(key, MISSING))]
            known |= read_row(connection, plan, state, unknown)
        updates.known[state] = known

    def _before_delete(self, plan: Plan, transaction: Transaction, connection: Any, state: Any) -> None:
        if transaction.start >= 0:
            transaction.close_batch()  # the previous step has reported: a new one begins
        if transaction.autocommit:
            self._announce(transaction, "delete", connection, state)
        transaction.matched = None
        if self._fetch:
            known = state.dict | state.committed_state | transaction.held.get(state, {})
            unknown = [column.key for column in plan.columns if _uncertain(known.get(column.key, MISSING))]
            transaction.held.setdefault(state, {}).update(read_row(connection, plan, state, unknown))

    def _hold_replaced(self, transaction: Transaction, plan: Plan, connection: Any, state: Any) -> None:
        """If the new object takes over the row of one that is being deleted: read that row."""
        replaced = _replaced(state)
        if replaced is None:
            return
        known = _stored(replaced)
        unknown = [column.key for column in plan.columns if _uncertain(known.get(column.key, MISSING))]
        identity = instance_state(replaced).key
        transaction.held[state] = read_row(connection, plan, state, unknown, identity)

    # --- after the statement -----------------------------------------------------------------

    def _after_insert(self, plan: Plan, transaction: Transaction, connection: Any, state: Any) -> None:
        get = state.dict.get
        # An attribute that is not there was never set, which inserts NULL, or is to be read again.
        values = list(map(get, plan.keys, plan.defaults))
        if expired := state.expired_attributes:
            values = [
                get(key, MISSING if key in expired else default)
                for key, default in zip(plan.keys, plan.defaults, strict=True)
            ]
        if plan.at_once:
            _encode_at_once(plan, values)
        change = Row(plan, CREATED, tuple(map(get, plan.pk)), values)
        transaction.add_insert(change)
        if transaction.autocommit:
            self._reported(transaction, "insert", state)

    def _after_update(self, plan: Plan, transaction: Transaction, connection: Any, state: Any) -> None:
        held = transaction.held.pop(state, None) or {}
        if state.key is None or (plan.reads_back and _replaced(state) is not None):
            # A new object took over the row of one that was deleted in the same flush ("row switch").
            change = self._row_switch(plan, state, held)
        else:
            updates = transaction.noted
            if updates is None:
                change = self._updated(plan, state, held)
            else:
                held |= updates.written(plan, state)
                change = self._updated(plan, state, held)
                if change is not None and plan.generated:
                    correct(plan, change, self._bracket.mistaken.learn(plan, state, change, updates))
        if change is not None:
            transaction.add_update(change)
        if transaction.autocommit:
            self._reported(transaction, "update", state, sent=change is not None)

    def _updated(self, plan: Plan, state: Any, held: dict[str, Any]) -> Change | None:
        """The columns that the UPDATE changed: SQLAlchemy's own rule for what it writes, and what the
        statement changed by itself (version counters, ``onupdate``, SQL expressions)."""
        dict_ = state.dict
        committed = state.committed_state
        plain = plan.plain_names
        # Nearly every row there is: values that may be taken as they are, without a step for each.
        if not held and plain.keys() >= committed.keys() and dict_.keys() >= committed.keys():
            olds = committed.values()
            news = list(map(dict_.__getitem__, committed))
            if ATOMIC.issuperset(map(type, olds)) and ATOMIC.issuperset(map(type, news)):
                names = list(map(plain.__getitem__, committed))
                if not all(map(ne, news, olds)):
                    changed = list(map(ne, news, olds))
                    names, olds, news = (list(compress(each, changed)) for each in (names, olds, news))
                if not names:
                    return None
                before, after = dict(zip(names, olds, strict=True)), dict(zip(names, news, strict=True))
                return Change(plan, UPDATED, tuple(map(dict_.get, plan.pk)), before, after, partial=False)
        return self._compared(plan, state, held)

    def _compared(self, plan: Plan, state: Any, held: dict[str, Any]) -> Change | None:
        """As `_updated`, for any values."""
        dict_ = state.dict
        plain = {} if held else plan.plain_names
        before: dict[str, Any] = {}
        after: dict[str, Any] = {}
        partial = False
        written: list[Any] = []
        for key, old in state.committed_state.items():
            new = dict_.get(key, MISSING)
            if key in plain and type(old) in ATOMIC and type(new) in ATOMIC:
                if new != old:  # what `record` would do
                    name = plain[key]
                    before[name], after[name] = old, new
                continue
            column = plan.by_key.get(key)
            if column is None:
                continue
            if new is not MISSING and column.is_equal(new, old) is True:
                continue
            if key in held:
                old = held[key]
                if type(old) is _Unseen:
                    old = old.value
                if old.__class__ is not MISSING.__class__ and column.is_equal(new, old) is True:
                    # Written, though unchanged; the row is an update of nothing in this column.
                    written.append(column)
                    continue
            elif type(old) is LoaderCallableStatus:
                old = MISSING
            partial |= record(column, old, new, before, after)
        if held:
            true = self._bracket.mistaken.true
            now = {key: true(state, key, dict_.get(key, MISSING)) for key in held}
            partial |= _record_held(plan, state, held, now, before, after, written)
        if not before:
            # The hook is called for objects without a net change, too.
            return None
        return Change(plan, UPDATED, tuple(map(dict_.get, plan.pk)), before, after, partial=partial)

    def _row_switch(self, plan: Plan, state: Any, held: dict[str, Any]) -> Change | None:
        dict_ = state.dict
        replaced = _replaced(state)
        known = _stored(replaced) if replaced is not None else {}
        before: dict[str, Any] = {}
        after: dict[str, Any] = {}
        partial = False
        for column in plan.columns:
            key = column.key
            new = dict_.get(key, MISSING)
            if new is MISSING and key not in state.expired_attributes:
                continue  # never set: the row keeps what it has
            old = held.get(key, known.get(key, MISSING))
            if old is not MISSING and new is not MISSING and column.is_equal(new, old) is True:
                continue
            partial |= record(column, old, new, before, after)
        if not before:
            return None
        return Change(plan, UPDATED, tuple(map(dict_.get, plan.pk)), before, after, partial=partial)

    def _after_delete(self, plan: Plan, transaction: Transaction, connection: Any, state: Any) -> None:
        held = transaction.held.pop(state, None) or {}
        if transaction.matched == 0:
            # Somebody else deleted the row first; SQLAlchemy only warns.
            if transaction.autocommit:
                self._reported(transaction, "delete", state)
            return
        values = list(map(state.dict.get, plan.keys, plan.unknown))
        # What was changed and not flushed is not what the row held.
        if known := state.committed_state:
            values = list(map(known.get, plan.keys, values))
        if held:
            values = list(map(held.get, plan.keys, values))
        for column in plan.generated:
            index = plan.keys.index(column.key)
            values[index] = self._bracket.mistaken.true(state, column.key, values[index])
        if plan.at_once:
            _encode_at_once(plan, values)
        transaction.add(Row(plan, DELETED, state.key[1], values))
        if transaction.autocommit:
            self._reported(transaction, "delete", state)

    def _reported(self, transaction: Transaction, verb: str, state: Any, *, sent: bool = True) -> None:
        """Under AUTOCOMMIT each row comes out at once."""
        reported(transaction, verb, state, sent=sent)
        self._bracket.settle(transaction, midst=True)


def correct(plan: Plan, change: Change, values: dict[str, Any]) -> None:
    """Put right what the session has wrong of a row."""
    if not values:
        return
    for key, value in values.items():
        column = plan.by_key[key]
        if column.name in change.before:
            new = value if value is MISSING else column.snapshot(value)
            change.after.pop(column.name, None)
            if new is not MISSING:
                change.after[column.name] = new
    sides = change.before.values()
    change.partial = any(value is MISSING for value in sides) or change.before.keys() != change.after.keys()


def _encode_at_once(plan: Plan, values: list[Any]) -> None:
    """Encode the values that may change before the event is made, and drop the secrets."""
    for index, column in plan.at_once:
        if values[index] is not MISSING:
            values[index] = column.snapshot(values[index])


class _Unseen:
    """A value read from the database that the session itself had not loaded."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


def read_row(
    connection: Any, plan: Plan, state: Any, keys: Iterable[str], identity: Any = None
) -> dict[str, Any]:
    """Values of some attributes as the row has them now, before a statement overwrites them.

    Args:
        connection: that the statement will use.
        plan: of the object.
        state: of the object.
        keys: of the attributes.
        identity: key of the row; without it the object's own.
    """
    columns = [plan.by_key[key] for key in keys if key in plan.by_key]
    identity = identity or state.key
    if not columns or identity is None:
        return {}
    mapper = state.manager.mapper
    where = [column == value for column, value in zip(mapper.primary_key, identity[1], strict=True)]
    query = mapper.selectable.select().with_only_columns(*(column.column for column in columns)).where(*where)
    try:
        row = connection.execute(query).first()
    except DBAPIError as error:
        if error.orig is not None and sqlstate(error.orig) == _IN_FAILED_TRANSACTION:
            return {}  # the statement that follows fails as well
        raise
    return {} if row is None else {column.key: value for column, value in zip(columns, row, strict=True)}


def record(column: Any, old: Any, new: Any, before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Note one changed column; True when a side of it is not known."""
    name = column.name
    kept = MISSING if old is MISSING or old is EXPRESSION else column.snapshot(old)
    before[name] = kept
    if new is not MISSING:
        new = column.snapshot(new)
        if new is not MISSING:
            after[name] = new
    return kept is MISSING or name not in after


def _record_held(
    plan: Plan,
    state: Any,
    held: dict[str, Any],
    now: dict[str, Any],
    before: dict[str, Any],
    after: dict[str, Any],
    written: list[Any],
) -> bool:
    """Note what the statement changed by itself; True when a side of it is not known."""
    partial = False
    doubtful = []
    for key, old in held.items():
        if key in state.committed_state:
            continue
        column = plan.by_key[key]
        new = now[key]
        unseen = type(old) is _Unseen
        if unseen:
            old = old.value
        if old is MISSING or (unseen and new is MISSING):
            doubtful.append((column, old, new))
        elif old is EXPRESSION or new is MISSING or column.is_equal(new, old) is not True:
            partial |= record(column, old, new, before, after)
    if doubtful and (before or written):
        # The session never saw the value, so nobody sees a difference: changed if an UPDATE wrote the table.
        tables = {column.column.table for column in plan.columns if column.name in before}
        tables.update(column.column.table for column in written)
        if plan.version is not None:
            tables.add(plan.version.table)
        for column, old, new in doubtful:
            if column.column.table in tables:
                partial |= record(column, old, new, before, after)
    return partial


def _replaced(state: Any) -> Any:
    """Another object of the session that stands for the same row; None if there is no such."""
    session = state.session
    if session is None:
        return None
    found = session.identity_map.get(state.key or state.manager.mapper._identity_key_from_state(state))
    return None if found is None or instance_state(found) is state else found


def _stored(instance: Any) -> dict[str, Any]:
    """What the session knows of an object's row: its values without the changes that were not flushed."""
    state = instance_state(instance)
    known = state.dict | state.committed_state
    return {key: value for key, value in known.items() if type(value) is not LoaderCallableStatus}


def _uncertain(value: Any) -> bool:
    """Whether a value is not known, or may have been changed in place since it was loaded."""
    if type(value) in ATOMIC:
        return False
    return isinstance(value, LoaderCallableStatus) or not isinstance(value, enum.Enum)
