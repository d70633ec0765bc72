"""Delivery: what happens to an event between its transaction and an exporter."""

from __future__ import annotations

from otel_activity.delivery.backoff import Backoff
from otel_activity.delivery.lane import Lane
from otel_activity.delivery.queued import QueuedDelivery, Stream

__all__ = ["Backoff", "Lane", "QueuedDelivery", "Stream"]
