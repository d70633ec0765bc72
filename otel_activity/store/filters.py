"""What to look for: `EventFilter`; where to go on: the cursor of a page."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from otel_activity.errors import ConfigurationError

__all__ = ["EventFilter", "Position"]

_TRACE_ID: Final = re.compile(r"[0-9a-f]{32}")
_SPAN_ID: Final = re.compile(r"[0-9a-f]{16}")
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


@dataclass(frozen=True, kw_only=True)
class EventFilter:
    """Which events to return: those that match every field that is given.

    Attributes:
        since: earliest time, inclusive, with a time zone.
        until: latest time, exclusive, with a time zone.
        names: any of these event names, for example ``activity.entity.updated``.
        actions: any of these actions.
        outcomes: any of these outcomes, ``success`` or ``failure``.
        actor_id: ``user.id``.
        actor_type: ``user``, ``service``, ``system``, ``anonymous`` or ``unknown``.
        entity_type: type of the entity; give it with `entity_id`, the index begins with it.
        entity_id: id of the entity as text; a composite key is a JSON array.
        tenant_id: the tenant.
        project_id: the project.
        trace_id: 32 hexadecimal digits.
        span_id: 16 hexadecimal digits; give it with `trace_id`, which has the index.
        transaction_id: our id of the transaction, a UUID.
        service: ``service.name`` of the service that recorded the event.
        table: name of the changed table, without its schema.
        changed_field: a field that the event changed.
        text: text that occurs anywhere in the event's attributes, upper and lower case alike. Reads every
            event that the other fields leave over, so combine it with `since`.

    Raises:
        ConfigurationError: a field is wrong in itself; names the field, the value and the fix.
    """

    since: datetime | None = None
    until: datetime | None = None
    names: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    outcomes: tuple[str, ...] = ()
    actor_id: str | None = None
    actor_type: str | None = None
    entity_type: str | None = None
    entity_id: str | None = None
    tenant_id: str | None = None
    project_id: str | None = None
    trace_id: str | None = None
    span_id: str | None = None
    transaction_id: str | None = None
    service: str | None = None
    table: str | None = None
    changed_field: str | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(self):
            _check_field(spec.name, getattr(self, spec.name))
        _check_form("trace_id", self.trace_id, _TRACE_ID, "use 32 hexadecimal digits, lower case")
        _check_form("span_id", self.span_id, _SPAN_ID, "use 16 hexadecimal digits, lower case")
        _check_form("transaction_id", self.transaction_id, _UUID, "use a UUID in lower case, with dashes")
        if self.since and self.until and self.since >= self.until:
            raise ConfigurationError(
                "until",
                self.until.isoformat(),
                "not after since",
                f"use a time after {self.since.isoformat()}",
            )


def _check_field(name: str, value: object) -> None:
    if isinstance(value, datetime) and value.tzinfo is None:
        raise ConfigurationError(name, value.isoformat(), "has no time zone", "use an aware datetime")
    if isinstance(value, str):
        _check_text(name, value)
    elif isinstance(value, tuple):
        for item in value:
            _check_text(name, item)


def _check_text(name: str, value: str) -> None:
    if "\0" in value or any("\ud800" <= char <= "\udfff" for char in value):
        raise ConfigurationError(
            name,
            ascii(value),
            "holds a character that no stored text can hold",
            "leave NUL and surrogates out",
        )


def _check_form(name: str, value: str | None, form: re.Pattern[str], fix: str) -> None:
    if value is not None and not form.fullmatch(value):
        raise ConfigurationError(name, value, "malformed", fix)


class Position(msgspec.Struct, frozen=True, array_like=True):
    """The place of one event in the order of all events: by time, then by id.

    Attributes:
        time: microseconds since the epoch.
        id: the event's id.
    """

    time: int
    id: str

    @classmethod
    def parse(cls, cursor: str) -> Position:
        """Read a cursor made by `cursor`.

        Raises:
            ConfigurationError: it is none.
        """
        try:
            padded = cursor + "=" * (-len(cursor) % 4)
            position = msgspec.json.decode(base64.urlsafe_b64decode(padded.encode("ascii")), type=cls)
            position.moment  # noqa: B018 - raises for a time that no datetime can hold
        except (msgspec.DecodeError, binascii.Error, ValueError, OverflowError):
            position = None
        if position is None or not _UUID.fullmatch(position.id):
            raise ConfigurationError(
                "cursor", cursor, "not a cursor", "use the one that the page before gave"
            )
        return position

    @property
    def cursor(self) -> str:
        """An opaque text that `parse` reads back."""
        return base64.urlsafe_b64encode(msgspec.json.encode(self)).decode().rstrip("=")

    @property
    def moment(self) -> datetime:
        """The time as a datetime, in UTC."""
        return _EPOCH + self.time * _MICROSECOND
