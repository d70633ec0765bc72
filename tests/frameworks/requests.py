"""What tests of request contexts share: one request through the middleware, and what events would say."""

from __future__ import annotations

from typing import Any

import pytest

from otel_activity.context import current_context
from otel_activity.frameworks import web
from otel_activity.frameworks.asgi import ActivityASGIMiddleware
from otel_activity.settings import Settings


def configure(**settings: Any) -> None:
    """Settings, given as a program gives them."""
    web.configure(Settings.from_env({}, **settings))


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """An application that tells what an event would say."""
    context = current_context()
    assert context is not None
    await send(context.snapshot(scope.get("otel")))


def snapshot(*headers: tuple[bytes, bytes], peer: Any = ("192.0.2.7", 1234), **scope: Any) -> dict[str, Any]:
    """What an event of a request with these headers would say."""
    heard: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        heard.append(message)

    full = {"type": "http", "method": "POST", "headers": list(headers), "client": peer, **scope}
    coroutine = ActivityASGIMiddleware(answer)(full, None, send)
    with pytest.raises(StopIteration):
        coroutine.send(None)
    assert current_context() is None
    return heard[0]
