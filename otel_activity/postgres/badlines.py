"""What no server stores, told from a line of COPY without asking.

A server names one bad row of a batch and forgets the rest, so finding all of them takes several statements
for each. That is right for what only it can know; a sender whose every id is of another kind would keep it
busy for minutes.
"""

from __future__ import annotations

import re
from typing import Final

from otel_activity.codec.rows import COLUMNS

__all__ = ["refusal"]

_ID: Final = COLUMNS.index("id")
_SEVERITY: Final = COLUMNS.index("severity")
_SMALLINT: Final = 1 << 15
_UUID: Final = re.compile(rb"\{?(?:[0-9a-f]{4}-?){7}[0-9a-f]{4}\}?", re.IGNORECASE)
"""Whatever PostgreSQL reads as a UUID, and a little more."""


def refusal(line: bytes) -> tuple[str, str] | None:
    """SQLSTATE and reason, as the server would have them, if the row can certainly not be stored.

    Args:
        line: as `codec.rows.copy_line` makes it.
    """
    fields = line.split(b"\t", _SEVERITY + 1)
    if not fields[_ID]:
        return "23502", "the id is missing"
    if not _UUID.fullmatch(fields[_ID]):
        return "22P02", "the id is not a UUID"
    if not -_SMALLINT <= int(fields[_SEVERITY]) < _SMALLINT:
        return "22003", "the severity is out of range"
    return None
