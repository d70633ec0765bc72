"""Filters and cursors refuse what is wrong in itself."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_activity.errors import ConfigurationError
from otel_activity.store import EventFilter
from otel_activity.store.filters import Position

MAY = datetime(2026, 5, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("fields", "variable"),
    [
        ({"since": datetime(2026, 5, 1)}, "since"),
        ({"until": MAY, "since": MAY}, "until"),
        ({"until": MAY - timedelta(days=1), "since": MAY}, "until"),
        ({"trace_id": "12"}, "trace_id"),
        ({"trace_id": "G" * 32}, "trace_id"),
        ({"span_id": "0" * 15}, "span_id"),
        ({"transaction_id": "1; DROP TABLE x"}, "transaction_id"),
        ({"actor_id": "a\0b"}, "actor_id"),
        ({"text": "\ud800"}, "text"),
        ({"names": ("ok", "\0")}, "names"),
    ],
)
def test_wrong_fields_are_refused_by_name(fields: dict[str, Any], variable: str) -> None:
    """A filter that could only fail on the server is refused at once, and the error names the field."""
    with pytest.raises(ConfigurationError) as caught:
        EventFilter(**fields)
    assert caught.value.variable == variable


@given(st.integers(-(2**55), 2**55), st.uuids())
def test_cursor_round_trip(time: int, ident: Any) -> None:
    """A cursor leads back to the place it was made of."""
    position = Position(time, str(ident))
    assert Position.parse(position.cursor) == position


@given(st.one_of(st.text(), st.binary().map(lambda raw: raw.hex()), st.from_regex(r"[A-Za-z0-9_-]{1,80}")))
def test_foreign_cursor_is_refused(text: str) -> None:
    """Whatever is given as a cursor either is one or is refused as a configuration error."""
    with contextlib.suppress(ConfigurationError):
        position = Position.parse(text)
        assert Position.parse(position.cursor) == position


@pytest.mark.parametrize("time", [2**63, -(2**63), 10**18])
def test_cursor_of_an_impossible_time_is_refused(time: int) -> None:
    """A forged cursor beyond the calendar is refused instead of failing inside the query."""
    forged = Position(time, "01a20a28-e476-7136-a081-13bb5fbcc557").cursor
    with pytest.raises(ConfigurationError):
        Position.parse(forged)
