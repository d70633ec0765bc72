"""How the text of a setting is read: each parser gives the value, or says what is wrong and the fix.

All raise `ValueError` with the text "problem; fix".
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from otel_activity.classes import ClassRule
from otel_activity.rules import RequestRule
from otel_activity.semconv import ContentRule, RedactionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

EXPORTERS: Final = ("postgres", "otlp", "console", "none")
REDACTION_MODES: Final = tuple(mode.value for mode in RedactionMode)
CONTENT_RULES: Final = tuple(rule.value for rule in ContentRule)
ACTOR_SOURCES: Final = ("framework", "claims", "span", "baggage")
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
_KEY_LENGTH: Final = 16
_FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_DEFAULT_ACTOR = re.compile(r"(system|service|unknown)(:[^\s:][^\0-\x1f]{0,255})?")
_SQLALCHEMY = re.compile(r"\s*postgres(?:ql)?(\+\w+)://")
_COOKIE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")


def boolean(text: str) -> bool:
    """True or false, by any of the usual words; nothing at all is false."""
    lowered = text.strip().lower()
    if lowered in {"1", "true", "yes", "on"}:
        return True
    if lowered in {"0", "false", "no", "off", ""}:
        return False
    raise ValueError("not a boolean; use true or false")


def integer(low: int, high: int) -> Callable[[str], int]:
    """A parser of whole numbers from `low` to `high`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ValueError(f"not a whole number; use {low} to {high}") from None
        if not low <= value <= high:
            raise ValueError(f"out of range; use {low} to {high}")
        return value

    return parse


def seconds(low: float, high: float) -> Callable[[str], float]:
    """A parser of a number of seconds from `low` to `high`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ValueError(f"not a number of seconds; use {low:g} to {high:g}") from None
        if not low <= value <= high:
            raise ValueError(f"out of range; use {low:g} to {high:g} seconds")
        return value

    return parse


def choice(*allowed: str) -> Callable[[str], str]:
    """A parser of one of these words, in small letters."""

    def parse(text: str) -> str:
        lowered = text.strip().lower()
        if lowered not in allowed:
            raise ValueError(
                f"unknown value; {did_you_mean(lowered, allowed)}use one of {', '.join(allowed)}"
            )
        return lowered

    return parse


def split_words(text: str) -> tuple[str, ...]:
    """What stands between commas, or on lines of its own (a list in a deployment's file may have both)."""
    return tuple(word for word in (part.strip() for part in re.split(r"[,\n]", text)) if word)


def tables(text: str) -> tuple[str, ...]:
    """Names of tables, or patterns of them."""
    return _names(text, r"[\s;|\"'\[\]]")


def _names(text: str, odd: str) -> tuple[str, ...]:
    """Words in which no character stands that shows another way to write a list.

    As one name such a word would fit nothing: no table would be audited, no column redacted.
    """
    words = split_words(text)
    for word in words:
        if re.search(r"\s#\s*\S", word):  # as Docker and systemd read a file of variables
            raise ValueError(f"{word!r}: a comment is part of the value; put it on a line of its own")
        if found := re.search(odd, word):
            raise ValueError(
                f"{word!r} is read as one name; put commas between names and nothing around them "
                f"(a pattern may have ? for {found[0]!r})"
            )
    return words


def redactions(text: str) -> tuple[str, ...]:
    """Names of columns and keys, each with ``=`` and a mode or without."""
    words = _names(text, r"[;|\t\"\[\]]")
    for word in words:
        name, mark, mode = word.partition("=")
        if not name.strip():
            raise ValueError(f"{word!r} names nothing; use for example email=hash,ssn=drop,phone")
        if mark and mode.strip().lower() not in REDACTION_MODES:
            hint = did_you_mean(mode.strip().lower(), REDACTION_MODES)
            raise ValueError(
                f"{word!r} asks for an unknown mode; {hint}use one of {', '.join(REDACTION_MODES)}"
            )
    return words


def sources(text: str) -> tuple[str, ...]:
    """Where actors are looked for, in this order."""
    names = tuple(dict.fromkeys(name.lower() for name in split_words(text)))
    for name in names:
        if name not in ACTOR_SOURCES:
            hint = did_you_mean(name, ACTOR_SOURCES)
            raise ValueError(f"unknown source {name!r}; {hint}use any of {', '.join(ACTOR_SOURCES)}")
    return names


def content_rules(text: str) -> tuple[str, ...]:
    """Rules that look for secrets in values."""
    rules = tuple(word.lower() for word in split_words(text))
    for rule in rules:
        if rule not in ("all", *CONTENT_RULES):
            hint = did_you_mean(rule, CONTENT_RULES)
            raise ValueError(f"unknown rule {rule!r}; {hint}use all, or any of {', '.join(CONTENT_RULES)}")
    return rules


def key(text: str) -> str:
    """A secret key, long enough not to be guessed."""
    if len(text.strip()) < _KEY_LENGTH:
        raise ValueError(
            f"shorter than {_KEY_LENGTH} characters, which can be guessed; use for example the output of "
            "`openssl rand -hex 32`"
        )
    return text.strip()


def cookie(text: str) -> str:
    """The name of a cookie."""
    if not _COOKIE.fullmatch(text.strip()):
        raise ValueError("not the name of a cookie; use for example sessionid")
    return text.strip()


def exporters(text: str) -> tuple[str, ...]:
    """Exporters, each once; ``none`` stands alone."""
    names = tuple(dict.fromkeys(name.lower() for name in split_words(text)))
    for name in names:
        if name not in EXPORTERS:
            hint = did_you_mean(name, EXPORTERS)
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


def dsn(text: str) -> str:
    """A PostgreSQL connection string, as libpq reads it."""
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
    if any(":" in port for port in ports):
        raise ValueError(
            "an IPv6 address is to be in brackets; use postgresql://user:password@[::1]:5432/database"
        )
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
        hint = did_you_mean(mode, _SSL_MODES)
        raise ValueError(f"unknown sslmode; {hint}use one of {', '.join(_SSL_MODES)}")


def url(text: str) -> str:
    """An http or https URL."""
    text = text.strip()
    try:
        parts = urlsplit(text)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # an unfinished IPv6 address, a port that is no number
        good = False
    if not good:
        raise ValueError("not an http(s) URL; use for example http://localhost:4318")
    return text


def directory(text: str) -> str:
    """An absolute path; ``~`` is the user's home."""
    path = os.path.expanduser(text.strip())
    if not os.path.isabs(path):
        raise ValueError("not an absolute path; a process may change its working directory")
    return path


def identifier(text: str) -> str:
    """An SQL identifier that needs no quotes."""
    if not _IDENTIFIER.fullmatch(text):
        raise ValueError("not a plain SQL identifier; use letters, digits and _, at most 63")
    return text


def function(text: str) -> str:
    """The path of a function: ``module.name:function``."""
    if not _FUNCTION.fullmatch(text.strip()):
        raise ValueError("not the path of a function; use module.name:function")
    return text.strip()


def default_actor(text: str) -> str:
    """An actor for what nobody is known to have done: a type, with ``:`` and an id or without."""
    if not _DEFAULT_ACTOR.fullmatch(text.strip()):
        raise ValueError("not an actor; use system, service or unknown, or one with an id: service:billing")
    return text.strip()


def networks(text: str) -> tuple[str, ...]:
    """IP networks and addresses."""
    try:
        return tuple(str(ipaddress.ip_network(word, strict=False)) for word in split_words(text))
    except ValueError:
        raise ValueError("not a list of addresses; use for example 10.0.0.0/8,192.0.2.1") from None


def request_rules(text: str) -> tuple[str, ...]:
    """See `rules.RequestRule`."""
    rules = [RequestRule.parse(part) for part in split_words(text)]
    if all(rule.exception for rule in rules):
        raise ValueError("nothing but exceptions, so no request is reported; name some first, * for all")
    return tuple(rule.text for rule in rules)


def class_rules(text: str) -> tuple[str, ...]:
    """See `classes.ClassRule`."""
    return tuple(str(ClassRule.parse(part)) for part in split_words(text))


def did_you_mean(word: str, known: tuple[str, ...]) -> str:
    """A hint at the nearest known word, or nothing."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}? " if close else ""
