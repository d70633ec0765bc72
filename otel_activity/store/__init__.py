"""The read side: `ActivityStore` finds events, reads histories and follows what is stored."""

from __future__ import annotations

from otel_activity.store.activity import ActivityStore, Follower, Page, StoredEvent, position
from otel_activity.store.filters import EventFilter

__all__ = ["ActivityStore", "EventFilter", "Follower", "Page", "StoredEvent", "position"]
