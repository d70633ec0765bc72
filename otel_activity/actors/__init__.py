"""Who did it: actors, what to say when sources disagree, and the sources that every program has."""

from __future__ import annotations

from otel_activity.actors.actor import UNKNOWN_ACTOR, Actor, Finding, outlived, settle
from otel_activity.actors.ambient import brought, candidates, configure, is_asked
from otel_activity.actors.default import default_actor, has_served, nobody, serving, use_default_actor
from otel_activity.actors.text import ID_LENGTH, as_id, clean, is_id, said, wrong_with

__all__ = [
    "ID_LENGTH",
    "UNKNOWN_ACTOR",
    "Actor",
    "Finding",
    "as_id",
    "brought",
    "candidates",
    "clean",
    "configure",
    "default_actor",
    "has_served",
    "is_asked",
    "is_id",
    "nobody",
    "outlived",
    "said",
    "serving",
    "settle",
    "use_default_actor",
    "wrong_with",
]
