"""Texts that came from outside: bounded, printable, valid."""

from __future__ import annotations

import re
from typing import Any, Final
from uuid import UUID

__all__ = ["ID_LENGTH", "as_id", "clean", "is_id", "said", "wrong_with"]

ID_LENGTH: Final = 256
"""Longest id or name, in characters."""
_ID_BITS: Final = 512
"""Of the largest number that is an id."""

# C0, DEL, C1, line and paragraph separators, bidirectional controls, surrogates.
_CONTROL: Final = re.compile("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]+")


def clean(value: Any, length: int = ID_LENGTH) -> str:
    """At most `length` characters, without control characters; empty for what is no text."""
    if isinstance(value, bytes):
        value = value[: length * 4].decode("utf-8", "replace")
    return _CONTROL.sub(" ", value[:length]).strip() if isinstance(value, str) else ""


_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_SAID_LENGTH: Final = 65_536


def said(value: Any) -> str:
    """What the application says itself, as text that can be encoded: a lone surrogate, which JSON of a client
    may have brought, becomes U+FFFD. At most 65,536 characters.
    """
    return _SURROGATE.sub("\ufffd", str(value)[:_SAID_LENGTH])


def is_id(value: Any) -> bool:
    """Whether a value can be an id: a text, a number or a UUID."""
    return isinstance(value, (str, int, UUID)) and not isinstance(value, bool) and value != ""


def as_id(value: Any) -> Any:
    """A text, a number or a UUID as text, exactly as it is; anything else unchanged."""
    if type(value) is str or not is_id(value) or (isinstance(value, int) and value.bit_length() > _ID_BITS):
        return value
    return str(value)


def wrong_with(key: Any) -> str | None:
    """Why an id cannot be stored, as the name of an error; None if it can.

    It is stored as it is or not at all: one that was cut or cleaned may be somebody else's.
    """
    if not isinstance(key, str):
        return "TypeError"
    usable = 0 < len(key) <= ID_LENGTH and not key.isspace() and _CONTROL.search(key) is None
    return None if usable else "ValueError"
