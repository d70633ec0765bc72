"""The process: both servers in one event loop, the intake behind them, from start to the last COMMIT."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc
import uvicorn

from otel_activity.errors import ConfigurationError
from otel_activity.postgres.exporter import PostgresEventExporter
from otel_activity.receiver.auth import BearerToken
from otel_activity.receiver.grpc import GRPCServer
from otel_activity.receiver.http import HTTPApplication
from otel_activity.receiver.intake import Intake
from otel_activity.receiver.metrics import ReceiverMetrics
from otel_activity.receiver.tablestats import TableStatistics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from otel_activity.receiver.settings import ReceiverSettings

__all__ = ["Addresses", "serve"]

_log: Final = logging.getLogger("otel_activity.receiver")
SWEEP: Final = 0.5
"""Seconds between looks at connections on which nothing happens."""
BACKLOG: Final = 1_024
FIRST_LOOK: Final = 2.0
"""Seconds to wait, at the start, for the store's first answer; the receiver starts without it as well."""

Addresses = dict[str, str]
"""Protocol (``http``, ``grpc``) to ``host:port``."""


async def serve(settings: ReceiverSettings, ready: Callable[[Addresses], None]) -> bool:
    """Serve until SIGTERM or SIGINT.

    Args:
        settings: what was asked for.
        ready: called with the addresses when both servers listen.

    Returns:
        False when what was accepted could not be stored in time; its senders were not told that it was.

    Raises:
        ConfigurationError: a port is taken, or a certificate cannot be used.
    """
    _check_certificates(settings)
    metrics = ReceiverMetrics()
    tables = TableStatistics(settings.table_stats_dsn, settings.table_stats_interval)
    if settings.table_stats_dsn:
        metrics.show(tables)
    token = BearerToken(settings.token)
    http = None if settings.http_port is None else _http_socket(settings)
    tls = _http_tls(settings)
    credentials = _grpc_credentials(settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    intake = Intake(
        lambda: PostgresEventExporter(settings.dsn, settings.schema, "otel-activity receive"),
        writers=settings.writers,
        limit=settings.max_waiting_bytes,
        refuse_foreign=settings.foreign == "refuse",
        metrics=metrics,
    )
    try:
        servers: list[_HTTPServer | GRPCServer] = []
        addresses: Addresses = {}
        if http is not None:
            application = HTTPApplication(
                intake,
                metrics,
                token,
                max_message=settings.max_message_bytes,
                read_timeout=settings.read_timeout,
            )
            servers.append(_HTTPServer(application, http, tls, settings))
            addresses["http"] = _address(settings.host, http.getsockname()[1])
        if settings.grpc_port is not None:
            server = GRPCServer(intake, metrics, token, settings)
            port = server.bind(_address(settings.host, settings.grpc_port), credentials)
            servers.append(server)
            addresses["grpc"] = _address(settings.host, port)
        for each in servers:
            await each.start()
        tables.start()
        await asyncio.to_thread(intake.asked.wait, FIRST_LOOK)
        ready(addresses)
        await stop.wait()
        _log.info("stopping")
        await asyncio.gather(*(each.stop(settings.shutdown_timeout) for each in servers))
    finally:
        tables.stop()
        stored = await asyncio.to_thread(intake.close, settings.shutdown_timeout)
    return stored


class _HTTPServer:
    """uvicorn, started and stopped by us, with a limit on silence that it does not have."""

    def __init__(
        self,
        application: HTTPApplication,
        http: socket.socket,
        tls: dict[str, Any],
        settings: ReceiverSettings,
    ) -> None:
        self._socket = http
        self._patience = settings.read_timeout
        self._server = _Uvicorn(
            uvicorn.Config(
                application,
                http="h11",  # it bounds headers; httptools does not
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                date_header=False,
                limit_concurrency=settings.max_connections,
                timeout_keep_alive=round(max(75.0, settings.read_timeout)),
                timeout_graceful_shutdown=max(1, round(settings.shutdown_timeout)),
                backlog=BACKLOG,
                **tls,
            )
        )
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to answer."""
        self._tasks = [
            asyncio.create_task(self._server.serve(sockets=[self._socket])),
            asyncio.create_task(self._sweep()),
        ]
        while not self._server.started:
            if self._tasks[0].done():
                await self._tasks[0]
            await asyncio.sleep(0.01)

    async def stop(self, grace: float) -> None:
        """Take no more connections, answer what was taken."""
        self._server.should_exit = True
        await self._tasks[0]
        self._tasks[1].cancel()

    def _connections(self) -> set[Any]:
        connections: set[Any] = self._server.server_state.connections  # all are uvicorn's H11Protocol
        return connections

    async def _sweep(self) -> None:
        """Close connections that take too long to begin a request."""
        seen: dict[Any, int] = {}
        rounds = max(1, round(self._patience / SWEEP))
        while True:
            await asyncio.sleep(SWEEP)
            silent = [each for each in self._connections() if _begins(each)]
            seen = {each: seen.get(each, 0) + 1 for each in silent}
            for each, times in seen.items():
                if times > rounds:
                    each.transport.abort()


def _begins(connection: Any) -> bool:
    """Whether a connection is before its first request, or has sent something behind its last one.

    Between two requests uvicorn closes it in time, but only until the next byte arrives.
    """
    cycle = connection.cycle
    return cycle is None or (cycle.response_complete and connection.timeout_keep_alive_task is None)


class _Uvicorn(uvicorn.Server):
    """Without its signal handlers: the process has two servers to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _http_socket(settings: ReceiverSettings) -> socket.socket:
    try:
        found = socket.getaddrinfo(
            settings.host, settings.http_port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        http = socket.socket(found[0], found[1])
        http.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if settings.reuse_port:
            http.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        http.bind(found[4])
    except OSError as error:
        raise ConfigurationError(
            "--http-port",
            f"{settings.host}:{settings.http_port}",
            error.strerror or "cannot listen there",
            "choose a free port, or 0 for any",
        ) from None
    return http


def _check_certificates(settings: ReceiverSettings) -> None:
    """Neither server says which file is wrong, and gRPC's would say that the port is taken.

    Raises:
        ConfigurationError: a file cannot be read, or is not what it should be.
    """
    certificate, key, authority = settings.tls_cert, settings.tls_key, settings.tls_client_ca
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for option, file in (("--tls-cert", certificate), ("--tls-client-ca", authority)):
        if file is not None:
            try:
                context.load_verify_locations(file)
            except OSError as error:  # ssl.SSLError is one
                raise _unusable(option, file, error, "a PEM file with certificates") from None
    if certificate is not None and key is not None:
        try:
            context.load_cert_chain(certificate, key, password="")  # nobody is there to be asked for one
        except OSError as error:
            fix = f"the PEM file with the key of {certificate}, without a passphrase"
            raise _unusable("--tls-key", key, error, fix) from None


def _unusable(option: str, file: str, error: OSError, fix: str) -> ConfigurationError:
    reason = "cannot be used" if isinstance(error, ssl.SSLError) else error.strerror or "cannot be read"
    return ConfigurationError(option, file, reason, f"name {fix}")


def _http_tls(settings: ReceiverSettings) -> dict[str, Any]:
    if settings.tls_cert is None:
        return {}
    options: dict[str, Any] = {"ssl_certfile": settings.tls_cert, "ssl_keyfile": settings.tls_key}
    if settings.tls_client_ca is not None:
        options |= {"ssl_ca_certs": settings.tls_client_ca, "ssl_cert_reqs": ssl.CERT_REQUIRED}
    return options


def _grpc_credentials(settings: ReceiverSettings) -> grpc.ServerCredentials | None:
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    certificate, key = Path(settings.tls_cert).read_bytes(), Path(settings.tls_key).read_bytes()
    authority = None if settings.tls_client_ca is None else Path(settings.tls_client_ca).read_bytes()
    return grpc.ssl_server_credentials([(key, certificate)], authority, authority is not None)
