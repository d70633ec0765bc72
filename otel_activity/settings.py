"""Settings: argument beats environment beats default, read once, checked before anything starts.

Every setting of ours is one row of `FIELDS`; the SDK's own variables are used where they exist. The table
also feeds ``opentelemetry-instrument``'s flags, ``otel-activity doctor`` and the reference in the docs.
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import os
import re
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

from otel_activity.classes import DELIVERIES, ClassRule
from otel_activity.errors import ConfigurationError
from otel_activity.rules import RequestRule
from otel_activity.semconv import ContentRule, RedactionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "FIELDS",
    "RECEIVE_PREFIX",
    "Field",
    "InstrumentFlags",
    "Settings",
    "flags",
    "mask_dsn",
    "on_terminal",
]

PREFIX: Final = "OTEL_ACTIVITY_"
RECEIVE_PREFIX: Final = f"{PREFIX}RECEIVE_"
"""Options of ``otel-activity receive``, which are no settings of an audited process."""
EXPORTERS: Final = ("postgres", "otlp", "console", "none")
STARTUP_MODES: Final = ("check", "warn", "require")
_DSN_FIX: Final = "use postgresql://user:password@host:5432/database"
_DSN_NUMBERS: Final = (
    "connect_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
)
_SSL_MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
LOGGER_PROVIDERS: Final = ("own", "global")
REDACTION_MODES: Final = tuple(mode.value for mode in RedactionMode)
CONTENT_RULES: Final = tuple(rule.value for rule in ContentRule)
_KEY_LENGTH: Final = 16
FSYNC_POLICIES: Final = ("always", "interval", "never")
FALLBACKS: Final = ("stop", "best_effort")
OVERFLOW_POLICIES: Final = ("drop", "block", "fail")
COMMIT_PROOFS: Final = ("auto", "off")
ACTOR_SOURCES: Final = ("framework", "claims", "span", "baggage")
PROXY_HEADERS: Final = ("x-forwarded-for", "forwarded")

_FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_DEFAULT_ACTOR = re.compile(r"(system|service|unknown)(:[^\s:][^\0-\x1f]{0,255})?")
_CONNINFO = re.compile(r"\s*\w+\s*=")
_SQLALCHEMY = re.compile(r"\s*postgres(?:ql)?(\+\w+)://")
_SCHEME = re.compile(r"\s*[\w+.-]+:/{1,2}|/{0,2}")
_WEB = re.compile(r"\s*https?:", re.IGNORECASE)
_HOSTS = re.compile(r"(?:(?:\[[^]@]*\]|[^][:/?,@]*)(?::\d*)?(?:,|(?=[/?]|\Z)))+(?:[/?].*)?", re.DOTALL)
"""What may stand behind the scheme where no login does: hosts, each with a port, then whatever."""
_QUERY = re.compile(
    r"\?(?:user|password|host|hostaddr|port|dbname|service|options|passfile|require_auth|"
    r"channel_binding|connect_timeout|target_session_attrs|(?:fallback_)?application_name|ssl\w+|gss\w+)="
)
"""The beginning of libpq's parameters: any other question mark may be part of a password."""
_HIDDEN_NAMES = r"(?:\w*pass(?:word|wd)?|\w*secret|scram_\w+_key)"
_SECRET = re.compile(
    # As libpq reads it. A quote that is not closed hides all that follows.
    rf"({_HIDDEN_NAMES}\s*=\s*)('(?:[^'\\]|\\.|'')*(?:'[^\s'&]*|\Z)|(?:[^\s\\]|\\.)+)",
    re.IGNORECASE | re.DOTALL,
)
_PARAMETER = re.compile(r"([?&])([^?&=]+)=([^&]*(?:&[^=&]*(?=&|\Z))*)")
"""Of a URL. What follows without a name of its own belongs to the value, which was not escaped."""
_HIDDEN_PARAMETER = re.compile(_HIDDEN_NAMES, re.IGNORECASE)
_HIDDEN_WEB_PARAMETER = re.compile(r".*(?:pass|pwd|secret|token|key|auth|sig).*", re.IGNORECASE)
_COOKIE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
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


def mask_dsn(dsn: str) -> str:
    """The DSN with every password replaced by ``***``, for messages and logs.

    >>> mask_dsn("postgresql://audit:s3cret@db/app")
    'postgresql://audit:***@db/app'
    """
    scheme = _SCHEME.match(dsn)
    if _CONNINFO.match(dsn) or scheme is None:
        return _SECRET.sub(r"\1***", dsn)
    return f"{scheme[0]}{_mask_url(dsn[scheme.end() :], scheme[0])}"


def _mask_url(rest: str, scheme: str) -> str:
    """What follows the scheme of a URL, without its secrets."""
    web = _WEB.match(scheme) is not None
    query = _QUERY.search(rest)
    end = query.start() if query else len(rest)
    # To the last @: a password that was not escaped may hold any character.
    login, mark, host = rest[:end].rpartition("@")
    user, colon, _ = login.partition(":")
    if colon:
        rest = f"{user}:***{mark}{host}{rest[end:]}"
    elif mark and web and "/" not in login:
        rest = f"***{mark}{host}{rest[end:]}"  # a token in the place of the user
    elif scheme.strip().endswith("://") and not mark and not _HOSTS.fullmatch(rest):
        return f"{rest.partition(':')[0]}:***"  # perhaps a login whose host was forgotten
    names = _HIDDEN_WEB_PARAMETER if web else _HIDDEN_PARAMETER

    def masked(found: re.Match[str]) -> str:
        is_secret = names.fullmatch(unquote(found[2]).strip()) is not None
        return f"{found[1]}{found[2]}=***" if is_secret else found[0]

    return _SECRET.sub(_once, _PARAMETER.sub(masked, rest)) if "=" in rest else rest


def _once(found: re.Match[str]) -> str:
    """A value in a text that is no URL after all; what is masked already keeps what stands behind it."""
    return found[0] if found[2].startswith("***") else f"{found[1]}***"


# --- parsers: text -> value, raising ValueError("problem; fix") -----------------------------------


def _boolean(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in {"1", "true", "yes", "on"}:
        return True
    if lowered in {"0", "false", "no", "off", ""}:
        return False
    raise ValueError("not a boolean; use true or false")


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ValueError(f"not a whole number; use {low} to {high}") from None
        if not low <= value <= high:
            raise ValueError(f"out of range; use {low} to {high}")
        return value

    return parse


def _seconds(low: float, high: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ValueError(f"not a number of seconds; use {low:g} to {high:g}") from None
        if not low <= value <= high:
            raise ValueError(f"out of range; use {low:g} to {high:g} seconds")
        return value

    return parse


def _choice(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        lowered = text.strip().lower()
        if lowered not in allowed:
            raise ValueError(
                f"unknown value; {_did_you_mean(lowered, allowed)}use one of {', '.join(allowed)}"
            )
        return lowered

    return parse


def _words(text: str) -> tuple[str, ...]:
    """What stands between commas, or on lines of its own (a list in a deployment's file may have both)."""
    return tuple(word for word in (part.strip() for part in re.split(r"[,\n]", text)) if word)


def _tables(text: str) -> tuple[str, ...]:
    return _names(text, r"[\s;\"'\[\]]")


def _names(text: str, odd: str) -> tuple[str, ...]:
    """Words in which no character stands that shows another way to write a list.

    As one name such a word would fit nothing: no table would be audited, no column redacted.
    """
    words = _words(text)
    for word in words:
        if found := re.search(odd, word):
            raise ValueError(
                f"{word!r} is read as one name; put commas between names and nothing around them "
                f"(a pattern may have ? for {found[0]!r})"
            )
    return words


def _redactions(text: str) -> tuple[str, ...]:
    words = _names(text, r"[;\"\[\]]")
    for word in words:
        name, mark, mode = word.partition("=")
        if not name.strip():
            raise ValueError(f"{word!r} names nothing; use for example email=hash,ssn=drop,phone")
        if mark and mode.strip().lower() not in REDACTION_MODES:
            hint = _did_you_mean(mode.strip().lower(), REDACTION_MODES)
            raise ValueError(
                f"{word!r} asks for an unknown mode; {hint}use one of {', '.join(REDACTION_MODES)}"
            )
    return words


def _sources(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.lower() for name in _words(text)))
    for name in names:
        if name not in ACTOR_SOURCES:
            hint = _did_you_mean(name, ACTOR_SOURCES)
            raise ValueError(f"unknown source {name!r}; {hint}use any of {', '.join(ACTOR_SOURCES)}")
    return names


def _content_rules(text: str) -> tuple[str, ...]:
    rules = tuple(word.lower() for word in _words(text))
    for rule in rules:
        if rule not in ("all", *CONTENT_RULES):
            hint = _did_you_mean(rule, CONTENT_RULES)
            raise ValueError(f"unknown rule {rule!r}; {hint}use all, or any of {', '.join(CONTENT_RULES)}")
    return rules


def _key(text: str) -> str:
    if len(text.strip()) < _KEY_LENGTH:
        raise ValueError(
            f"shorter than {_KEY_LENGTH} characters, which can be guessed; use for example the output of "
            "`openssl rand -hex 32`"
        )
    return text.strip()


def _cookie(text: str) -> str:
    if not _COOKIE.fullmatch(text.strip()):
        raise ValueError("not the name of a cookie; use for example sessionid")
    return text.strip()


def _exporters(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.lower() for name in _words(text)))
    for name in names:
        if name not in EXPORTERS:
            hint = _did_you_mean(name, EXPORTERS)
            raise ValueError(f"unknown exporter {name!r}; {hint}use any of {', '.join(EXPORTERS)}")
    if not names:
        raise ValueError(f"empty; name at least one of {', '.join(EXPORTERS)} or unset it")
    if "none" in names and len(names) > 1:
        raise ValueError("'none' excludes every other exporter; remove one of them")
    return names


def _unreadable(error: Exception) -> str:
    """Why libpq cannot read it, without what it quotes: that may be the password."""
    reason = (str(error).strip().splitlines() or [""])[0].split('"')[0].strip()
    return "neither a URL nor name=value pairs" if reason == "missing" else reason or "unreadable"


def _dsn(text: str) -> str:
    import psycopg.conninfo

    text = text.strip()  # a file that a secret comes from ends in a newline, which libpq takes for the name's
    if scheme := _SQLALCHEMY.match(text):
        raise ValueError(f"SQLAlchemy's form, which libpq does not read; leave out {scheme[1]!r}")
    try:
        parts = psycopg.conninfo.conninfo_to_dict(text)
    except UnicodeError:
        raise ValueError(f"not UTF-8; {_DSN_FIX}") from None
    except psycopg.ProgrammingError as error:
        raise ValueError(f"not a PostgreSQL connection string ({_unreadable(error)}); {_DSN_FIX}") from None
    ports = str(parts.get("port") or "5432").split(",")
    if not all(port.isdigit() and 0 < int(port) < 65_536 for port in ports if port):
        raise ValueError(f"the port is not a number from 1 to 65535; {_DSN_FIX}")
    # Errors of the network would quote it, a part of the password. (One that begins with it is a socket's.)
    if any("@" in host[1:] for host in str(parts.get("host") or "").split(",")):
        raise ValueError(f"the password holds an @, which is to be written as %40; {_DSN_FIX}")
    if "://" not in text and "=" not in text:
        raise ValueError(f"not a PostgreSQL connection string; {_DSN_FIX}")
    _check_options(parts)
    return text


def _check_options(parts: Mapping[str, Any]) -> None:
    """What libpq itself looks at only when it connects; nobody would read of it before events are waiting."""
    for name in _DSN_NUMBERS:
        value = str(parts.get(name, "")).strip()
        if value and not re.fullmatch(r"[+-]?[0-9]{1,9}(\.[0-9]*)?", value):
            raise ValueError(f"its {name} is not a number; use for example {name}=10")
    mode = str(parts.get("sslmode", ""))
    if mode and mode not in _SSL_MODES:
        hint = _did_you_mean(mode, _SSL_MODES)
        raise ValueError(f"unknown sslmode; {hint}use one of {', '.join(_SSL_MODES)}")


def _url(text: str) -> str:
    text = text.strip()
    try:
        parts = urlsplit(text)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # an unfinished IPv6 address, a port that is no number
        good = False
    if not good:
        raise ValueError("not an http(s) URL; use for example http://localhost:4318")
    return text


def _directory(text: str) -> str:
    path = os.path.expanduser(text.strip())
    if not os.path.isabs(path):
        raise ValueError("not an absolute path; a process may change its working directory")
    return path


def _identifier(text: str) -> str:
    if not _IDENTIFIER.fullmatch(text):
        raise ValueError("not a plain SQL identifier; use letters, digits and _, at most 63")
    return text


def _function(text: str) -> str:
    if not _FUNCTION.fullmatch(text.strip()):
        raise ValueError("not the path of a function; use module.name:function")
    return text.strip()


def _default_actor(text: str) -> str:
    if not _DEFAULT_ACTOR.fullmatch(text.strip()):
        raise ValueError("not an actor; use system, service or unknown, or one with an id: service:billing")
    return text.strip()


def _networks(text: str) -> tuple[str, ...]:
    try:
        return tuple(str(ipaddress.ip_network(word, strict=False)) for word in _words(text))
    except ValueError:
        raise ValueError("not a list of addresses; use for example 10.0.0.0/8,192.0.2.1") from None


def _request_rules(text: str) -> tuple[str, ...]:
    rules = [RequestRule.parse(part) for part in _words(text)]
    if all(rule.exception for rule in rules):
        raise ValueError("nothing but exceptions, so no request is reported; name some first, * for all")
    return tuple(rule.text for rule in rules)


def _class_rules(text: str) -> tuple[str, ...]:
    return tuple(str(ClassRule.parse(part)) for part in _words(text))


def _did_you_mean(word: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}? " if close else ""


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
    Field("disabled", "OTEL_ACTIVITY_DISABLED", _boolean, "Switch auditing off; nothing else does."),
    Field(
        "exporters",
        "OTEL_ACTIVITY_EXPORTERS",
        _exporters,
        "Comma-separated list of postgres, otlp, console, or none. "
        "Unset: postgres if a DSN is set, otlp if our own OTLP endpoint is set, console on a terminal.",
    ),
    Field("postgres_dsn", "OTEL_ACTIVITY_POSTGRES_DSN", _dsn, "Where events are stored.", secret=True),
    Field("postgres_schema", "OTEL_ACTIVITY_POSTGRES_SCHEMA", _identifier, "Schema that holds the tables."),
    Field(
        "otlp_endpoint",
        "OTEL_ACTIVITY_OTLP_ENDPOINT",
        _url,
        "OTLP endpoint for audit events alone; setting it is the consent to send them. Without it, "
        "OTEL_ACTIVITY_EXPORTERS=otlp uses the SDK's OTEL_EXPORTER_OTLP_* variables.",
        secret=True,
    ),
    Field(
        "startup",
        "OTEL_ACTIVITY_STARTUP",
        _choice(*STARTUP_MODES),
        "check: a wrong setting stops start-up, a store that is down does not. "
        "warn: run unaudited when a setting is wrong. require: wait for a working store, else stop.",
    ),
    Field(
        "startup_timeout",
        "OTEL_ACTIVITY_STARTUP_TIMEOUT",
        _seconds(0, 3600),
        "Seconds that startup=require waits for the store.",
    ),
    Field(
        "shutdown_timeout",
        "OTEL_ACTIVITY_SHUTDOWN_TIMEOUT",
        _seconds(0, 3600),
        "Seconds that the end of the process may spend on delivering what is queued.",
    ),
    Field(
        "delivery",
        "OTEL_ACTIVITY_DELIVERY",
        _choice(*DELIVERIES),
        "durable: events are in a journal on disk before COMMIT, which survives the process. best_effort: "
        "they wait in memory. strict: the transaction itself writes them to an outbox in its database, or "
        "is not committed.",
    ),
    Field(
        "delivery_rules",
        "OTEL_ACTIVITY_DELIVERY_RULES",
        _class_rules,
        "Classes of single events, comma-separated: patterns (* and ?) of models, tables and actions, and "
        "what holds for them, for example Invoice=strict,page.*=best_effort. The first that matches counts; "
        "what code says beats it.",
    ),
    Field(
        "journal_dir",
        "OTEL_ACTIVITY_JOURNAL_DIR",
        _directory,
        "Directory of the journals, on a local disk. Unset: by the platform's conventions.",
    ),
    Field(
        "commit_proof",
        "OTEL_ACTIVITY_COMMIT_PROOF",
        _choice(*COMMIT_PROOFS),
        "auto: read each transaction's id with its first write, so that a crash during COMMIT can be decided "
        "later (PostgreSQL, durable delivery). off: such units are unknown.",
    ),
    Field(
        "proof_dsn",
        "OTEL_ACTIVITY_PROOF_DSN",
        _dsn,
        "Whom to ask what became of a transaction: the primary of the application's database. Unset: where "
        "the application's own engines are connected to.",
    ),
    Field(
        "journal_fallback",
        "OTEL_ACTIVITY_JOURNAL_FALLBACK",
        _choice(*FALLBACKS),
        "When the journal cannot be written at start-up. stop: end with one line. best_effort: run without.",
    ),
    Field(
        "journal_max_bytes",
        "OTEL_ACTIVITY_JOURNAL_MAX_BYTES",
        _integer(65_536, 1 << 40),
        "Most bytes in the journal of one process; beyond it units go through memory only.",
    ),
    Field(
        "fsync",
        "OTEL_ACTIVITY_FSYNC",
        _choice(*FSYNC_POLICIES),
        "When the journal is forced to disk: always (each record), interval (each second), never.",
    ),
    Field(
        "overflow",
        "OTEL_ACTIVITY_OVERFLOW",
        _choice(*OVERFLOW_POLICIES),
        "When the journal or the queue is full, or the disk refuses. drop: commit; what memory cannot take "
        "is lost, counted and logged. block: COMMIT waits for room first. fail: raise instead of committing.",
    ),
    Field(
        "overflow_timeout",
        "OTEL_ACTIVITY_OVERFLOW_TIMEOUT",
        _seconds(0, 3600),
        "Seconds that overflow=block waits for room; then it is as drop.",
    ),
    Field(
        "heartbeat",
        "OTEL_ACTIVITY_HEARTBEAT",
        _seconds(0, 86_400),
        "Seconds between two beats of a stream, which then also opens and closes with a record: a process "
        "that was killed shows as one that stopped beating. 0: streams have no records.",
    ),
    Field(
        "logger_provider",
        "OTEL_ACTIVITY_LOGGER_PROVIDER",
        _choice(*LOGGER_PROVIDERS),
        "own: a LoggerProvider of ours. global: the application's (its limits and processors apply).",
    ),
    Field(
        "include",
        "OTEL_ACTIVITY_INCLUDE",
        _tables,
        "Tables to audit, comma-separated patterns (* and ?), with or without schema. Unset: all.",
    ),
    Field("exclude", "OTEL_ACTIVITY_EXCLUDE", _tables, "Tables not to audit; beats include."),
    Field(
        "redact",
        "OTEL_ACTIVITY_REDACT",
        _redactions,
        "Names of columns and JSON keys to redact, besides the built-in ones; "
        "each may say how: email=hash,ssn=drop,phone.",
    ),
    Field(
        "redact_mode",
        "OTEL_ACTIVITY_REDACT_MODE",
        _choice(*REDACTION_MODES),
        "What becomes of secrets whose name does not say it: mask, hash (needs a key) or drop.",
    ),
    Field(
        "redact_key",
        "OTEL_ACTIVITY_REDACT_KEY",
        _key,
        "Key of the hashes that stand for secrets and session ids; keep it as secret as they are, and the "
        "same in all services.",
        secret=True,
    ),
    Field(
        "redact_content_off",
        "OTEL_ACTIVITY_REDACT_CONTENT_OFF",
        _content_rules,
        f"Rules that look for secrets in the content of values and are not to: all, or any of "
        f"{', '.join(CONTENT_RULES)}.",
    ),
    Field(
        "actor_resolver",
        "OTEL_ACTIVITY_ACTOR_RESOLVER",
        _function,
        "module.name:function that is asked who acts in a web request.",
    ),
    Field(
        "actor_resolver_timeout",
        "OTEL_ACTIVITY_ACTOR_RESOLVER_TIMEOUT",
        _seconds(0, 60),
        "Seconds that the resolver may take, in a thread of its own; 0 calls it directly and waits.",
    ),
    Field(
        "actor_sources",
        "OTEL_ACTIVITY_ACTOR_SOURCES",
        _sources,
        "Comma-separated, who is asked besides: framework, claims, span, baggage (only behind trusted "
        "upstreams: any client can send baggage).",
    ),
    Field(
        "default_actor",
        "OTEL_ACTIVITY_DEFAULT_ACTOR",
        _default_actor,
        "Who acts where nobody is named: in jobs, and in a process that serves no requests. "
        "system, service or unknown, or one with an id: service:billing. "
        "Unset: system in jobs, unknown elsewhere.",
    ),
    Field(
        "trusted_proxies",
        "OTEL_ACTIVITY_TRUSTED_PROXIES",
        _networks,
        "Addresses and networks of proxies that are believed whom they serve. Unset: none.",
    ),
    Field(
        "proxy_header",
        "OTEL_ACTIVITY_PROXY_HEADER",
        _choice(*PROXY_HEADERS),
        "The header in which they tell it: x-forwarded-for, or forwarded (RFC 7239).",
    ),
    Field(
        "session_cookie",
        "OTEL_ACTIVITY_SESSION_COOKIE",
        _cookie,
        "Name of the cookie that identifies a session where the framework does not; stored as a hash.",
    ),
    Field(
        "requests",
        "OTEL_ACTIVITY_REQUESTS",
        _request_rules,
        "Requests to report as events of their own: comma-separated rules of methods, routes and status "
        "codes, for example writes,401|403,GET /admin/*,!/health. Unset: none.",
    ),
    Field(
        "fetch_before",
        "OTEL_ACTIVITY_FETCH_BEFORE",
        _boolean,
        "Read values from the database that the session had not loaded before it changes a row "
        "(one SELECT by primary key for each such row).",
    ),
    Field(
        "database_metrics",
        "OTEL_ACTIVITY_DATABASE_METRICS",
        _boolean,
        "Record how long each statement takes, and how long one waits for a connection, as OpenTelemetry "
        "metrics.",
    ),
    Field(
        "value_length_limit",
        "OTEL_ACTIVITY_VALUE_LENGTH_LIMIT",
        _integer(64, 1 << 24),
        "Longest value kept whole, in characters or bytes; a longer one is truncated and marked.",
    ),
    Field(
        "schedule_delay", "OTEL_BLRP_SCHEDULE_DELAY", _integer(1, 600_000), "Milliseconds between batches."
    ),
    Field(
        "max_queue_size",
        "OTEL_BLRP_MAX_QUEUE_SIZE",
        _integer(1, 10_000_000),
        "Events kept while the store is slow or down.",
    ),
    Field(
        "max_export_batch_size",
        "OTEL_BLRP_MAX_EXPORT_BATCH_SIZE",
        _integer(1, 100_000),
        "Events in one batch; at most the queue size.",
    ),
    Field(
        "export_timeout",
        "OTEL_BLRP_EXPORT_TIMEOUT",
        _integer(1, 3_600_000),
        "Milliseconds one attempt to export a batch may take.",
    ),
)

_BY_NAME: Final = {spec.name: spec for spec in FIELDS}
_OURS: Final = tuple(spec.variable for spec in FIELDS if spec.variable.startswith(PREFIX))


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
            f"{_did_you_mean(name, tuple(_BY_NAME))}see otel_activity.Settings",
        )
    if isinstance(value, (list, tuple, set, frozenset)):
        words = value if isinstance(value, (list, tuple)) else sorted(map(str, value))
        return _parse(spec, name, ",".join(map(str, words)))
    if isinstance(value, bool):
        return _parse(spec, name, "true" if value else "false")
    if not isinstance(value, (str, int, float, os.PathLike)):
        # Its repr would be read as a word: a table of that name there is none, and nothing would be audited.
        raise ConfigurationError(name, "...", f"a {type(value).__name__}", "use a text, a number or a list")
    return _parse(spec, name, str(value))


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
                f"{_did_you_mean(variable, _OURS)}`otel-activity doctor --settings` lists them",
            )


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
