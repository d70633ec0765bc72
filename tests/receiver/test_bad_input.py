"""Bad requests: the right status, nothing stored twice, nothing crashes."""

from __future__ import annotations

import base64
import gzip
import json
import socket
import zlib
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import psycopg
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

from otel_activity import semconv
from tests.postgres.support import count, make_event, make_events, quarantine, stored
from tests.receiver.support import JSON, PROTOBUF, Receiver, as_json, field, otlp_request

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RESOURCE = {"service.name": "shop"}
MIB = 1 << 20


def _body(number: int = 3) -> bytes:
    return otlp_request(make_events(number), RESOURCE).SerializeToString()


def _json(change: Callable[[dict[str, Any]], None]) -> bytes:
    """A request of one record in JSON, its record changed."""
    request = as_json(otlp_request(make_events(1), RESOURCE))
    change(request["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0])
    return json.dumps(request).encode()


def _grpc_error(receiver: Receiver, body: bytes, *metadata: tuple[str, str]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        receiver.call(body, metadata)
    return caught.value


def test_truncated_protobuf_is_bad_at_every_length(receiver: Receiver, store_dsn: str) -> None:
    """A request that is cut off is refused for good, and nothing of it is stored."""
    body = _body()
    for length in (1, 2, len(body) // 3, len(body) // 2, len(body) - 1):
        answer = receiver.post(body[:length])
        assert (answer.status_code, answer.headers["content-type"]) == (400, PROTOBUF)
        assert Status.FromString(answer.content).code == 3
        assert _grpc_error(receiver, body[:length]).code() is grpc.StatusCode.INVALID_ARGUMENT
    assert count(store_dsn) == 0


@pytest.mark.parametrize(
    "ids",
    [
        {"traceId": "W47/95gDgQPSabYzgT/GDA=="},
        {"traceId": "0af7651916cd43dd"},
        {"spanId": "z" * 16},
        {"spanId": "0af7 651916cd43d"},
        {"spanId": "0af7651916cd4\n\n\n"},
        {"timeUnixNano": "1_000"},
        {"attributes": [{"key": "n", "value": {"doubleValue": "1_0"}}]},
        {"spanId": 7},
        {"timeUnixNano": "soon"},
        {"timeUnixNano": str(1 << 64)},
        {"attributes": [{"key": "n", "value": {"intValue": "9" * 5_000}}]},
        {"attributes": [{"key": "n", "value": {"bytesValue": "%"}}]},
        {"attributes": {"key": "n"}},
    ],
)
def test_wrong_json_values_are_bad(receiver: Receiver, store_dsn: str, ids: dict[str, Any]) -> None:
    """Ids that are not hexadecimal or not long enough, and values of a wrong kind: 400 in JSON."""
    answer = receiver.post(_json(lambda record: record.update(ids)), JSON)
    assert (answer.status_code, answer.headers["content-type"]) == (400, JSON)
    assert answer.json()["code"] == 3
    assert count(store_dsn) == 0


def test_hexadecimal_ids_of_json_are_kept(receiver: Receiver, store_dsn: str) -> None:
    """Ids in JSON are hexadecimal, in either case."""
    trace = "0AF7651916CD43DD8448EB211C80319C"
    assert receiver.post(_json(lambda record: record.update(traceId=trace)), JSON).status_code == 200
    assert [event.trace_id for event in stored(store_dsn).values()] == [int(trace, 16)]


def test_gzip_bomb_is_too_large(receiver: Receiver) -> None:
    """A body that grows beyond the limit is refused at the limit, and the memory shows it, on both roads."""
    packer = zlib.compressobj(9, wbits=31)
    zeros = bytes(MIB)
    bomb = b"".join(packer.compress(zeros) for _ in range(400)) + packer.flush()
    assert receiver.post(bomb, content_encoding="gzip").status_code == 413
    error = _grpc_bomb(receiver, 400 * MIB)
    assert error is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert receiver.peak_memory() < 150
    assert receiver.post(_body()).status_code == 200


def _grpc_bomb(receiver: Receiver, size: int) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        receiver.call(bytes(size), compression=grpc.Compression.Gzip)
    code: grpc.StatusCode = caught.value.code()
    return code


@pytest.mark.parametrize(
    "body",
    [b"\x1f\x8b", gzip.compress(b"x")[:-4], b"plain", gzip.compress(b"\xff"), gzip.compress(b"") * 1_100],
)
def test_damaged_gzip_is_bad(receiver: Receiver, body: bytes) -> None:
    """A body that is no whole gzip, is one of nothing without end, or holds no OTLP, is refused for good."""
    assert receiver.post(body, content_encoding="gzip").status_code == 400


@pytest.mark.parametrize("kind", [PROTOBUF, JSON])
def test_attribute_of_ten_megabytes_is_stored(receiver: Receiver, store_dsn: str, kind: str) -> None:
    """A huge value is no error: it is stored whole; one beyond the limit is refused for good."""
    event = make_event(attributes={semconv.DETAILS: "x" * 10 * MIB})
    request = otlp_request([event], RESOURCE)
    body = json.dumps(as_json(request)).encode() if kind == JSON else request.SerializeToString()
    assert receiver.post(body, kind).status_code == 200
    assert stored(store_dsn)[event.id].attributes[semconv.DETAILS] == "x" * 10 * MIB
    assert receiver.post(body + b" " * 8 * MIB, kind).status_code == 413


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        pytest.param("/v1/logs", "content-length: {too_much}", 413, id="too large"),
        pytest.param("/v1/logs", "transfer-encoding: chunked", 413, id="too large in the end"),
        pytest.param(
            "/v1/logs", "content-length: {allowed}\r\ncontent-type: text/plain", 415, id="wrong type"
        ),
        pytest.param("/v1/log", "content-length: {allowed}", 404, id="wrong path"),
    ],
)
def test_refused_sender_can_finish_and_read_the_answer(
    receiver: Receiver, path: str, headers: str, status: int
) -> None:
    """Who is refused early may send to the end: no reset takes the answer away, so nobody sends again."""
    allowed, too_much = 15 * MIB, 17 * MIB
    filled = headers.format(allowed=allowed, too_much=too_much)
    host, port = receiver.addresses["http"].rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        start = f"POST {path} HTTP/1.1\r\nhost: {host}\r\n{filled}\r\n"
        if "content-type" not in filled:
            start += f"content-type: {PROTOBUF}\r\n"
        connection.sendall(start.encode() + b"\r\n")
        if "chunked" in filled:
            for _ in range(too_much // MIB):
                connection.sendall(b"%x\r\n%b\r\n" % (MIB, bytes(MIB)))
            connection.sendall(b"0\r\n\r\n")
        else:
            for _ in range((too_much if status == 413 else allowed) // MIB):
                connection.sendall(bytes(MIB))
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"connection: close" in head
    assert body


def test_record_without_id_is_quarantined_and_the_others_stored(receiver: Receiver, store_dsn: str) -> None:
    """A record that can never be stored is kept in quarantine once, and named as rejected, every time."""
    request = otlp_request(make_events(3), RESOURCE)
    attributes = request.resource_logs[0].scope_logs[0].log_records[1].attributes
    kept = [attribute for attribute in attributes if attribute.key != semconv.RECORD_UID]
    del attributes[:]
    attributes.extend(kept)
    for _ in range(2):
        answer = receiver.post(request.SerializeToString())
        assert answer.status_code == 200
        assert ExportLogsServiceResponse.FromString(answer.content).partial_success.rejected_log_records == 1
    assert receiver.post(json.dumps(as_json(request)).encode(), JSON).json()["partialSuccess"][
        "rejectedLogRecords"
    ] == ("1")
    assert receiver.call(request.SerializeToString()).partial_success.rejected_log_records == 1
    assert (count(store_dsn), len(quarantine(store_dsn))) == (2, 1)


DEEP = field(1, b"x")
"""A value that protobuf's own classes refuse to make; the Collector passes it on."""
for _ in range(60):
    DEEP = field(5, field(1, DEEP))


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (field(1, b"odd") + field(2, field(1, b"\xff\xfe")), "a text is not UTF-8"),
        (field(1, b"\xffodd") + field(2, field(1, b"x")), "a text is not UTF-8"),
        (field(1, b"odd") + field(2, DEEP), "values are nested more than 100 deep"),
    ],
)
def test_record_that_cannot_be_read_costs_no_other(
    receiver: Receiver, store_dsn: str, odd: bytes, reason: str
) -> None:
    """A Collector joins what many send, and drops what is refused: it is kept, the others are stored."""
    events = make_events(3)
    request = otlp_request(events, RESOURCE)
    scope = request.resource_logs[0].scope_logs[0]
    records = [record.SerializeToString() for record in scope.log_records]
    records[1] += field(6, odd)
    content = field(1, scope.scope.SerializeToString()) + b"".join(field(2, each) for each in records)
    body = field(1, field(1, request.resource_logs[0].resource.SerializeToString()) + field(2, content))
    for _ in range(2):
        answer = receiver.post(body)
        assert answer.status_code == 200
        partial = ExportLogsServiceResponse.FromString(answer.content).partial_success
        assert partial.rejected_log_records == 1
    assert receiver.call(body).partial_success.rejected_log_records == 1
    assert stored(store_dsn).keys() == {events[0].id, events[2].id}
    (kept,) = quarantine(store_dsn)
    assert (kept["event_id"], kept["message"]) == (events[1].id, reason)
    original = json.loads(bytes(kept["record"]))["attributes"][semconv.RECORD_ORIGINAL]
    assert base64.b64decode(original) == records[1]


def test_resource_that_cannot_be_read_costs_no_event(receiver: Receiver, store_dsn: str) -> None:
    """An attribute of the resource that is not UTF-8 is left out, and its place says so."""
    events = make_events(2)
    request = otlp_request(events, RESOURCE)
    logs = request.resource_logs[0]
    odd = field(1, field(1, b"os.description") + field(2, field(1, b"\xff")))
    scope = field(2, logs.scope_logs[0].SerializeToString())
    answer = receiver.post(field(1, field(1, odd + logs.resource.SerializeToString()) + scope))
    assert (answer.status_code, answer.content) == (200, b"")
    assert stored(store_dsn).keys() == {event.id for event in events}
    with psycopg.connect(store_dsn) as connection:
        rows = connection.execute("SELECT attributes FROM activity.resources").fetchall()
    ((found,),) = rows
    assert found[semconv.REFUSED] == "a text is not UTF-8"
    assert found["service.name"] == "shop"


def test_records_of_others_are_refused_or_passed_over(receiver: Receiver, store_dsn: str) -> None:
    """Records of another scope are counted; by default the sender is told, with the setting it is not."""
    request = otlp_request(make_events(2), RESOURCE)
    request.resource_logs[0].scope_logs[0].scope.name = "app"
    answer = receiver.call(request.SerializeToString())
    assert answer.partial_success.rejected_log_records == 2
    assert receiver.metric('activity_receiver_records_total{result="foreign_refused"}') == 2
    with Receiver(store_dsn, "--foreign", "pass") as passing:
        assert passing.post(request.SerializeToString()).content == b""
        assert passing.metric('activity_receiver_records_total{result="foreign_passed"}') == 2
    assert count(store_dsn) == 0


RIGHT = "right-and-long-enough"


@pytest.mark.parametrize("way", ["variable", "file"])
def test_a_token_that_can_be_guessed_stops_the_start(store_dsn: str, tmp_path: Path, way: str) -> None:
    """One line names the setting, the length and a command for a good one, never the token: status 2."""
    short = "x7-short-secret"
    if way == "variable":
        name, arguments, variables = "OTEL_ACTIVITY_RECEIVE_TOKEN", [], {"OTEL_ACTIVITY_RECEIVE_TOKEN": short}
    else:
        (tmp_path / "token").write_text(short + "\n")
        name, arguments, variables = "--token-file", ["--token-file", str(tmp_path / "token")], {}
    with pytest.raises(AssertionError) as refused:
        Receiver(store_dsn, *arguments, variables=variables)
    assert (
        f"status 2: Error: {name}='***': a token of 15 characters can be guessed; use at least 16, "
        'as python3 -c "import secrets; print(secrets.token_urlsafe(32))" makes them'
    ) in str(refused.value)
    assert short not in str(refused.value)
    variables = {"OTEL_ACTIVITY_RECEIVE_TOKEN": short + "!"}
    with Receiver(store_dsn, variables=variables) as receiver:
        assert receiver.post(_body(), authorization=f"Bearer {short}!").status_code == 200


def test_wrong_token_is_refused_on_both_roads(store_dsn: str) -> None:
    """Without the token there is neither storing nor metrics; with it there is."""
    with Receiver(store_dsn, variables={"OTEL_ACTIVITY_RECEIVE_TOKEN": RIGHT}) as receiver:
        assert receiver.post(_body()).status_code == 401
        assert receiver.post(_body(), authorization="Bearer wrong").status_code == 401
        assert httpx.get(f"{receiver.url}/metrics").status_code == 401
        error = _grpc_error(receiver, _body(), ("authorization", f"Bearer {RIGHT[:-1]}"))
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        assert count(store_dsn) == 0
        assert receiver.post(_body(), authorization=f"Bearer {RIGHT}").status_code == 200
        receiver.call(_body(), (("authorization", f"Bearer {RIGHT}"),))
        assert count(store_dsn) == 6


def test_other_addresses_need_authentication(store_dsn: str) -> None:
    """Without token or client certificates it listens on this machine only: one line, status 2."""
    with pytest.raises(AssertionError, match=r"status 2: Error: .*anyone could write to the audit trail"):
        Receiver(store_dsn, "--host", "0.0.0.0")


def test_store_that_is_away_is_retryable(store_dsn: str) -> None:
    """No store: 503 with Retry-After, UNAVAILABLE with RetryInfo, and the health page says so."""
    nowhere = "postgresql://nobody@127.0.0.1:1/nothing"
    with Receiver(nowhere) as receiver:
        for _ in range(2):
            answer = receiver.post(_body())
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            error = _grpc_error(receiver, _body())
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            trailers = dict(error.trailing_metadata())
            status = Status.FromString(trailers["grpc-status-details-bin"])
            retry = RetryInfo()
            assert status.details[0].Unpack(retry)
            assert retry.retry_delay.seconds == 1
        health = httpx.get(f"{receiver.url}/healthz")
        assert (health.status_code, health.json()["status"]) == (503, "unavailable")
        assert "nobody" in health.json()["reason"]


def test_health_page_tells_strangers_no_reason(store_dsn: str) -> None:
    """Why the store does not answer names host, user and database: only who shows the token reads that."""
    token = "0123456789abcdef"
    nowhere = "postgresql://nobody@127.0.0.1:1/nothing"
    with Receiver(nowhere, variables={"OTEL_ACTIVITY_RECEIVE_TOKEN": token}) as receiver:
        page = f"{receiver.url}/healthz"
        stranger = httpx.get(page)
        assert (stranger.status_code, stranger.json()) == (503, {"status": "unavailable"})
        known = httpx.get(page, headers={"authorization": f"Bearer {token}"})
        assert "nobody" in known.json()["reason"]


def test_stalled_senders_are_let_go(store_dsn: str) -> None:
    """Who does not finish the headers, of whichever request, or the body, is cut off; others are served."""
    with Receiver(store_dsn, "--read-timeout", "1") as receiver:
        host, _, port = receiver.addresses["http"].rpartition(":")
        silent = [socket.create_connection((host, int(port))) for _ in range(4)]
        silent[1].sendall(b"POST /v1/logs HTTP/1.1\r\nhost: x\r\n")
        silent[2].sendall(
            b"POST /v1/logs HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-protobuf\r\n"
            b"content-length: 100\r\n\r\nx"
        )
        silent[3].sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        seen = b""
        while not seen.endswith(b"}"):
            seen += silent[3].recv(1_000)
        silent[3].sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n")
        assert receiver.post(_body()).status_code == 200
        ends = []
        for each in silent:
            each.settimeout(30)
            try:
                ends.append(each.recv(100)[:12])
            except ConnectionResetError:
                ends.append(b"")
            each.close()
        assert ends == [b"", b"", b"HTTP/1.1 408", b""]


def test_many_connections_do_not_stop_the_receiver(store_dsn: str) -> None:
    """Connections beyond the limit are answered with 503; when they go, requests are taken again."""
    with Receiver(store_dsn, "--max-connections", "300") as receiver:
        host, _, port = receiver.addresses["http"].rpartition(":")
        crowd = [socket.create_connection((host, int(port))) for _ in range(900)]
        assert receiver.post(_body()).status_code == 503
        for each in crowd:
            each.close()
        answer = 503
        while answer == 503:
            answer = receiver.post(_body()).status_code
        assert answer == 200
        assert receiver.peak_memory() < 150


def test_waiting_is_bounded(store_dsn: str) -> None:
    """Bodies that are announced take room; beyond it senders are told to come back."""
    with Receiver(store_dsn, "--max-message-mib", "1", "--max-waiting-mib", "1") as receiver:
        host, _, port = receiver.addresses["http"].rpartition(":")
        with socket.create_connection((host, int(port))) as slow:
            slow.sendall(
                b"POST /v1/logs HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-protobuf\r\n"
                b"content-length: 1048576\r\n\r\nx"
            )
            while receiver.metric("activity_receiver_waiting_bytes") < MIB:
                pass
            assert receiver.post(_body()).status_code == 503
        while receiver.metric("activity_receiver_waiting_bytes"):
            pass
        assert receiver.post(_body()).status_code == 200


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_crashes_the_receiver(receiver: Receiver, store_dsn: str, data: st.DataObject) -> None:
    """Any damaged request is taken or refused for good, never an internal error, and ids stay unique."""
    kind = data.draw(st.sampled_from([PROTOBUF, JSON]))
    body = bytearray(_SOURCE[kind])
    for _ in range(data.draw(st.integers(1, 8))):
        position = data.draw(st.integers(0, len(body) - 1))
        length = data.draw(st.integers(0, 6))
        body[position : position + length] = data.draw(st.binary(max_size=6))
    answer = receiver.post(bytes(body), kind)
    assert answer.status_code in {200, 400, 413}, answer.content
    assert receiver.process.poll() is None
    assert count(store_dsn) == len(stored(store_dsn))


_REQUEST = otlp_request(make_events(2), RESOURCE)
_SOURCE = {PROTOBUF: _REQUEST.SerializeToString(), JSON: json.dumps(as_json(_REQUEST)).encode()}
