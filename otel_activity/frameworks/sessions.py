"""The session's id: a keyed hash, so that events of one session can be found, and no cookie can be stolen."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Any, Final

from otel_activity.actors import clean, is_id

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["cookie", "hashed", "session_key"]

_PURPOSE: Final = b"otel_activity session.id\0"
_DIGITS: Final = 32
"""128 bits: enough to tell sessions apart, half of what would be stored otherwise."""
_LENGTH: Final = 4_096
_KEYS: Final = ("sid", "session_id", "session_key")


def hashed(raw: str, key: str | bytes) -> str:
    """The first 128 bits of HMAC-SHA256, in hex.

    >>> hashed("cookie", "k")
    'fdbb4656a49fd2065b377e0b600bef85'
    """
    secret = key.encode("utf-8", "surrogatepass") if isinstance(key, str) else key
    return hmac.new(secret, _PURPOSE + raw.encode("utf-8", "replace"), hashlib.sha256).hexdigest()[:_DIGITS]


def session_key(session: Any) -> str | None:
    """The id that a server-side session has; a cookie that holds the data itself has none."""
    for name in _KEYS:
        found = getattr(session, name, None)
        if is_id(found):
            return str(found)
    return None


def cookie(headers: Iterable[str], name: str) -> str | None:
    """The value of one cookie."""
    for header in headers:
        for pair in header[-65_536:].split(";"):
            key, mark, value = pair.partition("=")
            if mark and key.strip() == name:
                return clean(value.strip().strip('"'), _LENGTH) or None
    return None
