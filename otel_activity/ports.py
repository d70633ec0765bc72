"""The interfaces between layers. Adapters implement them; the composition root plugs them together."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from otel_activity.events import Courier, Event, Outlet, Performed, Proof, ResourceInfo, Unit, Verdict

__all__ = ["ActionSink", "Delivery", "EventExporter", "Outbox", "OutboxReader", "OutboxRow", "Resolver"]


class Delivery(Protocol):
    """What the transaction bracket hands units to, whatever the delivery class.

    The bracket calls `prepare` just before COMMIT and then exactly one of the others. Implementations
    must not raise, except from `prepare` with `errors.ActivityError` where the user chose to fail closed.
    """

    def prepare(self, unit: Unit) -> None:
        """COMMIT is about to be sent. What must survive a crash from here on is made safe now."""

    def committed(self, unit: Unit) -> None:
        """COMMIT succeeded: release the unit."""

    def aborted(self, unit: Unit) -> None:
        """The transaction is certainly not committed: forget the unit."""

    def undecided(self, unit: Unit, error: BaseException | None) -> None:
        """COMMIT may or may not have happened (connection lost, task cancelled, ended unseen)."""


class EventExporter(Protocol):
    """One attempt to deliver a batch somewhere. Retrying, counting and giving up are delivery's."""

    name: str
    """Short name for messages and metrics: ``postgres``, ``otlp``, ``console``."""

    def export(self, events: Sequence[Event], resource: ResourceInfo) -> None:
        """Deliver the batch. Returning means: every event is stored, was already, or is quarantined.

        `Event.plain_attributes` gives the attributes with nothing packed.

        Raises:
            ExportError: nothing is known to be lost; the same batch is to be sent again.
        """

    def close(self) -> None:
        """Release connections. Called once, from the exporting thread or at shutdown."""

    def after_fork(self) -> None:
        """In a forked child: drop inherited connections without closing them."""


class ActionSink(Protocol):
    """Where frameworks report what they see done: logins, requests."""

    def record(self, performed: Performed) -> None:
        """Release it as an event of its own, in the context in force. Must not raise."""


class Resolver(Protocol):
    """Finds out what became of transactions whose end nobody saw.

    Called from one thread of its own, never in the thread of a request, and again and again while a question
    is open.
    """

    def resolve(self, proofs: Sequence[Proof]) -> Sequence[Verdict]:
        """One verdict for each proof, in the same order.

        Raises:
            ActivityError: nobody could be asked; the same question comes again later.
        """

    def after_fork(self) -> None:
        """In a forked child: drop inherited connections without closing them."""


class OutboxRow(NamedTuple):
    """One event in an outbox.

    Attributes:
        xid: the database's id of its transaction.
        number: its place in that transaction.
        event: JSON, as `delivery.outbox` encodes it.
        resource: JSON object, of the process that wrote it.
    """

    xid: str
    number: int
    event: str
    resource: str


class OutboxReader(Protocol):
    """A connection to one outbox. Every method but `close` and `release` raises `ExportError`."""

    def take(self, limit: int, skip: int = 0) -> list[OutboxRow]:
        """Lock the oldest rows of ended transactions that nobody has, in order, after the first `skip`."""

    def release(self) -> None:
        """Let go of the rows that were taken."""

    def delete(self, rows: Sequence[OutboxRow]) -> None:
        """Remove rows for good, and let go of what was taken."""

    def newest(self) -> str | None:
        """Transaction of the newest row there is."""

    def left(self, xid: str) -> bool:
        """Whether there are rows of this transaction or of older ones."""

    def close(self) -> None:
        """Close the connection."""


class Outbox(Protocol):
    """Tables in the application's databases that hold events from their own transaction on."""

    def write(self, outlet: Outlet, ids: str, events: str, resource: str) -> Courier | None:
        """Write events into an open transaction.

        Args:
            outlet: of the transaction.
            ids: of the events, as `delivery.outbox` encodes them.
            events: JSON array, in the same order.
            resource: JSON object, of this process.

        Returns:
            None when that is done; else what does it together with the COMMIT, in one round trip.

        Raises:
            OutboxError: that failed, and so must the transaction.
        """

    def read_only(self, outlet: Outlet) -> bool:
        """Whether the transaction can write nothing at all; asks the server."""

    def addresses(self) -> Sequence[str]:
        """Databases whose outbox this process knows; secrets included."""

    def reader(self, address: str) -> OutboxReader:
        """Connect to one of them.

        Raises:
            ExportError: nobody answers there, or it refuses.
        """
