"""Which names hold secrets, and copies of JSON-like values without them.

No later stage sees the value behind a secret name. It becomes `events.Redacted` or `events.Hashed`, which the
codec writes as ``{"$redacted": true}`` and ``{"$redacted": "hmac-sha256:..."}``, or the field goes.
"""

from __future__ import annotations

import enum
import fnmatch
import hmac
import re
import unicodedata
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote
from uuid import UUID

from otel_activity.codec import encode, text_of
from otel_activity.content import Content
from otel_activity.events import Hashed, Redacted
from otel_activity.interruptions import pass_on
from otel_activity.semconv import ContentRule, RedactionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from otel_activity.settings import Settings

__all__ = ["DEFAULT_NAMES", "DEFAULT_WHOLE_NAMES", "METADATA_WORDS", "Redactor", "split_mode"]

DEFAULT_NAMES: Final[tuple[str, ...]] = (
    *("password", "passwords", "passwd", "pwd", "pw", "psw", "passphrase", "passcode"),
    *("pass word", "pass phrase", "pass code", "pass hash"),
    *("user pass", "login pass", "admin pass", "root pass", "db pass", "database pass"),
    *("mail pass", "email pass", "smtp pass", "ftp pass", "ssh pass", "ldap pass"),
    *("secret", "secrets", "secret key", "client secret", "credential", "credentials", "creds"),
    *("token", "access tokens", "refresh tokens", "api tokens", "auth tokens", "bearer", "jwt"),
    *("api key", "api keys", "access key", "access keys", "private key", "private keys"),
    *("priv key", "session key", "signing key", "encryption key", "master key", "hmac key", "auth key"),
    *("authorization", "basic auth", "cookie", "cookies", "csrf", "xsrf"),
    *(
        "otp",
        "totp",
        "pin",
        "recovery code",
        "recovery codes",
        "backup code",
        "backup codes",
        "security code",
        "verification code",
        "mfa code",
        "reset code",
        "recovery key",
    ),
    *("seed phrase", "recovery phrase", "security answer"),
    *("card number", "card num", "card no", "cc number", "cc num", "credit card", "debit card", "cvv", "cvc"),
    *("ssn", "social security"),
    *("dsn", "database url", "connection string"),
)
"""Words, one after the other, that make a name secret wherever they stand in it."""

DEFAULT_WHOLE_NAMES: Final[frozenset[str]] = frozenset({"auth", "card", "pass", "tokens"})
"""Names that are secret only when they are the whole name: ``card``, but not ``card_title``."""

METADATA_WORDS: Final[tuple[str, ...]] = (
    *("at", "attempts", "changed", "count", "enabled", "endpoint", "expiration", "expired", "expires"),
    *("expires in", "expiry", "last 4", "length", "limit", "name", "policy", "required", "revoked"),
    *("status", "type", "usage", "verified"),
)
"""A name that ends with one of these speaks about a secret and does not hold it: ``password_changed_at``.

So does one that begins with `QUESTION_WORDS`. Names that the user gives are secret all the same.
"""

QUESTION_WORDS: Final[frozenset[str]] = frozenset({"has", "is"})
"""A name that begins with one of these holds yes or no: ``has_password``."""

MAX_DEPTH: Final = 100
"""Nesting that `Redactor.clean` looks into; what lies deeper is redacted unseen."""

_GLUED_ENDINGS: Final = (
    *("password", "passwords", "passwd", "pwd", "passphrase", "secret", "secrets", "token"),
    *("apikey", "accesskey", "privatekey", "secretkey"),
)
"""Ends of words written without a separator: ``userpassword``, ``accesstoken``."""
_GLUED_BEGINNINGS: Final = ("password", "passwd")
_NAME_LENGTH: Final = 256
"""Characters at the beginning and at the end of a name that are looked at."""
_CACHE_SIZE: Final = 4_096
_SECRET_TYPE = re.compile(
    r"(?<![Uu]n)(?<![Nn]on)(?<![Nn]ot)[Ee]ncrypt|ENCRYPT|[Cc]ipher|[Ff]ernet|AES|Aes(?![a-z])"
    r"|(?:Secret|Password)(?![a-z])"
)
"""Names of types that encrypt: ``EncryptedString``, ``StringEncryptedType``, ``FernetText``."""
_CAMEL = re.compile(r"(?<=[^\W\d_A-Z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_WORD = re.compile(r"[^\W\d_]+|\d+")
_NOT_IN_PATTERN = re.compile(r"[^\w*?]+|_+")

REDACTED: Final = Redacted()
HASH_PREFIX: Final = "hmac-sha256:"
MASKED_TEXT: Final = "[redacted]"
"""What stands for a value that is not hashed where only text can stand: in an entity id, in a URL."""
_WHOLE: Final = 1 << 26
"""Characters or bytes of a value that is to be hashed; what is longer is hashed by its SHA-256."""

_Words = tuple[str, ...]


class Redactor:
    """Decides by name what is secret, and cleans nested values. Safe to share between threads.

    Args:
        names: further secret names. A plain name matches like the built-in ones, as whole words anywhere in
            a name: ``email`` matches ``user_email`` and ``userEmail``, not ``emailed``. One with ``*`` or
            ``?`` is a pattern for the whole name, its words joined by ``_``: ``internal_*``.
            Each may end with ``=mask``, ``=hash`` or ``=drop``. They beat the built-in names; where several
            match, the strictest mode wins: drop, then mask, then hash.
        defaults: whether the built-in names apply, too.
        mode: what becomes of secret values whose name does not say it.
        key: of the keyed hash. Without one, what is to be hashed is masked.
        content_off: rules for the content of values that do not apply (`semconv.ContentRule`), or ``all``.

    Raises:
        ValueError: an unknown mode.
    """

    def __init__(
        self,
        names: Iterable[str] = (),
        *,
        defaults: bool = True,
        mode: RedactionMode | str = RedactionMode.MASK,
        key: str | None = None,
        content_off: Iterable[str] = (),
    ) -> None:
        self.default_mode: Final = RedactionMode(mode)
        self._key = None if key is None else key.encode("utf-8", "surrogatepass")
        self._defaults = _DEFAULTS if defaults else None
        wanted = [split_mode(name) for name in names]
        self._names = [
            (mode, _Names([name for name, of in wanted if (of or self.default_mode) is mode]))
            for mode in (RedactionMode.DROP, RedactionMode.MASK, RedactionMode.HASH)
        ]
        self._hint = _hint([names for _, names in self._names], defaults=defaults)
        self._known: dict[str, RedactionMode | None] = {}
        off = frozenset(content_off)
        self._content = Content(self._hide_named, ContentRule if "all" in off else off)
        self._scrubbed: tuple[Any, Any] = (None, None)

    @classmethod
    def configured(cls, settings: Settings) -> Redactor:
        """As the settings say."""
        return cls(
            settings.redact,
            mode=settings.redact_mode,
            key=settings.redact_key,
            content_off=settings.redact_content_off,
        )

    @property
    def hashes(self) -> bool:
        """Whether there is a key to hash with."""
        return self._key is not None

    def is_secret(self, name: object) -> bool:
        """Whether a column or key of this name holds a secret. Never raises."""
        return self.mode_of(name) is not None

    def mode_of(self, name: object) -> RedactionMode | None:
        """What is done to the value of a column or key of this name; None when it is no secret. Never raises.

        Case, ``_``, ``-``, other punctuation and camelCase make no difference. What is not a text is no name.
        Remembers its answers.
        """
        if type(name) is not str:
            if not isinstance(name, str):
                return None
            name = str.__str__(name)
        try:
            return self._known[name]
        except KeyError:
            whole = len(name) <= _NAME_LENGTH
            mode = self._decide(name if whole else f"{name[:_NAME_LENGTH]}_{name[-_NAME_LENGTH:]}")
        if len(self._known) >= _CACHE_SIZE:
            self._known.clear()  # keys of JSON may be data: bound what is remembered
        if whole:
            self._known[name] = mode
        return mode

    def _decide(self, name: str) -> RedactionMode | None:
        if self._hint is not None and self._hint.search(_folded(name).casefold()) is None:
            return None  # nearly every name there is, and keys of JSON may be data
        split, unsplit = _spellings(name)
        for mode, names in self._names:
            if names.match(name, split, unsplit):
                return mode
        if self._defaults and split and not _is_metadata(split):
            for words in (split, unsplit):
                if self._defaults.within(words) or _is_default_word(words):
                    return self.default_mode
        return None

    def mode_of_type(self, name: str) -> RedactionMode | None:
        """As `mode_of`, for the columns of a type by the name of its class.

        What is encrypted in the database is meant to be nowhere in clear.
        """
        return self.default_mode if self._defaults and _SECRET_TYPE.search(name) else None

    def hide(self, value: Any, mode: RedactionMode) -> Any:
        """What stands in place of a secret value. Never raises.

        Args:
            value: anything. None is no secret when it is to be hashed: null means null.
            mode: a value that is to be dropped is masked where something must stand.
        """
        if mode is not RedactionMode.HASH or self._key is None:
            return REDACTED
        if value is None:
            return None
        try:
            text = value if type(value) is str else text_of(value, _WHOLE)
            digest = hmac.digest(self._key, text.encode("utf-8", "surrogatepass"), "sha256")
        except Exception as raised:  # noqa: BLE001 - what cannot be hashed is hidden all the same
            pass_on(raised)
            return REDACTED
        return Hashed(HASH_PREFIX + digest.hex())

    def hide_in_text(self, value: Any, mode: RedactionMode) -> str:
        """As `hide`, where only text can stand."""
        hidden = self.hide(value, mode)
        return hidden.digest if type(hidden) is Hashed else MASKED_TEXT

    def encoded(self, name: str, value: Any, limit: int) -> tuple[bool, Any]:
        """A value under its name, as `codec.encode` gives it, without secrets.

        Returns:
            Whether the field appears at all, and what is its value.
        """
        mode = self.mode_of(name)
        if mode is None:
            return True, encode(self.clean(value), limit)
        return mode is not RedactionMode.DROP, encode(self.hide(value, mode))

    def _hide_named(self, name: str) -> Callable[[str], str] | None:
        """What makes the text in place of a value that has a name in a text; None when it is no secret."""
        mode = self.mode_of(unquote(name) if "%" in name else name)
        return None if mode is None else partial(self.hide_in_text, mode=mode)

    # --- content -----------------------------------------------------------------------------

    def scrub(self, encoded: bytes) -> bytes:
        """JSON of an object without what looks like a secret; the same bytes when nothing does."""
        return self._content.clean_json(encoded)

    def scrub_attributes(self, attributes: dict[str, Any]) -> dict[str, Any]:
        """Attributes of an event, plain JSON values, without what looks like a secret."""
        return self._content.clean_attributes(attributes)

    def scrub_shared(self, attributes: dict[str, Any]) -> dict[str, Any]:
        """As `scrub_attributes`, and remembers the last answer: all changes of one request share one dict,
        which nobody changes.
        """
        known, scrubbed = self._scrubbed
        if known is not attributes:
            scrubbed = self._content.clean_attributes(attributes)
            self._scrubbed = (attributes, scrubbed)
        return scrubbed  # type: ignore[no-any-return]  # what was put in

    def scrub_resource(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """Attributes of a resource (texts, numbers, sequences of these) without secrets, and without the
        arguments of the process: a secret among them need not stand beside its name.
        """
        found: dict[str, Any] = {}
        for name, value in attributes.items():
            mode = self.mode_of(name)
            if name in _ARGUMENTS or mode is RedactionMode.DROP:
                continue
            if mode is not None:
                found[name] = self.hide_in_text(value, mode)
            elif isinstance(value, (list, tuple)):
                found[name] = [self._clean_text(item) for item in value]
            else:
                found[name] = self._clean_text(value)
        return found

    def _clean_text(self, value: Any) -> Any:
        return self._content.clean_text(value) if isinstance(value, str) else value

    def scrub_key(self, part: str) -> str:
        """Part of a primary key; hashed or masked as a whole when it holds what looks like a secret."""
        found = self._content.clean_key(part)
        return part if found is part else self.hide_in_text(part, RedactionMode.HASH)

    def clean(self, value: Any) -> Any:
        """A copy in which no value under a secret key is left, at any depth. Never raises.

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
        except Exception as raised:  # noqa: BLE001 - what cannot be looked into must not leave unseen
            pass_on(raised)
            return REDACTED

    def _look_into(self, value: Any, kind: type, copies: _Copies, depth: int) -> Any:
        if issubclass(kind, enum.Enum):
            inner = value._value_
            return value if self._clean(inner, copies, depth) == inner else REDACTED
        if not issubclass(kind, _NESTED) or hasattr(kind, "__sa_type_engine__"):
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
            # A mapping of another kind may go on for ever.
            pairs = dict.items(value) if issubclass(kind, dict) else islice(value.items(), len(value))
            for key, item in list(pairs):
                mode = self._mode_of_key(key)
                if mode is None:
                    copy[key] = self._clean(item, copies, depth)
                elif mode is not RedactionMode.DROP:
                    copy[key] = self.hide(item, mode)
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
                self._clean(item, copies, depth) if mode is None else self.hide(item, mode)
                for mode, item in zip(map(self._mode_of_key, names), items, strict=True)
            ]
        )

    def _mode_of_key(self, key: Any) -> RedactionMode | None:
        if isinstance(key, enum.Enum):
            mode = self.mode_of(key._name_)
            if mode is not None:
                return mode
            key = key._value_
        if isinstance(key, bytes):
            key = bytes(key[:_NAME_LENGTH]).decode("utf-8", "replace")
        return self.mode_of(key)


_ARGUMENTS: Final = frozenset({"process.command_args", "process.command_line"})
_PLAIN: Final = frozenset({type(None), bool, int, float, str, bytes, Decimal, datetime, date, UUID})
_NESTED: Final = (dict, list, tuple, set, frozenset, Mapping)
_Copies = dict[int, tuple[Any, Any]]
"""By id: the original, kept alive because its id must not be given to another object, and its copy."""


def split_mode(name: str) -> tuple[str, RedactionMode | None]:
    """``email=hash`` as name and mode; None when it names no mode.

    Raises:
        ValueError: an unknown mode, or no name.
    """
    found, mark, mode = name.partition("=")
    found = found.strip()
    if not found:
        raise ValueError(f"{name!r} names nothing")
    return found, RedactionMode(mode.strip().lower()) if mark else None


class _Names:
    """Names that the user gives: whole words, and patterns."""

    def __init__(self, names: list[str]) -> None:
        self._phrases = _Phrases(name for name in names if not _is_pattern(name))
        self._patterns = [re.compile(_translate(name)) for name in names if _is_pattern(name)]

    @property
    def first_words(self) -> set[str] | None:
        """One of these stands in every name that matches; None when that cannot be said."""
        return None if self._patterns else self._phrases.first_words

    def match(self, name: str, split: _Words, unsplit: _Words) -> bool:
        if self._phrases.within(split) or self._phrases.within(unsplit):
            return True
        return bool(self._patterns) and any(
            pattern.match(form) for pattern in self._patterns for form in _pattern_forms(name)
        )


class _Phrases:
    """A set of names as sequences of words."""

    def __init__(self, names: Iterable[str]) -> None:
        self._phrases: set[_Words] = set()
        for name in names:
            for words in _spellings(name):
                self._phrases |= {words, ("".join(words),)}  # api_key and apikey
        self._longest = max(map(len, self._phrases), default=0)
        self.first_words = {words[0] for words in self._phrases if words and words[0]}

    def within(self, words: _Words) -> bool:
        """Whether any run of whole words is one of the names."""
        return any(
            words[start : start + length] in self._phrases
            for length in range(1, self._longest + 1)
            for start in range(len(words) - length + 1)
        )


def _is_metadata(words: _Words) -> bool:
    """Whether a name speaks about a secret and does not hold it."""
    return (
        words[-1:] in _METADATA or words[-2:] in _METADATA or (len(words) > 1 and words[0] in QUESTION_WORDS)
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
    """Full-width and other compatibility letters as plain ones, without what nobody sees."""
    return name if name.isascii() else _UNSEEN.sub("", unicodedata.normalize("NFKC", name))


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


def _hint(names: list[_Names], *, defaults: bool) -> re.Pattern[str] | None:
    """Finds a part that every secret name has, in lower case; None when there is no such part."""
    words: set[str] = set()
    for each in names:
        first = each.first_words
        if first is None:
            return None
        words |= first
    if defaults:
        words |= {*_DEFAULTS.first_words, *DEFAULT_WHOLE_NAMES, *_GLUED_BEGINNINGS, *_GLUED_ENDINGS}
    return re.compile("|".join(map(re.escape, sorted(words))) if words else "(?!)")


_UNSEEN: Final = re.compile("[\u00ad\u200b-\u200f\u2060-\u2064\ufeff]")
_DEFAULTS: Final = _Phrases(DEFAULT_NAMES)
_METADATA: Final = frozenset(_words(name) for name in METADATA_WORDS)
