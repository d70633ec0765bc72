"""Records of OTLP to lines of COPY without objects in between: the way that nearly all records take.

A record is walked as bytes, in one frame, in the forms that our exporter, the SDK and the Collector write.
What differs from event to event (times, ids, changes, sequence) is read each time. Everything between two
of those is a *stretch*: events of one transaction, and of one process, repeat long stretches to the byte, and
what a stretch comes to in a line is remembered. Whatever is written otherwise, or needs more than this knows,
has no line here and takes the long way; what is read here means the same there.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from otel_activity import semconv
from otel_activity.codec.rows import timestamp
from otel_activity.receiver.fragments import (
    CHANGES,
    ENTITY_ID,
    FIELDS,
    FLAGS,
    ID,
    MEMBER,
    NAME,
    OBSERVED,
    ORIGIN,
    SEQUENCE,
    SEVERITY,
    SPAN,
    TIME,
    TRACE,
    WRAPPER,
    Fragment,
    is_plain,
    line,
    name_field,
)
from otel_activity.receiver.records import PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["KEPT", "RecordLines"]

KEPT: Final = 8_192
"""Elements that are remembered, and beginnings of pairs in changes."""
_KEPT_LENGTH: Final = 160
"""Bytes of an element that is remembered."""
_KEPT_STRETCHES: Final = 4
_KEPT_STRETCH_LENGTH: Final = 4_096
"""Stretches that are remembered behind each kind of element: so many, and so long at most."""
_PREFIX: Final = PREFIX.encode()
_UNSIGNED: Final = Struct("<Q").unpack_from
_NOTHING: Final[Fragment] = (MEMBER, b"")
"""Fragment of what events do not have."""

_ANYWHERE: Final = len(FIELDS)
"""Kind of the place at the start of a record, and behind what has no kind."""
_SINGLES: Final = {
    semconv.ENTITY_ID.encode(): ENTITY_ID,
    semconv.CHANGES.encode(): CHANGES,
    semconv.SEQUENCE.encode(): SEQUENCE,
    semconv.RECORD_UID.encode(): ID,
}
"""Attributes that hardly two events share, by name: not worth remembering."""


_Known = TypeVar("_Known")


class _Stretch(NamedTuple):
    """Elements in a row, and what they come to.

    Attributes:
        data: their bytes.
        size: of the bytes.
        fields: by number.
        members: of the column ``attributes``, joined.
    """

    data: bytes
    size: int
    fields: list[Fragment]
    members: bytes


class RecordLines:
    """Makes lines of the records of one thread; remembers elements and stretches from one to the next.

    Args:
        attribute: gives the fragment of an attribute of any kind, its ``KeyValue`` encoded; None if none.
        pair: gives a ``KeyValue`` as a member of a JSON object; None if it is not usual.
        most: elements, and beginnings of pairs in changes, that are remembered.
    """

    def __init__(
        self,
        attribute: Callable[[bytes], Fragment | None],
        pair: Callable[[bytes], bytes | None],
        most: int = KEPT,
    ) -> None:
        self._most = most
        self._fragment = attribute
        self._value = pair
        self._elements: dict[bytes, Fragment] = {}
        self._stretches: list[list[_Stretch]] = [[] for _ in range(_ANYWHERE + 1)]
        self._names: dict[bytes, bytes] = {}
        self._pairs: dict[bytes, tuple[bytes, int, bytes]] = {}
        self._second = -1
        self._second_text = b""

    def line(self, data: bytes, origin: bytes) -> tuple[int, bytes] | None:
        """The event's time in nanoseconds and its line; None for a record that this way does not know.

        Args:
            data: a ``LogRecord``, small enough that its values need not be counted.
            origin: `codec.lines.Origin.fields`.

        Raises:
            UnicodeDecodeError: a text is not UTF-8.
        """
        try:
            return self._line(data, origin)
        except IndexError:  # a size beyond the end
            return None

    def _line(  # noqa: C901 - one frame: this runs for every event
        self, data: bytes, origin: bytes
    ) -> tuple[int, bytes] | None:
        fields = list(FIELDS)
        fields[ORIGIN] = origin
        members: list[bytes] = []
        texts: list[bytes] = []
        stretches = self._stretches
        position = time = observed = changes_at = changes_end = 0
        quick: bytes | None = None
        end = len(data)
        kind = _ANYWHERE
        while True:
            for stretch, size, found, text in stretches[kind]:
                if data.startswith(stretch, position):
                    position += size
                    for number, value in found:
                        fields[number] = value
                    if text:
                        members.append(text)
                    break
            if position >= end:
                break
            tag = data[position]
            if tag == 0x32:
                size = data[position + 1]
                start = position + 2
                if size > 0x7F:
                    if data[start] > 0x7F:
                        return None
                    size += (data[start] - 1) << 7
                    start += 1
                stop = start + size
                if data[start] == 0x0A:  # the key comes first
                    first = start + 2 + data[start + 1]
                    single = _SINGLES.get(data[start + 2 : first])
                    last = stop
                elif data[start] == 0x12:  # the value does
                    first = start
                    last = start + 2 + data[start + 1]
                    if data[start + 1] > 0x7F:
                        last += 1 + (data[start + 2] - 1 << 7)
                    single = _SINGLES.get(data[last + 2 : stop])
                    if single is not None and (data[last] != 0x0A or data[last + 1] != stop - last - 2):
                        return None
                else:
                    return None
                if single is not None:
                    # From `first` to `last`: the value's field.
                    if data[first] != 0x12 or stop > end:
                        return None
                    size = data[first + 1]
                    first += 2
                    if size > 0x7F:
                        if data[first] > 0x7F:
                            return None
                        size += (data[first] - 1) << 7
                        first += 1
                    if first + size != last or size < 2:
                        return None
                    if single == CHANGES:
                        changes_at, changes_end = start, stop
                        before = len(texts)
                        document = quick = self._changes(data, first, last, texts)
                        if document is None:
                            del texts[before:]
                            odd = self._fragment(data[start:stop])
                            if odd is None or odd[0] != CHANGES:
                                return None
                            document = odd[1]
                        fields[CHANGES] = document
                    elif single == SEQUENCE:
                        if data[first] != 0x18:
                            return None
                        # Nine bytes hold 63 bits: no sign.
                        if size > 10 or data[last - 1] > 0x7F:
                            return None
                        sequence = data[last - 1]
                        for index in range(last - 2, first, -1):
                            if data[index] < 0x80:
                                return None
                            sequence = sequence << 7 | data[index] & 0x7F
                        fields[SEQUENCE] = b"%d" % sequence
                    else:
                        if data[first] != 0x0A or data[first + 1] != size - 2 or not 2 < size < 0x82:
                            return None
                        text = data[first + 2 : last]
                        texts.append(text)
                        fields[single] = text
                    position = stop
                    kind = single
                    continue
            elif tag == 0x09:
                (time,) = _UNSIGNED(data, position + 1)
                position += 9
                kind = TIME
                continue
            elif tag == 0x59:
                (observed,) = _UNSIGNED(data, position + 1)
                position += 9
                kind = OBSERVED
                continue
            position = self._learn(data, position, fields, members, kind)
            if position < 0:
                return None
            kind = _ANYWHERE
        if position != end or not fields[NAME]:
            return None
        micros = (time or observed) // 1000
        second = micros // 1_000_000
        if second != self._second:
            self._second_text = timestamp(second * 1_000_000_000).encode()[:-9]
            self._second = second
        fields[TIME] = moment = b"%b%06d+00" % (self._second_text, micros - second * 1_000_000)
        if observed:
            fields[OBSERVED] = moment if observed // 1000 == micros else timestamp(observed).encode()
        # All texts at once, with a space between them: two damaged texts can make a whole one.
        if not is_plain(b" ".join(texts)):
            # Changes that must be escaped: once more, value by value.
            if (
                quick is None
                or fields[CHANGES] is not quick
                or not is_plain(b"%b %b" % (fields[ID], fields[ENTITY_ID]))
            ):
                return None
            odd = self._fragment(data[changes_at:changes_end])
            if odd is None or odd[0] != CHANGES:
                return None
            fields[CHANGES] = odd[1]
        made = line(fields, members)
        return None if made is None else (micros * 1000, made)

    # --- stretches ----------------------------------------------------------------------------------

    def _learn(  # noqa: C901 - one kind of element after the other
        self, data: bytes, position: int, fields: list[bytes], members: list[bytes], kind: int
    ) -> int:
        """Read elements up to a single one, or the end, and remember them; where that is, or -1.

        Args:
            data: the record.
            position: of the first.
            fields: get what they come to.
            members: as well.
            kind: of the place where they begin.
        """
        elements = self._elements
        start = position
        end = len(data)
        found: list[Fragment] = []
        texts: list[bytes] = []
        while position < end:
            tag = data[position]
            if tag == 0x32 or tag & 7 == 2:
                size = data[position + 1]
                stop = position + 2 + size
                if size > 0x7F:
                    if data[position + 2] > 0x7F:
                        return -1
                    stop += 1 + (data[position + 2] - 1 << 7)
            elif tag == 0x09 or tag == 0x59:
                break
            elif tag == 0x10 or tag == 0x38:
                stop = position + 2
            elif tag == 0x45:
                stop = position + 5
            else:
                return -1
            if stop > end:
                return -1
            element = data[position:stop]
            known = elements.get(element)
            if known is None:
                if tag == 0x32 and _is_single(element):
                    break
                known = self._element(tag, element)
                if known is None:
                    return -1
            position = stop
            if known[0] >= 0:
                found.append(known)
            elif known[1]:
                texts.append(known[1])
        if position == start:
            return -1
        for number, value in found:
            fields[number] = value
        members += texts
        if position - start <= _KEPT_STRETCH_LENGTH:
            kept = self._stretches[kind]
            kept.insert(0, _Stretch(data[start:position], position - start, found, b",".join(texts)))
            del kept[_KEPT_STRETCHES:]
        return position

    def _element(self, tag: int, element: bytes) -> Fragment | None:
        """The fragment of an element that was not met before; None for what this way does not know."""
        content = element[2:] if element[1] < 0x80 else element[3:]
        found: Fragment | None = None
        if tag == 0x32:
            found = self._fragment(content)
        elif tag == 0x62:
            name = name_field(content)
            found = (NAME, name) if name is not None and name.startswith(_PREFIX) else None
        elif tag == 0x4A:
            found = (TRACE, content.hex().encode() if any(content) else b"") if len(content) == 16 else None
        elif tag == 0x52:
            found = (SPAN, content.hex().encode() if any(content) else b"") if len(content) == 8 else None
        elif tag == 0x45:
            found = FLAGS, b"%d" % element[1]
        elif element[1] < 0x80 and tag == 0x10:
            found = SEVERITY, b"%d" % element[1]
        elif tag in {0x1A, 0x2A} or (element[1] < 0x80 and tag == 0x38):
            found = _NOTHING
        if found is not None and len(element) <= _KEPT_LENGTH:
            if len(self._elements) >= self._most:
                self._elements.clear()
            self._elements[element] = found
        return found

    # --- changes ------------------------------------------------------------------------------------

    def _changes(  # noqa: C901 - one frame: changes are most of what there is to decode
        self, data: bytes, position: int, end: int, texts: list[bytes]
    ) -> bytes | None:
        """``activity.changes`` as JSON; None if it is not written in the usual form.

        The usual form: for each field a map of texts, numbers and the like, or of maps of one text.

        Args:
            data: the record.
            position: of the value.
            end: of the value.
            texts: get the texts of the document that nobody has looked at yet.
        """
        names, pairs = self._names, self._pairs
        if data[position] != 0x32:
            return None
        size = data[position + 1]
        position += 2
        if size > 0x7F:
            if data[position] > 0x7F:
                return None
            size += (data[position] - 1) << 7
            position += 1
        if position + size != end:
            return None
        parts: list[bytes] = []
        while position < end:
            if data[position] != 0x0A:
                return None
            size = data[position + 1]
            position += 2
            if size > 0x7F:
                if data[position] > 0x7F:
                    return None
                size += (data[position] - 1) << 7
                position += 1
            stop = position + size
            # A name up to the tag of its value.
            start = position + data[position + 1] + 3
            head = data[position:start]
            name = names.get(head)
            if name is None:
                name = self._name(head)
                if name is None:
                    return None
            size = data[start]
            start += 1
            if size > 0x7F:
                if data[start] > 0x7F:
                    return None
                size += (data[start] - 1) << 7
                start += 1
            if start + size != stop or data[start] != 0x32:
                return None
            size = data[start + 1]
            position = start + 2
            if size > 0x7F:
                if data[position] > 0x7F:
                    return None
                size += (data[position] - 1) << 7
                position += 1
            if position + size != stop:
                return None
            parts.append(name)
            while position < stop:
                # A pair up to its text: 0A size 0A size KEY 12 size, then 0A size TEXT, or
                # 32 size 0A size 0A size TAG 12 size 0A size TEXT.
                start = position + 8 + data[position + 3]
                if data[start - 2] == 0x32:
                    start += 8 + data[start + 3]
                known = pairs.get(data[position:start])
                if known is None:
                    known, start = self._pair(data, position, start, stop)
                    if known is None:
                        return None
                opening, size, closing = known
                position = start + size
                if size:
                    text = data[start:position]
                    texts.append(text)
                    parts += (opening, text, closing)
                else:
                    parts.append(opening)
            if position != stop:
                return None
            if parts[-1] is name:
                return None  # no pairs
            parts[-1] = parts[-1][:-1]
            parts.append(b"},")
        if not parts:
            return None
        parts[-1] = b"}}"
        return b"{%b" % b"".join(parts)

    def _name(self, head: bytes) -> bytes | None:
        """What a field's name begins in JSON; None if it is not usual.

        Args:
            head: the name with its tag and size, and the tag of the value.
        """
        name = head[2:-1]
        if head[0] != 0x0A or head[1] != len(name) or len(name) > 0x7F or head[-1] != 0x12 or name == WRAPPER:
            return None
        if not is_plain(name):
            return None
        return self._keep(self._names, head, b'"%b":{' % name)

    def _pair(
        self, data: bytes, position: int, start: int, stop: int
    ) -> tuple[tuple[bytes, int, bytes] | None, int]:
        """A pair of a name and a value that was not met before.

        Args:
            data: the record.
            position: of the pair.
            start: of the text, if the value is one, or a map of one.
            stop: of all pairs.

        Returns:
            JSON before the text, its size, JSON behind it; and where it starts. No size means that the pair
            ends there. None if the pair is not written in the usual form.
        """
        end = position + 2 + data[position + 1]
        if data[position] != 0x0A or data[position + 1] > 0x7F or end > stop:
            return None, 0
        if start < end:
            known = _text_pair(data[position:start], end - start)
            if known is not None:
                return self._keep(self._pairs, data[position:start], known), start
        pair = data[position:end]
        known = self._pairs.get(pair)
        if known is None:
            text = self._value(pair[2:])
            if text is None:
                return None, 0
            known = self._keep(self._pairs, pair, (text, 0, b""))
        return known, end

    def _keep(self, kept: dict[bytes, _Known], key: bytes, known: _Known) -> _Known:
        if len(kept) >= self._most:
            kept.clear()
        kept[key] = known
        return known


def _text_pair(head: bytes, size: int) -> tuple[bytes, int, bytes] | None:
    """JSON around a text of that size, from what is before it in the encoded pair; None if it is no text.

    Every size in `head` is checked, so whoever meets the same bytes again has nothing to check.
    """
    last = 4 + head[3]
    name = head[4:last]
    if head[2] != 0x0A or head[last] != 0x12 or name == WRAPPER or not is_plain(name):
        return None
    rest = head[last + 1 :]
    if len(rest) == 3:
        if rest != bytes((size + 2, 0x0A, size)):
            return None
        return b'"%b":"' % name, size, b'",'
    tag = rest[7:-4]
    inner = size + len(tag) + 6
    usual = bytes((inner + 4, 0x32, inner + 2, 0x0A, inner, 0x0A, len(tag)))
    if (
        rest != b"%b%b%b" % (usual, tag, bytes((0x12, size + 2, 0x0A, size)))
        or tag == WRAPPER
        or not is_plain(tag)
    ):
        return None
    return b'"%b":{"%b":"' % (name, tag), size, b'"},'


def _is_single(element: bytes) -> bool:
    """Whether an attribute, with its tag and size, is one of those that are read each time."""
    start = 2 if element[1] < 0x80 else 3
    if element[start] == 0x0A:
        return element[start + 2 : start + 2 + element[start + 1]] in _SINGLES
    last = start + 2 + element[start + 1]
    if element[start + 1] > 0x7F:
        last += 1 + (element[start + 2] - 1 << 7)
    return element[last + 2 :] in _SINGLES
