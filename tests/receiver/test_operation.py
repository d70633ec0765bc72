"""Running it: client certificates, several instances side by side, and the end."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc
import httpx
import psycopg
import pytest

from otel_activity.embedded import free_port
from otel_activity.errors import StoreUnavailable
from otel_activity.postgres.writer import WriteResult
from otel_activity.receiver import grpc as grpc_server
from otel_activity.receiver.auth import BearerToken
from otel_activity.receiver.grpc import GRPCServer
from otel_activity.receiver.intake import Intake
from otel_activity.receiver.metrics import ReceiverMetrics
from otel_activity.receiver.settings import ReceiverSettings
from tests.postgres.support import count, make_events, stored
from tests.receiver.support import EXPORT, PROTOBUF, Receiver, otlp_request
from tests.support import require_tool

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from otel_activity.codec.lines import Row
    from otel_activity.events import ResourceInfo

RESOURCE = {"service.name": "shop"}


def body(number: int = 3) -> bytes:
    """A request with so many new events."""
    return otlp_request(make_events(number), RESOURCE).SerializeToString()


# --- client certificates --------------------------------------------------------------------------


@dataclass
class Certificates:
    """Files: two authorities, a server, a client of each authority."""

    directory: Path

    def path(self, name: str) -> str:
        """Where a certificate (``x.pem``) or key (``x.key``) is."""
        return str(self.directory / name)

    def make(self, name: str, signer: str | None = None) -> None:
        """A certificate, signed by itself or by another."""
        more = ["-addext", "subjectAltName=IP:127.0.0.1"]
        if signer is not None:
            more += ["-CA", self.path(f"{signer}.pem"), "-CAkey", self.path(f"{signer}.key")]
            more += ["-addext", "basicConstraints=critical,CA:FALSE"]
        command = [require_tool("openssl"), "req", "-x509", "-nodes", "-days", "1", "-newkey", "ec"]
        command += ["-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", f"/CN={name}"]
        command += ["-keyout", self.path(f"{name}.key"), "-out", self.path(f"{name}.pem"), *more]
        subprocess.run(command, check=True, capture_output=True)

    def post(self, receiver: Receiver, client: str | None) -> int:
        """Send over HTTP with the certificate of a client, or with none; the status."""
        context = ssl.create_default_context(cafile=self.path("authority.pem"))
        if client is not None:
            context.load_cert_chain(self.path(f"{client}.pem"), self.path(f"{client}.key"))
        url = f"https://{receiver.addresses['http']}/v1/logs"
        with httpx.Client(verify=context, trust_env=False, timeout=30) as sender:
            return sender.post(url, content=body(), headers={"content-type": PROTOBUF}).status_code

    def call(self, receiver: Receiver, client: str | None) -> None:
        """The same over gRPC."""
        read = [None, None] if client is None else [f"{client}.key", f"{client}.pem"]
        parts = [None if name is None else (self.directory / name).read_bytes() for name in read]
        authority = (self.directory / "authority.pem").read_bytes()
        with grpc.secure_channel(
            receiver.addresses["grpc"], grpc.ssl_channel_credentials(authority, *parts)
        ) as channel:
            channel.unary_unary(EXPORT)(body(), timeout=10)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """What an operator would make."""
    made = Certificates(tmp_path_factory.mktemp("certificates"))
    made.make("authority")
    made.make("stranger")
    made.make("server", "authority")
    made.make("client", "authority")
    made.make("intruder", "stranger")
    return made


@pytest.mark.external
def test_only_clients_with_a_certificate_are_heard(certificates: Certificates, store_dsn: str) -> None:
    """Mutual TLS on both roads: no certificate, or one of another authority, does not get through."""
    options = ["--tls-cert", certificates.path("server.pem"), "--tls-key", certificates.path("server.key")]
    options += ["--tls-client-ca", certificates.path("authority.pem")]
    with Receiver(store_dsn, *options) as receiver:
        assert certificates.post(receiver, "client") == 200
        certificates.call(receiver, "client")
        assert count(store_dsn) == 6
        for client in (None, "intruder"):
            with pytest.raises(httpx.TransportError):
                certificates.post(receiver, client)
            with pytest.raises(grpc.RpcError) as refused:
                certificates.call(receiver, client)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert count(store_dsn) == 6
        assert certificates.post(receiver, "client") == 200  # the others did no harm


@pytest.mark.external
@pytest.mark.parametrize("option", ["--tls-cert", "--tls-key", "--tls-client-ca"])
def test_a_file_that_is_no_certificate_is_said_in_one_line(
    certificates: Certificates, store_dsn: str, tmp_path: Path, option: str
) -> None:
    """It names the option and the file, and ends with status 2."""
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("no certificate")
    options = {
        "--tls-cert": certificates.path("server.pem"),
        "--tls-key": certificates.path("server.key"),
        "--tls-client-ca": certificates.path("authority.pem"),
        option: str(wrong),
    }
    with pytest.raises(AssertionError, match="status 2") as ended:
        Receiver(store_dsn, *(part for pair in options.items() for part in pair))
    said = str(ended.value).split("status 2: ", 1)[1]
    assert len(said.strip().splitlines()) == 1, said
    assert option in said
    assert str(wrong) in said


# --- side by side ---------------------------------------------------------------------------------


def test_instances_share_a_store_and_a_port(store_dsn: str) -> None:
    """Two on one port take turns, and what reaches both at the same time is stored once."""
    ports = ["--http-port", str(free_port()), "--reuse-port"]
    requests = [body(50) for _ in range(20)]
    with Receiver(store_dsn, *ports) as one, Receiver(store_dsn, *ports) as other:
        assert one.url == other.url

        def send() -> None:
            for each in requests:
                assert one.post(each).status_code == 200

        senders = [threading.Thread(target=send) for _ in range(4)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        for number in range(3):  # whichever answers on the shared port, both take gRPC
            one.call(requests[number])
            other.call(requests[number])
    assert count(store_dsn) == 1_000


class Nowhere:
    """A store that is away."""

    last_result = WriteResult(0, 0, 0)

    def export_rows(self, rows: Sequence[Row], resources: Mapping[str, ResourceInfo]) -> list[Row]:
        """Nobody can store anything there."""
        raise StoreUnavailable("nobody is there")

    def probe(self) -> None:
        """As `export_rows`."""
        raise StoreUnavailable("nobody is there")

    def close(self) -> None:
        """Nothing is open."""


async def silent_connection(settings: ReceiverSettings) -> bytes:
    """Connect to a gRPC server, say only what HTTP/2 wants, and read until it closes."""
    metrics = ReceiverMetrics()
    intake = Intake(Nowhere, writers=1, limit=1, refuse_foreign=True, metrics=metrics)
    server = GRPCServer(intake, metrics, BearerToken(None), settings)
    try:
        port = server.bind("127.0.0.1:0", None)
        await server.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        settings_frame = b"\0\0\0\4\0\0\0\0\0"
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings_frame)
        async with asyncio.timeout(60):
            said = await reader.read()
        writer.close()
        return said
    finally:
        await server.stop(0)
        await asyncio.to_thread(intake.close, 30)


def test_connections_without_requests_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over gRPC as over HTTP: who connects and never sends does not keep a connection from others."""
    monkeypatch.setattr(grpc_server, "IDLE", 1.0)
    said = asyncio.run(silent_connection(ReceiverSettings(dsn="", read_timeout=0.5)))
    goaway = b"\x07\0\0\0\0\0"
    assert goaway in said
    assert b"handshake" not in said


# --- the end --------------------------------------------------------------------------------------


def waiting(receiver: Receiver) -> bool:
    """Whether a request waits for its COMMIT."""
    deadline = time.monotonic() + 30
    while receiver.metric("activity_receiver_waiting_bytes") == 0:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def in_the_background(receiver: Receiver, answers: list[object], sent: bytes) -> threading.Thread:
    """Send a request; its status, or the error, is appended."""

    def send() -> None:
        try:
            answers.append(receiver.post(sent).status_code)
        except httpx.HTTPError as error:
            answers.append(error)

    sender = threading.Thread(target=send)
    sender.start()
    return sender


def call(receiver: Receiver, sent: bytes, seconds: float) -> grpc.StatusCode:
    """Send a request over gRPC and wait for so long; how that ended."""
    with grpc.insecure_channel(receiver.addresses["grpc"]) as channel:
        try:
            channel.unary_unary(EXPORT)(sent, timeout=seconds)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return grpc.StatusCode.OK


def test_who_does_not_wait_for_commit_holds_room_until_then(store_dsn: str) -> None:
    """Senders give up while the table is locked: what they sent counts until it is stored."""
    wide = {**RESOURCE, "pad": "x" * 900_000}
    sent = [otlp_request(make_events(1), wide).SerializeToString() for _ in range(2)]
    answers: list[object] = []
    waits = "activity_receiver_waiting_bytes"
    with (
        Receiver(store_dsn, "--max-message-mib", "1", "--max-waiting-mib", "2", "--writers", "1") as receiver,
        psycopg.connect(store_dsn) as other,
    ):
        other.execute("LOCK TABLE activity.events IN EXCLUSIVE MODE")
        for each in sent:
            assert call(receiver, each, 2) is grpc.StatusCode.DEADLINE_EXCEEDED
        assert receiver.metric(waits) >= 1_800_000
        assert call(receiver, sent[0], 30) is grpc.StatusCode.UNAVAILABLE
        sender = in_the_background(receiver, answers, body())  # in one group with the second of them
        while receiver.metric(waits) < 1_801_000 and sender.is_alive():
            time.sleep(0.02)
        other.commit()
        sender.join(30)
        assert answers == [200]
        assert count(store_dsn) == 5
        assert receiver.metric(waits) == 0
        outcomes = 'activity_receiver_requests_total{outcome="%s",protocol="grpc"}'
        assert receiver.metric(outcomes % "gone") == 2
        assert receiver.metric(outcomes % "ok") == 0
        assert "internal error" not in receiver.errors


def test_who_waits_for_commit_at_the_end_gets_the_answer(store_dsn: str) -> None:
    """SIGTERM while a request waits: it is stored, acknowledged, and then the process ends with status 0."""
    events = make_events(4)
    answers: list[object] = []
    with Receiver(store_dsn) as receiver, psycopg.connect(store_dsn) as other:
        other.execute("LOCK TABLE activity.events IN EXCLUSIVE MODE")
        sender = in_the_background(receiver, answers, otlp_request(events, RESOURCE).SerializeToString())
        assert waiting(receiver)
        receiver.process.terminate()
        time.sleep(0.3)
        assert receiver.process.poll() is None
        other.commit()
        sender.join(30)
        assert receiver.process.wait(30) == 0
    assert answers == [200]
    assert stored(store_dsn).keys() == {event.id for event in events}


def test_who_cannot_be_stored_in_time_is_not_told_that_it_was(store_dsn: str) -> None:
    """When the store does not move, the end is not put off for ever: no acknowledgement, and status 1."""
    answers: list[object] = []
    with (
        Receiver(store_dsn, "--shutdown-timeout", "1") as receiver,
        psycopg.connect(store_dsn) as other,
    ):
        other.execute("LOCK TABLE activity.events IN EXCLUSIVE MODE")
        sender = in_the_background(receiver, answers, body())
        assert waiting(receiver)
        receiver.process.terminate()
        assert receiver.process.wait(60) == 1
        sender.join(30)
    assert len(answers) == 1
    assert answers != [200]
