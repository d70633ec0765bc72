"""Who may send."""

from __future__ import annotations

import hmac

__all__ = ["BearerToken"]


class BearerToken:
    """Compares ``Authorization: Bearer ...`` with the token, in a time that does not tell how much was right.

    Args:
        token: what senders must show; None when nobody is asked.
    """

    def __init__(self, token: str | None) -> None:
        self._token = None if token is None else token.encode()

    def allows(self, authorization: str | bytes | None) -> bool:
        """Whether the value of the header ``Authorization`` is right."""
        if self._token is None:
            return True
        shown = authorization.encode("utf-8", "replace") if isinstance(authorization, str) else authorization
        scheme, _, token = (shown or b"").partition(b" ")
        return hmac.compare_digest(token.strip(), self._token) and scheme.lower() == b"bearer"
