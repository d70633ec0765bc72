"""The answers of OTLP, in the encoding of the question."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

if TYPE_CHECKING:
    from otel_activity.receiver.intake import Outcome

__all__ = ["INVALID_ARGUMENT", "RETRY_AFTER", "UNAUTHENTICATED", "UNAVAILABLE", "failure", "success"]

INVALID_ARGUMENT: Final = 3
RESOURCE_EXHAUSTED: Final = 8
UNAVAILABLE: Final = 14
UNAUTHENTICATED: Final = 16
RETRY_AFTER: Final = 1
"""Seconds that a sender is asked to wait; it backs off further by itself."""


def success(outcome: Outcome, *, as_json: bool) -> bytes:
    """An ``ExportLogsServiceResponse``."""
    if as_json:
        answer: dict[str, Any] = {}
        if outcome.rejected:
            answer["partialSuccess"] = {
                "rejectedLogRecords": str(outcome.rejected),
                "errorMessage": outcome.message,
            }
        return msgspec.json.encode(answer)
    response = ExportLogsServiceResponse()
    if outcome.rejected:
        response.partial_success.rejected_log_records = outcome.rejected
        response.partial_success.error_message = outcome.message
    return bytes(response.SerializeToString())


def failure(code: int, message: str, *, as_json: bool = False) -> bytes:
    """A ``google.rpc.Status``; one that says when to come back if coming back makes sense."""
    if as_json:
        return msgspec.json.encode({"code": code, "message": message})
    status = Status(code=code, message=message)
    if code == UNAVAILABLE:
        details = AnyMessage()
        details.Pack(RetryInfo(retry_delay=Duration(seconds=RETRY_AFTER)))
        status.details.append(details)
    return bytes(status.SerializeToString())
