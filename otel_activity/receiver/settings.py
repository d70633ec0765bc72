"""What the receiver is told, checked before anything listens."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from otel_activity.errors import ConfigurationError

__all__ = ["ReceiverSettings"]


@dataclass(frozen=True, kw_only=True)
class ReceiverSettings:
    """All settings of the receiver.

    Attributes:
        dsn: the PostgreSQL that holds the events.
        schema: schema of its tables.
        host: address to listen on.
        http_port: port for OTLP/HTTP, health and metrics; 0 for a free one; None for no HTTP.
        grpc_port: port for OTLP/gRPC; 0 for a free one; None for no gRPC.
        token: bearer token that senders must show; None for none.
        tls_cert: certificate chain of the server, PEM file.
        tls_key: its private key, PEM file.
        tls_client_ca: certificate authorities of clients, PEM file. With it a client needs a certificate.
        foreign: ``refuse`` or ``pass`` records that are not ours.
        max_message_bytes: largest request, after decompression.
        max_waiting_bytes: requests that are read or wait for COMMIT, together; beyond, senders wait.
        max_connections: connections to the HTTP port at the same time.
        read_timeout: seconds that a sender may take for one request, and to begin one.
        writers: connections to PostgreSQL.
        shutdown_timeout: seconds for what is accepted to be stored, at the end.
        reuse_port: whether another instance may listen on the same port.
        table_stats_dsn: audited databases whose table statistics are shown with the metrics.
        table_stats_interval: seconds between two readings of them.
    """

    dsn: str = field(repr=False)
    schema: str = "activity"
    host: str = "127.0.0.1"
    http_port: int | None = 4318
    grpc_port: int | None = 4317
    token: str | None = field(default=None, repr=False)
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_client_ca: str | None = None
    foreign: str = "refuse"
    max_message_bytes: int = 16 << 20
    max_waiting_bytes: int = 48 << 20
    max_connections: int = 1_000
    read_timeout: float = 10.0
    writers: int = 2
    shutdown_timeout: float = 10.0
    reuse_port: bool = False
    table_stats_dsn: tuple[str, ...] = field(default=(), repr=False)
    table_stats_interval: float = 30.0

    def __post_init__(self) -> None:
        """Refuse what is unsafe or cannot work.

        Raises:
            ConfigurationError: with the option, its value and the fix.
        """
        if not self.loopback and self.token is None and self.tls_client_ca is None:
            raise ConfigurationError(
                "--host",
                self.host,
                "anyone could write to the audit trail",
                "set --token-file or --tls-client-ca, or listen on 127.0.0.1",
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigurationError(
                "--tls-cert",
                str(self.tls_cert),
                "certificate and key belong together",
                "set --tls-key as well",
            )
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ConfigurationError(
                "--tls-client-ca", self.tls_client_ca, "needs TLS", "set --tls-cert and --tls-key"
            )
        if self.http_port is None and self.grpc_port is None:
            raise ConfigurationError(
                "--no-http", "", "nothing to listen on", "leave out --no-http or --no-grpc"
            )
        if self.max_waiting_bytes < self.max_message_bytes:
            raise ConfigurationError(
                "--max-waiting-mib",
                f"{self.max_waiting_bytes >> 20}",
                "smaller than one message may be",
                f"use at least {self.max_message_bytes >> 20}",
            )

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
