"""Nothing from an event steers the terminal, tables fit it, and JSON stays exact."""

from __future__ import annotations

import json
import time
import unicodedata
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_activity.cli.eventview import EventTable, field_lines
from otel_activity.cli.options import parse_when
from otel_activity.cli.render import (
    UNSAFE_CATEGORIES,
    Column,
    display_width,
    fit,
    json_line,
    layout,
    printable,
    shown_time,
    table_line,
)
from tests.store.support import make_event

ANY_TEXT = st.text(st.characters())
NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


@given(ANY_TEXT)
def test_printable_leaves_no_unsafe_character(text: str) -> None:
    """No control, format, surrogate or separator character is left, and plain text is left alone."""
    shown = printable(text)
    assert not any(unicodedata.category(char) in UNSAFE_CATEGORIES for char in shown)
    if not any(unicodedata.category(char) in UNSAFE_CATEGORIES for char in text):
        assert shown == text


@given(ANY_TEXT.map(printable), st.integers(1, 40))
def test_fit_never_exceeds_the_width(text: str, width: int) -> None:
    """A text cut to a width takes no more cells, wide characters counted as two."""
    assert display_width(fit(text, width)) <= width


@given(st.lists(st.tuples(*[ANY_TEXT.map(printable)] * 3), min_size=1, max_size=5), st.integers(30, 200))
def test_table_lines_fit_the_terminal(rows: list[tuple[str, ...]], width: int) -> None:
    """A table whose columns may shrink is never wider than the terminal."""
    columns = [Column("A", least=5), Column("B", least=5, most=20), Column("C", least=8)]
    widths = layout(columns, rows, width)
    assert all(display_width(table_line(row, widths)) <= width for row in rows)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**63) | ANY_TEXT,
        lambda inner: st.lists(inner) | st.dictionaries(ANY_TEXT, inner),
    )
)
def test_json_line_is_one_plain_line_and_exact(value: object) -> None:
    """JSON output is one line of printable ASCII that parses to the same data."""
    line = json_line(value)
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line) == value


@given(
    st.dictionaries(ANY_TEXT, st.fixed_dictionaries({}, optional={"before": ANY_TEXT, "after": ANY_TEXT})),
    ANY_TEXT,
    st.sampled_from([None, 60, 80, 160]),
)
def test_no_part_of_an_event_reaches_the_terminal_raw(
    changes: dict[str, dict[str, str]], hostile: str, width: int | None
) -> None:
    """Whatever an attacker puts into names, ids, fields and values is escaped in tables and timelines."""
    event = make_event(
        name=hostile,
        activity__action=hostile or None,
        activity__changes=changes,
        activity__entity__type=hostile,
        activity__entity__id=hostile,
        activity__actor__type=hostile,
        activity__actor__on_behalf_of=hostile,
        activity__details={hostile: hostile},
        activity__reason=hostile,
        error__type=hostile,
        user__id=hostile,
        user__name=hostile + "x",
    )
    lines = EventTable(width).lines([event]) + field_lines(event, width)
    assert not any(unicodedata.category(char) in UNSAFE_CATEGORIES for line in lines for char in line)
    assert width is None or all(display_width(line) <= width for line in lines)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("15m", NOW - timedelta(minutes=15)),
        ("2H", NOW - timedelta(hours=2)),
        (" 7d ", NOW - timedelta(days=7)),
        ("1w", NOW - timedelta(weeks=1)),
        ("now", NOW),
        ("2026-04-30", datetime(2026, 4, 30, tzinfo=UTC)),
        ("2026-04-30T10:00", datetime(2026, 4, 30, 10, tzinfo=UTC)),
        ("2026-04-30T10:00:00Z", datetime(2026, 4, 30, 10, tzinfo=UTC)),
        ("2026-04-30T10:00+02:00", datetime(2026, 4, 30, 10, tzinfo=timezone(timedelta(hours=2)))),
    ],
)
def test_times_people_type(text: str, moment: datetime) -> None:
    """A distance counts back from now; a time without a zone is UTC."""
    assert parse_when(text, now=NOW) == moment


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the zone cannot be changed here")
@pytest.mark.parametrize("local", [False, True])
def test_days_by_name_are_their_beginnings(monkeypatch: pytest.MonkeyPatch, local: bool) -> None:
    """From yesterday until today is one whole day, of the zone in which times are read."""
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        now = datetime(2026, 5, 1, 20, 0, tzinfo=UTC)
        today = datetime(2026, 5, 1, 18, 30, tzinfo=UTC) if local else datetime(2026, 5, 1, tzinfo=UTC)
        assert parse_when("today", now=now, local=local) == today
        assert parse_when("Yesterday", now=now, local=local) == today - timedelta(days=1)
    finally:
        monkeypatch.undo()
        time.tzset()


@given(ANY_TEXT)
def test_any_other_time_is_refused_with_the_fix(text: str) -> None:
    """Text is read as a time or refused with one message; no other error."""
    try:
        assert parse_when(text, now=NOW).tzinfo is not None
    except ValueError as error:
        assert "use 15m" in str(error)  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize("text", ["", "5x", "99999999w", "0001-01-01T00:00+23:00", "tomorrow"])
def test_times_that_are_none(text: str) -> None:
    """A time that is none, or outside the calendar, is refused with examples."""
    with pytest.raises(ValueError, match="use 15m"):
        parse_when(text, now=NOW)


def test_a_request_says_which_one() -> None:
    """A refused request and a refused login show the route and where they came from."""
    web = {
        "http.request.method": "DELETE",
        "http.route": "/tickets/<int:number>",
        "client.address": "192.0.2.1",
    }
    answer = {"http.response.status_code": 403, "error.type": "403"}
    request = make_event(name="activity.request", **web, **answer)
    login = make_event(name="activity.auth.failed", **web)
    shown = "\n".join(EventTable(None).lines([request, login]))
    assert "error: 403, request: DELETE /tickets/<int:number>, status: 403, client: 192.0.2.1" in shown
    assert shown.count("client: 192.0.2.1") == 2


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York"])
def test_the_first_and_the_last_day_can_be_shown_in_local_time(
    zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event of an absurd time is shown in UTC where its local time is in a year that does not exist."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        for moment in (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)):
            second = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1)
            assert shown_time(second * 1_000_000_000, local=True)
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("width", [80, 120, None])
def test_what_comes_later_is_not_cut_to_what_came_first(width: int | None) -> None:
    """Following events, one with longer names than those before is shown whole where there is room."""
    table = EventTable(width)
    first = table.lines([make_event()])[1]
    longer = make_event(
        user__id="alice@example.org", activity__entity__type="Invoice", activity__action="approve"
    )
    assert "alice@example.org  approve  Invoice 1" in table.lines([longer])[0]
    assert table.lines([make_event()])[0].index("task 1") > first.index("task 1")
