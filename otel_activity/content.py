"""Secrets in values whose name looks innocent: tokens, keys, card numbers, passwords inside texts.

Works on JSON as `codec.encode` makes it. Nearly every event has none, so the first look is cheap: two passes
over the bytes of the whole event that nothing but long words and long numbers gets through. Only what they
find is taken apart and read by the exact rules.
"""

from __future__ import annotations

import binascii
import re
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import msgspec

from otel_activity.assignments import without_assigned, without_members, without_parameters
from otel_activity.interruptions import pass_on
from otel_activity.semconv import REDACTED_TAG, ContentRule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from otel_activity.assignments import Named

__all__ = ["Content"]

_REDACTED: Final = {REDACTED_TAG: True}

# --- the first look ---------------------------------------------------------------------------------

_RUN: Final = 20
"""Length of the shortest token that is looked for, in characters."""
_LONG_RUN: Final = b"a" * _RUN
_DIGITS: Final = 13
"""Length of the shortest card number."""
_SMALLEST_CARD: Final = 10 ** (_DIGITS - 1)
_LONG_NUMBER: Final = b"0" * _DIGITS
_WORD: Final = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+/.~"
_RUNS: Final = bytes(97 if byte in _WORD else 32 for byte in range(256))
_NUMBERS: Final = bytes(48 if 48 <= byte <= 57 else byte for byte in range(256))

_HINT: Final = re.compile(
    # Each begins with a letter that is no hexadecimal digit where that can be had: ids pass quickly.
    rb"yJ|KIA[A-Z0-9]|SIA[A-Z0-9]|Iza|SECRET|TATT3|SK[0-9a-f]{8}|//0"
    rb"|LS0tLS1CRU|tLS0tQkVH|tLS0tLUJFR0"  # "-----BEG" in base64
)
"""What some part of a secret contains, inside one run of `_WORD`."""
_HINT_WITH_MARKS: Final = re.compile(
    rb"gh[opsur]_|github_pat_|gl[a-z]{2,5}-|[rs]k_(?:live|test)_|whsec_|xox[a-z]-|xapp-|npm_|pypi-|sk-|hf_"
    rb"|shp(?:at|ca|pa|ss)_|[opr]_v1_|SG\.|ya29\.|GOCSPX-|hv[bs]\.|kr_[op]at_|gl(?:sa|c)_|q0(?:atp|csp)-"
    rb"|lin_api_|gsk_|xai-|plx-|r8_|tskey-|tn_|PMAK-|sntry[su]_|hooks\.slack|/webhooks/|NRAK-"
    rb"|p\.(?:pt|st|sa)\.|pscale_"
)
"""As `_HINT`, where a run has one of `_MARKS` in it."""
_MARKS: Final = re.compile(rb"[_.-]")
_HEXADECIMAL: Final = b"0123456789abcdefABCDEF-"
_SCHEMES: Final = (b"bearer", b"basic")
_LONGEST_SCHEME: Final = max(map(len, _SCHEMES))
_CARD_HINT: Final = re.compile(rb"[2-6](?=(?:[ -]?[0-9]){12})")
_VALUE_HINT: Final = re.compile(rb"=(?![=\"])")
"""An equals sign that is not the end of some base64."""
_MEMBER_HINT: Final = re.compile(rb"'(?:[^'\\\w]|\\(?:[bfnrt]|u[0-9a-f]{4})?)*:")
"""A colon behind an apostrophe; some kinds of space are escaped in JSON."""
_JSON_ESCAPE: Final = re.compile(rb"\\+(?:[bfnrt]|u[0-9a-f]{4})?")
"""Of JSON, or of the encoding of a text that JSON cannot hold, in JSON."""

# --- the exact rules -------------------------------------------------------------------------------

_PEM: Final = re.compile(
    r"-----BEGIN (?:[A-Z0-9]+ ){0,4}PRIVATE KEY(?: BLOCK)?-----.*?"
    r"(?:-----END (?:[A-Z0-9]+ ){0,4}PRIVATE KEY(?: BLOCK)?-----|\Z)",
    re.DOTALL,
)
_KEY_IN_BYTES: Final = re.compile(rb"PRIVATE KEY(?: BLOCK)?-----")
_JWT: Final = re.compile(r"(?<![\w-])[\w-]{11,}+(?=\.)", re.ASCII)
"""What may end with the header of a JWT."""
_JWT_REST: Final = re.compile(r"\.[\w-]*+(?:\.[\w-]*+){0,3}", re.ASCII)
_JWT_HEADER: Final = re.compile(r"(?<![A-Za-z0-9])eyJ")
_LONGEST_HEADER: Final = 4_096
_MOST_HEADERS: Final = 8
"""Beginnings of a header in one run that are tried; a real one has one."""
_TOKEN: Final = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"gh[opsur]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"  # GitHub
    r"|gl(?:pat|dt|rt|cbt|ptt|ft|soat|agent|oas|imt)-[\w-]{20,}"  # GitLab
    r"|[rs]k_(?:live|test)_[A-Za-z0-9]{12,}|whsec_[\w+/=]{20,}"  # Stripe
    r"|xox[a-eoprs]-[\w-]{15,}|xapp-[\w-]{15,}|hooks\.slack\.com/services/[\w/]{20,}"  # Slack
    r"|A[KS]IA[A-Z0-9]{16}(?![A-Za-z0-9])"  # Amazon
    r"|AIza[\w-]{35}|ya29\.[\w-]{20,}|GOCSPX-[\w-]{20,}|1//0[\w-]{30,}"  # Google
    r"|sk-(?:proj|ant|svcacct|admin)-[\w-]{20,}|sk-[A-Za-z0-9]{32,}|hf_[A-Za-z0-9]{30,}"  # models
    r"|gsk_[A-Za-z0-9]{40,}|xai-[A-Za-z0-9]{40,}|pplx-[A-Za-z0-9]{40,}|r8_[A-Za-z0-9]{30,}"
    r"|npm_[A-Za-z0-9]{30,}|pypi-[\w-]{40,}|shp(?:at|ca|pa|ss)_[A-Fa-f0-9]{32}|do[opr]_v1_[a-f0-9]{40,}"
    r"|dckr_[op]at_[\w-]{20,}|hv[bs]\.[\w-]{24,}|gl(?:sa|c)_[\w+/=]{20,}|pscale_(?:tkn|pw|oauth)_[\w.-]{20,}"
    r"|dp\.(?:pt|st|sa)\.[A-Za-z0-9]{30,}|tskey-[\w-]{20,}|sntry[su]_[\w+/=-]{20,}|NRAK-[A-Z0-9]{27}"
    r"|SG\.[\w-]{16,}\.[\w-]{16,}|SK[0-9a-f]{32}(?![0-9a-zA-Z])"  # SendGrid, Twilio
    r"|ATATT3[\w=-]{20,}|lin_api_[A-Za-z0-9]{30,}|ntn_[A-Za-z0-9]{40,}|PMAK-[0-9a-f]{24}-[0-9a-f]{34}"
    r"|discord(?:app)?\.com/api/webhooks/\d+/[\w-]{20,}|sq0(?:atp|csp)-[\w-]{20,}"
    r"|AGE-SECRET-KEY-1[A-Z0-9]{50,}"
    r")",
    re.ASCII,
)
_AUTHORIZATION: Final = re.compile(r"\b(bearer|basic) +([\w.~+/-]{20,}=*)", re.ASCII | re.IGNORECASE)
_LOGIN: Final = re.compile(r"(?<![\w+.-])[A-Za-z][\w+.-]{0,30}://[^\s:/?#@\"'<>]*+:(?!\d{1,5}(?:[/?#]|$))")
_END_OF_URL: Final = re.compile(r"[\s\"'<>]|\Z")
_LONGEST_PASSWORD: Final = 1_024
_NUMBER: Final = re.compile(r"(?<![A-Za-z0-9])(?<!\d\.)\d{3,}(?:[ -]\d{3,})*(?![A-Za-z0-9]|\.\d)")
_ESCAPED: Final = re.compile(r"\\u[0-9a-f]{4}")
_GROUP: Final = re.compile(r"\d+")
_ISSUER: Final = re.compile(
    r"(?:4(?:\d{12}|\d{15}|\d{18})"  # Visa
    r"|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}"  # Mastercard
    r"|3[47]\d{13}"  # American Express
    r"|(?:6011|64[4-9]\d|65\d\d)\d{12,15}"  # Discover
    r"|62\d{14,17}"  # UnionPay
    r"|35(?:2[89]|[3-8]\d)\d{12}"  # JCB
    r"|3(?:0[0-5]|[689]\d)\d{11}"  # Diners Club
    r"|(?:5018|5020|5038|5893|6304|6759|676[1-3])\d{9,15})",  # Maestro
    re.ASCII,
)

_SIGNATURES: Final = frozenset({"accountkey", "sig", "signature", "x-amz-signature", "x-goog-signature"})
"""Parameters of URLs and connection strings that let everybody in who has them, whatever the names say."""


class Content:
    """Finds secrets by what they look like. Its methods do not raise. Safe to share between threads.

    Args:
        named: for a name that stands in a text (``name=value``): what makes the text that is to stand in
            place of its value, or None when the name is not secret.
        off: rules that do not apply.
    """

    def __init__(self, named: Named, off: Iterable[str] = ()) -> None:
        off = frozenset(off)
        self._named = named
        self._any = not off.issuperset(ContentRule)
        # One by one: hashing a member of an enum at every text would cost more than the rules.
        self._key = ContentRule.KEY not in off
        self._jwt = ContentRule.JWT not in off
        self._token = ContentRule.TOKEN not in off
        self._authorization = ContentRule.AUTHORIZATION not in off
        self._url = ContentRule.URL not in off
        self._assignment = ContentRule.ASSIGNMENT not in off
        self._card = ContentRule.CARD not in off

    def is_suspicious(self, raw: bytes) -> bool:
        """Whether some JSON needs a closer look. False means that no rule applies."""
        return self._any and (
            (_LONG_RUN in (runs := raw.translate(_RUNS)) and _may_be_token(raw, runs))
            or (b"=" in raw and _VALUE_HINT.search(raw) is not None)
            or (b"/" in raw and b"://" in raw and b"@" in raw)
            or (b"\\" in raw and b'\\"' in raw)  # a text with quotes may hold JSON
            or (b"'" in raw and _MEMBER_HINT.search(raw) is not None)
            or b"PRIVATE KEY" in raw
            or b'"$str"' in raw  # the rules read such a text without what JSON cannot hold
            or (_LONG_NUMBER in raw.translate(_NUMBERS, b" -") and _may_be_card(raw))
        )

    def clean_json(self, raw: bytes) -> bytes:
        """Encoded JSON without secrets; the same object when there are none."""
        if not self.is_suspicious(raw):
            return raw
        value = msgspec.json.decode(raw)
        try:
            cleaned = self.clean(value)
        except Exception as raised:  # noqa: BLE001 - what cannot be looked into must not leave unseen
            pass_on(raised)
            cleaned = _hidden(value, 2)
        return raw if cleaned is value else msgspec.json.encode(cleaned)

    def clean_attributes(self, attributes: dict[str, Any]) -> dict[str, Any]:
        """Attributes without secrets; the same object when there are none. What was a text stays one."""
        if not self.is_suspicious(msgspec.json.encode(attributes)):
            return attributes
        return {name: self._clean_attribute(value) for name, value in attributes.items()}

    def _clean_attribute(self, value: Any) -> Any:
        try:
            return self.clean_text(value) if type(value) is str else self.clean(value)
        except Exception as raised:  # noqa: BLE001 - as in clean_json
            pass_on(raised)
            return "[redacted]" if type(value) is str else _REDACTED

    def clean(self, value: Any) -> Any:
        """A plain JSON value without secrets; the same object when there are none."""
        kind = type(value)
        if kind is str:
            found = self.clean_text(value)
            return _whole(value, found)
        if kind is int or (kind is float and value.is_integer()):
            is_card = self._card and value >= _SMALLEST_CARD and _is_card(str(int(value)))
            return _REDACTED if is_card else value
        if kind is list:
            items = [self.clean(item) for item in value]
            return items if _differ(items, value) else value
        if kind is dict:
            return self._clean_object(value)
        return value

    def _clean_object(self, value: dict[str, Any]) -> dict[str, Any]:
        if len(value) == 1:
            ((tag, payload),) = value.items()
            if tag[:1] == "$":
                return self._clean_tagged(value, tag, payload)
        items: dict[str, Any] = {}
        for key, item in value.items():
            name = found = self.clean_text(key)
            while name in items:  # two secrets, which now are called the same
                name = f"{found} {len(items) + 1}"
            items[name] = self.clean(item)
        same = len(items) == len(value) and all(mine is his for mine, his in zip(items, value, strict=True))
        return value if same and not _differ(items.values(), value.values()) else items

    def _clean_tagged(self, value: dict[str, Any], tag: str, payload: Any) -> dict[str, Any]:
        """A value with an encoding of its own: what is left must still be one."""
        if tag in _UNREADABLE:
            return value
        if tag == "$bytes":
            return _REDACTED if self._has_key(payload) else value
        if tag == "$truncated":
            head = self._head(payload)
            return value if head is payload["head"] else {tag: {**payload, "head": head, "sha256": None}}
        if tag == "$str":
            plain = _ESCAPED.sub(" ", payload)
            return value if self.clean_text(plain) is plain else _REDACTED
        cleaned = self.clean(payload)
        if cleaned is payload:
            return value
        return _REDACTED if type(payload) is str else {tag: cleaned}

    def _head(self, payload: dict[str, Any]) -> str:
        head: str = payload["head"]
        if payload["type"] in _TEXT_TYPES:
            return self.clean_text(head)
        return "" if self._has_key(head) else head

    def _has_key(self, encoded: str) -> bool:
        """Whether bytes hold a private key. Nothing else is looked for in them."""
        return self._key and _KEY_IN_BYTES.search(binascii.a2b_base64(encoded)) is not None

    def clean_key(self, text: str) -> str:
        """As `clean_text`, for a text that is seldom a secret."""
        raw = f'"{text}"'.encode("utf-8", "surrogatepass")
        return self.clean_text(text) if self.is_suspicious(raw) else text

    def clean_text(self, text: str) -> str:
        """A text without secrets; the same object when there are none."""
        found = text
        if self._key and "PRIVATE KEY" in found:
            found = _PEM.sub(_mark(ContentRule.KEY), found)
        if self._jwt and "eyJ" in found:
            found = _without_jwts(found)
        long = len(found) >= _RUN
        if long and self._token:
            found = _TOKEN.sub(_mark(ContentRule.TOKEN), found)
        if long and self._authorization and " " in found:
            found = _AUTHORIZATION.sub(_authorization, found)
        if self._url:
            if "://" in found and "@" in found:
                found = _without_logins(found)
            if "=" in found:
                found = without_parameters(found, self._parameter)
        if self._assignment:
            if "=" in found:
                found = without_assigned(found, self._named)
            if '"' in found or "'" in found:
                found = without_members(found, self._named)
        if self._card and len(found) >= _DIGITS:
            found = _NUMBER.sub(_cards, found)
        return text if found == text else found

    def _parameter(self, name: str) -> Callable[[str], str] | None:
        """As `named`, for a parameter of a URL."""
        return _signature if name.lower() in _SIGNATURES else self._named(name)


def _signature(value: str) -> str:
    return _mark(ContentRule.URL)


_TEXT_TYPES: Final = frozenset({"str", "int", "Decimal"})
"""What the codec calls a truncated text; anything else were bytes, of whatever class."""
_UNREADABLE: Final = frozenset(
    {REDACTED_TAG, "$replaced", "$rest", "$datetime", "$date", "$time", "$duration", "$uuid"}
    | {"$ip", "$ipinterface", "$ipnetwork", "$float"}
)
"""Tags of values that cannot hold a secret."""


def _may_be_token(raw: bytes, runs: bytes) -> bool:
    """Whether a long run of word characters looks like part of a secret."""
    start = runs.find(_LONG_RUN)
    while start >= 0:
        end = runs.find(b" ", start)
        if end < 0:
            end = len(raw)
        # Checksums and ids are the long words that events have. No hint is made of hexadecimal digits alone.
        if raw[start:end].translate(None, _HEXADECIMAL) and _has_hint(raw, start, end):
            return True
        if raw[start - 1] == 32:
            before = start - 1
            while raw[before - 1] == 32:  # JSON begins with something else
                before -= 1
            if raw[max(before - _LONGEST_SCHEME, 0) : before].lower().endswith(_SCHEMES):
                return True
        start = runs.find(_LONG_RUN, end)
    return False


def _has_hint(raw: bytes, start: int, end: int) -> bool:
    return _HINT.search(raw, start, end) is not None or (
        _MARKS.search(raw, start, end) is not None and _HINT_WITH_MARKS.search(raw, start, end) is not None
    )


def _may_be_card(raw: bytes) -> bool:
    """Whether a long number begins as one of a card does, and is not the fraction of a float."""
    if b"\\" in raw:  # the letters and digits of an escape are none of the text
        raw = _JSON_ESCAPE.sub(b" ", raw)
    plain = raw.translate(_NUMBERS)
    start = plain.find(_LONG_NUMBER)
    while start >= 0:
        if raw[start] in b"23456" and _begins(raw, start):
            return True
        start += _DIGITS
        while plain[start] == 48:  # JSON ends with a bracket
            start += 1
        start = plain.find(_LONG_NUMBER, start)
    grouped = b"000 000" in plain or b"000-000" in plain
    return grouped and any(_begins(raw, found.start()) for found in _CARD_HINT.finditer(raw))


def _begins(raw: bytes, start: int) -> bool:
    before = raw[start - 1]
    return not (raw[start - 1 : start].isalnum() or (before == 46 and raw[start - 2 : start - 1].isdigit()))


def _hidden(value: Any, depth: int) -> Any:
    """Nothing of a value but its outermost keys."""
    if depth and type(value) is dict:
        return {key: _hidden(item, depth - 1) for key, item in value.items()}
    return _REDACTED


def _whole(value: str, found: str) -> Any:
    """A text that was nothing but a secret is marked as every redacted value is."""
    if found is value:
        return value
    return _REDACTED if found in _WHOLE else found


def _differ(mine: Iterable[Any], his: Iterable[Any]) -> bool:
    return any(one is not other for one, other in zip(mine, his, strict=True))


def _mark(rule: ContentRule) -> str:
    return f"[redacted {rule}]"


_WHOLE: Final = frozenset(map(_mark, ContentRule))


def _without_jwts(text: str) -> str:
    kept: list[str] = []
    done = position = 0
    while found := _JWT.search(text, position):
        position = found.end()
        start = _start_of_header(text, found.start(), position)
        if start is not None and (rest := _JWT_REST.match(text, position)):
            kept += (text[done:start], _mark(ContentRule.JWT))
            done = position = rest.end()
    return "".join((*kept, text[done:])) if kept else text


def _start_of_header(text: str, start: int, end: int) -> int | None:
    """Three parts are a JWT only if the first is the header of one, or ends with it."""
    begins = _JWT_HEADER.finditer(text, max(start, end - _LONGEST_HEADER), end)
    for found in islice(begins, _MOST_HEADERS):
        if _is_header(text[found.start() : end]):
            return found.start()
    return None


def _is_header(text: str) -> bool:
    try:
        decoded = msgspec.json.decode(binascii.a2b_base64(_standard(text)))
    except (ValueError, msgspec.DecodeError):
        return False
    return isinstance(decoded, dict) and not decoded.keys().isdisjoint(("alg", "enc", "typ"))


def _without_logins(text: str) -> str:
    """A text without the passwords of URLs: each ends at the last @ of the word, if it has one."""
    kept: list[str] = []
    done = position = end = 0
    while found := _LOGIN.search(text, position):
        start = position = found.end()
        if start > end:
            end = _END_OF_URL.search(text, start).start()  # type: ignore[union-attr]  # at the latest, \Z
        mark = text.rfind("@", start + 1, min(end, start + _LONGEST_PASSWORD + 1))
        if mark >= 0:
            kept += (text[done:start], _mark(ContentRule.URL))
            done = position = mark
    return "".join((*kept, text[done:])) if kept else text


def _standard(text: str) -> str:
    """base64url without padding as base64."""
    return text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4)


def _authorization(match: re.Match[str]) -> str:
    """``Bearer`` and ``Basic`` begin sentences, too: a token has digits, and Basic hides a colon."""
    scheme, token = match[1], match[2]
    if scheme.lower() == "basic":
        try:
            good = b":" in binascii.a2b_base64(_standard(token.rstrip("=")))
        except ValueError:
            good = False
    else:
        good = any(char.isdigit() for char in token)
    return f"{scheme} {_mark(ContentRule.AUTHORIZATION)}" if good else match[0]


def _cards(match: re.Match[str]) -> str:
    """A row of numbers without those that are cards. A card begins and ends where a group of digits does."""
    text = match[0]
    if len(text) < _DIGITS:
        return text
    groups = list(_GROUP.finditer(text))
    kept: list[str] = []
    position = index = 0
    while index < len(groups):
        size = _card_at(groups, index)
        if size:
            kept += (text[position : groups[index].start()], _mark(ContentRule.CARD))
            position = groups[index + size - 1].end()
        index += size or 1
    return "".join((*kept, text[position:])) if kept else text


def _card_at(groups: list[re.Match[str]], first: int) -> int:
    """How many groups of digits from the first on are a card number; 0 when none are."""
    if groups[first][0][0] not in _FIRST_DIGITS:
        return 0
    digits = ""
    for size, group in enumerate(groups[first : first + _DIGITS + 6], 1):
        digits += group[0]
        if len(digits) > _DIGITS + 6:
            break
        if len(digits) >= _DIGITS and _is_card(digits):
            return size
    return 0


_FIRST_DIGITS: Final = "23456"


def _is_card(digits: str) -> bool:
    return _ISSUER.fullmatch(digits) is not None and _luhn(digits)


def _luhn(digits: str) -> bool:
    total = 0
    for position, digit in enumerate(reversed(digits)):
        number = int(digit)
        total += number if position % 2 == 0 else number * 2 - 9 * (number > 4)
    return total % 10 == 0
