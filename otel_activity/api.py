"""The composition root: builds the pipeline from the settings, starts it, and ends it."""

from __future__ import annotations

import atexit
import hashlib
import logging
import math
import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import uuid_utils
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource

from otel_activity import actions, semconv
from otel_activity.capture import ProofReader, SQLAlchemyCapture, check
from otel_activity.classes import DELIVERIES, Classes
from otel_activity.declare import declared_deliveries
from otel_activity.delivery import (
    DurableDelivery,
    GapLog,
    Heartbeat,
    Journaled,
    Memory,
    NoOutbox,
    Overflow,
    QueuedDelivery,
    Refusing,
    RoutedDelivery,
    StrictDelivery,
    journal_directory,
    service_directory,
)
from otel_activity.delivery.lane import log_safely
from otel_activity.errors import ConfigurationError, ExportError, StoreUnavailable
from otel_activity.frameworks import WebHooks
from otel_activity.metrics import Captured, MeteredDelivery, anybody_reads, instruments
from otel_activity.redaction import Redactor
from otel_activity.settings import FIELDS, Settings, lookalikes, on_terminal
from otel_activity.telemetry import (
    GlobalPipeline,
    Pipeline,
    console_exporter,
    otlp_exporter,
)
from otel_activity.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from opentelemetry.sdk._logs.export import LogRecordExporter

    from otel_activity.ports import Delivery, Outbox
    from otel_activity.postgres.exporter import PostgresEventExporter
    from otel_activity.postgres.resolver import TransactionResolver

__all__ = ["flush_queue", "get_queue_metrics", "instrument", "is_active", "shutdown", "uninstrument"]

_logger: Final = logging.getLogger("otel_activity")
_lock = threading.RLock()
_settling = threading.RLock()


class _Runtime:
    """One running audit trail."""

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        self.settings = settings
        self.pid = os.getpid()
        self.ended = 0
        self.warned = False
        redactor = Redactor.configured(settings)
        self.pipeline: Pipeline | GlobalPipeline
        if settings.logger_provider == "global":
            self.pipeline = GlobalPipeline(__version__)
        else:
            self.pipeline = _own_pipeline(settings, environ, redactor)
        self.captured = Captured(_late_variables(environ))
        try:
            resolver = _resolver(settings)
            self.delivery = _delivery(settings, self.pipeline, environ, resolver, self.captured)
        except BaseException:
            self.pipeline.shutdown(time.monotonic())
            raise
        self.metrics = instruments()
        for lane in self.pipeline.lanes:
            lane.attempted = self.metrics.exported
        self.ways = _ways(self.delivery, settings)
        self.entrance = MeteredDelivery(self.ways[settings.delivery], self.metrics)
        self.capture = SQLAlchemyCapture(
            self.entrance,
            redactor=redactor,
            include=settings.include,
            exclude=settings.exclude,
            fetch_before=settings.fetch_before,
            value_length_limit=settings.value_length_limit,
            timings=self.metrics if settings.database_metrics and anybody_reads(environ) else None,
            proofs=_proofs(self.delivery, settings, resolver),
            classes=Classes(settings.delivery, settings.delivery_rules, self.route),
            forked=self.settle_in,
        )
        self.web = WebHooks(settings, self.drain, self.capture.actions, redactor.scrub_attributes)
        self.signals = _TermHandler(self.leave, self.drain, self.abandon)

    def start(self) -> None:
        for problem in check():
            _logger.warning("otel_activity: %s", problem)
        self.delivery.start()
        self.capture.install()
        actions.use(self.capture.actions)
        self.web.install()
        self.signals.install()
        self.metrics.watch(self.numbers)

    def numbers(self) -> dict[str, Any]:
        """Everything that metrics are read from."""
        also = {"pools": self.capture.pools.usage(), "captured": self.captured.counts()}
        return {**self.delivery.metrics(), **also}

    def route(self, delivery: str) -> None:
        """An event has another class than the default: from now on units are looked at, and split."""
        if not isinstance(self.entrance.inner, RoutedDelivery):
            self.entrance.inner = RoutedDelivery(self.ways, self.settings.delivery)
        if isinstance(self.delivery, QueuedDelivery) and not self.warned:
            self.warned = True
            _logger.error(
                "otel_activity: %s delivery is asked for, and %s", delivery, _memory_only(self.settings)
            )

    def flush(self, timeout: float | None = None) -> bool:
        return self._flushed(self.delivery.flush, timeout)

    def drain(self) -> None:
        """Flush because the process ends, or part of it. Nobody asked, so nobody is told what was lost."""
        self._flushed(self.delivery.drain, None)

    def _flushed(self, flush: Callable[[float, Callable[[], None]], bool], timeout: float | None) -> bool:
        self.settle_in()
        limit = self.settings.shutdown_timeout if timeout is None else timeout
        deadline = time.monotonic() + limit
        done = flush(limit, self.pipeline.poke)
        return self.pipeline.settle(deadline) and done  # a loss is no reason not to wait for the others

    def leave(self) -> None:
        """The process is about to end."""
        self.settle_in()
        self.delivery.leave()

    def flush_worker(self) -> None:
        """At the end of a worker; once, however many finalizers there are."""
        if self.ended != os.getpid():
            self.ended = os.getpid()
            self.drain()

    def abandon(self) -> None:
        """The process ends at once: count and log what is left."""
        self.delivery.abandon()
        for lane in self.delivery.lanes:
            lane.abandon()
        self.delivery.last_words()

    def stop(self, timeout: float | None = None, *, at_exit: bool = False) -> bool:
        deadline = time.monotonic() + (self.settings.shutdown_timeout if timeout is None else timeout)
        self.metrics.watch(None)
        self.signals.uninstall()
        if at_exit:
            # Other threads may commit until the process is gone: that is captured, and kept for the next one.
            self.delivery.outlast()
        else:
            self.web.uninstall()
            actions.use(None)
            self.capture.uninstall()
        self._say_misspelt()
        self.delivery.close(deadline)
        left = self.pipeline.shutdown(deadline)
        done = self.delivery.finish() and left == 0
        return not self.delivery.losses_untold() and done

    def _say_misspelt(self) -> None:
        """Now, because until now a model of that name could still have been imported."""
        try:
            for line in self.capture.misspelt():
                log_safely(logging.WARNING, "otel_activity: %s", line)
        except Exception:  # noqa: BLE001 - a hint must not keep what is queued from being delivered
            log_safely(logging.DEBUG, "otel_activity: settings could not be compared", exc_info=True)

    def after_fork(self) -> None:
        self.captured.after_fork()
        self.delivery.after_fork()
        self.pipeline.after_fork()
        _flush_at_end_of_worker(self)
        # Last: see `settle_in`; other threads go on once these say that all is done.
        self.capture.after_fork()
        self.pid = os.getpid()

    def settle_in(self) -> None:
        """Be at home in this process. uWSGI forks its workers without Python's hooks, so nobody told us."""
        if os.getpid() == self.pid:
            return
        with _settling:
            if os.getpid() != self.pid:
                reseed = getattr(uuid_utils, "reseed_rng", None)  # before 0.12 the library saw to it itself
                if reseed is not None:
                    reseed()  # as its own hook does: workers must not make the same ids
                _after_fork()


_runtime: _Runtime | None = None
_hooked = False


def instrument(**settings: Any) -> bool:
    """Start auditing every SQLAlchemy session of this process.

    Call it once, early; sessions and engines may exist already. Under ``opentelemetry-instrument`` it has
    happened before the program starts, and a further call does nothing; one line is logged if it asks for
    other settings than those in force.

    Args:
        **settings: any field of `Settings`; an argument beats the environment.

    Returns:
        Whether auditing is active. It is not when it is disabled, or when nothing says where events go: then
        one warning says how to configure it.

    Raises:
        ConfigurationError: a setting is wrong in itself.
        StoreUnavailable: ``startup="require"``, and no working store within ``startup_timeout`` seconds.
    """
    global _runtime
    with _lock:
        if _runtime is not None:
            _say_too_late(_runtime.settings, settings)
            return True
        if Settings.switched_off(os.environ, settings.get("disabled")):
            _logger.warning("otel_activity: auditing is off, because OTEL_ACTIVITY_DISABLED says so")
            return False
        resolved = Settings.from_env(interactive=on_terminal(), **settings)
        _say_lookalikes(os.environ)
        if not _wanted(resolved, os.environ):
            return False
        if resolved.startup == "require":
            _wait_for_store(resolved)
        runtime = _Runtime(resolved, os.environ)
        _hook_process()
        try:
            runtime.start()
        except BaseException:
            runtime.stop(0)
            raise
        _runtime = runtime
        _flush_at_end_of_worker(runtime)
        return True


def _say_lookalikes(environ: Mapping[str, str]) -> None:
    """A slip in a name must not pass for less redaction, or fewer tables, without a word."""
    for variable, meant in lookalikes(environ):
        _logger.error("otel_activity: %s is no setting; did you mean %s? It is not read", variable, meant)


def _late_variables(environ: Mapping[str, str]) -> Callable[[], None]:
    """What says which of our variables have been set since now; those that were taken away do not count.

    A program that reads a file of variables by itself (`load_dotenv`, uvicorn's ``--env-file``) does so after
    auditing has started, and nobody may believe that a column is redacted by what stands there.
    """
    variables = [spec.variable for spec in FIELDS]
    before = {variable: environ.get(variable) for variable in variables}

    def say() -> None:
        now = {variable: environ.get(variable) for variable in variables}
        late = [name for name in variables if now[name] is not None and now[name] != before[name]]
        if late:
            log_safely(
                logging.ERROR,
                "otel_activity: %s is not read, because it was set after auditing had started; set it before "
                "the program starts, not in it or by a file that it reads",
                ", ".join(late),
            )

    return say


def _say_too_late(running: Settings, asked: Mapping[str, Any]) -> None:
    """Nobody may believe that a column is redacted, or a table audited, by a setting that came too late."""
    late = running.contradicted_by(asked)
    if late:
        _logger.error(
            "otel_activity: instrument(%s) changes nothing, because auditing runs already with others; "
            "set %s before the program starts, or call uninstrument() first",
            ", ".join(f"{spec.name}=..." for spec in late),
            ", ".join(spec.variable for spec in late),
        )


def uninstrument() -> None:
    """Stop auditing, deliver what is queued, and restore everything that was changed."""
    shutdown()


def is_active() -> bool:
    """Whether this process is being audited."""
    return _runtime is not None


def flush_queue(timeout: float | None = None) -> bool:
    """Deliver everything released until now.

    Args:
        timeout: seconds; ``OTEL_ACTIVITY_SHUTDOWN_TIMEOUT`` by default.

    Returns:
        Whether every exporter has confirmed every event since the last call. What was lost meanwhile makes
        one call False, however long before it that was. True when auditing is not active.
    """
    runtime = _runtime
    return True if runtime is None else runtime.flush(timeout)


def shutdown(timeout: float | None = None) -> bool:
    """Stop auditing and deliver what is queued.

    Args:
        timeout: seconds; ``OTEL_ACTIVITY_SHUTDOWN_TIMEOUT`` by default.

    Returns:
        Whether everything since the last `flush_queue` was delivered. What was not is counted and logged.
    """
    return _stop(timeout)


def _stop(timeout: float | None = None, *, at_exit: bool = False) -> bool:
    global _runtime
    runtime = _runtime
    if runtime is not None:
        runtime.settle_in()  # before the lock, which a thread of the parent may hold
    with _lock:
        runtime, _runtime = _runtime, None
        return True if runtime is None else runtime.stop(timeout, at_exit=at_exit)


def _at_exit() -> None:
    runtime = _runtime
    if runtime is None or runtime.pid == os.getpid():
        _stop(at_exit=True)
    # Else nothing was captured in this process yet, and nobody told us of it: all there is is the parent's.


def get_queue_metrics() -> dict[str, Any]:
    """Counters of the queue: ``waiting``, ``released``, ``dropped``, ``undecided`` (units whose COMMIT is
    unknown), and for each exporter ``pending``, ``capacity``, ``oldest_age`` (seconds), ``confirmed``,
    ``dropped``, ``rejected``, ``quarantined``, ``retries`` and ``trouble``. ``deliveries`` has ``released``
    and ``dropped`` for each delivery class; what a receiver rejected is in none of them.
    With a journal ``outbox``: ``drained`` (events), ``trouble``; and ``journal``: ``bytes``, ``segments``,
    ``units`` (not confirmed by all), ``asked`` (whose fate the database is being asked about), ``adopted``,
    ``unjournaled`` (events), ``lost_bytes``, ``lost_records`` (damage found) and ``lost_events``.
    """
    runtime = _runtime
    if runtime is None:
        return {}
    runtime.settle_in()
    return runtime.delivery.metrics()


class Relayed(NamedTuple):
    """What `relay_journals` did.

    Attributes:
        events: that dead processes left.
        lost_records: of damaged journals.
        left: whether something is left.
        kept: transactions that are left for exporters which dead processes had, and this one has not.
        lost: events that an exporter will never have; each of them once for each such exporter.
    """

    events: int
    lost_records: int
    left: bool
    kept: int = 0
    lost: int = 0


def relay_journals(
    directory: Path, *, timeout: float, without: Collection[str] = (), **settings: Any
) -> Relayed:
    """Deliver what dead processes left in their journals, and remove what was delivered.

    Args:
        directory: of journals, of one service or of all.
        timeout: seconds.
        without: exporters that dead processes had, and that nobody is to wait for.
        **settings: any field of `Settings`; an argument beats the environment.

    Raises:
        ConfigurationError: a setting is wrong, or nothing says where events go.
    """
    resolved = _relay_settings(settings, "durable")
    deadline = time.monotonic() + timeout
    pipeline = _own_pipeline(resolved, os.environ, Redactor.configured(resolved))
    delivery = DurableDelivery(
        pipeline.lanes,
        pipeline.emit_to,
        capacity=resolved.max_queue_size,
        home=directory,
        others=[path for path in sorted(directory.iterdir()) if path.is_dir()],
        writes=False,
        given_up=without,
        resolver=_resolver(resolved),
        gaps=GapLog(),
    )
    delivery.start()
    done = delivery.drain(timeout, pipeline.poke)
    delivery.close(deadline)
    pipeline.shutdown(deadline)
    kept = delivery.metrics()["journal"]["kept"]
    left = not (delivery.finish() and done) or kept > 0
    return Relayed(delivery.adopted, delivery.lost_records, left, kept, delivery.metrics()["dropped"])


def relay_outbox(dsn: str, *, timeout: float, **settings: Any) -> Relayed:
    """Deliver what transactions have left in the outbox of a database, and remove what was delivered.

    Any number of relays may work at the same time, and so may the processes that write.

    Args:
        dsn: of the application's database.
        timeout: seconds.
        **settings: any field of `Settings`; an argument beats the environment.

    Raises:
        ConfigurationError: a setting is wrong, or nothing says where events go.
        StoreUnavailable, StoreRefused: the outbox cannot be read.
    """
    resolved = _relay_settings(settings, "strict")
    deadline = time.monotonic() + timeout
    pipeline = _own_pipeline(resolved, os.environ, Redactor.configured(resolved))
    with TemporaryDirectory() as nothing:
        delivery = _strict(resolved, pipeline, (dsn,))(
            pipeline.lanes,
            pipeline.emit_to,
            capacity=resolved.max_queue_size,
            home=Path(nothing),
            about=pipeline.own_resource,
            writes=False,
            gaps=GapLog(),
        )
        delivery.start()
        done = delivery.drain(timeout, pipeline.poke)
        delivery.close(deadline)
        pipeline.shutdown(deadline)
        left = not (delivery.finish() and done)
    metrics = delivery.metrics()
    return Relayed(metrics["outbox"]["drained"], 0, left, lost=metrics["dropped"])


def _relay_settings(settings: Mapping[str, Any], delivery: str) -> Settings:
    resolved = Settings.from_env(**{**settings, "delivery": delivery, "logger_provider": "own"})
    if not resolved.active:
        fix = "set OTEL_ACTIVITY_POSTGRES_DSN or OTEL_ACTIVITY_EXPORTERS"
        raise ConfigurationError("OTEL_ACTIVITY_EXPORTERS", "", "nothing says where events go", fix)
    return resolved


# --- building -------------------------------------------------------------------------------------


def _wanted(settings: Settings, environ: Mapping[str, str]) -> bool:
    if settings.exporters == ("none",):
        _logger.warning("otel_activity: auditing is off, because OTEL_ACTIVITY_EXPORTERS=none says so")
        return False
    if not settings.active:
        _logger.warning(
            "otel_activity: auditing is off, because nothing says where events go; set "
            "OTEL_ACTIVITY_POSTGRES_DSN=postgresql://user:password@host:5432/database (or "
            "OTEL_ACTIVITY_EXPORTERS), or OTEL_ACTIVITY_DISABLED=true if that is meant"
        )
        return False
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        _logger.error(
            "otel_activity: AUDITING IS OFF, because OTEL_SDK_DISABLED=true switches the whole OpenTelemetry "
            "SDK off; unset it, or set OTEL_ACTIVITY_DISABLED=true if that is meant"
        )
        return False
    return True


def _own_pipeline(settings: Settings, environ: Mapping[str, str], redactor: Redactor) -> Pipeline:
    pipeline = Pipeline(
        _without_secrets(_resource(), redactor),
        schedule_delay=settings.schedule_delay,
        batch_size=settings.max_export_batch_size,
        queue_size=settings.max_queue_size,
        export_timeout=settings.export_timeout,
        version=__version__,
    )
    for name in settings.exporters:
        if name == "postgres":
            pipeline.add(name, _postgres(settings))
        elif name == "otlp":
            make = partial(_otlp, settings.otlp_endpoint, _otlp_protocol(environ))
            pipeline.add(name, make(), make)
        elif name == "console":
            pipeline.add(name, console_exporter())
    return pipeline


def _delivery(
    settings: Settings,
    pipeline: Pipeline | GlobalPipeline,
    environ: Mapping[str, str],
    resolver: TransactionResolver | None,
    captured: Captured,
) -> QueuedDelivery | DurableDelivery:
    overflow = Overflow(settings.overflow, settings.overflow_timeout)
    heartbeat = _heartbeat(settings)
    wanted = _wanted_deliveries(settings)
    if wanted != {"best_effort"} and isinstance(pipeline, Pipeline):
        try:
            return _strict(settings, pipeline)(
                pipeline.lanes,
                captured.one_road(pipeline.emit_to, pipeline.lanes),
                capacity=settings.max_queue_size,
                home=journal_directory(settings.journal_dir, environ)
                / service_directory(pipeline.own_resource()),
                fsync=settings.fsync,
                max_bytes=settings.journal_max_bytes,
                overflow=overflow,
                about=pipeline.own_resource,
                resolver=resolver,
                gaps=GapLog(),
                heartbeat=heartbeat,
            )
        except ConfigurationError as error:
            if settings.journal_fallback == "stop" or "strict" in wanted:
                raise
            _logger.error("otel_activity: %s; EVENTS ARE ONLY IN MEMORY (best_effort)", error)
    own = pipeline if isinstance(pipeline, Pipeline) else None
    return QueuedDelivery(
        pipeline.lanes,
        captured.all_roads(pipeline.emit),
        capacity=settings.max_queue_size,
        overflow=overflow,
        gaps=GapLog(),
        heartbeat=heartbeat,
        emit_to=None if own is None else lambda lane, event: own.emit_to(lane, event, None),
        home=None if own is None else _notes_directory(settings, own, environ),
        about=dict if own is None else own.own_resource,
        started=_end_first if settings.logger_provider == "global" else None,
    )


def _strict(
    settings: Settings, pipeline: Pipeline, dsns: tuple[str, ...] = ()
) -> Callable[..., StrictDelivery]:
    """What makes the delivery, once it is told what a durable one is told."""
    outbox: Outbox
    try:
        from otel_activity.postgres.outbox import PostgresOutbox
    except ImportError as error:
        if "strict" in settings.deliveries:
            fix = "pip install psycopg[binary]"
            name = (
                "OTEL_ACTIVITY_DELIVERY" if settings.delivery == "strict" else "OTEL_ACTIVITY_DELIVERY_RULES"
            )
            raise ConfigurationError(name, "strict", f"psycopg is needed ({error})", fix) from error
        outbox = NoOutbox("strict delivery needs psycopg; pip install psycopg[binary]")
    else:
        outbox = PostgresOutbox(settings.postgres_schema, dsns)
    return partial(StrictDelivery, outbox=outbox, poke=pipeline.poke)


def _wanted_deliveries(settings: Settings) -> set[str]:
    """Classes that the settings name, and the code so far."""
    return {*settings.deliveries, *declared_deliveries()}


def _ways(engine: QueuedDelivery | DurableDelivery, settings: Settings) -> dict[str, Delivery]:
    """Where the units of each class go."""
    if isinstance(engine, DurableDelivery):
        return dict(zip(DELIVERIES, (Memory(engine), Journaled(engine), engine), strict=True))
    refusing = Refusing(engine, f"its delivery is to be strict, and {_memory_only(settings)}")
    return dict(zip(DELIVERIES, (engine, engine, refusing), strict=True))


def _memory_only(settings: Settings) -> str:
    if settings.logger_provider == "global":
        return (
            "the application's LoggerProvider confirms nothing; set OTEL_ACTIVITY_LOGGER_PROVIDER=own, or "
            "declare nothing above best_effort"
        )
    return (
        "this process was started with best_effort alone and keeps no journal; name the class in "
        "OTEL_ACTIVITY_DELIVERY_RULES, for example Invoice=strict"
    )


def _heartbeat(settings: Settings) -> Heartbeat | None:
    """What makes the records of streams; the settings are in them as a digest, patterns of tables as text."""
    if not settings.heartbeat:
        return None
    shown = repr(sorted(settings.masked().items()))
    about = {
        semconv.STREAM_VERSION: __version__,
        semconv.STREAM_SETTINGS: hashlib.sha256(shown.encode()).hexdigest()[:16],
        semconv.STREAM_INCLUDE: list(settings.include),
        semconv.STREAM_EXCLUDE: list(settings.exclude),
    }
    return Heartbeat(settings.heartbeat, about)


def _notes_directory(settings: Settings, pipeline: Pipeline, environ: Mapping[str, str]) -> Path | None:
    """Where a process without a journal leaves a note; nowhere if no directory is known."""
    try:
        home = journal_directory(settings.journal_dir, environ)
    except ConfigurationError:
        return None
    return home / service_directory(pipeline.own_resource())


def _resolver(settings: Settings) -> TransactionResolver | None:
    """Whoever can be asked what became of transactions; None when proofs are off, or psycopg has no libpq."""
    if settings.commit_proof == "off" or _wanted_deliveries(settings) == {"best_effort"}:
        return None
    try:
        from otel_activity.postgres.resolver import TransactionResolver
    except ImportError:
        return None
    # The store may well be in the application's own cluster; if it is not, it says so when it is asked.
    return TransactionResolver(dsn for dsn in (settings.proof_dsn, settings.postgres_dsn) if dsn)


def _proofs(
    delivery: QueuedDelivery | DurableDelivery, settings: Settings, resolver: TransactionResolver | None
) -> ProofReader | None:
    journaled = isinstance(delivery, DurableDelivery) and "durable" in _wanted_deliveries(settings)
    if resolver is None or not journaled:
        return None  # what dies with the process need not be proven afterwards, and an outbox is the proof
    return ProofReader(resolver.know)


def _postgres(settings: Settings, *, patience: float = math.inf) -> PostgresEventExporter:
    # Late, because psycopg needs a libpq, which a process that exports by OTLP alone may not have.
    from otel_activity.postgres.connection import CONNECT_TIMEOUT
    from otel_activity.postgres.exporter import PostgresEventExporter

    return PostgresEventExporter(
        settings.postgres_dsn or "",  # Settings has checked that there is one
        settings.postgres_schema,
        connect_timeout=min(CONNECT_TIMEOUT, patience),
        export_timeout=settings.export_timeout / 1000,
    )


def _otlp(endpoint: str | None, protocol: str) -> LogRecordExporter:
    try:
        return otlp_exporter(endpoint, protocol)
    except ImportError as error:
        raise ConfigurationError(
            "OTEL_ACTIVITY_EXPORTERS", "otlp", str(error), "pip install opentelemetry-exporter-otlp"
        ) from error
    except ConfigurationError:
        raise
    except Exception as error:
        raise ConfigurationError(
            "OTEL_EXPORTER_OTLP_*",
            "...",
            f"the OTLP exporter cannot be built ({type(error).__name__}: {error})",
            "correct the variable that it names",
        ) from error


def _otlp_protocol(environ: Mapping[str, str]) -> str:
    """By the SDK's variables; ``http/protobuf`` is the specification's default."""
    for variable in ("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if protocol := environ.get(variable, "").strip().lower():
            return protocol
    return "http/protobuf"


def _resource() -> Resource:
    """The resource of the application's traces, or the one they will have."""
    try:
        known = getattr(trace.get_tracer_provider(), "resource", None)
        if isinstance(known, Resource):
            return _trimmed(known)
    except Exception:  # StopIteration for a typo in OTEL_PYTHON_TRACER_PROVIDER
        _logger.warning("otel_activity: the tracer provider cannot be loaded", exc_info=True)
    try:
        return _trimmed(Resource.create())
    except Exception:
        _logger.warning("otel_activity: the OpenTelemetry resource could not be detected", exc_info=True)
        name = os.environ.get("OTEL_SERVICE_NAME", "").strip()
        return Resource({"service.name": name or "unknown_service"})


def _trimmed(resource: Resource) -> Resource:
    """Without space around the service's name.

    A file with Windows' line ends leaves a carriage return there that nobody sees: a service of its own,
    which no search by the name would find.
    """
    name = resource.attributes.get("service.name")
    if not isinstance(name, str) or name == name.strip():
        return resource
    trimmed = {**resource.attributes, "service.name": name.strip() or "unknown_service"}
    return Resource(trimmed, resource.schema_url)


def _without_secrets(resource: Resource, redactor: Redactor) -> Resource:
    """A resource as it may be stored: detectors and variables put into it what they like."""
    return Resource(redactor.scrub_resource(resource.attributes), resource.schema_url)


def _wait_for_store(settings: Settings) -> None:
    """Try until the store works: connect, check the schema, store nothing as a batch would be stored."""
    if "postgres" not in settings.exporters:
        return
    exporter = _postgres(settings, patience=settings.startup_timeout)
    deadline = time.monotonic() + settings.startup_timeout
    try:
        while True:
            try:
                exporter.probe()
            except ExportError as error:
                if time.monotonic() >= deadline:
                    raise StoreUnavailable(
                        f"OTEL_ACTIVITY_STARTUP=require: no working store within "
                        f"{settings.startup_timeout:g} s: {error}"
                    ) from error
                time.sleep(min(0.5, max(0.0, deadline - time.monotonic())))
            else:
                return
    finally:
        exporter.close()


# --- the end of the process ------------------------------------------------------------------------


class _TermHandler:
    """Flushes on SIGTERM and then does what would have happened: the host's handler, or the end."""

    def __init__(
        self,
        leave: Callable[[], object],
        flush: Callable[[], object],
        abandon: Callable[[], object],
    ) -> None:
        self._leave = leave
        self._flush = flush
        self._abandon = abandon
        self._previous: Any = None
        self._installed = False

    def install(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        previous = signal.getsignal(signal.SIGTERM)
        left = getattr(previous, "__self__", None)
        if isinstance(left, _TermHandler):  # one that another thread could not take back
            previous = left._previous
        if previous is None or previous is signal.SIG_IGN:
            return
        try:
            signal.signal(signal.SIGTERM, self._handle)
        except ValueError:  # a sub-interpreter (mod_wsgi): signals are the main one's
            return
        self._previous = previous
        self._installed = True

    def uninstall(self) -> None:
        if not self._installed:
            return
        self._installed = False
        if threading.current_thread() is not threading.main_thread():
            return  # only there can it be taken back; from now on it hands on
        if signal.getsignal(signal.SIGTERM) == self._handle:
            signal.signal(signal.SIGTERM, self._previous)

    def _end(self) -> None:
        if not callable(self._previous):
            self._leave()
        self._flush()
        if not callable(self._previous):
            self._abandon()

    def _handle(self, signum: int, frame: Any) -> None:
        try:
            if self._installed:
                self._end()
        except Exception:
            _logger.exception("otel_activity: internal error while flushing")
        finally:
            if callable(self._previous):
                self._previous(signum, frame)
            else:
                signal.signal(signum, signal.SIG_DFL)
                os.kill(os.getpid(), signum)


def _hook_process() -> None:
    """Once for all: fork hooks cannot be taken back, and the exit handler finds the runtime of then."""
    global _hooked
    if _hooked:
        return
    _hooked = True
    atexit.register(_at_exit)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork)


def _end_first() -> None:
    """The application's provider may have been made after us; at exit our last events must come before it."""
    atexit.unregister(_at_exit)
    atexit.register(_at_exit)


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()  # the parent's may be held by a thread that does not exist here
    runtime = _runtime
    if runtime is not None:
        runtime.after_fork()


def _flush_at_end_of_worker(runtime: _Runtime) -> None:
    """A forked `multiprocessing` child ends by ``os._exit`` after its own finalizers, without ``atexit``.

    It clears the finalizers it inherited when it starts, and only then runs its after-fork hooks. A child
    that starts auditing itself may do so before that (fork server) or after it (a pool's initializer).
    """
    util = sys.modules.get("multiprocessing.util")
    if util is None:
        return
    util.register_after_fork(runtime, _finalize_worker)
    if _in_worker():
        _finalize_worker(runtime)


def _in_worker() -> bool:
    """Whether this process is a worker that `multiprocessing` started."""
    process = sys.modules.get("multiprocessing.process")
    return process is not None and process.parent_process() is not None


def _finalize_worker(runtime: _Runtime) -> None:
    from multiprocessing import util

    util.Finalize(None, runtime.flush_worker, exitpriority=0)
