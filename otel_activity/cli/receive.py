"""``otel-activity receive``."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from otel_activity.cli.app import EXIT_FAILED
from otel_activity.cli.options import require_dsn, store_options
from otel_activity.cli.render import note, say
from otel_activity.errors import ConfigurationError
from otel_activity.settings import RECEIVE_PREFIX

if TYPE_CHECKING:
    from otel_activity.receiver.server import Addresses

__all__ = ["receive"]

_PORT = click.IntRange(0, 65_535)
_SHORTEST_TOKEN = 16
"""Characters. One of `openssl rand -hex 16` has 32; shorter than this is somebody's word, not a secret."""
_FILE = click.Path(exists=True, dir_okay=False)


if TYPE_CHECKING:
    _TextType = click.ParamType[str]
else:  # click before 8.5 has no type parameter here
    _TextType = click.ParamType


class _DSNs(_TextType):
    """A connection string may contain spaces; in the environment a newline ends it."""

    name = "dsn"
    envvar_list_splitter = "\n"


def _env(name: str) -> dict[str, Any]:
    return {"envvar": RECEIVE_PREFIX + name, "show_envvar": True}


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.", **_env("HOST"))
@click.option(
    "--http-port", type=_PORT, default=4318, show_default=True, help="OTLP/HTTP; 0: any.", **_env("HTTP_PORT")
)
@click.option(
    "--grpc-port", type=_PORT, default=4317, show_default=True, help="OTLP/gRPC; 0: any.", **_env("GRPC_PORT")
)
@click.option("--no-http", is_flag=True, help="No HTTP: no health and no metrics either.", **_env("NO_HTTP"))
@click.option("--no-grpc", is_flag=True, help="No gRPC.", **_env("NO_GRPC"))
@click.option(
    "--token-file",
    type=_FILE,
    help="File with the bearer token that senders must show.",
    **_env("TOKEN_FILE"),
)
@click.option("--tls-cert", type=_FILE, help="Certificate chain, PEM.", **_env("TLS_CERT"))
@click.option("--tls-key", type=_FILE, help="Its private key, PEM.", **_env("TLS_KEY"))
@click.option(
    "--tls-client-ca",
    type=_FILE,
    help="Ask clients for a certificate of this CA, PEM.",
    **_env("TLS_CLIENT_CA"),
)
@click.option(
    "--foreign",
    type=click.Choice(["refuse", "pass"]),
    default="refuse",
    show_default=True,
    help="Records that are not audit events: tell the sender, or pass over them.",
    **_env("FOREIGN"),
)
@click.option(
    "--max-message-mib",
    type=click.IntRange(1, 256),
    default=16,
    show_default=True,
    help="Largest request, after decompression.",
    **_env("MAX_MESSAGE_MIB"),
)
@click.option(
    "--max-waiting-mib",
    type=click.IntRange(1, 4_096),
    default=48,
    show_default=True,
    help="Requests that wait for COMMIT, together; beyond, senders are told to come back.",
    **_env("MAX_WAITING_MIB"),
)
@click.option(
    "--max-connections",
    type=click.IntRange(1, 100_000),
    default=1_000,
    show_default=True,
    help="HTTP connections at the same time.",
    **_env("MAX_CONNECTIONS"),
)
@click.option(
    "--read-timeout",
    type=click.FloatRange(0.1, 600),
    default=10.0,
    show_default=True,
    help="Seconds for a sender to begin a request, and to send it.",
    **_env("READ_TIMEOUT"),
)
@click.option(
    "--writers",
    type=click.IntRange(1, 16),
    default=2,
    show_default=True,
    help="Connections to PostgreSQL.",
    **_env("WRITERS"),
)
@click.option(
    "--shutdown-timeout",
    type=click.FloatRange(0, 3_600),
    default=10.0,
    show_default=True,
    help="Seconds to store what is accepted, at the end.",
    **_env("SHUTDOWN_TIMEOUT"),
)
@click.option(
    "--reuse-port",
    is_flag=True,
    help="Share the ports with other instances on this machine.",
    **_env("REUSE_PORT"),
)
@click.option(
    "--table-stats-dsn",
    type=_DSNs(),
    multiple=True,
    metavar="DSN",
    help="Show table statistics of this audited database; may be given more than once, in the "
    "environment with a newline between.",
    **_env("TABLE_STATS_DSN"),
)
@click.option(
    "--table-stats-interval",
    type=click.FloatRange(0.1, 86_400),
    default=30.0,
    show_default=True,
    help="Seconds between two readings of them.",
    **_env("TABLE_STATS_INTERVAL"),
)
@store_options
def receive(dsn: str | None, schema: str, **options: Any) -> None:
    """Receive audit events as OTLP logs, and store them in PostgreSQL.

    A request is acknowledged after its COMMIT. Listens on this machine alone unless senders have to show a
    token (--token-file, or OTEL_ACTIVITY_RECEIVE_TOKEN) or a certificate (--tls-client-ca).
    """
    import asyncio

    from otel_activity.receiver.server import serve
    from otel_activity.receiver.settings import ReceiverSettings

    logging.basicConfig(level=logging.INFO, format="otel-activity receive: %(message)s")
    settings = ReceiverSettings(dsn=require_dsn(dsn), schema=schema, **_settings(options))
    if not asyncio.run(serve(settings, _announce)):
        note("otel-activity receive: stopped with requests that were not stored; their senders have them")
        # At once: threads that still wait for PostgreSQL would hold the process for as long as it likes.
        with contextlib.suppress(Exception):  # there may be no output, or nobody who reads it
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(EXIT_FAILED)


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    no_http, no_grpc = options.pop("no_http"), options.pop("no_grpc")
    file = options.pop("token_file")
    found = {
        **options,
        "http_port": None if no_http else options["http_port"],
        "grpc_port": None if no_grpc else options["grpc_port"],
        "token": _token(file),
        "max_message_bytes": options["max_message_mib"] << 20,
        "max_waiting_bytes": options["max_waiting_mib"] << 20,
    }
    return {name: value for name, value in found.items() if not name.endswith("_mib")}


def _token(file: str | None) -> str | None:
    """The token, from a file or the environment; never an argument, which every process can read.

    Raises:
        ConfigurationError: it is empty or short, or cannot be a header's value.
    """
    import os

    variable = RECEIVE_PREFIX + "TOKEN"
    token = os.environ.get(variable)
    if file is not None:
        variable, token = "--token-file", Path(file).read_text("utf-8", "replace").strip()
    if token is None:
        return None
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigurationError(
            variable,
            "***",
            "not a token",
            f"use at least {_SHORTEST_TOKEN} printable ASCII characters, no space",
        )
    if len(token) < _SHORTEST_TOKEN:
        raise ConfigurationError(
            variable,
            "***",
            f"a token of {len(token)} characters can be guessed",
            f"use at least {_SHORTEST_TOKEN}, "
            'as python3 -c "import secrets; print(secrets.token_urlsafe(32))" makes them',
        )
    return token


def _announce(addresses: Addresses) -> None:
    places = " ".join(f"{protocol}={address}" for protocol, address in addresses.items())
    say(f"listening {places}")
