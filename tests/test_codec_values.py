"""The value codec: nothing raises, everything is plain JSON, what is not marked comes back equal."""

from __future__ import annotations

import array
import base64
import collections
import datetime as dt
import enum
import hashlib
import ipaddress
import json
import math
import re
import sys
import types
import uuid
import zoneinfo
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import msgspec
import psycopg
import pytest
import uuid_utils
from asyncpg import Range as AsyncpgRange
from asyncpg.pgproto.pgproto import UUID as AsyncpgUUID
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from psycopg.types.multirange import Multirange as PsycopgMultirange
from psycopg.types.range import Range as PsycopgRange
from psycopg2.extras import NumericRange
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import Range
from sqlalchemy.dialects.postgresql.ranges import MultiRange
from sqlalchemy.ext.mutable import MutableDict, MutableList

from otel_activity.codec import ATOMIC, REDACTED, decode, display, encode
from otel_activity.codec import values as codec
from otel_activity.codec.changes import AFTER, BEFORE, BOTH, changes_json
from otel_activity.codec.kinds import EnumValue, MultirangeValue, RangeValue, Replaced, Rest, Truncated
from otel_activity.events import Hashed, Redacted


class Colour(enum.Enum):
    RED = "r"
    BLUE = (1, 2)


class Level(enum.IntEnum):
    LOW = 1


class State(enum.StrEnum):
    OPEN = "open"


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: int
    y: str


# --- what plain and equal mean --------------------------------------------------------------------


def check_plain(value: Any) -> None:
    """Fail unless the value is exactly what `encode` promises."""
    kind = type(value)
    if value is None or kind is bool:
        return
    if kind is int:
        assert -(2**63) <= value < 2**63
    elif kind is float:
        assert math.isfinite(value)
    elif kind is str:
        value.encode()
        assert "\0" not in value
    elif kind is list:
        for item in value:
            check_plain(item)
    else:
        assert kind is dict, kind
        for key, item in value.items():
            assert type(key) is str
            check_plain(key)
            check_plain(item)


def same(original: Any, decoded: Any) -> bool:
    """Equality with types, as docs/encoding.md promises it."""
    if isinstance(original, enum.Enum):
        return isinstance(decoded, EnumValue) and decoded == original
    if isinstance(original, (bytearray, memoryview)):
        return type(decoded) is bytes and decoded == bytes(original)
    if isinstance(original, Range):
        return isinstance(decoded, RangeValue) and decoded == original
    if type(original) is not type(decoded):
        return False
    if isinstance(original, Decimal):  # as text: 1.10 is not 1.1, and sNaN cannot be compared
        return str(decoded) == str(original)
    if isinstance(original, float) and math.isnan(original):
        return math.isnan(decoded)
    if isinstance(original, float):
        return original == decoded and math.copysign(1, original) == math.copysign(1, decoded)
    if isinstance(original, dt.datetime) and original.tzinfo is not None:
        return decoded == original and decoded.utcoffset() == original.utcoffset()
    if isinstance(original, (list, tuple, array.array)):
        return len(original) == len(decoded) and all(map(same, original, decoded))
    if isinstance(original, dict):
        return len(original) == len(decoded) and all(
            any(same(key, other) and same(item, decoded[other]) for other in decoded)
            for key, item in original.items()
        )
    if isinstance(original, (set, frozenset)):
        return len(original) == len(decoded) and all(
            any(same(item, other) for other in decoded) for item in original
        )
    return bool(original == decoded)


def is_marked(encoded: Any) -> bool:
    """Whether anything in it was truncated, replaced or left out."""
    if isinstance(encoded, list):
        return any(map(is_marked, encoded))
    if isinstance(encoded, dict):
        return bool({"$truncated", "$replaced", "$rest"} & encoded.keys()) or any(
            map(is_marked, encoded.values())
        )
    return False


# --- every kind of value --------------------------------------------------------------------------

texts = st.text(alphabet=st.characters(exclude_categories=()), max_size=20)
zones = st.one_of(
    st.none(),
    st.timedeltas(dt.timedelta(hours=-23), dt.timedelta(hours=23)).map(dt.timezone),
    st.just(dt.UTC),
    st.sampled_from(["UTC", "Etc/UTC"]).map(zoneinfo.ZoneInfo),
)
dates = st.datetimes(dt.datetime(2, 1, 1), dt.datetime(9998, 12, 31), timezones=zones)
floats = st.floats() | st.sampled_from([0.0, -0.0, 2.0**53, 2.0**53 - 1, 1e16, 5e-324, 1e-15, 1.5, 1e300])
networks = st.ip_addresses().map(ipaddress.ip_network)
hashable_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70) | st.integers(2**5000, 2**5001),
    floats.filter(lambda number: not math.isnan(number)),
    texts,
    st.decimals(allow_nan=False),
    dates,
    st.dates(),
    st.times(timezones=zones),
    st.timedeltas(),
    st.uuids(),
    st.binary(max_size=20),
    st.ip_addresses(),
    st.ip_addresses().map(ipaddress.ip_interface),
    networks,
    st.sampled_from([*Colour, Rights.READ | Rights.WRITE]),
)
bounds = st.sampled_from(["[)", "[]", "(]", "()"])
ranges = st.builds(
    lambda ends, bounds, empty: Range(*ends, bounds=bounds, empty=empty),
    st.tuples(st.none() | st.integers(), st.none() | st.decimals(allow_nan=False))
    | st.tuples(st.none() | dates, st.none() | dates),
    bounds,
    st.booleans(),
)
scalars = st.one_of(
    hashable_scalars,
    floats,
    st.decimals(allow_nan=True),
    st.binary(max_size=20).map(bytearray),
    st.binary(max_size=20).map(memoryview),
    st.sampled_from([*Level, *State]),
    ranges,
    st.lists(st.integers(-(2**31), 2**31 - 1)).map(lambda items: array.array("i", items)),
    st.lists(floats.filter(math.isfinite)).map(lambda items: array.array("d", items)),
)
hashables = st.recursive(
    hashable_scalars,
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=5,
)
keys = texts | st.sampled_from(["$decimal", "$redacted", "$rest", "", "a", "a b", "ключ"])
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
        st.dictionaries(hashables, inner, max_size=4),
        st.sets(hashables, max_size=4),
        st.frozensets(hashables, max_size=4),
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(values)
def test_every_value_comes_back_equal_and_of_the_same_type(value: Any) -> None:
    """`decode(encode(v))` is `v`, through JSON text, unless the encoding says that something is missing."""
    encoded = encode(value)
    check_plain(encoded)
    through_json = msgspec.json.decode(msgspec.json.encode(encoded))
    assert through_json == encoded
    assert not is_marked(encoded)
    assert same(value, decode(through_json)), encoded


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(texts, values, values), max_size=6, unique_by=lambda column: column[0]),
    st.sampled_from([BEFORE, AFTER, BOTH]),
    st.integers(1, 64) | st.just(65_536),
)
def test_the_values_of_a_row_together_are_what_each_is_alone(
    row: list[tuple[str, Any, Any]], sides: tuple[str, ...], limit: int
) -> None:
    """One look at all of them finds what a look at each would; the JSON is the same to the byte."""
    row = [(name, *found) for name, *found in row if encode(name) == name]
    names = tuple(name for name, *_ in row)
    given = [value for _, *found in row for value in found[: len(sides)]]
    expected = {
        name: {side: encode(value, limit) for side, value in zip(sides, found, strict=False)}
        for name, *found in row
    }
    for _ in range(2):  # the second time the shape is known
        found = changes_json(names, sides, given, lambda value: encode(value, limit), limit)
        assert found == msgspec.json.encode(expected)


def test_what_is_not_known_does_not_appear() -> None:
    """A side without a value is left out, and its neighbours stay where they are."""
    unknown = object()
    values = [1, unknown, unknown, "x", unknown, unknown]

    def odd(value: Any) -> Any:
        return msgspec.UNSET if value is unknown else encode(value)

    found = changes_json(("a", "100%b", "c"), BOTH, values, odd)
    assert msgspec.json.decode(found) == {"a": {"before": 1}, "100%b": {"after": "x"}, "c": {}}


class _Unwilling(dt.tzinfo):
    def utcoffset(self, moment: dt.datetime | None) -> dt.timedelta:
        raise RuntimeError("no")


def test_a_value_that_fails_costs_only_itself() -> None:
    """An error in one value of a row leaves the others as they are."""
    row = ["a", dt.datetime(2026, 1, 1, tzinfo=_Unwilling()), 1 << 70, "b\0", dt.datetime(2026, 1, 1)]
    changes = msgspec.json.decode(changes_json(("0", "1", "2", "3", "4"), AFTER, row, encode))
    found = [changes[str(index)]["after"] for index in range(len(row))]
    assert found == [encode(value) for value in row]
    assert found[0] == "a"
    assert found[4] == {"$datetime": "2026-01-01T00:00:00"}
    assert next(iter(found[1])) == "$replaced"


zones_with_a_past = st.sampled_from(["Europe/Berlin", "Africa/Monrovia", "Zulu"]).map(zoneinfo.ZoneInfo)


@given(dates | st.datetimes(timezones=zones_with_a_past))
def test_times_are_written_in_iso_form(value: dt.datetime) -> None:
    """Whatever writes them: Python's own `isoformat` is what docs/encoding.md promises."""
    assert encode(value) == {"$datetime": value.isoformat()}


@given(values, st.integers(1, 64))
def test_a_small_limit_marks_and_never_lies(value: Any, limit: int) -> None:
    """With any limit the result is plain, and equal unless it is marked."""
    encoded = encode(value, limit)
    check_plain(encoded)
    assert is_marked(encoded) or same(value, decode(encoded))
    decode(encoded)


@settings(max_examples=150, deadline=None)
@given(values)
def test_display_is_one_short_printable_line(value: Any) -> None:
    """What people see has no control characters and a bounded length."""
    text = display(encode(value))
    assert len(text) <= 200
    assert text.isprintable()


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*codec.decode.__globals__["_DECODERS"], "a"]), inner, max_size=2)
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(json_values)
def test_damaged_tags_are_shown_as_they_are(value: Any) -> None:
    """Neither `decode` nor `display` raises for JSON that `encode` never wrote."""
    decode(value)
    assert len(display(value)) <= 200


@settings(max_examples=200, deadline=None)
@given(json_values)
def test_a_users_dict_that_looks_like_a_tag_stays_a_dict(value: Any) -> None:
    """Data in the shape of our tags is escaped, the redaction mark included."""
    assert same(value, decode(encode(value)))


# --- the documented table -------------------------------------------------------------------------

BitString: type[str] = getattr(postgresql, "BitString", str)  # SQLAlchemy 2.0 has none: bits are plain text
DOCS = Path(__file__).parent.parent / "docs" / "encoding.md"
ROWS = re.findall(r"^\| `(.+)` \| `(.+)` \|$", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
NAMES = {
    **{name: getattr(dt, name) for name in ("date", "time", "datetime", "timedelta", "UTC")},
    **{name: getattr(ipaddress, name) for name in ("ip_address", "ip_interface", "ip_network")},
    "Decimal": Decimal,
    "UUID": uuid.UUID,
    "array": array.array,
    "Colour": Colour,
    "Range": Range,
    "MultiRange": MultiRange,
    "Redacted": Redacted,
    "Hashed": Hashed,
}


@pytest.mark.parametrize(("expression", "expected"), ROWS, ids=[row[0] for row in ROWS])
def test_the_documented_encoding_is_the_real_one(expression: str, expected: str) -> None:
    """Each row of docs/encoding.md is what `encode` returns."""
    value = eval(expression, dict(NAMES))
    encoded = encode(value)
    wanted = json.loads(expected)
    if "$truncated" in expected:
        found = encoded["$truncated"]
        assert found == {"type": "str", "length": 70_000, "head": "x" * 1024, "sha256": found["sha256"]}
        assert found["sha256"] == hashlib.sha256(value.encode()).hexdigest()
        return
    assert json.dumps(encoded) == json.dumps(wanted)


def test_the_table_covers_every_tag() -> None:
    """A tag that the docs do not show would be a secret format."""
    tags = set(codec.decode.__globals__["_DECODERS"])
    shown = set(re.findall(r"\$[a-z]+", DOCS.read_text(encoding="utf-8")))
    assert len(ROWS) > 30
    assert tags <= shown


# --- kinds that need a word of their own ----------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "base"),
    [
        (MutableDict({"a": 1}), {"a": 1}),
        (MutableList([1, 2]), [1, 2]),
        (collections.OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (collections.defaultdict(list, a=[1]), {"a": [1]}),
        (types.MappingProxyType({"a": 1}), {"a": 1}),
        (Point(1, "y"), (1, "y")),
        (BitString("0101"), "0101"),
        (type("Text", (str,), {})("x\0"), "x\0"),
        (type("Number", (int,), {})(2**70), 2**70),
        (type("Real", (float,), {})("inf"), math.inf),
        (type("Money", (Decimal,), {})("1.10"), Decimal("1.10")),
        (type("Moment", (dt.datetime,), {})(2026, 1, 2), dt.datetime(2026, 1, 2)),
        (type("Blob", (bytes,), {})(b"ab"), b"ab"),
        (AsyncpgUUID(str(uuid.UUID(int=5))), uuid.UUID(int=5)),
        (uuid_utils.UUID(int=5), uuid.UUID(int=5)),
        ({BitString("01"): 1}, {"01": 1}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_subclass_comes_back_as_its_base(value: Any, base: Any) -> None:
    """Subclasses and relatives keep their content, and only that."""
    for item in (value, [value]):
        encoded = encode(item)
        check_plain(encoded)
        decoded = decode(encoded)
        assert same(base if item is value else [base], decoded)


@pytest.mark.parametrize("member", [*Colour, *Level, *State, Rights.READ | Rights.WRITE, Rights(0)])
def test_an_enum_member_equals_its_decoded_twin(member: enum.Enum) -> None:
    """The class is not imported; name, value and class name decide, in both directions."""
    decoded = decode(encode(member))
    assert decoded == member
    assert member == decoded
    assert decoded != EnumValue("Other", decoded.name, decoded.value)
    assert decoded != "RED"
    assert display(encode(member)).startswith(type(member).__name__)


def test_a_plain_enum_member_finds_its_twin_in_a_set() -> None:
    """Equal things have equal hashes."""
    assert decode(encode({Colour.RED})) == {Colour.RED}


@pytest.mark.parametrize("bound", ["[)", "[]", "(]", "()"])
@pytest.mark.parametrize("ends", [(1, 5), (None, 5), (1, None), (None, None)])
def test_the_ranges_of_all_drivers_agree(ends: tuple[Any, Any], bound: str) -> None:
    """One PostgreSQL range has one encoding, whichever library read it, and equals each of them."""
    lower, upper = bound[0] == "[", bound[1] == "]"
    drivers = [
        Range(*ends, bounds=bound),
        PsycopgRange(*ends, bound),
        NumericRange(*ends, bound),
        AsyncpgRange(*ends, lower_inc=lower, upper_inc=upper),
    ]
    encoded = [encode(item) for item in drivers]
    assert all(item == encoded[0] for item in encoded)
    assert all(decode(encoded[0]) == item for item in drivers)
    assert decode(encoded[0]) != Range(2, 3)
    assert decode(encoded[0]) == decode(encode(decode(encoded[0])))


def test_empty_ranges_and_multiranges_come_back() -> None:
    """Empty is empty for every driver; a multirange keeps its ranges in order."""
    empties = [
        Range(empty=True),
        PsycopgRange(empty=True),
        NumericRange(empty=True),
        AsyncpgRange(empty=True),
    ]
    assert all(decode(encode(item)) == RangeValue(None, None, "()", empty=True) for item in empties)
    for multirange in (MultiRange([Range(1, 2)]), PsycopgMultirange([PsycopgRange(1, 2)])):
        decoded = decode(encode(multirange))
        assert isinstance(decoded, MultirangeValue)
        assert decoded == multirange
        assert decoded != MultiRange([Range(1, 3)])


@pytest.mark.parametrize("fold", [0, 1])
def test_an_ambiguous_local_time_keeps_its_instant(fold: int) -> None:
    """The offset tells the two hours of a clock change apart; the zone's name is not kept."""
    moment = dt.datetime(2025, 10, 26, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=fold)
    decoded = decode(encode(moment))
    assert decoded.astimezone(dt.UTC) == moment.astimezone(dt.UTC)
    assert decoded.utcoffset() == moment.utcoffset()


@pytest.mark.parametrize("offset", [1, -1, 999_999, -1_000_000, -1_000_001, 60_000_001])
def test_offsets_below_a_minute_come_back(offset: int) -> None:
    """Python allows offsets down to the microsecond, and its own parser loses some of them."""
    zone = dt.timezone(dt.timedelta(microseconds=offset))
    for moment in (dt.datetime(2026, 1, 2, tzinfo=zone), dt.time(3, tzinfo=zone)):
        assert decode(encode(moment)).utcoffset() == dt.timedelta(microseconds=offset)
        assert decode(encode(moment)) == moment


def test_equal_sets_have_equal_encodings() -> None:
    """Order of insertion does not show, so that a comparison of encodings is one of values."""
    names = [f"name{number}" for number in range(50)]
    backwards = names[::-1]
    assert encode(set(names)) == encode(set(backwards)) == {"$set": sorted(names)}


@pytest.mark.parametrize("number", [2.0**53, 1e16, -1e16, 1e-16, 5e-324, -0.0])
def test_floats_that_jsonb_would_change_are_tagged(number: float) -> None:
    """A float that would come back as an integer, as 0.0 or as hundreds of digits is written as text."""
    assert encode(number) == {"$float": repr(number)}
    assert encode(2.0**53 - 1) == 2.0**53 - 1
    assert encode(1e-15) == 1e-15


def test_huge_integers_do_not_meet_the_digit_limit() -> None:
    """Python refuses to write 2**20000 in decimal; the encoding does not ask it to."""
    for number in (2**20_000, -(2**20_000), 10**300, -(2**63) - 1):
        assert decode(encode(number)) == number
    assert encode(2**400_000)["$truncated"]["type"] == "int"


def test_the_redaction_mark_cannot_be_forged() -> None:
    """Only our own object becomes the mark; a user's dict of that shape is data."""
    assert encode(Redacted()) is REDACTED
    assert encode(REDACTED) is REDACTED
    assert encode({"a": [Redacted(), REDACTED]}) == {"a": [REDACTED, REDACTED]}
    assert decode(REDACTED) is Redacted()
    assert decode(encode(Hashed("hmac-sha256:ab"))) == Hashed("hmac-sha256:ab")
    assert decode(encode({"$redacted": True})) == {"$redacted": True}
    assert encode({"$redacted": True}) == {"$map": [["$redacted", True]]}


# --- limits ---------------------------------------------------------------------------------------


def test_a_text_at_the_limit_is_whole_and_one_beyond_is_marked() -> None:
    """The limit itself is still allowed."""
    assert encode("x" * 65_536) == "x" * 65_536
    assert encode("é" * 100, 100) == "é" * 100
    assert decode(encode(b"x" * 100, 100)) == b"x" * 100
    assert "$truncated" in encode("x" * 101, 100)
    assert "$truncated" in encode(b"x" * 101, 100)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_ten_megabytes_keep_head_length_and_hash(kind: Any) -> None:
    """What was cut can still be proved: its length and its SHA-256 are there."""
    data = b"0123456789" * 1_000_000
    text = data.decode()
    marked = decode(encode(text))
    assert marked == Truncated("str", 10_000_000, text[:1024], hashlib.sha256(data).hexdigest())
    blob = decode(encode(kind(data)))
    assert (blob.type, blob.length, blob.sha256) == (kind.__name__, 10_000_000, marked.sha256)
    assert base64.b64decode(blob.head) == data[:1024]
    assert display(encode(text)) == text[:40] + "... (10.0 MB)"


def test_a_long_text_with_surrogates_and_nul_is_cut_plainly() -> None:
    """The head of a text that cannot be stored as it is holds replacement characters."""
    marked = encode("\0\ud800ab" * 20_000)
    check_plain(marked)
    assert marked["$truncated"]["head"].startswith("\ufffd\ufffdab")


def test_a_value_too_long_to_hash_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time that hashing takes is bounded, and a missing hash is null."""
    monkeypatch.setattr(codec, "HASH_LIMIT", 1_000)
    assert decode(encode("x" * 1_001, 10)).sha256 is None
    assert decode(encode(b"x" * 1_001, 10)).sha256 is None
    assert decode(encode("x" * 1_000, 10)).sha256 is not None


@pytest.mark.parametrize("kind", [list, tuple, set, frozenset, lambda items: array.array("i", items)])
def test_items_beyond_the_bound_are_counted(kind: Any) -> None:
    """A container keeps its first items and says how many are missing."""
    (encoded,) = [encode(kind(range(10_007)))]
    items = encoded
    while isinstance(items, dict):
        items = items.get("items", next(iter(items.values())))
    assert items[-1] == {"$rest": 7}
    assert len(items) == 10_001
    decode(encoded)


@pytest.mark.parametrize("key", [str, int])
def test_keys_beyond_the_bound_are_counted(key: Any) -> None:
    """A dict keeps its first keys and says how many are missing, plain or not."""
    encoded = encode({key(number): number for number in range(10_007)})
    decoded = decode(encoded)
    assert len(decoded) == 10_001
    assert Rest(7) in (decoded.get("$rest"), *(item for item in decoded if isinstance(item, Rest)))


def _laughs() -> Any:
    value: Any = ["lol"] * 10
    for _ in range(20):
        value = [value] * 10
    return value


def _shared() -> Any:
    return [["x" * 60_000] * 100] * 100


BIG = {
    "billion laughs": _laughs,
    "many long texts": _shared,
    "many texts over the limit": lambda: ["x" * 1_000_000] * 10_000,
    "control characters": lambda: ["\x01" * 60_000] * 100,
    "escaped texts": lambda: ["\0" * 60_000] * 100,
    "large map": lambda: dict.fromkeys(range(10000), "x" * 1000),
    "long keys": lambda: {f"{number}" + "k" * 60_000: 1 for number in range(50)},
    "keys over the limit": lambda: {f"{number}" + "k" * 70_000: 1 for number in range(50)},
    "decimals": lambda: [Decimal("1." + "1" * 5_000)] * 10_000,
    "empty containers": lambda: [[{}, [], ()] * 3_000] * 3_000,
    "objects": lambda: [object()] * 10_000,
    "enum members": lambda: [[*Colour] * 4_000] * 1_000,
    "empty dicts of ranges": lambda: [[Range(1, 2)] * 4_000] * 1_000,
}


@pytest.mark.parametrize("name", BIG)
def test_total_output_is_bounded(name: str) -> None:
    """However a value multiplies itself, its encoding stays within a small multiple of the room for it."""
    encoded = encode(BIG[name]())
    check_plain(encoded)
    characters = len(json.dumps(encoded, ensure_ascii=False, separators=(",", ":")).replace("\\u0001", "."))
    assert characters <= 3 * codec.TOTAL_FACTOR * 65_536
    assert is_marked(encoded)
    decode(encoded)


# --- nesting --------------------------------------------------------------------------------------


def _any_value(value: Any) -> AnyValue:
    """OTLP's form of a plain value, as the SDK's exporter writes it."""
    if value is None:
        return AnyValue()
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, str):
        return AnyValue(string_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, list):
        return AnyValue(array_value=ArrayValue(values=map(_any_value, value)))
    pairs = [KeyValue(key=key, value=_any_value(item)) for key, item in value.items()]
    return AnyValue(kvlist_value=KeyValueList(values=pairs))


def _plain(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [_plain(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return {pair.key: _plain(pair.value) for pair in value.kvlist_value.values}
    return getattr(value, kind)


def _through_otlp(encoded: Any) -> Any:
    """Send and parse a whole request, the value where changes hold it."""
    request = ExportLogsServiceRequest()
    record = request.resource_logs.add().scope_logs.add().log_records.add()
    record.attributes.add(key="activity.changes", value=_any_value({"field": {"after": encoded}}))
    parsed = ExportLogsServiceRequest.FromString(request.SerializeToString())
    attribute = parsed.resource_logs[0].scope_logs[0].log_records[0].attributes[0]
    return _plain(attribute.value)["field"]["after"]


@settings(max_examples=150, deadline=None)
@given(values)
def test_otlp_carries_every_encoding_unchanged(value: Any) -> None:
    """Types and values are the same after protobuf."""
    encoded = encode(value)
    assert json.dumps(_through_otlp(encoded)) == json.dumps(encoded)


WRAPPERS = {
    "list": lambda inner: [inner],
    "list and more": lambda inner: [inner, 1],
    "dict": lambda inner: {"a": inner},
    "map": lambda inner: {1: inner},
    "tuple": lambda inner: (inner,),
    "mapping": lambda inner: types.MappingProxyType({"a": inner}),
    "range": lambda inner: Range(inner, None),
    "mixed": lambda inner: [{1: ({"a": inner},)}],
}


@pytest.mark.parametrize(
    "leaf", [None, Decimal(1), "x" * 70_000, object(), {"$x": 1}, Colour.BLUE, array.array("i", [1])]
)
@pytest.mark.parametrize("name", WRAPPERS)
def test_nesting_stays_within_what_protobuf_parses(name: str, leaf: Any) -> None:
    """A value of any depth can be sent: deeper than the bound it is marked, so it never costs the batch."""
    value, whole = leaf, 0
    for depth in range(1, 60):
        value = WRAPPERS[name](value)
        encoded = encode(value)
        assert json.dumps(_through_otlp(encoded)) == json.dumps(encoded)
        if '"nested too deeply"' not in json.dumps(encoded):
            whole = depth
    assert 4 <= whole < 50


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_hundred_thousand_levels_do_no_harm(name: str) -> None:
    """Depth is bounded by us, not by the interpreter's stack."""
    value: Any = 1
    levels = []
    for _ in range(100_000):
        value = WRAPPERS[name](value)
        levels.append(value)
    encoded = encode(value)
    check_plain(encoded)
    assert "nested too deeply" in json.dumps(encoded)
    decode(encoded)
    display(encoded)
    del value
    while levels:  # from the outside in: freeing a deep tuple at once would exhaust the C stack
        levels.pop()


def _self_references() -> dict[str, Any]:
    items: list[Any] = [1]
    items.append(items)
    table: dict[str, Any] = {"a": 1}
    table["self"] = table
    numbered: dict[int, Any] = {}
    numbered[1] = [numbered]
    pair: tuple[Any, ...] = ([],)
    pair[0].append(pair)
    twice: list[Any] = []
    twice.extend([twice, twice])
    return {"list": items, "dict": table, "map": numbered, "tuple": pair, "twice": twice}


@pytest.mark.parametrize("name", _self_references())
def test_self_references_are_marked(name: str) -> None:
    """A structure that contains itself is encoded once; the second meeting is marked."""
    encoded = encode(_self_references()[name])
    check_plain(encoded)
    assert '"refers to itself"' in json.dumps(encoded)


def test_the_same_object_twice_is_no_self_reference() -> None:
    """Siblings that share an object are both whole."""
    shared = {"a": [1]}
    assert encode([shared, shared, {"b": shared}]) == [shared, shared, {"b": shared}]


# --- hostile objects ------------------------------------------------------------------------------


class Boom(Exception):
    """Raised by everything below; its text must never be seen."""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__("hunter2")


def _raise(*_: object, **__: object) -> Any:
    raise Boom


HOOKS = (
    *("__str__", "__repr__", "__format__", "__bytes__", "__int__", "__index__", "__float__", "__bool__"),
    *("__eq__", "__hash__", "__lt__", "__iter__", "__len__", "__getitem__", "__contains__"),
    *("__getattribute__", "__getattr__", "__reduce__", "__copy__", "__deepcopy__", "__dir__", "__sizeof__"),
)
BAD_METHODS = dict.fromkeys(HOOKS, _raise)


class BadMeta(type):
    __getattribute__ = _raise
    __hash__ = _raise
    __instancecheck__ = _raise
    __subclasscheck__ = _raise
    __eq__ = _raise


class BadZone(dt.tzinfo):
    utcoffset = dst = tzname = _raise


class BadMapping(collections.abc.Mapping[str, Any]):
    __getitem__ = __iter__ = __len__ = items = _raise


class LyingClass:
    @property
    def __class__(self) -> Any:
        raise Boom


def _released() -> memoryview:
    view = memoryview(b"hunter2")
    view.release()
    return view


HOSTILE = {
    "object": lambda: type("Bad", (), dict(BAD_METHODS))(),
    "metaclass": lambda: object.__new__(type.__call__(BadMeta, "Meta", (), {})),
    "class property": LyingClass,
    "mapping": BadMapping,
    "zone": lambda: dt.datetime(2026, 1, 1, tzinfo=BadZone()),
    "time zone": lambda: dt.time(1, tzinfo=BadZone()),
    "released memory": _released,
    "uuid": lambda: type("Id", (uuid.UUID,), {"__str__": _raise})(int=1),
    "long uuid": lambda: type("Id", (uuid.UUID,), {"__str__": lambda self: "hunter2" * 10_000})(int=1),
    "odd uuid": lambda: type("Id", (uuid.UUID,), {"__str__": lambda self: "\0"})(int=1),
    "function": lambda: _raise,
    "class": lambda: BadMapping,
    "generator": lambda: (_raise() for _ in range(1)),
    "exception": Boom,
    "range": lambda: type("Odd", (PsycopgRange,), {"isempty": property(_raise)})(1, 2),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_objects_are_replaced_alone(name: str) -> None:
    """An object that raises at every touch costs itself, not its neighbours, and its texts stay inside."""
    bad = HOSTILE[name]()
    for encoded in (encode(bad), encode({"a": 1, "b": [bad, 2]})["b"][0]):
        check_plain(encoded)
        assert encoded.keys() == {"$replaced"}
        assert isinstance(decode(encoded), Replaced)
        assert "hunter2" not in json.dumps(encoded)
    assert encode({"a": 1, "b": [bad, 2]})["a"] == 1
    assert encode({"a": 1, "b": [bad, 2]})["b"][1] == 2


@pytest.mark.parametrize("base", [str, int, float, bytes, list, dict, tuple, set, frozenset, Decimal])
def test_hostile_subclasses_are_read_by_the_base_class(base: type) -> None:
    """A subclass whose every method raises still gives its content: its methods are not called."""
    methods = {
        name: hook for name, hook in BAD_METHODS.items() if name not in {"__getattribute__", "__hash__"}
    }
    methods |= dict.fromkeys(
        ["items", "keys", "values", "encode", "isascii", "as_tuple", "bit_length"], _raise
    )
    value = type("Bad", (base,), methods)()
    assert same(base(), decode(encode(value)))
    assert same([base()], decode(encode([value])))


def test_a_lying_text_is_refused() -> None:
    """Text from a subclass's own `__str__` is checked before it is believed."""
    bad = type("Address", (ipaddress.IPv4Address,), {"__str__": lambda self: "\ud800"})("10.0.0.1")
    assert encode(bad) == {"$replaced": {"type": "Address", "reason": "raised ValueError"}}
    assert "$replaced" in encode(ipaddress.ip_address("fe80::1%\ud800"))
    assert decode(encode(ipaddress.ip_address("fe80::1%eth0"))) == ipaddress.ip_address("fe80::1%eth0")


def test_encode_works_to_the_end_of_the_stack() -> None:
    """Wherever it can be called at all, it returns."""

    def at(depth: int, value: Any) -> Any:
        return encode(value) if depth == 0 else at(depth - 1, value)

    for value in (1, "x", "é", Decimal(1), [1, [2]], {"a": {"b": object()}}, Colour.RED):
        returned = 0
        for depth in range(sys.getrecursionlimit(), 0, -1):
            try:
                encoded = at(depth, value)
            except RecursionError as error:
                last = error.__traceback__
                while last is not None and last.tb_next is not None:
                    last = last.tb_next
                assert last is not None
                assert last.tb_frame.f_code.co_name == "at"  # not from inside encode
                continue
            check_plain(encoded)
            returned += 1
            if returned == 30:
                break
        assert returned == 30


def test_types_made_on_the_fly_do_not_fill_the_memory() -> None:
    """Only a bounded number of classes is remembered; the others are encoded as well."""
    for number in range(1_200):
        assert encode(type(f"Made{number}", (list,), {})([number])) == [number]
    assert len(codec._ENCODERS) <= 1_024
    assert encode(Level.LOW) == {"$enum": {"type": "Level", "name": "LOW", "value": 1}}


def test_odd_names_of_types_and_members_are_escaped() -> None:
    """Names come from programs, too."""
    odd = enum.Enum("Odd", {"a\0\ud800": 1})
    encoded = encode(next(iter(odd)))
    check_plain(encoded)
    assert decode(encoded) == next(iter(odd))


# --- ATOMIC and display ---------------------------------------------------------------------------


def test_atomic_types_are_immutable_scalars() -> None:
    """A snapshot may keep references to these, and to nothing that can change or hold what changes."""
    assert {int, str, float, bool, type(None), bytes, Decimal, dt.datetime, uuid.UUID} <= ATOMIC
    assert not ATOMIC & {
        bytearray,
        memoryview,
        list,
        dict,
        set,
        tuple,
        frozenset,
        Colour,
        array.array,
        object,
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        ("plain", "plain"),
        ("a\x1b[31m\u202eb", r"a\x1b[31m\u202eb"),
        ("a\0b", r"a\x00b"),
        (Decimal("1.10"), "1.10"),
        (dt.datetime(2026, 1, 2, 3, 4, tzinfo=dt.UTC), "2026-01-02T03:04:00+00:00"),
        (Redacted(), "[redacted]"),
        (Hashed("hmac-sha256:0123456789abcdef"), "[redacted, hash 0123456789ab]"),
        (b"hi", "0x6869"),
        (Colour.RED, "Colour.RED"),
        ({"a": [1, "b"], "c": (Decimal(1),)}, '{a: [1, "b"], c: (1)}'),
        ({1: None}, "{1: null}"),
        ({3, 1}, "{1, 3}"),
        (Range(1, None), "[1, )"),
        (Range(empty=True), "empty"),
        (list(range(20)), "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ...]"),
        (object(), "[object: no encoding for this type]"),
        ("x" * 500, "x" * 197 + "..."),
        ([[[[[[1]]]]]], "[[[[[...]]]]]"),
    ],
    ids=str,
)
def test_display_says_it_shortly(value: Any, text: str) -> None:
    """Tables show what a person expects."""
    assert display(encode(value)) == text


def test_display_counts_what_was_left_out() -> None:
    """The mark for missing items reads as words."""
    assert display({"a": 1, "$rest": 7}) == "{a: 1, ... and 7 more}"
    assert display([1, {"$rest": 7}]) == "[1, ... and 7 more]"


# --- a real server --------------------------------------------------------------------------------


def test_jsonb_gives_back_what_it_was_given(postgres_dsn: str) -> None:
    """After PostgreSQL's jsonb the value still decodes to the same, in value and in type."""
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:

        @settings(max_examples=150, deadline=None)
        @given(values)
        def check(value: Any) -> None:
            text = msgspec.json.encode(encode(value)).decode()
            row = connection.execute("SELECT %s::jsonb::text", (text,)).fetchone()
            assert row is not None
            assert same(value, decode(json.loads(row[0]))), row[0]

        check()
        for name, big in BIG.items():
            text = msgspec.json.encode(encode(big())).decode()
            row = connection.execute("SELECT %s::jsonb::text", (text,)).fetchone()
            assert row is not None, name
            assert json.loads(row[0]) == json.loads(text), name


@pytest.mark.parametrize(
    ("value", "tag", "cast"),
    [
        (Decimal("-1.10"), "$decimal", "numeric"),
        (dt.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=dt.UTC), "$datetime", "timestamptz"),
        (dt.datetime(2026, 1, 2, 3, 4, 5, 6), "$datetime", "timestamp"),
        (dt.date(2026, 1, 2), "$date", "date"),
        (dt.time(3, 4, 5), "$time", "time"),
        (dt.timedelta(days=3, seconds=5, microseconds=7), "$duration", "interval"),
        (-dt.timedelta(days=3, seconds=5, microseconds=7), "$duration", "interval"),
        (dt.timedelta(microseconds=-1), "$duration", "interval"),
        (uuid.UUID(int=7), "$uuid", "uuid"),
        (ipaddress.ip_address("10.0.0.1"), "$ip", "inet"),
        (2**80, "$int", "numeric"),
    ],
    ids=str,
)
def test_the_text_of_a_tag_casts_in_sql(postgres_dsn: str, value: Any, tag: str, cast: str) -> None:
    """Queries need no decoder: the server's own type reads the text."""
    text = msgspec.json.encode(encode(value)).decode()
    query = psycopg.sql.SQL("SELECT (%s::jsonb ->> %s)::{}").format(psycopg.sql.SQL(cast))  # type: ignore[arg-type]
    with psycopg.connect(postgres_dsn) as connection:
        row = connection.execute(query, (text, tag)).fetchone()
    assert row is not None
    assert row[0] == value
