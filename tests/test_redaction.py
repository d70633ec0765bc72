"""Redaction: secret names in every spelling, values at every depth, and harmless names left alone."""

from __future__ import annotations

import collections
import copy
import enum
import itertools
import json
import pickle
import types
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects.postgresql import Range
from sqlalchemy.dialects.postgresql.ranges import MultiRange
from sqlalchemy.ext.mutable import MutableDict

from otel_activity.codec import REDACTED, encode
from otel_activity.events import Redacted
from otel_activity.redaction import DEFAULT_NAMES, DEFAULT_WHOLE_NAMES, MAX_DEPTH, METADATA_WORDS, Redactor

HIDDEN = Redacted()

SECRET = [
    "token",
    "access_token",
    "accessToken",
    "AccessToken",
    "ACCESS_TOKEN",
    "access-token",
    "accesstoken",
    "refresh_tokens",
    "tokens",
    "api-key",
    "api_key",
    "apiKey",
    "APIKey",
    "ApiKey",
    "apikey",
    "APIKEY",
    "X-API-Key",
    "stripe_api_key_2",
    "password",
    "PASSWORD",
    "PassWord",
    "pASSWORD",
    "passwords",
    "password_hash",
    "passwordHash",
    "passwordhash",
    "user_password",
    "userpassword",
    "ssn",
    "user.ssn",
    "card",
    "card_number",
    "cardNumber",
    "cardnumber",
    "credit_card",
    "creditCard",
    "cvv",
    "cvv2",
    "secret",
    "client_secret",
    "clientSecret",
    "clientsecret",
    "secretKey",
    "aws_secret_access_key",
    "authorization",
    "Authorization",
    "Proxy-Authorization",
    "cookie",
    "Set-Cookie",
    "private_key",
    "privateKey",
    "session_key",
    "otp",
    "otp_code",
    "pin",
    "userPIN",
    "pin_code",
    "database_url",
    "dsn",
    "auth",
    "pass",
    "ｐａｓｓｗｏｒｄ",
    "pass\u200bword",
    *("pass_word", "userPassWordHash", "userpwd", "PGPWD", "hashed_pw", "dbPass", "smtp_pass", "passHash"),
    *("myAPIkey", "stripeapikey", "userpasswords", "clientsecrets", "aws_creds", "priv_key", "_csrf"),
    *("cc_number", "verificationCode", "basic_auth", "x" * 300 + "_password"),
]
HARMLESS = [
    "tokens_used",
    "max_tokens",
    "total_tokens",
    "tokenizer",
    "pinned",
    "pinning",
    "spinner",
    "opinion",
    "discard",
    "card_title",
    "business_card",
    "cardinality",
    "passenger",
    "compass",
    "bypass",
    "author",
    "authorId",
    "authority",
    "authentication_method",
    "secretary",
    "session_id",
    "key",
    "monkey",
    "keyboard",
    "email",
    "name",
    "passwordless_login",
    "password_changed_at",
    "passwordChangedAt",
    "token_count",
    "pin_enabled",
    "password_policy",
    "login_attempts",
    "cookieless",
    "hotpot",
    *("has_password", "isSecret", "token_type", "tokenExpiresIn", "token_expires", "password_length"),
    *("card_number_last4", "token_endpoint", "authorization_status", "api_key_name", "token_limit"),
    *("otp_verified", "password_changed", "pwned", "cwd", "boarding_pass", "passport_photo_id", "author"),
    *("description", "cardinal", "pinterest", "cookiecutter", "bearing"),
]


@pytest.mark.parametrize("name", SECRET)
def test_usual_secret_names_match_in_every_spelling(name: str) -> None:
    """Case, separators and camelCase make no difference."""
    assert Redactor().is_secret(name)


@pytest.mark.parametrize("name", [*HARMLESS, "", "_", "123", "\0", "\ud800"])
def test_names_that_only_look_alike_do_not_match(name: str) -> None:
    """Whole words decide: an audit trail that hides harmless fields is worth little."""
    assert not Redactor().is_secret(name)


@pytest.mark.parametrize("name", DEFAULT_NAMES)
def test_every_built_in_name_works_in_all_forms(name: str) -> None:
    """Each documented name is found apart, joined, glued, in camelCase and inside a longer name."""
    words = name.split()
    camel = words[0] + "".join(word.title() for word in words[1:])
    for form in (
        "_".join(words),
        "-".join(words),
        "".join(words),
        camel,
        f"my_{'_'.join(words)}_2",
        name.upper(),
    ):
        assert Redactor().is_secret(form), form
    assert not Redactor(defaults=False).is_secret(name)


def test_the_docs_list_every_built_in_name() -> None:
    """docs/redaction.md is where people look up what is redacted without their doing."""
    text = (
        (Path(__file__).parent.parent / "docs" / "redaction.md")
        .read_text(encoding="utf-8")
        .replace("\n", " ")
    )
    for name in (*DEFAULT_NAMES, *DEFAULT_WHOLE_NAMES, *METADATA_WORDS):
        assert (
            f"`{name}`" in text
            or (name.endswith("s") and f"`{name[:-1]}(s)`" in text)
            or (f"`{name}(s)`" in text)
        ), name


def test_added_names_match_by_whole_words_and_patterns() -> None:
    """A plain name matches anywhere in a name, a pattern the whole name; neither knows exceptions."""
    redactor = Redactor(["email", "internal_*", "x?z", "homeAddress", "address2", "a[b]*", "Straße"])
    for name in (
        *(
            "email",
            "user_email",
            "userEmail",
            "E-Mail".replace("-", ""),
            "email_changed_at",
            "internal_notes",
        ),
        *(
            "internalNotes",
            "INTERNAL-NOTES",
            "xyz",
            "home_address",
            "HOME-ADDRESS",
            "homeaddress",
            "address2",
        ),
        *("user_address_2", "a_b_c", "strasse", "STRASSE"),
    ):
        assert redactor.is_secret(name), name
    for name in ("emailed", "international", "xyyz", "home", "address", "ab"):
        assert not redactor.is_secret(name), name
    assert redactor.is_secret("password")


def test_without_defaults_only_added_names_count() -> None:
    """The built-in names can be switched off."""
    redactor = Redactor(iter(["email", "*hash"]), defaults=False)
    assert redactor.is_secret("email")
    assert redactor.is_secret("password_hash")
    assert not redactor.is_secret("password")


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=())))
def test_no_name_raises_and_answers_do_not_change(name: str) -> None:
    """Any text is a possible name; the remembered answer is the first one."""
    redactor = Redactor(["*x?", "ä"])
    assert redactor.is_secret(name) is redactor.is_secret(name)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from([*SECRET, *HARMLESS, "Straße", "email", "a", "2", "X"]), min_size=1, max_size=3),
    st.sampled_from(["", "_", "-", ".", " ", "\u200b"]),
)
def test_the_short_look_at_a_name_is_the_long_one(words: list[str], mark: str) -> None:
    """A pattern that matches nothing makes every name be looked at closely, and changes no answer."""
    name = mark.join(words)
    for added in ([], ["email=hash", "STRASSE=drop"]):
        quick, thorough = (Redactor([*added, *more], key="k" * 16) for more in ([], ["?nothing?*"]))
        assert quick.mode_of(name) is thorough.mode_of(name)


def test_what_is_no_text_is_no_name() -> None:
    """Keys may be anything; a subclass of `str` that raises is read by `str` itself."""

    def fail(*_: object) -> Any:
        raise RuntimeError

    odd = type("Odd", (str,), {"__hash__": fail, "__eq__": fail, "__str__": fail})("password")
    redactor = Redactor()
    assert redactor.is_secret(odd)
    assert not any(map(redactor.is_secret, [None, 1, b"password", ("password",), object()]))


def test_memory_for_names_is_bounded() -> None:
    """Keys of JSON can be data: not all of them are kept, and a very long one never."""
    redactor = Redactor()
    for number in range(10_000):
        redactor.is_secret(f"name {number}")
    assert redactor.is_secret("password" + "x" * 1_000_000)
    assert len(redactor._known) <= 4_096
    assert max(map(len, redactor._known)) < 100


# --- clean ----------------------------------------------------------------------------------------


class Login(NamedTuple):
    user: str
    password: str


class Key(enum.StrEnum):
    TOKEN = "token"


class Choice(tuple, enum.Enum):
    A = (1, 2)


@pytest.mark.parametrize(
    "value", [None, 1, "password", 1.5, b"x", object(), Key.TOKEN, Choice.A, Range(1, 2)]
)
def test_values_without_keys_are_returned_as_they_are(value: Any) -> None:
    """There is nothing to copy, and nothing is looked at but names."""
    assert Redactor().clean(value) is value


def test_secrets_go_at_every_depth_and_the_rest_stays() -> None:
    """Dicts, mappings, lists, tuples, sets and named tuples are looked into; the input is not changed."""
    original = {
        "id": 7,
        "password": "s3cret",
        "nested": [{"apiKey": ["s3cret"], "keep": ({"token": {"deep": "s3cret"}}, 1)}],
        "mutable": MutableDict(cvv="s3cret", ok=1),
        "view": types.MappingProxyType({"cookie": "s3cret", "ok": 2}),
        "ordered": collections.OrderedDict(a=collections.OrderedDict(pin="s3cret")),
        "login": Login("ann", "s3cret"),
        "set": {Login("bob", "s3cret")},
        1: {b"Authorization": "s3cret", Key.TOKEN: "s3cret", ("a",): 3},
        "card": None,
    }
    before = copy.deepcopy({key: value for key, value in original.items() if key != "view"})
    cleaned = Redactor().clean(original)
    assert cleaned == {
        "id": 7,
        "password": HIDDEN,
        "nested": [{"apiKey": HIDDEN, "keep": ({"token": HIDDEN}, 1)}],
        "mutable": {"cvv": HIDDEN, "ok": 1},
        "view": {"cookie": HIDDEN, "ok": 2},
        "ordered": {"a": {"pin": HIDDEN}},
        "login": ("ann", HIDDEN),
        "set": {("bob", HIDDEN)},
        1: {b"Authorization": HIDDEN, Key.TOKEN: HIDDEN, ("a",): 3},
        "card": HIDDEN,
    }
    assert {key: value for key, value in original.items() if key != "view"} == before
    assert "s3cret" not in json.dumps(encode(cleaned))


def test_the_mark_survives_encoding_and_users_data_does_not_pass_for_it() -> None:
    """A redacted value is told from a dict that a user wrote in its shape."""
    encoded = encode(Redactor().clean({"password": 1, "note": {"$redacted": True}}))
    assert encoded == {"password": REDACTED, "note": {"$map": [["$redacted", True]]}}


def test_the_copy_shares_nothing_that_can_change() -> None:
    """The caller may go on changing its own structure."""
    original: dict[str, Any] = {"a": [1, {"b": {2}}]}
    cleaned = Redactor().clean(original)
    original["a"][1]["b"].add(3)
    original["a"].append(4)
    assert cleaned == {"a": [1, {"b": {2}}]}


def test_database_values_that_python_sees_as_containers_stay_whole() -> None:
    """A multirange is one value, although its class is a list."""
    value = MultiRange([Range(1, 2)])
    assert Redactor().clean({"a": value})["a"] is value


def test_circles_end_and_stay_circles() -> None:
    """A structure that contains itself is copied once, and no secret in it escapes."""
    original: dict[str, Any] = {"password": "s3cret", "list": []}
    original["self"] = original
    original["list"].append((original, original["list"]))
    cleaned = Redactor().clean(original)
    assert cleaned["self"] is cleaned
    assert cleaned["list"][0][0] is cleaned
    assert cleaned["list"][0][1] is cleaned["list"]
    assert cleaned["password"] is HIDDEN


def test_shared_parts_are_copied_once() -> None:
    """A structure that doubles at every level is work for its parts, not for its paths."""
    value: Any = {"token": "s3cret"}
    for _ in range(60):
        value = [value, value]
    cleaned = Redactor().clean(value)
    for _ in range(60):
        assert cleaned[0] is cleaned[1]
        cleaned = cleaned[0]
    assert cleaned == {"token": HIDDEN}


def test_what_lies_too_deep_is_redacted_unseen() -> None:
    """Depth is bounded without an error and without a leak."""
    value: Any = {"password": "s3cret"}
    levels = []
    for _ in range(100_000):
        value = [value]
        levels.append(value)
    cleaned = Redactor().clean(value)
    depth = 0
    while cleaned is not HIDDEN:
        (cleaned,) = cleaned
        depth += 1
    assert depth == MAX_DEPTH
    while levels:
        levels.pop()


class _Fails(collections.abc.Mapping[str, Any]):
    def __getitem__(self, key: str) -> Any:
        raise RuntimeError(key)

    def __iter__(self) -> Any:
        return iter(["password"])

    def __len__(self) -> int:
        return 1


class _BadKey(str):
    @property
    def __class__(self) -> Any:
        raise RuntimeError

    __hash__ = str.__hash__


def test_what_cannot_be_looked_into_is_redacted() -> None:
    """An error while reading never leaves the value unseen, and never reaches the caller."""
    cleaned = Redactor().clean({"a": 1, "b": _Fails()})
    assert cleaned == {"a": 1, "b": HIDDEN}

    def fail(*_: object) -> Any:
        raise RuntimeError

    table = type("Table", (dict,), dict.fromkeys(["items", "keys", "__iter__", "__len__"], fail))(
        password="s3cret", a=1
    )
    assert Redactor().clean(table) == {"password": HIDDEN, "a": 1}
    assert Redactor().clean(_Fails()) is HIDDEN
    assert Redactor().clean([{_BadKey("a"): "s3cret"}, 1]) == [HIDDEN, 1]


class Field(enum.Enum):
    PASSWORD = 1
    NOTE = "token"


class Config(enum.Enum):
    A = types.MappingProxyType({"password": "s3cret"})
    B = (1, ("x", 2))


def test_members_of_enums_are_looked_into() -> None:
    """The name of a member counts as a key, and a member may hold what has keys."""
    cleaned = Redactor().clean({Field.PASSWORD: "s3cret", Field.NOTE: "s3cret", "a": [Config.A, Config.B]})
    assert cleaned == {Field.PASSWORD: HIDDEN, Field.NOTE: HIDDEN, "a": [HIDDEN, Config.B]}


class _Endless(collections.abc.Mapping[int, Any]):
    def __getitem__(self, key: int) -> Any:
        return {"pin": "s3cret"}

    def __iter__(self) -> Any:
        return itertools.count()

    def __len__(self) -> int:
        return 3


def test_a_mapping_that_never_ends_is_read_as_far_as_it_says() -> None:
    """No value keeps the caller for ever."""
    assert Redactor().clean(_Endless()) == {key: {"pin": HIDDEN} for key in range(3)}


def test_a_resource_has_no_secrets_and_no_arguments() -> None:
    """Detectors put the command line into it, and variables whatever somebody wrote there."""
    given = {
        "service.name": "shop",
        "process.pid": 7,
        "process.command_line": "shop --login s3cret",
        "process.command_args": ["shop", "--login", "s3cret"],
        "api.key": "s3cret",
        "store": "postgresql://app:s3cret@db/x",
        "hosts": ("a", "redis://:s3cret@b"),
        "ssn": "s3cret",
    }
    assert Redactor(["ssn=drop"]).scrub_resource(given) == {
        "service.name": "shop",
        "process.pid": 7,
        "api.key": "[redacted]",
        "store": "postgresql://app:[redacted url]@db/x",
        "hosts": ["a", "redis://:[redacted url]@b"],
    }


json_values = st.recursive(
    st.none() | st.integers() | st.just("s3cret"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from([*SECRET[:8], *HARMLESS[:8], "a"]), inner, max_size=4)
    ),
    max_leaves=15,
)


@settings(max_examples=200, deadline=None)
@given(json_values)
def test_clean_hides_exactly_what_stands_under_secret_names(value: Any) -> None:
    """Compared with the definition, written out again without bounds or memory."""
    redactor = Redactor()

    def hide(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: HIDDEN if redactor.is_secret(key) else hide(item) for key, item in value.items()}
        return type(value)(map(hide, value)) if isinstance(value, (list, tuple)) else value

    assert redactor.clean(value) == hide(value)


def test_the_mark_is_one_object() -> None:
    """Copies and pickles of the mark are the mark, so that `is` can be relied on."""
    for twin in (Redacted(), copy.copy(HIDDEN), copy.deepcopy(HIDDEN), pickle.loads(pickle.dumps(HIDDEN))):
        assert twin is HIDDEN
    assert repr(HIDDEN) == "[redacted]"
