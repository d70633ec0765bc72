"""What the receiver counts, for Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

__all__ = ["ReceiverMetrics"]

_SECONDS: Final = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class ReceiverMetrics:
    """The receiver's own registry: nothing of the host's is in it."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "activity_receiver_requests",
            "Requests by protocol (http, grpc) and outcome (ok, partial, bad, too_large, unauthenticated, "
            "busy, unavailable, stalled, gone: the sender did not wait for the answer).",
            ["protocol", "outcome"],
            registry=registry,
        )
        self.records = Counter(
            "activity_receiver_records",
            "Log records by what became of them: stored, duplicate, quarantined (can never be stored), "
            "foreign_passed and foreign_refused (not ours).",
            ["result"],
            registry=registry,
        )
        self.received = Counter(
            "activity_receiver_received_bytes", "Bytes of requests after decompression.", registry=registry
        )
        self.waiting = Gauge(
            "activity_receiver_waiting_bytes",
            "Bytes of requests that are being read or wait for COMMIT.",
            registry=registry,
        )
        self.waiting_limit = Gauge(
            "activity_receiver_waiting_limit_bytes",
            "Most bytes that may wait; beyond, senders are told to come back.",
            registry=registry,
        )
        self.up = Gauge(
            "activity_receiver_store_up",
            "1 when the store took the last write or probe, else 0.",
            registry=registry,
        )
        self.commits = Histogram(
            "activity_receiver_commit_seconds",
            "Seconds from the first row of a group of requests to its COMMIT.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.failures = Counter(
            "activity_receiver_store_failures",
            "Groups of requests that the store did not take; their senders were told to come back.",
            registry=registry,
        )

    def show(self, collector: Collector) -> None:
        """Show what this one collects as well."""
        self._registry.register(collector)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self._registry)
