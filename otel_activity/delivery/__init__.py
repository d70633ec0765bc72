"""Delivery: what happens to an event between its transaction and an exporter."""

from __future__ import annotations

from otel_activity.delivery.backoff import Backoff, Breaker
from otel_activity.delivery.directory import concern, journal_directory, service_directory
from otel_activity.delivery.durable import DurableDelivery
from otel_activity.delivery.feeder import Overflow, Stream
from otel_activity.delivery.gaps import GapLog
from otel_activity.delivery.lane import Lane
from otel_activity.delivery.leftovers import Leftovers, find_leftovers
from otel_activity.delivery.memory import Journaled, Memory
from otel_activity.delivery.outbox import NoOutbox
from otel_activity.delivery.queued import QueuedDelivery
from otel_activity.delivery.routed import Refusing, RoutedDelivery
from otel_activity.delivery.streams import Heartbeat
from otel_activity.delivery.strict import StrictDelivery

__all__ = [
    "Backoff",
    "Breaker",
    "DurableDelivery",
    "GapLog",
    "Heartbeat",
    "Journaled",
    "Lane",
    "Leftovers",
    "Memory",
    "NoOutbox",
    "Overflow",
    "QueuedDelivery",
    "Refusing",
    "RoutedDelivery",
    "Stream",
    "StrictDelivery",
    "concern",
    "find_leftovers",
    "journal_directory",
    "service_directory",
]
