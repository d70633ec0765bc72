"""Names of events and attributes, in one place.

Names without the prefix ``activity.`` are the OpenTelemetry semantic conventions'
(https://opentelemetry.io/docs/specs/semconv/registry/attributes/); ours begin with ``activity.``.
"""

from __future__ import annotations

import enum
from typing import Final

SCOPE_NAME: Final = "otel_activity"
"""Instrumentation scope of every record of ours: how exporters tell them from the application's logs."""
SCHEMA_VERSION: Final = "1"
"""Version of the event schema, on each event as ``activity.schema.version``."""
SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.37.0"
"""The semantic conventions whose names the standard attributes follow."""

# event_name
ENTITY_CREATED: Final = "activity.entity.created"
ENTITY_UPDATED: Final = "activity.entity.updated"
ENTITY_DELETED: Final = "activity.entity.deleted"
ACTION: Final = "activity.action"
REQUEST: Final = "activity.request"
AUTH_LOGIN: Final = "activity.auth.login"
AUTH_LOGOUT: Final = "activity.auth.logout"
AUTH_FAILED: Final = "activity.auth.failed"
GAP: Final = "activity.gap"
STREAM_OPENED: Final = "activity.stream.opened"
STREAM_BEAT: Final = "activity.stream.beat"
STREAM_CLOSED: Final = "activity.stream.closed"
STREAM_REPEATED: Final = "activity.stream.repeated"

# record
RECORD_UID: Final = "log.record.uid"
RECORD_ORIGINAL: Final = "log.record.original"
REFUSED: Final = "activity.refused"
"""In a resource: why it, or a part of it, could not be stored."""
ACTIVITY_SCHEMA_VERSION: Final = "activity.schema.version"

# action and outcome
ACTIVITY_ACTION: Final = "activity.action"
ACTIVITY_OUTCOME: Final = "activity.outcome"
ACTION_DURATION: Final = "activity.action.duration"
"""Seconds, as a float: the unit that the conventions use for every duration."""
ERROR_TYPE: Final = "error.type"

# actor
USER_ID: Final = "user.id"
USER_NAME: Final = "user.name"
USER_ROLES: Final = "user.roles"
ACTOR_TYPE: Final = "activity.actor.type"
ACTOR_ON_BEHALF_OF: Final = "activity.actor.on_behalf_of"
ACTOR_CANDIDATES: Final = "activity.actor.candidates"
"""What the sources of a request said when they did not agree: ``[{"source": ..., "id": ...}, ...]``."""
ACTOR_ERROR_TYPE: Final = "activity.actor.error.type"
"""Why the actor is unknown: what the resolver raised. Not ``error.type``: the change itself did not fail."""

# request
REQUEST_ID: Final = "activity.request.id"
REQUEST_METHOD: Final = "http.request.method"
STATUS_CODE: Final = "http.response.status_code"
ROUTE: Final = "http.route"
CLIENT_ADDRESS: Final = "client.address"
USER_AGENT: Final = "user_agent.original"
SESSION_ID: Final = "session.id"
"""A keyed hash; never the cookie."""

# job
JOB_NAME: Final = "activity.job.name"
"""Name of a task of a queue, or of a plain job. Not ``code.function.name``: tasks are given names."""
JOB_ID: Final = "activity.job.id"
"""One run, retries included. Not ``messaging.message.id``: each retry is a message of its own."""

# entity and table
ENTITY_TYPE: Final = "activity.entity.type"
ENTITY_ID: Final = "activity.entity.id"
DB_SYSTEM_NAME: Final = "db.system.name"
DB_NAMESPACE: Final = "db.namespace"
DB_COLLECTION_NAME: Final = "db.collection.name"
DB_OPERATION_NAME: Final = "db.operation.name"

# change
CHANGES: Final = "activity.changes"
CAPTURE: Final = "activity.capture"

# tenant, project, reason, free text
TENANT_ID: Final = "activity.tenant.id"
PROJECT_ID: Final = "activity.project.id"
REASON: Final = "activity.reason"
DETAILS: Final = "activity.details"

# transaction
TRANSACTION_ID: Final = "activity.transaction.id"
DATABASE_TRANSACTION: Final = "activity.database.transaction"
COMMIT: Final = "activity.commit"
ROLLED_BACK: Final = "rolled back"
"""``error.type`` of an action whose transaction or savepoint was rolled back."""

# order
STREAM_ID: Final = "activity.stream.id"
SEQUENCE: Final = "activity.sequence"

# gap: what was lost
GAP_REASON: Final = "activity.gap.reason"
GAP_COUNT: Final = "activity.gap.count"
"""Events; with the reason ``journal unreadable``, records."""
GAP_ESTIMATE: Final = "activity.gap.estimate"
"""True when the process was killed meanwhile: count and places are those that it had written down last."""
GAP_FIRST: Final = "activity.gap.first"
"""When the first of them was lost, ISO 8601."""
GAP_LAST: Final = "activity.gap.last"
GAP_EXPORTER: Final = "activity.gap.exporter"
"""The exporter that did not get them; absent when none did."""
GAP_SEQUENCES: Final = "activity.gap.sequences"
"""Their places in the stream, ``[[first, last], ...]``; absent when they never had any."""

# stream: the life of a process's stream
STREAM_SUBJECT: Final = "activity.stream.subject.id"
"""The stream that the record is about: not its own when a process takes over what a dead one left."""
STREAM_HEARTBEAT: Final = "activity.stream.heartbeat"
"""Seconds between two beats."""
STREAM_TAKEN_OVER: Final = "activity.stream.taken_over"
"""Events of the dead process that stand just before its closing record, in the stream of who took over."""
STREAM_REPEATED_COUNT: Final = "activity.stream.repeated.count"
"""Events that came to the store under these places, and were there already under others."""
STREAM_REPEATED_FIRST: Final = "activity.stream.repeated.first"
"""First place of the batch that they were in."""
STREAM_REPEATED_LAST: Final = "activity.stream.repeated.last"
STREAM_VERSION: Final = "activity.stream.version"
STREAM_SETTINGS: Final = "activity.stream.settings"
"""A digest of the settings: another one means that something else may be audited."""
STREAM_INCLUDE: Final = "activity.stream.include"
STREAM_EXCLUDE: Final = "activity.stream.exclude"

# value
REDACTED_TAG: Final = "$redacted"
"""Key of the object that stands for a redacted value: ``{"$redacted": true}``, or a hash in place of true."""


class RedactionMode(enum.StrEnum):
    """What becomes of a secret value."""

    MASK = "mask"
    """A mark stands in its place, the same for every value."""
    HASH = "hash"
    """Its keyed hash stands in its place: equal values stay comparable."""
    DROP = "drop"
    """The field does not appear at all."""


class ContentRule(enum.StrEnum):
    """What finds a secret by what it looks like."""

    KEY = "key"
    """Private keys in PEM."""
    JWT = "jwt"
    """JSON Web Tokens."""
    TOKEN = "token"  # noqa: S105 - the name of the rule
    """Tokens with the prefix of a well-known issuer."""
    AUTHORIZATION = "authorization"
    """``Bearer`` and ``Basic`` with what follows."""
    URL = "url"
    """Passwords in URLs, and secret parameters of their query."""
    ASSIGNMENT = "assignment"
    """``name=value`` and ``"name": "value"`` inside a text, where the name is secret."""
    CARD = "card"
    """Numbers of payment cards."""
