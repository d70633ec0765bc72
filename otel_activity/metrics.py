"""Our own numbers as OpenTelemetry metrics, through the application's `MeterProvider`.

Most are read, when an exporter of metrics asks, from the dict that `get_queue_metrics()` returns: nothing is
counted twice, and no lock of a request is held. An instrument is one line in `READINGS`. What takes time is
recorded as it happens: each attempt to export, and one in `SAMPLE` commits.

docs/metrics.md lists them all; a test compares.
"""

from __future__ import annotations

import logging
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from opentelemetry import metrics as metrics_api
from opentelemetry.metrics import Observation

from otel_activity import semconv
from otel_activity.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from opentelemetry.metrics import CallbackOptions, Meter

    from otel_activity.events import Event, Unit
    from otel_activity.ports import Delivery

    Read = Callable[[Mapping[str, Any]], Iterable[tuple[float, Mapping[str, str]]]]

__all__ = [
    "HISTOGRAMS",
    "READINGS",
    "SAMPLE",
    "Captured",
    "Instruments",
    "MeteredDelivery",
    "Reading",
    "anybody_reads",
    "instruments",
]

L = TypeVar("L")

REASON: Final = "otel_activity.drop.reason"
DELIVERY: Final = "otel_activity.delivery"
BEST_EFFORT: Final = "best_effort"
SAMPLE: Final = 64
"""One in so many commits is timed: recording costs ten times what it times."""

MOST_TABLES: Final = 1_000
"""Tables and operations that are counted apart; the rest are counted as the table `_OTHER`."""

_logger: Final = logging.getLogger("otel_activity")
_ENTITY: Final = "activity.entity."
_OTHER: Final = "_OTHER"
_POOL_NAME: Final = "db.client.connection.pool.name"
_COMPONENT_NAME: Final = "otel.component.name"
_COMPONENT_TYPE: Final = "otel.component.type"
_LANE: Final = "otel_activity.delivery.Lane"
"""The conventions want the type's own name where they have none."""


class Reading(NamedTuple):
    """An instrument that is read from the counters when somebody asks."""

    name: str
    kind: str
    """``counter``, ``updowncounter`` or ``gauge``."""
    unit: str
    """In UCUM, with annotations in braces."""
    description: str
    read: Read


class Timing(NamedTuple):
    """A histogram of seconds."""

    name: str
    unit: str
    description: str
    buckets: tuple[float, ...]


# --- how to read ----------------------------------------------------------------------------------


def _whole(*path: str) -> Read:
    """One number of the process; nothing when this delivery does not have it."""

    def read(found: Mapping[str, Any]) -> Iterable[tuple[float, Mapping[str, str]]]:
        value: Any = found
        for key in path:
            value = value.get(key) if value is not None else None
        return () if value is None else ((value, {}),)

    return read


def _each(key: str, **attributes: str) -> Read:
    """One number of each exporter."""
    also = {name.replace("_", "."): value for name, value in attributes.items()}

    def read(found: Mapping[str, Any]) -> Iterable[tuple[float, Mapping[str, str]]]:
        return [(lane[key], {**component(name), **also}) for name, lane in found.get("exporters", {}).items()]

    return read


def _first(*reads: Read) -> Read:
    """Several readings of one instrument, told apart by attributes."""
    return lambda found: [each for read in reads for each in read(found)]


def _released(found: Mapping[str, Any]) -> Iterable[tuple[float, Mapping[str, str]]]:
    """By delivery class, the way that an event went."""
    classes = found.get("deliveries")
    if classes is None:
        return _whole("released")(found)
    return [(counts["released"], {DELIVERY: name}) for name, counts in classes.items()]


def _dropped(found: Mapping[str, Any]) -> Iterable[tuple[float, Mapping[str, str]]]:
    """By where: in front of the exporters, or on the way to one; and by class where that can be told."""
    lanes = found.get("exporters", {})
    before = found.get("dropped", 0) - sum(lane["dropped"] for lane in lanes.values())
    # A full or failing exporter costs what is in memory alone by choice; the rest waits in front of it.
    on_the_way = sum(lane["dropped"] - lane["rejected"] for lane in lanes.values())
    classes = found.get("deliveries")
    if classes is None:
        yield before, {REASON: "queue"}
    for name, counts in (classes or {}).items():
        count = counts["dropped"] - (on_the_way if name == BEST_EFFORT else 0)
        yield count, {REASON: "queue", DELIVERY: name}
    for name, lane in lanes.items():
        told = {**component(name), DELIVERY: BEST_EFFORT}
        yield lane["dropped"] - lane["rejected"], {**told, REASON: "exporter"}
        yield lane["rejected"], {**component(name), REASON: "rejected"}


def _failing(found: Mapping[str, Any]) -> Iterable[tuple[float, Mapping[str, str]]]:
    for name, lane in found.get("exporters", {}).items():
        yield int(lane["trouble"] is not None), component(name)


def _circuit(found: Mapping[str, Any]) -> Iterable[tuple[float, Mapping[str, str]]]:
    for name, lane in found.get("exporters", {}).items():
        yield int(lane["circuit"] != "closed"), component(name)


def _connections(found: Mapping[str, Any]) -> Iterable[tuple[float, Mapping[str, str]]]:
    for pool in found.get("pools", ()):
        named = {_POOL_NAME: pool.name}
        yield pool.used, {**named, "db.client.connection.state": "used"}
        yield pool.idle, {**named, "db.client.connection.state": "idle"}


def _most_connections(found: Mapping[str, Any]) -> Iterable[tuple[float, Mapping[str, str]]]:
    for pool in found.get("pools", ()):
        if pool.most is not None:
            yield pool.most, {_POOL_NAME: pool.name}


def _captured(found: Mapping[str, Any]) -> Iterable[tuple[float, Mapping[str, str]]]:
    for (namespace, collection, operation), count in found.get("captured", {}).items():
        yield (
            count,
            {
                semconv.DB_NAMESPACE: namespace,
                semconv.DB_COLLECTION_NAME: collection,
                semconv.DB_OPERATION_NAME: operation,
            },
        )


def component(exporter: str) -> dict[str, str]:
    """The attributes that name the road to one exporter."""
    return {_COMPONENT_TYPE: _LANE, _COMPONENT_NAME: f"otel_activity/{exporter}"}


# --- the instruments ------------------------------------------------------------------------------

READINGS: Final[tuple[Reading, ...]] = (
    Reading(
        "otel.sdk.processor.log.queue.size",
        "updowncounter",
        "{log_record}",
        "Events handed to an exporter's queue and not confirmed by it.",
        _each("pending"),
    ),
    Reading(
        "otel.sdk.processor.log.queue.capacity",
        "updowncounter",
        "{log_record}",
        "Most events that an exporter's queue takes.",
        _each("capacity"),
    ),
    Reading(
        "otel.sdk.exporter.log.exported",
        "counter",
        "{log_record}",
        "Events that an exporter is done with: confirmed, or with error.type rejected by its receiver.",
        _first(_each("confirmed"), _each("rejected", error_type="rejected")),
    ),
    Reading(
        "otel_activity.event.released",
        "counter",
        "{event}",
        "Events of committed transactions handed to delivery, by otel_activity.delivery (their class).",
        _released,
    ),
    Reading(
        "otel_activity.change.captured",
        "counter",
        "{row}",
        "Row changes of committed transactions, by table and operation, counted on the way to the exporters.",
        _captured,
    ),
    Reading(
        "otel_activity.event.waiting",
        "updowncounter",
        "{event}",
        "Events released and not yet encoded.",
        _whole("waiting"),
    ),
    Reading(
        "otel_activity.event.dropped",
        "counter",
        "{event}",
        "Events lost, by otel_activity.drop.reason: queue (no room before the exporters), exporter (no room "
        "in its queue, or left at the end), rejected (by the receiver, for good); but for the last also by "
        "otel_activity.delivery (their class).",
        _dropped,
    ),
    Reading(
        "otel_activity.event.quarantined",
        "counter",
        "{event}",
        "Events that the store refused for what they contain, kept in its table quarantine.",
        _each("quarantined"),
    ),
    Reading(
        "otel_activity.event.oldest.age",
        "gauge",
        "s",
        "Age of the oldest event in an exporter's queue, to the second; 0 when it is empty.",
        _each("oldest_age"),
    ),
    Reading(
        "otel_activity.export.retries",
        "counter",
        "{attempt}",
        "Attempts to export that failed and were or will be repeated.",
        _each("retries"),
    ),
    Reading(
        "otel_activity.export.failing",
        "gauge",
        "{exporter}",
        "1 while the last attempt of an exporter failed, else 0.",
        _failing,
    ),
    Reading(
        "otel_activity.export.circuit",
        "gauge",
        "{exporter}",
        "1 while the circuit breaker of an exporter is open (or half-open: being probed), else 0.",
        _circuit,
    ),
    Reading(
        "otel_activity.unit.undecided",
        "counter",
        "{transaction}",
        "Transactions whose COMMIT may or may not have happened.",
        _whole("undecided"),
    ),
    Reading(
        "otel_activity.journal.size",
        "updowncounter",
        "By",
        "Size of the journals on disk that this process writes or has adopted.",
        _whole("journal", "bytes"),
    ),
    Reading(
        "otel_activity.journal.units",
        "updowncounter",
        "{transaction}",
        "Transactions in the journals that some exporter has not confirmed.",
        _whole("journal", "units"),
    ),
    Reading(
        "otel_activity.journal.kept",
        "updowncounter",
        "{transaction}",
        "Transactions in journals of dead processes, kept for exporters that this process does not have.",
        _whole("journal", "kept"),
    ),
    Reading(
        "otel_activity.journal.asked",
        "updowncounter",
        "{transaction}",
        "Transactions whose fate the database is being asked about.",
        _whole("journal", "asked"),
    ),
    Reading(
        "otel_activity.journal.lost",
        "counter",
        "{record}",
        "Records of journals that were found damaged.",
        _whole("journal", "lost_records"),
    ),
    Reading(
        "otel_activity.journal.lost_events",
        "counter",
        "{event}",
        "Events of damaged journals that are known to be lost.",
        _whole("journal", "lost_events"),
    ),
    Reading(
        "otel_activity.event.unjournaled",
        "counter",
        "{event}",
        "Events that could not be written to the journal and were only kept in memory.",
        _whole("journal", "unjournaled"),
    ),
    Reading(
        "db.client.connection.count",
        "updowncounter",
        "{connection}",
        "Connections in the pool of an audited engine, used or idle.",
        _connections,
    ),
    Reading(
        "db.client.connection.max",
        "updowncounter",
        "{connection}",
        "Most connections that the pool of an audited engine may have.",
        _most_connections,
    ),
)
"""Everything that is read. The same numbers are in `get_queue_metrics()`."""

EXPORT_DURATION: Final = Timing(
    "otel.sdk.exporter.operation.duration",
    "s",
    "One attempt to export a batch; with error.type when it failed.",
    (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
COMMIT_OVERHEAD: Final = Timing(
    "otel_activity.commit.overhead",
    "s",
    f"What delivery takes of a request around COMMIT, by otel_activity.step (prepare, committed); one commit "
    f"in {SAMPLE} is timed.",
    (0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.1, 1),
)
OPERATION_DURATION: Final = Timing(
    "db.client.operation.duration",
    "s",
    "Duration of one statement, with error.type when it failed; with OTEL_ACTIVITY_DATABASE_METRICS.",
    (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10),
)
WAIT_TIME: Final = Timing(
    "db.client.connection.wait_time",
    "s",
    "Time until a pool gave out a connection, or failed to; with OTEL_ACTIVITY_DATABASE_METRICS.",
    (0.000_1, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30),
)
HISTOGRAMS: Final = (EXPORT_DURATION, COMMIT_OVERHEAD, OPERATION_DURATION, WAIT_TIME)


class Instruments:
    """All instruments of one meter. They exist for good; what they read can be exchanged.

    Args:
        meter: creates them.
    """

    def __init__(self, meter: Meter) -> None:
        self._read: Callable[[], Mapping[str, Any]] | None = None
        create: dict[str, Callable[..., Any]] = {
            "counter": meter.create_observable_counter,
            "updowncounter": meter.create_observable_up_down_counter,
            "gauge": meter.create_observable_gauge,
        }
        for reading in READINGS:
            create[reading.kind](
                reading.name, [partial(self._observe, reading)], reading.unit, reading.description
            )
        self._export, self._commit, self._operation, self._wait = (
            meter.create_histogram(
                timing.name,
                timing.unit,
                timing.description,
                explicit_bucket_boundaries_advisory=timing.buckets,
            )
            for timing in HISTOGRAMS
        )

    def watch(self, read: Callable[[], Mapping[str, Any]] | None) -> None:
        """Read the counters with `read` from now on; with None, there is nothing to see."""
        self._read = read

    def _observe(self, reading: Reading, _: CallbackOptions) -> list[Observation]:
        read = self._read
        if read is None:
            return []
        try:
            return [Observation(value, attributes) for value, attributes in reading.read(read())]
        except Exception:
            _logger.debug("otel_activity: %s cannot be read", reading.name, exc_info=True)
            return []

    def exported(self, exporter: str, seconds: float, error: str | None) -> None:
        """One attempt to export ended.

        Args:
            exporter: its name.
            seconds: how long it took.
            error: type of the error; None when it succeeded.
        """
        attributes = component(exporter)
        if error is not None:
            attributes[semconv.ERROR_TYPE] = error
        self._export.record(seconds, attributes)

    def committing(self, step: str, seconds: float) -> None:
        """Delivery took so long of a request; in its own context, so that an exemplar leads to its trace."""
        self._commit.record(seconds, {"otel_activity.step": step})

    def operation(self, seconds: float, attributes: Mapping[str, str]) -> None:
        """A statement took so long; in its own context, as above."""
        self._operation.record(seconds, attributes)

    def connection_wait(self, seconds: float, pool: str) -> None:
        """A pool took so long to give out a connection."""
        self._wait.record(seconds, {_POOL_NAME: pool})


_ours: Instruments | None = None


def instruments() -> Instruments:
    """The instruments of the application's provider, even if it is set later.

    Made once in a process: instruments cannot be taken back.
    """
    global _ours
    if _ours is None:
        try:
            meter = metrics_api.get_meter(semconv.SCOPE_NAME, __version__, schema_url=semconv.SCHEMA_URL)
        except Exception as error:  # noqa: BLE001 - a typo in OTEL_PYTHON_METER_PROVIDER is no reason not to audit
            _logger.warning("otel_activity: no metrics, the meter provider cannot be loaded (%s)", error)
            meter = metrics_api.NoOpMeter(semconv.SCOPE_NAME)
        _ours = Instruments(meter)
    return _ours


class Captured:
    """Counts row changes by table on their way to the exporters, in the thread that takes them there.

    Args:
        first: called once, before the first of them is counted: the program has surely begun its own work.
    """

    def __init__(self, first: Callable[[], object] | None = None) -> None:
        self._counts: dict[tuple[str, str, str], int] = {}
        self._first = first

    def counts(self) -> dict[tuple[str, str, str], int]:
        """How many, by ``db.namespace``, ``db.collection.name`` and ``db.operation.name``."""
        return self._counts.copy()

    def after_fork(self) -> None:
        """In a forked child: the parent's are not ours."""
        self._counts = {}

    def all_roads(self, emit: Callable[[Event], None]) -> Callable[[Event], None]:
        """What emits an event to all exporters, and counts."""

        def emitting(event: Event) -> None:
            emit(event)
            self._count(event)

        return emitting

    def one_road(
        self, emit_to: Callable[[L, Event, Mapping[str, Any] | None], None], lanes: Sequence[L]
    ) -> Callable[[L, Event, Mapping[str, Any] | None], None]:
        """What emits an event to one exporter, and counts those to the first: each goes to all in turn."""
        first = lanes[0] if lanes else None

        def emitting(lane: L, event: Event, origin: Mapping[str, Any] | None) -> None:
            emit_to(lane, event, origin)
            if lane is first:
                self._count(event)

        return emitting

    def _count(self, event: Event) -> None:
        if not event.name.startswith(_ENTITY):
            return
        key = event.table
        counts = self._counts
        if key not in counts:
            if self._first is not None:
                first, self._first = self._first, None
                first()
            if len(counts) >= MOST_TABLES:
                key = ("", _OTHER, key[2])
        counts[key] = counts.get(key, 0) + 1


def anybody_reads(environ: Mapping[str, str]) -> bool:
    """Whether what is recorded may reach somebody; a provider may also be set later."""
    if environ.get("OTEL_METRICS_EXPORTER", "").strip().lower() == "none":
        return False
    try:
        return not isinstance(metrics_api.get_meter_provider(), metrics_api.NoOpMeterProvider)
    except Exception:  # noqa: BLE001 - a typo in OTEL_PYTHON_METER_PROVIDER, see above
        return False


class MeteredDelivery:
    """A `ports.Delivery` in front of another that times one commit in `SAMPLE`.

    Args:
        inner: does the work; may be exchanged at any time.
        instruments: record it.
    """

    def __init__(self, inner: Delivery, instruments: Instruments) -> None:
        self.inner = inner
        self._record = instruments.committing
        # Racing threads may lose a count: then the next commit is timed.
        self._prepared = self._committed = 0

    def prepare(self, unit: Unit) -> None:
        """As the inner one."""
        self._prepared += 1
        if self._prepared % SAMPLE:
            self.inner.prepare(unit)
            return
        started = perf_counter()
        self.inner.prepare(unit)
        self._record("prepare", perf_counter() - started)

    def committed(self, unit: Unit) -> None:
        """As the inner one."""
        self._committed += 1
        if self._committed % SAMPLE:
            self.inner.committed(unit)
            return
        started = perf_counter()
        self.inner.committed(unit)
        self._record("committed", perf_counter() - started)

    def aborted(self, unit: Unit) -> None:
        """As the inner one."""
        self.inner.aborted(unit)

    def undecided(self, unit: Unit, error: BaseException | None) -> None:
        """As the inner one."""
        self.inner.undecided(unit, error)
