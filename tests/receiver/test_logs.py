"""What the receiver logs of its own errors: nothing of the records that it was given."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from otel_activity.events import Event
from otel_activity.postgres.writer import WriteResult
from otel_activity.receiver.intake import Busy, Intake
from otel_activity.receiver.metrics import ReceiverMetrics
from tests.receiver.support import otlp_request

if TYPE_CHECKING:
    import pytest


class Faulty:
    """A store with a fault, which quotes what it was given."""

    last_result = WriteResult(0, 0, 0)
    secret = "s3cret"

    def export_rows(self, rows: object, resources: object) -> NoReturn:
        raise RuntimeError(f"a fault with {self.secret}")

    def probe(self) -> None:
        """All is well."""

    def close(self) -> None:
        """Nothing to give up."""


def test_an_internal_error_is_logged_without_what_it_quotes(caplog: pytest.LogCaptureFixture) -> None:
    """The log says where it was and of which type; the sender is told to come back."""
    intake = Intake(Faulty, writers=1, limit=1 << 20, refuse_foreign=True, metrics=ReceiverMetrics())
    event = Event(id="018f4f3e-7b7a-7c3e-8f00-0123456789ab", name="activity.action", time=1, attributes={})
    body = otlp_request([event], {}).SerializeToString()
    assert intake.reserve(len(body))
    answer = intake.submit(body, as_json=False, room=len(body)).exception(30)
    assert intake.close(30)
    assert isinstance(answer, Busy)
    assert "RuntimeError" in caplog.text
    assert "export_rows" in caplog.text
    assert "s3cret" not in f"{caplog.text} {answer}"
