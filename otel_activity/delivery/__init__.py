"""Delivery: what happens to an event between its transaction and an exporter."""

from __future__ import annotations

from otel_activity.delivery.backoff import Backoff
from otel_activity.delivery.directory import concern, journal_directory, service_directory
from otel_activity.delivery.durable import DurableDelivery
from otel_activity.delivery.feeder import Overflow, Stream
from otel_activity.delivery.lane import Lane
from otel_activity.delivery.queued import QueuedDelivery

__all__ = [
    "Backoff",
    "DurableDelivery",
    "Lane",
    "Overflow",
    "QueuedDelivery",
    "Stream",
    "concern",
    "journal_directory",
    "service_directory",
]
