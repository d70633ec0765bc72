"""Both decoders against damaged requests, without a server: what is taken means the same by either way."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from otel_activity import semconv
from otel_activity.codec.lines import row_of
from otel_activity.receiver import protobuf
from otel_activity.receiver.jsondecoder import JSONDecoder
from otel_activity.receiver.protobuf import ProtobufDecoder
from otel_activity.receiver.records import MAX_VALUES, BadRequest
from tests.postgres.support import make_event, make_events
from tests.receiver.support import as_json, columns_of, field, otlp_request, varint

if TYPE_CHECKING:
    from otel_activity.codec.lines import Row
    from otel_activity.receiver.records import Decoded

RESOURCE = {"service.name": "shop"}
DEEP = {"a": {"b": [1, {"c": [None, 2.5, True, "t"]}]}, "é": "", "$json": "x"}
CHANGES = {"title": {"before": "a" * 200, "after": DEEP}}
EVENTS = [
    *make_events(2),
    make_event(
        3,
        attributes={semconv.CHANGES: CHANGES, semconv.DETAILS: DEEP},
    ),
]
_REQUEST = otlp_request(EVENTS, RESOURCE)
_PROTOBUF = _REQUEST.SerializeToString()
_JSON = json.dumps(as_json(_REQUEST)).encode()


def _check(decoded: Decoded) -> None:
    """Each row gives its event for the quarantine, and the event gives the row, unless it cannot be read."""
    for row in decoded.rows:
        if _unreadable(row):
            continue
        again = row_of(row.event(), decoded.resources[row.resource].service_name, row.resource)
        assert bool(row.line) == bool(again.line)
        if row.line:
            assert columns_of(row.line) == columns_of(again.line)
        else:
            assert row.reason == again.reason


def _unreadable(row: Row) -> bool:
    """Whether a record could be read in part only: then its event holds it whole, and it is no line."""
    original = row.event().attributes.get(semconv.RECORD_ORIGINAL)
    if original is None:
        return False
    assert isinstance(row, protobuf._WireRow)
    assert base64.b64decode(original) == row.data
    assert row.line == b""
    assert row.reason
    return True


@st.composite
def _damaged(draw: st.DrawFn, source: bytes) -> bytes:
    """The request with a few places overwritten, cut out, doubled or cut off."""
    body = bytearray(source)
    for _ in range(draw(st.integers(1, 6))):
        if not body:
            break
        position = draw(st.integers(0, len(body) - 1))
        length = draw(st.integers(0, 8))
        part = bytes(body[position : position + length])
        body[position : position + length] = draw(
            st.binary(max_size=8) | st.just(part * 2) | st.sampled_from([b"", b"\x00", b"\xff", b'"', b"\\"])
        )
    return bytes(body[: draw(st.integers(0, len(body)))] if draw(st.integers(0, 9)) == 0 else body)


@settings(max_examples=1_000, deadline=None)
@given(_damaged(_PROTOBUF))
def test_damaged_protobuf_is_refused_or_read_one_way(body: bytes) -> None:
    """The fast way takes nothing that the long way refuses, and makes the same row of what it takes."""
    try:
        decoded = ProtobufDecoder().decode(body)
    except BadRequest:
        return
    _check(decoded)


_lengths = st.sampled_from([varint, lambda size: bytes([size & 127 | 128, size >> 7 & 127 | 128, 0])])


@st.composite
def _fields(draw: st.DrawFn, number: int, contents: st.SearchStrategy[bytes]) -> bytes:
    """A field, its length at times in a form that nobody writes."""
    content = draw(contents)
    return bytes([number << 3 | 2]) + draw(_lengths)(len(content)) + content


_texts = st.text(max_size=8).map(str.encode) | st.binary(max_size=4) | st.sampled_from([b"x" * 130, b"$json"])
_keys = _texts | st.sampled_from(
    [
        name.encode()
        for name in (
            semconv.CHANGES,
            semconv.USER_ID,
            semconv.SEQUENCE,
            semconv.STREAM_ID,
            semconv.RECORD_UID,
            semconv.DETAILS,
        )
    ]
)
_plain_values = (
    st.just(b"")
    | _fields(1, _texts)
    | _fields(7, st.binary(max_size=4))
    | st.integers(0, 2**64 - 1).map(lambda number: b"\x18" + varint(number))
    | st.booleans().map(lambda value: bytes([0x10, value]))
    | st.binary(min_size=8, max_size=8).map(b"\x21".__add__)
)


def _pairs(values: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """A ``KeyValue`` with its fields in any order, missing or repeated."""
    parts = st.lists(_fields(1, _keys) | _fields(2, values), max_size=3).map(b"".join)
    usual = st.tuples(_fields(1, _keys), _fields(2, values))
    return usual.map(b"".join) | usual.map(lambda pair: pair[1] + pair[0]) | parts


_values = st.recursive(
    _plain_values,
    lambda inner: (
        _fields(6, st.lists(_fields(1, _pairs(inner)), max_size=3).map(b"".join))
        | _fields(5, st.lists(_fields(1, inner), max_size=3).map(b"".join))
    ),
    max_leaves=6,
)


@settings(max_examples=600, deadline=None)
@given(st.lists(_pairs(_values), max_size=4))
def test_attributes_of_any_form_are_refused_or_read_one_way(items: list[bytes]) -> None:
    """Fields out of order, missing, doubled or of odd lengths: the fast way and the long one agree."""
    record = _REQUEST.resource_logs[0].scope_logs[0].log_records[0].SerializeToString()
    body = _request(record + b"".join(field(6, item) for item in items))
    with contextlib.suppress(BadRequest):
        _check(ProtobufDecoder().decode(body))
    # One attribute makes the record too large for the fast way.
    large = field(6, field(1, b"large") + field(2, field(1, bytes(2 * MAX_VALUES))))
    assert _outcome(body) == _outcome(_request(record + large + b"".join(field(6, item) for item in items)))


def _request(record: bytes) -> bytes:
    scope = field(1, field(1, semconv.SCOPE_NAME.encode()))
    return field(1, field(2, scope + field(2, record)))


def _outcome(body: bytes) -> str:
    """What becomes of a request of one record."""
    try:
        (row,) = ProtobufDecoder().decode(body).rows
    except BadRequest:
        return "refused"
    return "unreadable" if _unreadable(row) else "read"


def test_text_cut_between_name_and_value_is_bad() -> None:
    """Half a character at the end of a name and the other half in its value are two damaged texts."""
    record = _REQUEST.resource_logs[0].scope_logs[0].log_records[0].SerializeToString()
    item = field(1, b"name\xc3") + field(2, field(1, b"\xa9"))
    assert _outcome(_request(record + field(6, item))) == "unreadable"


def test_too_many_values_are_unreadable_however_small() -> None:
    """A record with too many values is put aside at once, and so is its event for the quarantine."""
    record = _REQUEST.resource_logs[0].scope_logs[0].log_records[0].SerializeToString()
    item = field(6, field(1, b"n") + field(2, b"\x18\x01"))
    body = _request(record + item * (MAX_VALUES + 1))
    assert _outcome(body) == "unreadable"
    assert "values" in ProtobufDecoder().decode(body).rows[0].reason


def test_what_cannot_be_read_is_kept_as_far_as_it_can() -> None:
    """Behind a damaged text there may be more damage: the event has what is readable, its id above all."""
    record = _REQUEST.resource_logs[0].scope_logs[0].log_records[0].SerializeToString()
    damage = [field(1, b"bad") + field(2, field(1, b"\xff")), b"\x0a\x05cut", field(2, b"\x21\x00")]
    good = field(1, b"good") + field(2, field(1, b"yes"))
    name = field(12, b"activity.\xff")
    body = _request(record + b"".join(field(6, item) for item in [*damage, good]) + name)
    assert _outcome(body) == "unreadable"
    (row,) = ProtobufDecoder().decode(body).rows
    event = row.event()
    assert event.id == EVENTS[0].id
    assert event.name == "activity.\\xff"
    assert event.time == EVENTS[0].time == row.time
    assert event.attributes["good"] == "yes"
    assert "bad" not in event.attributes


def test_ids_of_a_wrong_length_are_none() -> None:
    """OTLP: who has no valid trace id is in no trace; that is no reason to refuse anything."""
    record = _REQUEST.resource_logs[0].scope_logs[0].log_records[0].SerializeToString()
    (row,) = ProtobufDecoder().decode(_request(record + field(9, b"12345") + field(10, b"1" * 9))).rows
    assert (row.event().trace_id, row.event().span_id) == (0, 0)
    assert row.line.split(b"\t")[5:7] == [b"", b""]


def test_scope_that_cannot_be_read_is_not_ours() -> None:
    """Somebody else's scope with a damaged name does not keep our events out."""
    ours = _request(_REQUEST.resource_logs[0].scope_logs[0].log_records[0].SerializeToString())
    scope = field(1, field(1, semconv.SCOPE_NAME.encode() + b"\xff")) + field(2, b"")
    decoded = ProtobufDecoder().decode(ours + field(1, field(2, scope)))
    assert (len(decoded.rows), decoded.foreign) == (1, 1)


@settings(max_examples=400, deadline=None)
@given(_damaged(_JSON))
def test_damaged_json_is_refused_or_read_one_way(body: bytes) -> None:
    """JSON that is damaged is refused, or gives rows whose events give the same rows."""
    try:
        decoded = JSONDecoder().decode(body)
    except BadRequest:
        return
    _check(decoded)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_noise_is_refused_or_has_no_events(body: bytes) -> None:
    """Bytes without any order give no event in either encoding, and no other error than a refusal."""
    for decode in (ProtobufDecoder().decode, JSONDecoder().decode):
        with contextlib.suppress(BadRequest):
            assert decode(body).rows == []
