"""The bytes of a segment: what an interrupted write or a bad disk costs, and nothing beyond it."""

from __future__ import annotations

import zlib

from hypothesis import given
from hypothesis import strategies as st

from otel_activity.delivery.records import (
    HEADER_SIZE,
    Damage,
    Record,
    frame,
    read_header,
    scan,
    segment_header,
)

PAYLOADS = st.lists(st.binary(max_size=60), min_size=1, max_size=8)


def segment(payloads: list[bytes], first: int = 0) -> tuple[bytes, list[int]]:
    """A segment, and where each record ends."""
    data = segment_header(first)
    ends = []
    for number, payload in enumerate(payloads, first):
        data += frame(number, number % 7, payload, zlib.crc32(payload))
        ends.append(len(data))
    return data, ends


def records(data: bytes) -> list[Record]:
    return [found for found in scan(data) if isinstance(found, Record)]


def damages(data: bytes) -> list[Damage]:
    return [found for found in scan(data) if isinstance(found, Damage)]


@given(PAYLOADS, st.integers(0, 1 << 60))
def test_what_is_written_is_read(payloads: list[bytes], first: int) -> None:
    """Numbers, kinds and payloads come back in order, and nothing is taken for damage."""
    data, _ = segment(payloads, first)
    assert read_header(data) == (1, first)
    assert [record.payload for record in records(data)] == payloads
    assert [record.number for record in records(data)] == list(range(first, first + len(payloads)))
    assert damages(data) == []


@given(PAYLOADS)
def test_a_torn_tail_is_recognised_at_every_byte(payloads: list[bytes]) -> None:
    """Cut anywhere, a segment gives every record that was finished, and calls the rest torn."""
    data, ends = segment(payloads)
    for size in range(HEADER_SIZE, len(data)):
        cut = data[:size]
        whole = [end for end in ends if end <= size]
        assert [record.payload for record in records(cut)] == payloads[: len(whole)]
        last = whole[-1] if whole else HEADER_SIZE
        assert damages(cut) == ([Damage(last, size, True)] if last < size else [])


@given(PAYLOADS, st.integers(1, 4096))
def test_space_that_was_never_written_is_a_torn_tail(payloads: list[bytes], zeros: int) -> None:
    """After a loss of power, file systems may leave zeros behind the last write."""
    data, _ = segment(payloads)
    assert [record.payload for record in records(data + bytes(zeros))] == payloads
    assert damages(data + bytes(zeros)) == [Damage(len(data), len(data) + zeros, True)]


@given(PAYLOADS, st.data())
def test_a_changed_byte_costs_one_record(payloads: list[bytes], data: st.DataObject) -> None:
    """Everything before and after the record that was hit survives; the damage is exactly that record."""
    intact, ends = segment(payloads)
    at = data.draw(st.integers(HEADER_SIZE, len(intact) - 1))
    flip = data.draw(st.integers(1, 255))
    hit = next(index for index, end in enumerate(ends) if at < end)
    start = ends[hit - 1] if hit else HEADER_SIZE
    broken = bytearray(intact)
    broken[at] ^= flip
    assert [record.payload for record in records(bytes(broken))] == payloads[:hit] + payloads[hit + 1 :]
    (damage,) = damages(bytes(broken))
    assert (damage.start, damage.end) == (start, ends[hit])


@given(PAYLOADS, st.binary(max_size=40), st.data())
def test_foreign_bytes_between_records_cost_nothing_else(
    payloads: list[bytes], foreign: bytes, data: st.DataObject
) -> None:
    """Bytes that do not belong there are skipped to the next record, however they look."""
    intact, ends = segment(payloads)
    at = data.draw(st.sampled_from([HEADER_SIZE, *ends]))
    assert [record.payload for record in records(intact[:at] + foreign + intact[at:])] == payloads


@given(st.binary(max_size=400))
def test_any_bytes_can_be_read(data: bytes) -> None:
    """Whatever a segment holds, reading ends, and accounts for every byte."""
    found = list(scan(data, 0))
    at = 0
    for part in found:
        assert part.start == at
        assert part.end > at
        at = part.end
    assert at == len(data)


@given(st.integers(0, HEADER_SIZE - 1), st.integers(1, 255))
def test_a_damaged_header_is_recognised(at: int, flip: int) -> None:
    """A header is believed only when it is whole."""
    data = bytearray(segment_header(77))
    data[at] ^= flip
    assert read_header(bytes(data)) is None
    assert read_header(bytes(data)[:at]) is None
