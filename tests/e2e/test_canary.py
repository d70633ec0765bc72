"""The canary: secrets go in through every way, and none is in any byte that comes out.

A new way out of the process is one more entry of `sinks`; a new way in is a few lines in programs/canary.py.
"""

from __future__ import annotations

import base64
import json
import secrets
import string
import urllib.parse
from typing import TYPE_CHECKING, NamedTuple

import psycopg
import pytest
from psycopg import sql

from tests.cli.support import run
from tests.otlp_sink import serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.e2e.support import World

pytestmark = pytest.mark.e2e

KEY = f"key-{secrets.token_hex(16)}"
NAMES = (
    *("column", "changed column", "hashed by setting", "dropped by setting", "masked by class"),
    *("hashed by class", "dropped by class", "column info", "nested key", "deeper key", "computed id"),
    *("primary key", "composite key", "misdeclared", "failed statement", "parameter"),
    *("literal", "details", "attribute", "repr", "exception", "resolver", "header", "cookie", "path"),
    *("argument", "resource"),
)


class Sink(NamedTuple):
    """Bytes that left the process, and whether events are among them."""

    name: str
    data: bytes
    has_events: bool


# --- the secrets ------------------------------------------------------------------------------------


def _segment(data: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(data).encode()).decode().rstrip("=")


def _card() -> str:
    body = "4" + "".join(secrets.choice(string.digits) for _ in range(14))
    for check in string.digits:
        digits = [int(digit) for digit in reversed(body + check)]
        total = sum(n if place % 2 == 0 else sum(divmod(2 * n, 10)) for place, n in enumerate(digits))
        if total % 10 == 0:
            return body + check
    raise AssertionError(body)


def made_up() -> tuple[dict[str, str], dict[str, list[str]]]:
    """What the program is given, and of each the parts that must not come out."""
    given = {name: f"{name.replace(' ', '')}{secrets.token_hex(12)}" for name in NAMES}
    hidden = {name: [value] for name, value in given.items()}

    def add(name: str, text: str, *parts: str) -> None:
        given[name] = text
        hidden[name] = list(parts)

    signature = secrets.token_urlsafe(32)
    payload = _segment({"sub": secrets.token_hex(12)})
    add("jwt", f"{_segment({'alg': 'HS256', 'typ': 'JWT'})}.{payload}.{signature}", signature, payload)
    token = secrets.token_hex(18)
    add("github", f"ghp_{token}", token)
    access = "".join(secrets.choice(string.ascii_uppercase + string.digits) for _ in range(16))
    add("aws", f"AKIA{access}", access)
    lines = [base64.b64encode(secrets.token_bytes(48)).decode() for _ in range(4)]
    add("pem", "\n".join(["-----BEGIN PRIVATE KEY-----", *lines, "-----END PRIVATE KEY-----"]), *lines)
    card, other = _card(), _card()
    add("card", card, card)
    spaced = " ".join(other[start : start + 4] for start in range(0, 16, 4))
    add("spaced card", spaced, spaced, other)
    for name, form in (
        ("bearer", "Authorization: Bearer {}"),
        ("url", "postgresql://app:{}@db.example/app"),
        ("query", "https://api.example/x?page=1&access_token={}"),
        ("text", '{{"user": "ann", "password": "{}"}}'),
    ):
        add(name, form.format(secret := f"{name}{secrets.token_hex(12)}"), secret)
    given["open"] = f"open{secrets.token_hex(12)}"
    return given, hidden


# --- the spellings ----------------------------------------------------------------------------------


def spellings(secret: str) -> Iterator[bytes]:
    """How a text may look when it was encoded on its way."""
    raw = secret.encode()
    yield raw
    yield raw.hex().encode()
    yield raw.hex().upper().encode()
    yield json.dumps(secret)[1:-1].encode()
    yield json.dumps(json.dumps(secret)[1:-1])[1:-1].encode()
    yield urllib.parse.quote(secret, safe="").encode()
    yield urllib.parse.quote_plus(secret).encode()
    yield raw[::-1]
    for shift in range(3):  # base64 of a text that stands at any place of a longer one
        for encode in (base64.standard_b64encode, base64.urlsafe_b64encode):
            whole = encode(b"\0" * shift + raw + b"\0" * 2)
            yield whole[4 if shift else 0 : (len(raw) + shift) // 3 * 4]


def found(data: bytes, hidden: dict[str, list[str]]) -> list[str]:
    """The names of the secrets that are in some bytes."""
    return sorted(
        name
        for name, parts in hidden.items()
        if any(spelling in data for part in parts for spelling in spellings(part))
    )


def test_the_search_finds_every_spelling() -> None:
    """The test of the test: what is encoded on the way is found all the same."""
    secret = f"s3cret/{secrets.token_urlsafe(12)}="
    forms = [
        secret,
        f"before {secret} after",
        json.dumps({"a": secret}),
        json.dumps({"a": json.dumps({"b": secret})}),
        secret.encode().hex(),
        urllib.parse.quote_plus(f"?a={secret}"),
        *(base64.b64encode(b"x" * shift + secret.encode() + b"yz").decode() for shift in range(5)),
        *(base64.urlsafe_b64encode(b"x" * shift + secret.encode() + b"yz").decode() for shift in range(5)),
    ]
    for form in forms:
        assert found(form.encode(), {"it": [secret]}) == ["it"], form
    assert found(b"nothing", {"it": [secret]}) == []


# --- the ways out -----------------------------------------------------------------------------------


def stored(dsn: str) -> bytes:
    """Every row of every table of the store, as COPY writes it."""
    data = b""
    with psycopg.connect(dsn) as connection:
        tables = connection.execute(
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname = 'activity' ORDER BY tablename"
        ).fetchall()
        assert any(name == "quarantine" for _, name in tables)
        for name in tables:
            copy_out = sql.SQL("COPY (SELECT * FROM {}) TO STDOUT").format(sql.Identifier(*name))
            with connection.cursor().copy(copy_out) as copy:
                data += b"".join(bytes(part) for part in copy)
    return data


def files(directory: Path) -> bytes:
    """All files below a directory."""
    return b"".join(path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file())


def run_program(world: World, secrets_file: Path, **variables: str) -> tuple[bytes, int]:
    """All output of programs/canary.py, and its status."""
    given = json.loads(secrets_file.read_text(encoding="utf-8"))
    process = world.start(
        *("python", "canary.py", str(secrets_file), "--login", given["argument"]),
        OTEL_EXPERIMENTAL_RESOURCE_DETECTORS="otel,process",
        OTEL_RESOURCE_ATTRIBUTES=f"team=blue,api.key={given['resource']}",
        OTEL_ACTIVITY_REDACT="email=hash,ssn=drop",
        OTEL_ACTIVITY_REDACT_KEY=KEY,
        OTEL_ACTIVITY_ACTOR_RESOLVER="canary:resolve",
        OTEL_ACTIVITY_SESSION_COOKIE="session",
        OTEL_ACTIVITY_REQUESTS="*",
        **variables,
    )
    output, _ = process.communicate(timeout=90)
    return output.encode(), process.returncode


def _tail(output: bytes) -> str:
    """The end of what the program said, without events."""
    lines = output.decode(errors="replace").splitlines()
    return "\n".join([line[:200] for line in lines if '"event_name"' not in line][-40:])


def commands(dsn: str) -> list[Sink]:
    """What people read of it."""
    made = []
    for arguments in (
        ("search", "--json", "--limit", "500"),
        ("search", "--limit", "500"),
        ("history", "Person", "5001"),
        ("tail", "--json", "--no-follow"),
        ("doctor",),
        ("doctor", "--settings"),
    ):
        result = run(*arguments, dsn=dsn, OTEL_ACTIVITY_REDACT_KEY=KEY)
        assert "Usage" not in result.output, result.output
        text = f"{result.output}\n{result.stderr}"
        made.append(Sink(" ".join(arguments), text.encode(), arguments[0] in ("search",)))
    return made


@pytest.fixture
def canaries(tmp_path: Path) -> tuple[Path, dict[str, list[str]], bytes]:
    """The file for the program, what must not come out, and what must."""
    given, hidden = made_up()
    path = tmp_path / "secrets.json"
    path.write_text(json.dumps(given), encoding="utf-8")
    hidden["key of the hashes"] = [KEY]
    return path, hidden, given["open"].encode()


def check(sinks: list[Sink], hidden: dict[str, list[str]], told: bytes) -> None:
    """No secret is in any of them, and what is none is in each that holds events."""
    leaks = {sink.name: names for sink in sinks if (names := found(sink.data, hidden))}
    assert leaks == {}
    assert [sink.name for sink in sinks if sink.has_events and told not in sink.data] == []


def test_no_secret_leaves_the_process(
    world: World, canaries: tuple[Path, dict[str, list[str]], bytes], tmp_path: Path
) -> None:
    """Store, OTLP, console, logs, metrics, journal and the command line, while all is well."""
    path, hidden, told = canaries
    journal = tmp_path / "journal"
    with serving("http/protobuf") as (endpoint, protocol, otlp):
        output, status = run_program(
            world,
            path,
            OTEL_ACTIVITY_EXPORTERS="postgres,otlp,console",
            OTEL_ACTIVITY_OTLP_ENDPOINT=endpoint,
            OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
            OTEL_ACTIVITY_JOURNAL_DIR=str(journal),
        )
        sent = b"".join(request.SerializeToString() for request in otlp.requests)
        headers = json.dumps(otlp.headers).encode()
    assert status == 0, _tail(output)
    assert b"canary done" in output
    sinks = [
        Sink("console, logs and metrics", output, True),
        Sink("OTLP", sent, True),
        Sink("OTLP headers", headers, False),
        Sink("PostgreSQL", stored(world.store), True),
        Sink("journal", files(journal), False),
        *commands(world.store),
    ]
    check(sinks, hidden, told)


@pytest.mark.parametrize("trouble", ["refused", "away"])
def test_no_secret_leaves_a_process_without_store(
    world: World, canaries: tuple[Path, dict[str, list[str]], bytes], tmp_path: Path, trouble: str
) -> None:
    """A refused login or a store that is away: passwords of DSNs, logs of failures, what waits on disk."""
    path, hidden, told = canaries
    password = f"dsn{secrets.token_hex(12)}"
    hidden["password of the DSN"] = [password]
    away = f"postgresql://app:{password}@127.0.0.1:1/none"
    dsn = _as_nobody(world.store, password) if trouble == "refused" else away
    output, status = run_program(
        world,
        path,
        OTEL_ACTIVITY_POSTGRES_DSN=dsn,
        OTEL_ACTIVITY_SHUTDOWN_TIMEOUT="0.5",
        OTEL_ACTIVITY_JOURNAL_DIR=str(tmp_path / "journal"),
    )
    assert status == 0, _tail(output)
    settings = run("doctor", "--settings", dsn=dsn)
    search = run("search", dsn=dsn)
    sinks = [
        Sink("logs", output, False),
        Sink("journal", files(tmp_path / "journal"), True),
        Sink("doctor", settings.output.encode() + settings.stderr.encode(), False),
        Sink("search", search.output.encode() + search.stderr.encode(), False),
    ]
    check(sinks, hidden, told)


def _as_nobody(dsn: str, password: str) -> str:
    scheme, _, rest = dsn.partition("://")
    return f"{scheme}://nobody:{password}@{rest.rpartition('@')[2]}"
