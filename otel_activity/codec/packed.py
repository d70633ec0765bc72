"""Lines of COPY from packed events: the way of what a journal holds to `rows.copy_line`.

A journal has an event's attributes as JSON text, and a line wants most of them as JSON text again. Here only
the attributes that have columns become values; the others are copied from text to text. An event with an
attribute that has no name of ours, or with an odd value in a column, has no line here and takes the long way.
The row is the same either way; a test compares them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import UNSET, Raw, UnsetType, field

from otel_activity import semconv
from otel_activity.codec.lines import EventRow, row_of
from otel_activity.codec.rows import COLUMN_TEXT_LIMIT, escaped, fields_to_name, is_uuid, timestamp
from otel_activity.events import PackedEvent

if TYPE_CHECKING:
    from otel_activity.codec.lines import Origin, Row
    from otel_activity.events import Event

__all__ = ["PackedLines"]


class _Columns(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """Attributes that have columns; a text each, whatever else is odd."""

    action: str | UnsetType = field(name=semconv.ACTIVITY_ACTION, default=UNSET)
    outcome: str | UnsetType = field(name=semconv.ACTIVITY_OUTCOME, default=UNSET)
    actor_type: str | UnsetType = field(name=semconv.ACTOR_TYPE, default=UNSET)
    actor_id: str | UnsetType = field(name=semconv.USER_ID, default=UNSET)
    entity_type: str | UnsetType = field(name=semconv.ENTITY_TYPE, default=UNSET)
    entity_id: str | UnsetType = field(name=semconv.ENTITY_ID, default=UNSET)
    tenant_id: str | UnsetType = field(name=semconv.TENANT_ID, default=UNSET)
    project_id: str | UnsetType = field(name=semconv.PROJECT_ID, default=UNSET)
    transaction_id: str | UnsetType = field(name=semconv.TRANSACTION_ID, default=UNSET)
    changes: Raw | UnsetType = field(name=semconv.CHANGES, default=UNSET)


_OTHERS: Final = (
    semconv.CAPTURE,
    semconv.DB_SYSTEM_NAME,
    semconv.DB_NAMESPACE,
    semconv.DB_COLLECTION_NAME,
    semconv.DB_OPERATION_NAME,
    semconv.COMMIT,
    semconv.DATABASE_TRANSACTION,
    semconv.USER_NAME,
    semconv.USER_ROLES,
    semconv.REQUEST_METHOD,
    semconv.ROUTE,
    semconv.STATUS_CODE,
    semconv.CLIENT_ADDRESS,
    semconv.USER_AGENT,
    semconv.SESSION_ID,
    semconv.REQUEST_ID,
    semconv.REASON,
    semconv.DETAILS,
    semconv.ACTION_DURATION,
    semconv.ERROR_TYPE,
    semconv.ACTOR_ON_BEHALF_OF,
    semconv.ACTOR_CANDIDATES,
    semconv.ACTOR_ERROR_TYPE,
    semconv.JOB_NAME,
    semconv.JOB_ID,
    semconv.ACTIVITY_SCHEMA_VERSION,
)
"""The other attributes of changes, actions and requests."""
_Attributes: Final[Any] = msgspec.defstruct(
    "_Attributes",
    [(f"other_{at}", Raw | UnsetType, field(name=name, default=UNSET)) for at, name in enumerate(_OTHERS)],
    bases=(_Columns,),
    gc=False,
)
_decode: Final = msgspec.json.Decoder(_Attributes).decode
_encode: Final = msgspec.json.Encoder().encode


class PackedLines:
    """Makes lines of packed events, for one thread."""

    def __init__(self) -> None:
        self._second: int | None = None
        self._second_text = ""
        self._shared: tuple[int, int, int, int, str] | None = None
        self._shared_text = ""
        self._transaction: str | UnsetType = UNSET

    def row_of(self, event: Event, origin: Origin) -> Row:
        """The row of any event of a resource."""
        if type(event) is PackedEvent and event.text:
            try:
                line = self.line(event, origin)
            except Exception:  # noqa: BLE001 - the long way says what is wrong with it, if anything is
                line = None
            if line is not None:
                return EventRow(event.time, line, origin.key, "", event)
        return row_of(event, origin.service, origin.key)

    def line(self, event: PackedEvent, origin: Origin) -> bytes | None:
        """The line of `copy_line`, the names in the last column in another order; None if it is not usual.

        Raises:
            ValueError, TypeError, OverflowError: only the long way can say.
        """
        # Runs once for every event of a backlog: each line here was measured.
        known: _Columns = _decode(event.text)
        given = (
            known.action,
            known.outcome,
            known.actor_type,
            known.actor_id,
            known.entity_type,
            known.entity_id,
            known.tenant_id,
            known.project_id,
        )
        texts = ["" if text is UNSET else text for text in given]
        together = "".join(texts)
        if "" in given or len(together) > COLUMN_TEXT_LIMIT or not together.isprintable() or "\\" in together:
            return None
        transaction = known.transaction_id
        if transaction is UNSET:
            transaction = ""
        elif transaction != self._transaction:  # events of a transaction repeat theirs
            if not is_uuid(transaction):
                return None
            self._transaction = transaction
        place = ""
        if event.stream:
            if not is_uuid(event.stream):
                return None
            place = str(event.sequence)
        changes = b"" if known.changes is UNSET else bytes(known.changes)
        if changes == b"null":
            return None
        known.action = known.outcome = known.actor_type = known.actor_id = known.entity_type = UNSET
        known.entity_id = known.tenant_id = known.project_id = known.transaction_id = known.changes = UNSET
        documents = b"%b\t%b\n" % (changes, _encode(known))
        if b"\\" in documents or b'$json"' in documents:
            if b"\\u0000" in documents or b'$json"' in documents:
                return None
            documents = documents.replace(b"\\", b"\\\\")
        fields = "\t".join(texts)
        head = f"{self._head(event)}\t{fields}\t{transaction}\t{event.stream}\t{place}\t"
        return b"%b%b\t%b" % (head.encode(), origin.fields, documents)

    def _head(self, event: Event) -> str:
        """The fields up to the name."""
        micros, observed = event.time // 1000, event.observed // 1000
        second = micros // 1_000_000
        if second != self._second:
            self._second_text = timestamp(second * 1_000_000_000)[:-9]
            self._second = second
        if not event.observed:
            observed_text = ""
        elif observed // 1_000_000 == second:
            observed_text = f"{self._second_text}{observed % 1_000_000:06}+00"
        else:
            observed_text = timestamp(event.observed)
        shared = event.severity, event.trace_flags, event.trace_id, event.span_id, event.name
        if shared != self._shared:
            self._shared_text = fields_to_name(event)
            self._shared = shared
        return (
            f"{self._second_text}{micros % 1_000_000:06}+00\t{escaped(event.id)}\t{observed_text}\t"
            f"{self._shared_text}"
        )
