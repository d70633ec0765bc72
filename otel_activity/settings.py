"""Settings: argument beats environment beats default, read once, checked before anything starts.

Every setting of ours is one row of `FIELDS`; the SDK's own variables are used where they exist. The table
also feeds ``opentelemetry-instrument``'s flags, ``otel-activity doctor`` and the reference in the docs.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from otel_activity import parsers
from otel_activity.classes import DELIVERIES, ClassRule
from otel_activity.errors import ConfigurationError
from otel_activity.masking import mask_dsn
from otel_activity.parsers import CONTENT_RULES, REDACTION_MODES
from otel_activity.semconv import RedactionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "FIELDS",
    "RECEIVE_PREFIX",
    "Field",
    "InstrumentFlags",
    "Settings",
    "flags",
    "lookalikes",
    "on_terminal",
]

PREFIX: Final = "OTEL_ACTIVITY_"
RECEIVE_PREFIX: Final = f"{PREFIX}RECEIVE_"
"""Options of ``otel-activity receive``, which are no settings of an audited process."""
STARTUP_MODES: Final = ("check", "warn", "require")
LOGGER_PROVIDERS: Final = ("own", "global")
FSYNC_POLICIES: Final = ("always", "interval", "never")
FALLBACKS: Final = ("stop", "best_effort")
OVERFLOW_POLICIES: Final = ("drop", "block", "fail")
COMMIT_PROOFS: Final = ("auto", "off")
PROXY_HEADERS: Final = ("x-forwarded-for", "forwarded")

_SERVICE_HOST: Final = "_SERVICE_HOST"
_SERVICE_LINK = re.compile(
    r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)", re.ASCII
)


def on_terminal() -> bool:
    """Whether a person watches the output. A daemon may have been started without any, or have closed it."""
    try:
        return sys.stdout.isatty()
    except (AttributeError, ValueError):
        return False


# --- the table ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Field:
    """One setting: its name in `Settings`, its environment variable, how to read it, what it does."""

    name: str
    variable: str
    parse: Callable[[str], Any]
    help: str
    secret: bool = False

    def shown(self, text: str) -> str:
        """A text given for it, for messages and logs: secrets masked."""
        if self.name == "redact_key":
            return "***"
        return mask_dsn(text) if self.secret else text


FIELDS: Final[tuple[Field, ...]] = (
    Field("disabled", "OTEL_ACTIVITY_DISABLED", parsers.boolean, "Switch auditing off; nothing else does."),
    Field(
        "exporters",
        "OTEL_ACTIVITY_EXPORTERS",
        parsers.exporters,
        "Comma-separated list of postgres, otlp, console, or none. "
        "Unset: postgres if a DSN is set, otlp if our own OTLP endpoint is set, console on a terminal.",
    ),
    Field("postgres_dsn", "OTEL_ACTIVITY_POSTGRES_DSN", parsers.dsn, "Where events are stored.", secret=True),
    Field(
        "postgres_schema",
        "OTEL_ACTIVITY_POSTGRES_SCHEMA",
        parsers.identifier,
        "Schema that holds the tables.",
    ),
    Field(
        "otlp_endpoint",
        "OTEL_ACTIVITY_OTLP_ENDPOINT",
        parsers.url,
        "OTLP endpoint for audit events alone; setting it is the consent to send them. Without it, "
        "OTEL_ACTIVITY_EXPORTERS=otlp uses the SDK's OTEL_EXPORTER_OTLP_* variables.",
        secret=True,
    ),
    Field(
        "startup",
        "OTEL_ACTIVITY_STARTUP",
        parsers.choice(*STARTUP_MODES),
        "check: a wrong setting stops start-up, a store that is down does not. "
        "warn: run unaudited when a setting is wrong. require: wait for a working store, else stop.",
    ),
    Field(
        "startup_timeout",
        "OTEL_ACTIVITY_STARTUP_TIMEOUT",
        parsers.seconds(0, 3600),
        "Seconds that startup=require waits for the store.",
    ),
    Field(
        "shutdown_timeout",
        "OTEL_ACTIVITY_SHUTDOWN_TIMEOUT",
        parsers.seconds(0, 3600),
        "Seconds that the end of the process may spend on delivering what is queued.",
    ),
    Field(
        "delivery",
        "OTEL_ACTIVITY_DELIVERY",
        parsers.choice(*DELIVERIES),
        "durable: events are in a journal on disk before COMMIT, which survives the process. best_effort: "
        "they wait in memory. strict: the transaction itself writes them to an outbox in its database, or "
        "is not committed.",
    ),
    Field(
        "delivery_rules",
        "OTEL_ACTIVITY_DELIVERY_RULES",
        parsers.class_rules,
        "Classes of single events, comma-separated: patterns (* and ?) of models, tables and actions, and "
        "what holds for them, for example Invoice=strict,page.*=best_effort. The first that matches counts; "
        "what code says beats it.",
    ),
    Field(
        "journal_dir",
        "OTEL_ACTIVITY_JOURNAL_DIR",
        parsers.directory,
        "Directory of the journals, on a local disk. Unset: by the platform's conventions.",
    ),
    Field(
        "commit_proof",
        "OTEL_ACTIVITY_COMMIT_PROOF",
        parsers.choice(*COMMIT_PROOFS),
        "auto: read each transaction's id with its first write, so that a crash during COMMIT can be decided "
        "later (PostgreSQL, durable delivery). off: such units are unknown.",
    ),
    Field(
        "proof_dsn",
        "OTEL_ACTIVITY_PROOF_DSN",
        parsers.dsn,
        "Whom to ask what became of a transaction: the primary of the application's database. Unset: where "
        "the application's own engines are connected to.",
    ),
    Field(
        "journal_fallback",
        "OTEL_ACTIVITY_JOURNAL_FALLBACK",
        parsers.choice(*FALLBACKS),
        "When the journal cannot be written at start-up. stop: end with one line. best_effort: run without.",
    ),
    Field(
        "journal_max_bytes",
        "OTEL_ACTIVITY_JOURNAL_MAX_BYTES",
        parsers.integer(65_536, 1 << 40),
        "Most bytes in the journal of one process; beyond it units go through memory only.",
    ),
    Field(
        "fsync",
        "OTEL_ACTIVITY_FSYNC",
        parsers.choice(*FSYNC_POLICIES),
        "When the journal is forced to disk: always (each record), interval (each second), never.",
    ),
    Field(
        "overflow",
        "OTEL_ACTIVITY_OVERFLOW",
        parsers.choice(*OVERFLOW_POLICIES),
        "When the journal or the queue is full, or the disk refuses. drop: commit; what memory cannot take "
        "is lost, counted and logged. block: COMMIT waits for room first. fail: raise instead of committing.",
    ),
    Field(
        "overflow_timeout",
        "OTEL_ACTIVITY_OVERFLOW_TIMEOUT",
        parsers.seconds(0, 3600),
        "Seconds that overflow=block waits for room; then it is as drop.",
    ),
    Field(
        "heartbeat",
        "OTEL_ACTIVITY_HEARTBEAT",
        parsers.seconds(0, 86_400),
        "Seconds between two beats of a stream, which then also opens and closes with a record: a process "
        "that was killed shows as one that stopped beating. 0: streams have no records.",
    ),
    Field(
        "logger_provider",
        "OTEL_ACTIVITY_LOGGER_PROVIDER",
        parsers.choice(*LOGGER_PROVIDERS),
        "own: a LoggerProvider of ours. global: the application's (its limits and processors apply).",
    ),
    Field(
        "include",
        "OTEL_ACTIVITY_INCLUDE",
        parsers.tables,
        "Tables to audit, comma-separated patterns (* and ?), with or without schema. Unset: all.",
    ),
    Field("exclude", "OTEL_ACTIVITY_EXCLUDE", parsers.tables, "Tables not to audit; beats include."),
    Field(
        "redact",
        "OTEL_ACTIVITY_REDACT",
        parsers.redactions,
        "Names of columns and JSON keys to redact, besides the built-in ones; "
        "each may say how: email=hash,ssn=drop,phone.",
    ),
    Field(
        "redact_mode",
        "OTEL_ACTIVITY_REDACT_MODE",
        parsers.choice(*REDACTION_MODES),
        "What becomes of secrets whose name does not say it: mask, hash (needs a key) or drop.",
    ),
    Field(
        "redact_key",
        "OTEL_ACTIVITY_REDACT_KEY",
        parsers.key,
        "Key of the hashes that stand for secrets and session ids; keep it as secret as they are, and the "
        "same in all services.",
        secret=True,
    ),
    Field(
        "redact_content_off",
        "OTEL_ACTIVITY_REDACT_CONTENT_OFF",
        parsers.content_rules,
        f"Rules that look for secrets in the content of values and are not to: all, or any of "
        f"{', '.join(CONTENT_RULES)}.",
    ),
    Field(
        "actor_resolver",
        "OTEL_ACTIVITY_ACTOR_RESOLVER",
        parsers.function,
        "module.name:function that is asked who acts in a web request.",
    ),
    Field(
        "actor_resolver_timeout",
        "OTEL_ACTIVITY_ACTOR_RESOLVER_TIMEOUT",
        parsers.seconds(0, 60),
        "Seconds that the resolver may take, in a thread of its own; 0 calls it directly and waits.",
    ),
    Field(
        "actor_sources",
        "OTEL_ACTIVITY_ACTOR_SOURCES",
        parsers.sources,
        "Comma-separated, who is asked besides: framework, claims, span, baggage (only behind trusted "
        "upstreams: any client can send baggage).",
    ),
    Field(
        "default_actor",
        "OTEL_ACTIVITY_DEFAULT_ACTOR",
        parsers.default_actor,
        "Who acts where nobody is named: in jobs, and in a process that serves no requests. "
        "system, service or unknown, or one with an id: service:billing. "
        "Unset: system in jobs, unknown elsewhere.",
    ),
    Field(
        "trusted_proxies",
        "OTEL_ACTIVITY_TRUSTED_PROXIES",
        parsers.networks,
        "Addresses and networks of proxies that are believed whom they serve. Unset: none.",
    ),
    Field(
        "proxy_header",
        "OTEL_ACTIVITY_PROXY_HEADER",
        parsers.choice(*PROXY_HEADERS),
        "The header in which they tell it: x-forwarded-for, or forwarded (RFC 7239).",
    ),
    Field(
        "session_cookie",
        "OTEL_ACTIVITY_SESSION_COOKIE",
        parsers.cookie,
        "Name of the cookie that identifies a session where the framework does not; stored as a hash.",
    ),
    Field(
        "requests",
        "OTEL_ACTIVITY_REQUESTS",
        parsers.request_rules,
        "Requests to report as events of their own: comma-separated rules of methods, routes and status "
        "codes, for example writes,401|403,GET /admin/*,!/health. Unset: none.",
    ),
    Field(
        "fetch_before",
        "OTEL_ACTIVITY_FETCH_BEFORE",
        parsers.boolean,
        "Read values from the database that the session had not loaded before it changes a row "
        "(one SELECT by primary key for each such row).",
    ),
    Field(
        "database_metrics",
        "OTEL_ACTIVITY_DATABASE_METRICS",
        parsers.boolean,
        "Record how long each statement takes, and how long one waits for a connection, as OpenTelemetry "
        "metrics.",
    ),
    Field(
        "value_length_limit",
        "OTEL_ACTIVITY_VALUE_LENGTH_LIMIT",
        parsers.integer(64, 1 << 24),
        "Longest value kept whole, in characters or bytes; a longer one is truncated and marked.",
    ),
    Field(
        "schedule_delay",
        "OTEL_BLRP_SCHEDULE_DELAY",
        parsers.integer(1, 600_000),
        "Milliseconds between batches.",
    ),
    Field(
        "max_queue_size",
        "OTEL_BLRP_MAX_QUEUE_SIZE",
        parsers.integer(1, 10_000_000),
        "Events kept while the store is slow or down.",
    ),
    Field(
        "max_export_batch_size",
        "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE",
        parsers.integer(1, 100_000),
        "Events in one batch; at most the queue size.",
    ),
    Field(
        "export_timeout",
        "OTEL_BLRP_EXPORT_TIMEOUT",
        parsers.integer(1, 3_600_000),
        "Milliseconds one attempt to export a batch may take.",
    ),
)

_BY_NAME: Final = {spec.name: spec for spec in FIELDS}
_OURS: Final = tuple(spec.variable for spec in FIELDS if spec.variable.startswith(PREFIX))
_ALIKE: Final = 0.85
"""From here on a beginning is ours with a slip: OTEL_ACTIVTY_, OTELACTIVITY_, but not OTEL_ or ACTIVITY_."""


@dataclass(frozen=True)
class Settings:
    """All settings, checked. Build with `from_env`; the docs' reference lists each variable.

    `max_queue_size` defaults to 65536, not the SDK's 2048: an audit trail should ride out a short outage,
    and one bulk insert of 2,000 objects would already fill 2048.
    """

    disabled: bool = False
    exporters: tuple[str, ...] = ()
    postgres_dsn: str | None = field(default=None, repr=False)
    postgres_schema: str = "activity"
    otlp_endpoint: str | None = field(default=None, repr=False)
    startup: str = "check"
    startup_timeout: float = 30.0
    shutdown_timeout: float = 10.0
    delivery: str = "durable"
    delivery_rules: tuple[str, ...] = ()
    journal_dir: str | None = None
    journal_fallback: str = "stop"
    commit_proof: str = "auto"
    proof_dsn: str | None = field(default=None, repr=False)
    journal_max_bytes: int = 1 << 30
    fsync: str = "interval"
    overflow: str = "drop"
    overflow_timeout: float = 5.0
    heartbeat: float = 0.0
    logger_provider: str = "own"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    redact: tuple[str, ...] = ()
    redact_mode: str = "mask"
    redact_key: str | None = field(default=None, repr=False)
    redact_content_off: tuple[str, ...] = ()
    actor_resolver: str | None = None
    actor_resolver_timeout: float = 1.0
    actor_sources: tuple[str, ...] = ("framework", "claims", "span")
    default_actor: str | None = None
    trusted_proxies: tuple[str, ...] = ()
    proxy_header: str = "x-forwarded-for"
    session_cookie: str | None = None
    requests: tuple[str, ...] = ()
    fetch_before: bool = False
    database_metrics: bool = False
    value_length_limit: int = 65_536
    schedule_delay: int = 1_000
    max_queue_size: int = 65_536
    max_export_batch_size: int = 2_048
    export_timeout: int = 30_000

    @classmethod
    def from_env(
        cls, environ: Mapping[str, str] | None = None, *, interactive: bool = False, **arguments: Any
    ) -> Settings:
        """Read the environment, apply the arguments, check everything.

        Args:
            environ: the variables to read; the process's by default.
            interactive: whether a person watches a terminal; only then may the console be a default.
            **arguments: any field of `Settings`; `None` means not given. Texts are parsed like variables.

        Raises:
            ConfigurationError: the first setting that is wrong, with variable, value and fix.
        """
        environ = os.environ if environ is None else environ
        _refuse_unknown(environ)
        values: dict[str, Any] = {}
        for spec in FIELDS:
            text = environ.get(spec.variable)
            if text is not None and text.strip():
                values[spec.name] = _parse(spec, spec.variable, text)
        for name, value in arguments.items():
            if value is not None:
                values[name] = _argument(name, value)
        settings = cls(**values)
        settings._check(environ)
        settings = dataclasses.replace(settings, exporters=settings._chosen_exporters(interactive))
        if "delivery" not in values:
            settings = settings._with_default_delivery()
        settings._check_delivery()
        return settings

    @classmethod
    def startup_mode(cls, environ: Mapping[str, str] | None = None) -> str:
        """The start-up mode alone, readable even when another setting is wrong."""
        environ = os.environ if environ is None else environ
        mode = environ.get("OTEL_ACTIVITY_STARTUP", "").strip().lower()
        return mode if mode in STARTUP_MODES else "check"

    @classmethod
    def switched_off(cls, environ: Mapping[str, str], argument: Any = None) -> bool:
        """Whether auditing is switched off, which counts even when another setting is wrong.

        Raises:
            ConfigurationError: that cannot be told.
        """
        spec = _BY_NAME["disabled"]
        if argument is not None:
            return bool(_argument(spec.name, argument))
        return bool(_parse(spec, spec.variable, environ.get(spec.variable, "")))

    @property
    def active(self) -> bool:
        """Whether there is anything to do: not disabled, and somewhere to send events."""
        somewhere = bool(self.exporters) or self.logger_provider == "global"
        return not self.disabled and somewhere and self.exporters != ("none",)

    def contradicted_by(self, arguments: Mapping[str, Any]) -> list[Field]:
        """The settings of which these arguments say something else; `None` says nothing.

        Raises:
            ConfigurationError: an argument is wrong in itself.
        """
        given = {name: _argument(name, value) for name, value in arguments.items() if value is not None}
        return [_BY_NAME[name] for name, value in given.items() if value != getattr(self, name)]

    def masked(self) -> dict[str, Any]:
        """All settings by name for people to read, secrets masked."""
        shown = {spec.name: getattr(self, spec.name) for spec in FIELDS}
        for spec in FIELDS:
            if spec.secret and shown[spec.name]:
                shown[spec.name] = spec.shown(shown[spec.name])
        return shown

    def _chosen_exporters(self, interactive: bool) -> tuple[str, ...]:
        if self.exporters:
            return self.exporters
        chosen = []
        if self.postgres_dsn:
            chosen.append("postgres")
        if self.otlp_endpoint:
            chosen.append("otlp")
        if not chosen and interactive:
            chosen.append("console")
        return tuple(chosen)

    def _with_default_delivery(self) -> Settings:
        """Durable, unless nobody would ever confirm what the journal holds."""
        if self.logger_provider == "global" or self.exporters == ("console",):
            return dataclasses.replace(self, delivery="best_effort")
        return self

    def _check_delivery(self) -> None:
        if self.delivery != "best_effort" and self.logger_provider == "global":
            raise ConfigurationError(
                "OTEL_ACTIVITY_DELIVERY",
                self.delivery,
                "the application's LoggerProvider confirms nothing (OTEL_ACTIVITY_LOGGER_PROVIDER=global)",
                "use OTEL_ACTIVITY_LOGGER_PROVIDER=own or OTEL_ACTIVITY_DELIVERY=best_effort",
            )
        if self.logger_provider == "global" and self.deliveries != {"best_effort"}:
            raise ConfigurationError(
                "OTEL_ACTIVITY_DELIVERY_RULES",
                ",".join(self.delivery_rules),
                "the application's LoggerProvider confirms nothing (OTEL_ACTIVITY_LOGGER_PROVIDER=global)",
                "use OTEL_ACTIVITY_LOGGER_PROVIDER=own, or rules that say best_effort",
            )

    @property
    def deliveries(self) -> frozenset[str]:
        """Every delivery class that the settings name."""
        return frozenset((self.delivery, *(ClassRule.parse(rule).delivery for rule in self.delivery_rules)))

    def _check(self, environ: Mapping[str, str]) -> None:
        if self.max_export_batch_size > self.max_queue_size:
            given = "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE" in environ
            default = type(self).max_export_batch_size
            if given or self.max_export_batch_size != default:
                raise ConfigurationError(
                    "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE",
                    str(self.max_export_batch_size),
                    f"larger than the queue (OTEL_BLRP_MAX_QUEUE_SIZE={self.max_queue_size})",
                    f"use at most {self.max_queue_size} or a larger queue",
                )
            # A small queue alone is no mistake: the default batch follows it.
            object.__setattr__(self, "max_export_batch_size", self.max_queue_size)
        self._check_hashing()
        if "postgres" in self.exporters and not self.postgres_dsn:
            raise ConfigurationError(
                "OTEL_ACTIVITY_EXPORTERS",
                ",".join(self.exporters),
                "postgres needs to know where",
                "set OTEL_ACTIVITY_POSTGRES_DSN=postgresql://user:password@host:5432/database",
            )

    def _check_hashing(self) -> None:
        if self.redact_key:
            return
        asked = [word for word in self.redact if word.partition("=")[2].strip().lower() == RedactionMode.HASH]
        if asked or self.redact_mode == RedactionMode.HASH:
            raise ConfigurationError(
                "OTEL_ACTIVITY_REDACT" if asked else "OTEL_ACTIVITY_REDACT_MODE",
                ",".join(asked) if asked else self.redact_mode,
                "a hash needs a key",
                "set OTEL_ACTIVITY_REDACT_KEY, for example to the output of `openssl rand -hex 32`",
            )


def _parse(spec: Field, label: str, text: str) -> Any:
    try:
        _refuse_quotes(spec, text)
        return spec.parse(text)
    except ValueError as error:
        problem, _, fix = str(error).partition("; ")
        # Whatever the setting: a DSN may have been put into the wrong one.
        shown = mask_dsn(spec.shown(text))
        raise ConfigurationError(label, shown, problem, fix) from None


def _refuse_quotes(spec: Field, text: str) -> None:
    """Docker's ``--env-file`` keeps them: no table would be named ``"orders"``, and nothing be audited."""
    stripped = text.strip()
    if (
        spec.name != "redact_key"
        and len(stripped) > 1
        and stripped[0] == stripped[-1]
        and stripped[0] in "'\""
    ):
        raise ValueError("the quotes are part of the value; leave them out")


def _argument(name: str, value: Any) -> Any:
    spec = _BY_NAME.get(name)
    if spec is None:
        raise ConfigurationError(
            name,
            "...",  # perhaps a DSN: the name alone is wrong
            "no such setting",
            f"{parsers.did_you_mean(name, tuple(_BY_NAME))}see otel_activity.Settings",
        )
    if isinstance(value, (list, tuple, set, frozenset)) and not _is_sqlalchemys_url(value):
        words = value if isinstance(value, (list, tuple)) else sorted(map(str, value))
        return _parse(spec, name, ",".join(map(str, words)))
    if isinstance(value, bool):
        return _parse(spec, name, "true" if value else "false")
    if not _has_text(value):
        # Its repr would be read as a word: a table of that name there is none, and nothing would be audited.
        raise ConfigurationError(name, "...", f"a {type(value).__name__}", "use a text, a number or a list")
    return _parse(spec, name, str(value))


def _has_text(value: Any) -> bool:
    """Whether an object says itself what it is as a text: a URL of pydantic's does, a dict does not."""
    kind: Any = type(value)
    if issubclass(kind, (bytes, bytearray)) or _is_sqlalchemys_url(value):
        return False
    return kind.__str__ is not object.__str__ or issubclass(kind, (int, float, os.PathLike))


def _is_sqlalchemys_url(value: Any) -> bool:
    """Such a URL is a tuple, whose parts would be shown as words; as a text it has stars for its password."""
    return hasattr(type(value), "render_as_string")


def _refuse_unknown(environ: Mapping[str, str]) -> None:
    """A misspelt variable must not mean "runs with less auditing or less redaction than configured"."""
    for variable in environ:
        if not variable.startswith(PREFIX) or variable in _OURS or variable.startswith(RECEIVE_PREFIX):
            continue
        if not _is_service_link(variable, environ):
            raise ConfigurationError(
                variable,
                "...",
                "no such setting",
                f"{parsers.did_you_mean(variable, _OURS)}`otel-activity doctor --settings` lists them",
            )


def lookalikes(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """Variables that nothing here reads, each with the one of ours that it was probably meant to be.

    They may belong to somebody else, so they do not stop the start.

    >>> lookalikes({"OTEL_ACTIVTY_REDACT": "email", "otel_activity_include": "orders", "MY_REDACT": "x"})
    [('OTEL_ACTIVTY_REDACT', 'OTEL_ACTIVITY_REDACT'), ('otel_activity_include', 'OTEL_ACTIVITY_INCLUDE')]
    """
    found = ((variable, _meant(variable)) for variable in environ if not variable.startswith(PREFIX))
    return [(variable, meant) for variable, meant in found if meant is not None]


def _meant(variable: str) -> str | None:
    """The setting whose name this is, but for its case or a slip in the words that all names begin with."""
    upper = variable.upper().replace("-", "_")
    for ours in _OURS:
        if upper.endswith(ours.removeprefix(PREFIX)):
            beginning = upper.removesuffix(ours.removeprefix(PREFIX))
            if difflib.SequenceMatcher(None, beginning, PREFIX, autojunk=False).ratio() >= _ALIKE:
                return ours
    return None


def _is_service_link(variable: str, environ: Mapping[str, str]) -> bool:
    """Whether Kubernetes made it: each pod is told of a Service ``otel-activity-...`` in such variables."""
    services = (name.removesuffix(_SERVICE_HOST) for name in environ if name.endswith(_SERVICE_HOST))
    return any(
        variable.startswith(service) and _SERVICE_LINK.fullmatch(variable, len(service))
        for service in services
    )


class InstrumentFlags:
    """Makes our variables flags of ``opentelemetry-instrument``, and our distro its default.

    The command loads this object in its own process, lists its names, and then starts the program. Our distro
    is asked for here because it is the only hook that runs before the SDK is configured: a typo in another
    signal's variable ends the loading there, and auditing would be off unseen.
    """

    def __dir__(self) -> list[str]:
        os.environ.setdefault("OTEL_PYTHON_DISTRO", "otel_activity")
        return list(_OURS)


flags: Final = InstrumentFlags()
