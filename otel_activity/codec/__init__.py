"""Values and rows: Python values to plain JSON values and back, events to rows of the store."""

from __future__ import annotations

from otel_activity.codec.values import ATOMIC, INT_MAX, INT_MIN, REDACTED, decode, display, encode, text_of

__all__ = ["ATOMIC", "INT_MAX", "INT_MIN", "REDACTED", "decode", "display", "encode", "text_of"]
