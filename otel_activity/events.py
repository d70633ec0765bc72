"""The data that moves through the pipeline: one event, and the unit of events of one transaction."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, Protocol

import msgspec
import uuid_utils

from otel_activity.semconv import (
    ACTION,
    CHANGES,
    DB_COLLECTION_NAME,
    DB_NAMESPACE,
    DB_OPERATION_NAME,
    SEQUENCE,
    STREAM_ID,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Commit",
    "Entry",
    "Event",
    "Hashed",
    "Outlet",
    "PackedEvent",
    "Performed",
    "Proof",
    "Redacted",
    "ResourceInfo",
    "Severity",
    "Unit",
    "Verdict",
    "packed",
]


class Severity(enum.IntEnum):
    """Severity numbers of the OpenTelemetry log data model that events use."""

    INFO = 9
    WARN = 13
    ERROR = 17


class Commit(enum.StrEnum):
    """What is known about the fate of the transaction an event belongs to (``activity.commit``)."""

    PROVEN = "proven"
    """The database itself confirmed the transaction's id as committed."""
    REPORTED = "reported"
    """The driver reported COMMIT as successful."""
    UNKNOWN = "unknown"
    """Nobody can tell: the connection broke while COMMIT was on its way, or the transaction was
    ended behind SQLAlchemy's back."""


class Event(msgspec.Struct, gc=False, kw_only=True):
    """One audit event, complete and clean: what exporters, journal and store see.

    Values in `attributes` are plain JSON values (None, bool, int within 64 bit, finite float, str without
    lone surrogates, list, dict with str keys); every other Python value has been through `codec.encode`.
    Secrets have been removed before an `Event` exists. One value may be packed: `packed` makes
    ``activity.changes`` its own JSON (`msgspec.Raw`), and `plain_attributes` undoes that;
    of a `PackedEvent` all of them are.

    Attributes:
        id: UUIDv7 as text, the idempotency key (``log.record.uid``).
        name: the ``event_name``, low-cardinality.
        time: when it happened, nanoseconds since the epoch, cut to whole microseconds
            (PostgreSQL's resolution; cutting here keeps the key equal on every road to the store).
        attributes: by semantic-convention name, see `otel_activity.semconv`.
        observed: when it was turned into a record, nanoseconds since the epoch.
        severity: number of the OpenTelemetry log data model.
        trace_id: 0 when there was no trace.
        span_id: 0 when there was no span.
        trace_flags: W3C trace flags.
    """

    id: str
    name: str
    time: int
    attributes: dict[str, Any]
    observed: int = 0
    severity: int = Severity.INFO
    trace_id: int = 0
    span_id: int = 0
    trace_flags: int = 0

    def plain_attributes(self) -> dict[str, Any]:
        """The attributes with nothing packed; the same dict when nothing is."""
        attributes = self.attributes
        changes = attributes.get(CHANGES)
        if type(changes) is not msgspec.Raw:
            return attributes
        return {**attributes, CHANGES: msgspec.json.decode(changes)}

    def place(self, stream: str, sequence: int) -> None:
        """Give it its place in a stream."""
        self.attributes[STREAM_ID] = stream
        self.attributes[SEQUENCE] = sequence

    @property
    def table(self) -> tuple[Any, Any, Any]:
        """Namespace, collection and operation of the database; empty texts where it has none."""
        found = self.attributes.get
        return found(DB_NAMESPACE, ""), found(DB_COLLECTION_NAME, ""), found(DB_OPERATION_NAME, "")

    def unpacked(self) -> Event:
        """Itself, or what it is when its attributes are no text any more."""
        return self


class Glance(msgspec.Struct, gc=False):
    """What can be seen of packed attributes without making values of all of them.

    Attributes:
        changes: the JSON of ``activity.changes``.
        namespace: see `Event.table`, as the others.
    """

    changes: msgspec.Raw = msgspec.field(name=CHANGES, default=msgspec.Raw())
    namespace: Any = msgspec.field(name=DB_NAMESPACE, default="")
    collection: Any = msgspec.field(name=DB_COLLECTION_NAME, default="")
    operation: Any = msgspec.field(name=DB_OPERATION_NAME, default="")


class _Text(Event, gc=False, kw_only=True, rename={"attributes": "-", "text": "attributes"}):
    """The fields of `PackedEvent`; a decoder of JSON fills `text` with what the attributes are written as."""

    attributes: dict[str, Any] = msgspec.field(default_factory=dict)
    text: msgspec.Raw
    stream: str = ""
    sequence: int = 0
    seen: Glance | None = None


class PackedEvent(_Text, gc=False, kw_only=True):
    """An event as a journal has it: its attributes are JSON text until somebody asks for them.

    A store that is given JSON needs no values, and making them is most of the work of reading a journal.

    Attributes:
        text: JSON of the attributes but for the place in a stream; empty once they were unpacked.
        stream: ``activity.stream.id``, if it has its place.
        sequence: ``activity.sequence``.
    """

    @property  # type: ignore[misc]  # a field of the parent, filled late
    def attributes(self) -> dict[str, Any]:
        """The attributes, unpacked by the first who asks; what changed stays JSON: see `packed`."""
        if self.text:
            attributes = _unpacked(bytes(self.text), self.glance().changes)
            if self.stream:
                attributes[STREAM_ID], attributes[SEQUENCE] = self.stream, self.sequence
            _set_attributes(self, attributes)
            self.text = msgspec.Raw()
        filled: dict[str, Any] = _get_attributes(self)
        return filled

    @attributes.setter
    def attributes(self, value: dict[str, Any]) -> None:
        _set_attributes(self, value)
        self.text = msgspec.Raw()

    def glance(self) -> Glance:
        """What can be seen without unpacking.

        Raises:
            ValueError: the text is no JSON object.
        """
        seen = self.seen
        if seen is None:
            seen = self.seen = _look(self.text)
        return seen

    def place(self, stream: str, sequence: int) -> None:
        """Give it its place in a stream."""
        if not self.text:
            super().place(stream, sequence)
        self.stream, self.sequence = stream, sequence

    @property
    def table(self) -> tuple[Any, Any, Any]:
        """As `Event.table`."""
        seen = self.glance()
        return seen.namespace, seen.collection, seen.operation

    def unpacked(self) -> Event:
        """As `Event.unpacked`."""
        return Event(
            id=self.id,
            name=self.name,
            time=self.time,
            attributes=self.attributes,
            observed=self.observed,
            severity=self.severity,
            trace_id=self.trace_id,
            span_id=self.span_id,
            trace_flags=self.trace_flags,
        )


_get_attributes: Final = Event.__dict__["attributes"].__get__
_set_attributes: Final = Event.__dict__["attributes"].__set__
_look: Final = msgspec.json.Decoder(Glance).decode
_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode
_CHANGES_KEY: Final = f'"{CHANGES}":'.encode()


def _unpacked(text: bytes, changes: msgspec.Raw) -> dict[str, Any]:
    """Attributes from their JSON, with what changed as the JSON that it was."""
    start = text.find(_CHANGES_KEY) + len(_CHANGES_KEY)
    # Within a text the quotes would be escaped: this is a key. There is one, and so it is ours or in a value.
    if start >= len(_CHANGES_KEY) and text.find(_CHANGES_KEY, start) < 0:
        known = bytes(changes)
        if known not in {b"", b"null"} and text.startswith(known, start):
            attributes = _decode(b"%bnull%b" % (text[:start], text[start + len(known) :]))
            attributes[CHANGES] = msgspec.Raw(known)
            return attributes
    return _decode(text)


def packed(value: Any) -> msgspec.Raw:
    """A JSON value as its own JSON text.

    Events wait for their batch by the thousand. As nested dicts they would be most of what the garbage
    collector walks through; as one text they are nothing to it, and are encoded once.
    """
    return msgspec.Raw(msgspec.json.encode(value))


class ResourceInfo(msgspec.Struct, frozen=True):
    """What produced the events: the OpenTelemetry resource, as plain JSON values."""

    attributes: dict[str, Any]

    @property
    def service_name(self) -> str:
        """``service.name``, as the SDK resolved it."""
        return str(self.attributes.get("service.name", "unknown_service"))


@dataclass(slots=True, kw_only=True)
class Performed:
    """Something that was done, as its caller says it: a user action, a login, a request.

    Not clean yet: `entity_id`, `details` and the values of `attributes` are any values, secrets included.

    Attributes:
        action: what was done, low-cardinality.
        name: the ``event_name``.
        user_id: who did it, if not the actor of the context in force.
        actor: the same in full, as attributes of an event; beats `user_id`.
        duration: seconds, or None when nobody measured it.
        error: the exception that ended it, or what stands for its type.
        delivery: its delivery class, if its caller chose one.
    """

    action: str
    name: str = ACTION
    entity_type: str | None = None
    entity_id: Any = None
    user_id: str | None = None
    actor: Mapping[str, Any] | None = None
    details: Any = None
    outcome: str = "success"
    duration: float | None = None
    error: BaseException | str | None = None
    delivery: str | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)


class Hashed(msgspec.Struct, frozen=True):
    """Stands where a secret was, and tells equal secrets from different ones.

    Attributes:
        digest: ``hmac-sha256:`` and 64 hexadecimal digits, keyed with ``OTEL_ACTIVITY_REDACT_KEY``.
    """

    digest: str


class Redacted:
    """Stands where a secret was. There is one instance; `codec.encode` turns it into ``{"$redacted": true}``.

    An object of our own, because a user's dict of that shape is data and must not pass for a redacted value.
    """

    __slots__ = ()
    _instance: ClassVar[Redacted | None] = None

    def __new__(cls) -> Redacted:
        if cls._instance is None:
            cls._instance = super().__new__(cls)
        return cls._instance

    def __repr__(self) -> str:
        return "[redacted]"

    def __copy__(self) -> Redacted:
        return self

    def __deepcopy__(self, memo: object) -> Redacted:
        return self

    def __reduce__(self) -> tuple[type[Redacted], tuple[()]]:
        return (Redacted, ())


class Entry(Protocol):
    """One captured change or action, not yet encoded (encoding is late, off the request path)."""

    context: Any
    """The request context in force when it was captured; read and dropped just before COMMIT."""
    otel: Any
    """OpenTelemetry's context of that moment."""
    attributes: dict[str, Any] | None
    """What the context said then."""
    time: int
    """When it was captured, in nanoseconds since 1970."""

    @property
    def delivery(self) -> str | None:
        """Its delivery class, if that is not the default."""
        ...

    @property
    def survives(self) -> bool:
        """Whether it is reported, as failed, when its transaction or savepoint is rolled back."""
        ...

    def rolled_back(self) -> None:
        """Its transaction or savepoint was rolled back. Called only on what survives, perhaps twice."""

    def to_event(self, unit: Unit, commit: Commit) -> Event:
        """Encode the entry. Called once, after the unit's fate is known; must not raise."""
        ...


class Proof(msgspec.Struct, frozen=True, array_like=True):
    """By what a database can be asked later whether a transaction was committed.

    Attributes:
        system: identifier of the database cluster.
        timeline: of the cluster's history when the id was read; after a failover ids are given out again.
        database: name of the database.
        xid: full id of the transaction, 64 bit.
        run: which run of the server gave it out, from one crash to the next. A crash may lose that an id was
            given out, and then the same id is given to another transaction.
    """

    system: str
    timeline: int
    database: str
    xid: int
    run: str = ""

    def __str__(self) -> str:
        """As events say it: system identifier, timeline and id."""
        return f"{self.system}/{self.timeline}/{self.xid}"


class Verdict(enum.Enum):
    """What a database says about a transaction that it is asked about by its `Proof`."""

    COMMITTED = enum.auto()
    ABORTED = enum.auto()
    IN_PROGRESS = enum.auto()
    """To be asked again."""
    UNKNOWN = enum.auto()
    """It cannot be known any more, whoever is asked."""


class Outlet(NamedTuple):
    """The open transaction of a unit, for a delivery that writes into it before COMMIT.

    Attributes:
        connection: the DBAPI connection.
        system: name of the dialect.
        driver: name of the driver.
        url: of the engine, an `sqlalchemy.URL`.
        joins: only the connection's own ``commit()`` follows: COMMIT may be sent with what is written.
    """

    connection: Any
    system: str
    driver: str
    url: Any
    joins: bool = False


Courier = Callable[[Callable[[], Any]], Any]
"""Is given what sends the COMMIT, and calls it, whatever it sent before or with it.

Raises `ActivityError` when what it had to write was refused: then nothing was committed.
"""


class Unit:
    """All entries of one transaction on one DBAPI connection, in the order the statements ran.

    Args:
        transaction_id: UUIDv7 as text; None for one that is made when it is first asked for, which with
            `best_effort` is not in the thread of the request.
        system: name of the dialect.
        database: name of the database.
    """

    __slots__ = (
        "_transaction_id",
        "answered",
        "commit",
        "courier",
        "database",
        "encoded",
        "entries",
        "error",
        "outlet",
        "prepared",
        "proof",
        "sent",
        "system",
    )

    def __init__(self, transaction_id: str | None, *, system: str, database: str) -> None:
        self._transaction_id = transaction_id
        self.system = system
        self.database = database
        self.entries: list[Entry] = []
        self.commit: Commit | None = None
        """Set when the fate is known and the unit is released; None while it is open or prepared."""
        self.error: str | None = None
        """Why the fate is unknown (an error's type), for ``activity.commit=unknown``."""
        self.proof: Proof | None = None
        """What the database can be asked by, if it can; set before the unit is prepared."""
        self.outlet: Outlet | None = None
        """While the unit is being prepared: its transaction, if that is surely the unit's own."""
        self.courier: Courier | None = None
        """Set by a delivery that has left its writing to the COMMIT."""
        self.encoded: dict[int, tuple[Entry, Event]] | None = None
        """What may stand in the transaction already, by ``id()`` of the entry: an interrupted COMMIT may be
        followed by another, and what was written must not be written again as something else."""
        self.prepared: Any = None
        """What a delivery that prepares keeps about the unit; nobody else's business."""
        self.sent = False
        """Whether its COMMIT is on its way: whoever is interrupted before knows that nothing happened."""
        self.answered = False
        """Whether that COMMIT was answered: whoever is interrupted after this knows what happened."""

    @property
    def transaction_id(self) -> str:
        """``activity.transaction.id``."""
        known = self._transaction_id
        if known is None:
            known = self._transaction_id = str(uuid_utils.uuid7())
        return known

    def __len__(self) -> int:
        return len(self.entries)

    def events(self) -> list[Event]:
        """Encode all entries, nothing packed; the unit must have been released."""
        commit = self.commit or Commit.UNKNOWN
        events = [entry.to_event(self, commit) for entry in self.entries]
        for event in events:
            event.attributes = event.plain_attributes()
        return events
