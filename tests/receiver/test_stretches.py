"""What one decoder remembers of records never shows in the rows of others."""

from __future__ import annotations

import gc
import random
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.receive import typical_event
from otel_activity import semconv
from otel_activity.codec.lines import row_of
from otel_activity.codec.otlp import envelope, log_request
from otel_activity.receiver import protobuf
from otel_activity.receiver.fragments import is_plain
from otel_activity.receiver.protobuf import ProtobufDecoder
from otel_activity.receiver.recordlines import RecordLines
from otel_activity.receiver.records import MAX_RECORDS, MAX_VALUES, BadRequest, TooLarge
from tests.postgres.support import make_event
from tests.receiver.support import columns_of, field, otlp_request

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from otel_activity.events import Event
    from otel_activity.receiver.records import Decoded

RESOURCE: dict[str, Any] = {"service.name": "shop"}
_SHORT = st.sampled_from(["", "a", "b", "open", "done", "\t", '"', "é", "\u2028", "\x7f", "$json", "x" * 125])
_SIDE = (
    _SHORT
    | st.integers(-3, 300)
    | st.none()
    | st.booleans()
    | _SHORT.map(lambda text: {"$datetime": text})
    | st.dictionaries(_SHORT, _SHORT, max_size=2)
    | st.just("y" * 20_000)
)
_CHANGES = st.dictionaries(
    st.sampled_from(["title", "state", "$json", "odd\n", "k" * 130]),
    st.dictionaries(st.sampled_from(["before", "after", "$json"]), _SIDE, max_size=2),
    max_size=3,
)
_ATTRIBUTES = st.fixed_dictionaries(
    {},
    optional={
        semconv.ACTIVITY_ACTION: st.sampled_from(["update", "insert", ""]),
        semconv.ENTITY_TYPE: st.sampled_from(["Task", "Note"]),
        semconv.ENTITY_ID: _SHORT | st.integers(0, 9) | st.just("z" * 300),
        semconv.CHANGES: _CHANGES,
        semconv.DB_COLLECTION_NAME: st.sampled_from(["tasks", "notes"]),
        semconv.TRANSACTION_ID: st.sampled_from(["019a0000-0000-7000-8000-00000000000" + c for c in "123x"]),
        semconv.TENANT_ID: st.sampled_from(["t1", "t2", "t3"]),
        semconv.USER_ID: _SHORT,
        semconv.SEQUENCE: st.integers(-2, 2)
        | st.sampled_from([127, 128, 1 << 40, (1 << 63) - 1, -(1 << 63)]),
        semconv.DETAILS: _SIDE,
        "custom": _SIDE,
    },
)


@st.composite
def _events(draw: st.DrawFn) -> Event:
    attributes = draw(_ATTRIBUTES)
    order = draw(st.permutations(list(attributes))) if draw(st.booleans()) else list(attributes)
    return make_event(
        draw(st.integers(0, 3)),
        attributes={name: attributes[name] for name in order},
        trace_id=draw(st.sampled_from([0, 1, 2])),
        span_id=draw(st.sampled_from([0, 1, 2])),
        severity=draw(st.sampled_from([0, 9, 13])),
    )


def _columns(decoded: Decoded) -> list[list[Any]]:
    return [columns_of(row.line) if row.line else [row.reason] for row in decoded.rows]


def _long_way(decoded: Decoded) -> list[list[Any]]:
    """The same rows, each from its event."""
    rows = [
        row_of(row.event(), decoded.resources[row.resource].service_name, row.resource)
        for row in decoded.rows
    ]
    return [columns_of(row.line) if row.line else [row.reason] for row in rows]


def _body(events: Sequence[Event], resource: dict[str, Any] = RESOURCE) -> bytes:
    return log_request(envelope(resource, "", semconv.SCOPE_NAME, "1", ""), events)


@settings(max_examples=250, deadline=None)
@given(st.lists(_events(), min_size=1, max_size=8))
def test_records_read_after_each_other_equal_records_read_alone(events: list[Event]) -> None:
    """Stretches that repeat, nearly repeat or come in another order: each row is what its record says."""
    decoder = ProtobufDecoder()
    bodies = [_body(events), otlp_request(events, RESOURCE).SerializeToString()]
    for body in [*bodies, bodies[0]]:
        decoded = decoder.decode(body)
        assert _columns(decoded) == _long_way(decoded)
        assert [row.event() for row in decoded.rows] == [
            row.event() for row in ProtobufDecoder().decode(body).rows
        ]
    alone = [_columns(ProtobufDecoder().decode(_body([event])))[0] for event in events]
    assert _columns(decoder.decode(bodies[0])) == alone


_VALUES = st.sampled_from(
    [b"", field(1, b"one"), field(1, b"two"), field(1, b'"'), b"\x18\x05", field(6, field(1, b"\x0a\x01k"))]
)
_ITEMS = st.builds(
    lambda name, value, turned: field(
        6, field(2, value) + field(1, name) if turned else field(1, name) + field(2, value)
    ),
    st.sampled_from(
        [
            semconv.ENTITY_ID.encode(),
            semconv.CHANGES.encode(),
            semconv.SEQUENCE.encode(),
            semconv.RECORD_UID.encode(),
            semconv.TENANT_ID.encode(),
            b"custom",
        ]
    ),
    _VALUES,
    st.booleans(),
)
_OTHERS = st.sampled_from(
    [
        b"\x09" + bytes(7) + b"\x01",
        b"\x59" + b"\x01" * 8,
        b"\x10\x09",
        b"\x10\x89\x01",
        b"\x38\x02",
        b"\x2a\x00",
        b"\x45\x01\x00\x00\x00",
        field(3, b"\xff"),
        field(9, b"\x01" * 16),
        field(9, b""),
        field(10, bytes(8)),
        field(12, b"activity.entity.updated"),
        field(12, b"activity.other"),
        field(99, b"?"),
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.lists(_ITEMS | _OTHERS, max_size=10), min_size=1, max_size=5))
def test_elements_in_any_order_and_number_mean_the_same(records: list[list[bytes]]) -> None:
    """Doubled attributes, doubled fields and fields in any order: the last counts, as the parser has it."""
    decoder = ProtobufDecoder()
    for elements in records * 2:
        record = b"".join(elements) + field(12, b"activity.entity.updated")
        decoded = decoder.decode(_request(record))
        assert len(decoded.rows) == 1
        assert _columns(decoded) == _long_way(decoded)


def _request(*records: bytes) -> bytes:
    scope = field(1, field(1, semconv.SCOPE_NAME.encode()))
    return field(1, field(2, scope + b"".join(field(2, record) for record in records)))


def _typical() -> Event:
    return make_event(
        4,
        trace_id=1,
        span_id=2,
        attributes={
            semconv.ENTITY_ID: "12",
            semconv.CHANGES: {
                "title": {"before": "a", "after": "b"},
                "done_at": {"before": None, "after": {"$datetime": "2026-05-01T09:30:00+00:00"}},
                "n": {"before": 1, "after": 2},
            },
            semconv.TENANT_ID: "t",
            semconv.SEQUENCE: 300,
            "custom": "text",
        },
    )


def test_record_cut_off_at_any_byte_is_refused_or_read_one_way() -> None:
    """A decoder that remembers the whole record takes no more and no less of a part than the long way."""
    body = _body([_typical()])
    (row,) = ProtobufDecoder().decode(body).rows
    assert isinstance(row, protobuf._WireRow)
    record = row.data
    decoder = ProtobufDecoder()
    decoder.decode(_request(record, record))
    large = field(6, field(1, b"large") + field(2, field(1, bytes(2 * MAX_VALUES))))
    for length in range(len(record)):
        try:
            expected = len(ProtobufDecoder().decode(_request(large + record[:length])).rows)
        except BadRequest:
            with pytest.raises(BadRequest):
                decoder.decode(_request(record[:length]))
            continue
        decoded = decoder.decode(_request(record[:length]))
        assert len(decoded.rows) == expected
        assert _columns(decoded) == _long_way(decoded)


def test_size_of_a_name_is_read_whole() -> None:
    """A name whose size takes two bytes is no name of the first byte's length."""
    name = b"#" + b"k" * 142  # behind 0x8F: of 143 bytes, or of 15 + (0x23 << 7)
    side = field(6, field(1, field(1, b"before") + field(2, field(1, b"one"))))
    pair = b"\x0a\x8f" + name + field(2, side)
    changes = field(6, field(1, semconv.CHANGES.encode()) + field(2, field(6, field(1, pair))))
    uid = field(6, field(1, semconv.RECORD_UID.encode()) + field(2, field(1, b"no uuid")))
    with pytest.raises(BadRequest):
        ProtobufDecoder().decode(_request(uid + changes + field(12, b"activity.entity.updated")))


def test_senders_in_turn_keep_their_own_rows() -> None:
    """Two tenants with the same events but for their names, in turn through one decoder."""
    decoder = ProtobufDecoder()
    bodies = []
    for tenant in ("red", "blue"):
        event = _typical()
        event.attributes[semconv.TENANT_ID] = tenant
        bodies.append((tenant, _body([event] * 3, {"service.name": tenant})))
    for tenant, body in bodies * 3:
        decoded = decoder.decode(body)
        assert {row.event().attributes[semconv.TENANT_ID] for row in decoded.rows} == {tenant}
        assert all(line.count(tenant.encode()) == 2 for line in (row.line for row in decoded.rows))
        assert {resource.service_name for resource in decoded.resources.values()} == {tenant}


def test_full_memory_is_emptied_and_rows_stay_right() -> None:
    """What is remembered never grows beyond its bounds, and forgetting changes no row."""
    chance = random.Random(7)
    decoder = ProtobufDecoder(kept=5)
    for number in range(200):
        event = _typical()
        event.attributes[semconv.TENANT_ID] = f"t{chance.randrange(9)}"
        event.attributes[semconv.CHANGES][f"f{chance.randrange(9)}"] = {
            "before": number,
            "after": "x" * (number % 9),
        }
        decoded = decoder.decode(_body([event]))
        assert _columns(decoded) == _long_way(decoded)
    lines = decoder._lines
    assert len(lines._elements) <= 5
    assert max(len(lines._names), len(lines._pairs)) <= 5
    assert all(len(kept) <= 4 for kept in lines._stretches)


def test_plain_text_is_what_neither_json_nor_copy_escapes() -> None:
    """Any character is plain but a control character, a quotation mark, a backslash."""
    for code in [*range(0xD800), *range(0xE000, 0x20000)]:
        expected = code >= 0x20 and chr(code) not in '"\\'
        assert is_plain(chr(code).encode()) is expected, hex(code)


def _many_records() -> bytes:
    return _body([typical_event(1)] * 20_000)


def _many_attributes() -> bytes:
    """Records of 20,000 attributes each."""
    record = b"".join(field(6, b"\x0a\x02%02x" % (n % 256)) for n in range(20_000))
    return _enclosed(field(2, record) * 40)


def _many_fields() -> bytes:
    """Fields that nobody knows."""
    return _enclosed(b"\x98\x06\x01" * 1_000_000)


def _enclosed(records: bytes) -> bytes:
    """Records of our scope as a request."""
    scope = field(1, field(1, semconv.SCOPE_NAME.encode()))
    return field(1, field(2, scope + records))


@pytest.mark.parametrize("make", [_many_records, _many_attributes, _many_fields])
def test_a_long_request_lets_other_threads_run(make: Callable[[], bytes]) -> None:
    """Decoding gives the interpreter away again and again, also where nothing interprets it."""
    body = make()
    turns = 0
    begun, done = threading.Event(), threading.Event()

    def watch() -> None:
        nonlocal turns
        begun.set()
        while not done.is_set():
            turns += 1
            time.sleep(0)

    decoder = ProtobufDecoder()
    thread = threading.Thread(target=watch)
    gc.disable()  # its callbacks are interpreted, and would let others run
    thread.start()
    begun.wait()
    before = turns
    try:
        decoder.decode(body)
        after = turns
    finally:
        gc.enable()
        done.set()
        thread.join()
    assert after - before > 6  # what is new to the decoder is interpreted: a few in any case


def test_a_sequence_of_any_length_is_refused_at_once() -> None:
    """What is too long for a number is not made a number first: that would take quadratic time."""
    value = b"\x18" + b"\xff" * 16_000 + b"\x7f"
    attribute = field(1, semconv.SEQUENCE.encode()) + field(2, value)
    record = field(6, attribute) + field(12, semconv.ENTITY_UPDATED.encode())
    lines = RecordLines(lambda _: None, lambda _: None)
    assert lines.line(record, b"") is None
    with pytest.raises(BadRequest):
        ProtobufDecoder().decode(_enclosed(field(2, record)))


@pytest.mark.parametrize("part", [field(1, b""), field(1, field(2, b"") * 10)])
def test_empty_parts_are_bounded(part: bytes) -> None:
    """Resources and scopes without records are work as well."""
    with pytest.raises(TooLarge):
        ProtobufDecoder().decode(part * (MAX_RECORDS + 1))
