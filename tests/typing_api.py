"""Not a test: the public API as a user writes it, checked by ``mypy --strict``."""

from __future__ import annotations

import datetime as dt

import otel_activity
from otel_activity import Actor, Settings, activity_context
from otel_activity.testing import recorded_events

active: bool = otel_activity.instrument(exporters=["postgres"], postgres_dsn="postgresql://h/db")
metrics: dict[str, object] = otel_activity.get_queue_metrics()
confirmed: bool = otel_activity.flush_queue(timeout=5.0)
delivered: bool = otel_activity.shutdown()
settings: Settings = Settings.from_env({"OTEL_ACTIVITY_POSTGRES_DSN": "postgresql://h/db"})
version: str = otel_activity.__version__


def sync_work() -> None:
    with activity_context(actor=Actor(id="u-1", roles=("admin",)), tenant="t-1", reason="ticket") as context:
        context.actor = Actor(type="system")


async def async_work() -> None:
    async with activity_context(actor="u-1"):
        pass


def in_a_test() -> list[str]:
    with recorded_events(redact=["iban"]) as recorder:
        pass
    return [event.name for event in recorder.events]


def read() -> None:
    with otel_activity.ActivityStore("postgresql://h/db") as store:
        for event in store.history("Task", "5"):
            when: int = event.time
            print(dt.datetime.fromtimestamp(when / 1e9, dt.UTC), event.attributes)


exporter = otel_activity.PostgresLogExporter(dsn="postgresql://h/db")
instrumentor = otel_activity.ActivityInstrumentor()
instrumentor.instrument()
instrumentor.uninstrument()


@otel_activity.with_activity_logging("invoice.create", entity_type="Invoice", entity_id=lambda made: made)
def create(number: int) -> int:
    return number


def act() -> int:
    otel_activity.log_user_action("invoice.approve", entity_id=(1, "a"), outcome="failure", channel="web")
    otel_activity.log_user_action("invoice.pay", delivery="strict")
    with otel_activity.with_activity_logging("report.export", delivery="best_effort") as running:
        running.details = {"rows": 1}
    made: int = create(1)
    return made


async def asgi(scope: object, receive: object, send: object) -> None:
    await otel_activity.ActivityASGIMiddleware(asgi)(scope, receive, send)


wsgi = otel_activity.ActivityWSGIMiddleware(lambda environ, start_response: [b""])


@activity_context(job="nightly-import", actor=Actor(type="service", id="importer"))
def job(path: str) -> int:
    return len(path)


@otel_activity.audited(mask="iban", delivery="strict")
class Payment:
    pass


otel_activity.log_user_action("invoice.pay", delivery="strct")  # type: ignore[arg-type]
count: int = job("/data")
