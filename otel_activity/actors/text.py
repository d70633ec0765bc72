"""Texts that came from outside: bounded, printable, valid."""

from __future__ import annotations

import re
from typing import Any, Final
from uuid import UUID

__all__ = ["ID_LENGTH", "clean", "is_id"]

ID_LENGTH: Final = 256
"""Longest id or name, in characters."""

# C0, DEL, C1, line and paragraph separators, bidirectional controls, surrogates.
_CONTROL: Final = re.compile("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]+")


def clean(value: Any, length: int = ID_LENGTH) -> str:
    """At most `length` characters, without control characters; empty for what is no text."""
    if isinstance(value, bytes):
        value = value[: length * 4].decode("utf-8", "replace")
    return _CONTROL.sub(" ", value[:length]).strip() if isinstance(value, str) else ""


def is_id(value: Any) -> bool:
    """Whether a value can be an id: a text, a number or a UUID."""
    return isinstance(value, (str, int, UUID)) and not isinstance(value, bool) and value != ""
