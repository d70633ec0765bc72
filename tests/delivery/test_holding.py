"""Units as they are written down and read back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_activity import semconv
from otel_activity.delivery.holding import decode_unit, encode_unit
from otel_activity.events import Event, Proof, packed
from tests.delivery.test_durable import World, bracket, flush, ids, world
from tests.delivery.test_queued import unit, wait_for

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["world"]

KEY = semconv.CHANGES
CHANGES = {
    "title": {"before": None, "after": 'a "quoted" \U0001f600 \\ text'},
    "n": {"after": [1, {"b": 2.5}]},
}
TEXTS = st.one_of(st.text(max_size=8), st.sampled_from([KEY, f'"{KEY}":', f'\\"{KEY}":{{}}', "null"]))
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(1 << 63), (1 << 63) - 1), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=8,
)


def event(attributes: Mapping[str, Any]) -> Event:
    """An event with a value in every field."""
    return Event(
        id="019aaaaa-aaaa-7aaa-8aaa-aaaaaaaaaaaa",
        name="activity.entity.updated",
        time=1_780_000_000_123_456_000,
        attributes=dict(attributes),
        observed=1_780_000_000_123_457_000,
        severity=13,
        trace_id=(1 << 128) - 1,
        span_id=(1 << 64) - 1,
        trace_flags=1,
    )


def test_every_field_of_an_event_is_read_back() -> None:
    """Nothing of an event is lost or changed in a journal, nor the proof of its unit."""
    proof = Proof("7301", 1, "shop", 1 << 40, "run")
    without = event({"a": "b"})
    without.trace_id = 0
    found, proven = decode_unit(encode_unit([event({"a": [1]}), without], proof))
    assert [each.unpacked() for each in found] == [event({"a": [1]}), without]
    assert proven == proof


@given(attributes=st.dictionaries(TEXTS, VALUES, max_size=5), changes=VALUES, last=st.booleans())
def test_attributes_are_read_back_whatever_they_are_called(
    attributes: dict[str, Any], changes: Any, last: bool
) -> None:
    """Keys and texts that look like our own attribute change nothing about any value."""
    attributes.pop(KEY, None)
    given = {**attributes, KEY: changes} if last else {KEY: changes, **attributes}
    for written in (given, {**given, KEY: packed(changes)}, attributes):
        (found,), _ = decode_unit(encode_unit([event(written)]))
        assert found.plain_attributes() == event(written).plain_attributes()


@pytest.mark.parametrize("as_text", [True, False])
def test_what_changed_is_json_text_again(as_text: bool) -> None:
    """It is not taken apart on the way: nested values by the thousand are work for the garbage collector."""
    (found,), _ = decode_unit(encode_unit([event({KEY: packed(CHANGES) if as_text else CHANGES, "z": 1})]))
    assert type(found.attributes[KEY]) is msgspec.Raw
    assert msgspec.json.decode(found.attributes[KEY]) == CHANGES
    assert found.attributes["z"] == 1


def test_a_journal_is_not_read_further_ahead_than_an_exporter_needs(world: World) -> None:
    """A large backlog stays on disk: in memory are a few batches of it, although the queue has room."""
    down = world.road(down=True)
    first = world.delivery(down)
    for number in range(0, 300, 3):
        bracket(first, unit(number, number + 1, number + 2))
    world.kill(first)
    road = world.road(down=True)
    road.lane.ahead = 10
    second = world.delivery(road)
    second.start()
    wait_for(lambda: road.lane.pending >= 10)
    wait_for(lambda: road.lane.trouble is not None)
    second.flush(0.3, poke=lambda: None)
    assert road.lane.pending < 10 + 3
    road.down = False
    assert flush(second)
    assert ids(road) == list(range(300))
    assert [each.attributes[semconv.SEQUENCE] for each in road.taken] == list(range(1, 301))
