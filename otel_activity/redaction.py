"""Which names hold secrets, and copies of JSON-like values without them.

Only names decide. No later stage sees the value behind a secret name: it becomes `events.Redacted`, which the
codec writes as ``{"$redacted": true}``.
"""

from __future__ import annotations

import enum
import fnmatch
import re
import unicodedata
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from otel_activity.events import Redacted

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["DEFAULT_NAMES", "DEFAULT_WHOLE_NAMES", "METADATA_WORDS", "Redactor"]

DEFAULT_NAMES: Final[tuple[str, ...]] = (
    *("password", "passwords", "passwd", "pwd", "passphrase", "passcode"),
    *("secret", "secrets", "secret key", "client secret", "credential", "credentials"),
    *("token", "access tokens", "refresh tokens", "api tokens", "auth tokens", "bearer", "jwt"),
    *("api key", "api keys", "access key", "access keys", "private key", "private keys"),
    *("session key", "signing key", "encryption key", "master key"),
    *("authorization", "cookie", "cookies"),
    *(
        "otp",
        "totp",
        "pin",
        "recovery code",
        "recovery codes",
        "backup code",
        "backup codes",
        "security code",
    ),
    *("seed phrase", "recovery phrase", "security answer"),
    *("card number", "card num", "card no", "credit card", "debit card", "cvv", "cvc"),
    *("ssn", "social security"),
    *("dsn", "database url", "connection string"),
)
"""Words, one after the other, that make a name secret wherever they stand in it."""

DEFAULT_WHOLE_NAMES: Final[frozenset[str]] = frozenset({"auth", "card", "pass", "tokens"})
"""Names that are secret only when they are the whole name: ``card``, but not ``card_title``."""

METADATA_WORDS: Final[frozenset[str]] = frozenset(
    {"at", "attempts", "count", "enabled", "policy", "required"}
)
"""A name that ends with one of these speaks about a secret and does not hold it: ``password_changed_at``.

Names that the user gives are secret all the same.
"""

MAX_DEPTH: Final = 100
"""Nesting that `Redactor.clean` looks into; what lies deeper is redacted unseen."""

_GLUED_ENDINGS: Final = ("password", "passwd", "passphrase", "secret", "token")
"""Ends of words written without a separator: ``userpassword``, ``accesstoken``."""
_GLUED_BEGINNINGS: Final = ("password", "passwd")
_NAME_LENGTH: Final = 256
"""Characters of a name that are looked at."""
_CACHE_SIZE: Final = 4_096
_CAMEL = re.compile(r"(?<=[^\W\d_A-Z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_WORD = re.compile(r"[^\W\d_]+|\d+")
_NOT_IN_PATTERN = re.compile(r"[^\w*?]+|_+")

REDACTED: Final = Redacted()

_Words = tuple[str, ...]


class Redactor:
    """Decides by name what is secret, and cleans nested values. Safe to share between threads.

    Args:
        names: further secret names. A plain name matches like the built-in ones, as whole words anywhere in
            a name: ``email`` matches ``user_email`` and ``userEmail``, not ``emailed``. One with ``*`` or
            ``?`` is a pattern for the whole name, its words joined by ``_``: ``internal_*``.
        defaults: whether the built-in names apply, too.
    """

    def __init__(self, names: Iterable[str] = (), *, defaults: bool = True) -> None:
        names = tuple(names)
        self._defaults = _DEFAULTS if defaults else None
        self._names = _Phrases(name for name in names if not _is_pattern(name))
        self._patterns = [re.compile(_translate(name)) for name in names if _is_pattern(name)]
        self._known: dict[str, bool] = {}

    def is_secret(self, name: object) -> bool:
        """Whether a column or key of this name holds a secret. Never raises; remembers its answers.

        Case, ``_``, ``-``, other punctuation and camelCase make no difference. What is not a text is no name.
        """
        if type(name) is not str:
            if not isinstance(name, str):
                return False
            name = str.__str__(name)
        known = self._known.get(name)
        if known is None:
            known = self._decide(name[:_NAME_LENGTH])
            if len(self._known) >= _CACHE_SIZE:
                self._known.clear()  # keys of JSON may be data: bound what is remembered
            if len(name) <= _NAME_LENGTH:
                self._known[name] = known
        return known

    def _decide(self, name: str) -> bool:
        split, unsplit = _spellings(name)
        if self._names.within(split) or self._names.within(unsplit):
            return True
        if self._defaults and split and split[-1] not in METADATA_WORDS:
            for words in (split, unsplit):
                if self._defaults.within(words) or _is_default_word(words):
                    return True
        return any(pattern.match(form) for pattern in self._patterns for form in _pattern_forms(name))

    def clean(self, value: Any) -> Any:
        """A copy in which every value under a secret key is `Redacted`, at any depth. Never raises.

        Args:
            value: dicts and other mappings, lists, tuples and sets are looked into (a named tuple by its
                field names); anything else is returned as it is. References that go round stay round.

        Returns:
            Plain dict, list, tuple, set or frozenset, with nothing mutable shared with the input; the same
            object when there is nothing to look into.
        """
        if type(value) in _PLAIN:
            return value
        return self._clean(value, {}, 0)

    def _clean(self, value: Any, copies: _Copies, depth: int) -> Any:
        if type(value) in _PLAIN:
            return value
        known = copies.get(id(value))
        if known is not None:
            return known[1]
        try:
            return self._look_into(value, type(value), copies, depth + 1)
        except Exception:  # noqa: BLE001 - what cannot be looked into must not leave unseen
            return REDACTED

    def _look_into(self, value: Any, kind: type, copies: _Copies, depth: int) -> Any:
        if (
            not issubclass(kind, _NESTED)
            or issubclass(kind, enum.Enum)
            or hasattr(kind, "__sa_type_engine__")
        ):
            return (
                value  # the last is SQLAlchemy's MultiRange, a list to Python and one value to the database
            )
        if depth > MAX_DEPTH:
            return REDACTED
        copy: Any
        if issubclass(kind, list):
            copy = []
            copies[id(value)] = (value, copy)
            copy.extend([self._clean(item, copies, depth) for item in list.__getitem__(value, slice(None))])
            return copy
        if issubclass(kind, Mapping):
            copy = {}
            copies[id(value)] = (value, copy)
            pairs = dict.items(value) if issubclass(kind, dict) else value.items()
            for key, item in list(pairs):
                copy[key] = REDACTED if self._hides(key) else self._clean(item, copies, depth)
            return copy
        if issubclass(kind, tuple):
            copy = self._clean_tuple(value, kind, copies, depth)
        else:
            base: Any = set if issubclass(kind, set) else frozenset
            copy = base([self._clean(item, copies, depth) for item in base.__iter__(value)])
        copies[id(value)] = (value, copy)
        return copy

    def _clean_tuple(self, value: Any, kind: type, copies: _Copies, depth: int) -> tuple[Any, ...]:
        items = tuple.__getitem__(value, slice(None))
        names = getattr(kind, "_fields", ())
        if len(names) != len(items):
            return tuple([self._clean(item, copies, depth) for item in items])
        return tuple(
            [
                REDACTED if self._hides(name) else self._clean(item, copies, depth)
                for name, item in zip(names, items, strict=True)
            ]
        )

    def _hides(self, key: Any) -> bool:
        if isinstance(key, enum.Enum):
            key = key._value_
        if isinstance(key, bytes):
            key = bytes(key[:_NAME_LENGTH]).decode("utf-8", "replace")
        return isinstance(key, str) and self.is_secret(key)


_PLAIN: Final = frozenset({type(None), bool, int, float, str, bytes, Decimal, datetime, date, UUID})
_NESTED: Final = (dict, list, tuple, set, frozenset, Mapping)
_Copies = dict[int, tuple[Any, Any]]
"""By id: the original, kept alive because its id must not be given to another object, and its copy."""


class _Phrases:
    """A set of names as sequences of words."""

    def __init__(self, names: Iterable[str]) -> None:
        self._phrases: set[_Words] = set()
        for name in names:
            for words in _spellings(name):
                self._phrases |= {words, ("".join(words),)}  # api_key and apikey
        self._longest = max(map(len, self._phrases), default=0)

    def within(self, words: _Words) -> bool:
        """Whether any run of whole words is one of the names."""
        return any(
            words[start : start + length] in self._phrases
            for length in range(1, self._longest + 1)
            for start in range(len(words) - length + 1)
        )


def _is_default_word(words: _Words) -> bool:
    if len(words) == 1 and words[0] in DEFAULT_WHOLE_NAMES:
        return True
    return any(
        word.endswith(_GLUED_ENDINGS)
        or (word.startswith(_GLUED_BEGINNINGS) and not word.startswith("passwordless"))
        for word in words
    )


def _folded(name: str) -> str:
    """Full-width and other compatibility letters as plain ones."""
    return name if name.isascii() else unicodedata.normalize("NFKC", name)


def _spellings(name: str) -> tuple[_Words, _Words]:
    """The words of a name, with and without a break where the case changes: ``accessToken``, ``PassWord``."""
    folded = _folded(name)
    return _words(_CAMEL.sub("_", folded)), _words(folded)


def _words(name: str) -> _Words:
    return tuple(_WORD.findall(name.casefold()))


def _is_pattern(name: str) -> bool:
    return "*" in name or "?" in name


def _translate(pattern: str) -> str:
    """A user's pattern as a regular expression for one of `_pattern_forms`."""
    return fnmatch.translate(_joined(_CAMEL.sub("_", _folded(pattern))))


def _pattern_forms(name: str) -> tuple[str, str]:
    folded = _folded(name)
    return _joined(_CAMEL.sub("_", folded)), _joined(folded)


def _joined(name: str) -> str:
    return _NOT_IN_PATTERN.sub("_", name).casefold()


_DEFAULTS: Final = _Phrases(DEFAULT_NAMES)
