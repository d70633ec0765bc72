"""Connection pools of audited engines, for metrics: seen when a transaction is, read when somebody asks."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine

__all__ = ["PoolUsage", "Pools", "pool_name"]


class PoolUsage(NamedTuple):
    """How a pool is used now."""

    name: str
    """``host:port/database``, without user and password."""
    used: int
    """Connections that are checked out."""
    idle: int
    """Connections that wait in the pool."""
    most: int | None
    """Connections that it may have; None when it has no limit."""


class Pools:
    """Remembers pools weakly: an engine that is thrown away is gone from here too."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Any], str]] = {}

    def see(self, engine: Engine) -> None:
        """Called for each audited transaction, so it does nearly nothing. ``dispose()`` makes a new pool."""
        pool = engine.pool
        key = id(pool)
        if key not in self._known:
            gone = weakref.ref(pool, lambda _: self._known.pop(key, None))
            self._known[key] = (gone, pool_name(engine))

    def usage(self) -> list[PoolUsage]:
        """Each pool that counts its connections; those of one name added up."""
        found: dict[str, PoolUsage] = {}
        for reference, name in list(self._known.values()):
            now = _usage(reference(), name)
            if now is not None:
                before = found.get(name)
                found[name] = now if before is None else _added(before, now)
        return list(found.values())


def pool_name(engine: Engine) -> str:
    """``host:port/database``, without user and password."""
    url = engine.url
    host = url.host or ""
    port = f":{url.port}" if url.port is not None else ""
    return f"{host}{port}/{url.database or ''}"


def _usage(pool: Any, name: str) -> PoolUsage | None:
    try:
        used, idle, size = pool.checkedout(), pool.checkedin(), pool.size()
    except AttributeError:  # gone, or one of those that keep no connections
        return None
    overflow = getattr(pool, "_max_overflow", -1)
    # A QueuePool of size 0, or one with an overflow of -1, has no limit.
    return PoolUsage(name, used, idle, size + overflow if size and overflow >= 0 else None)


def _added(one: PoolUsage, other: PoolUsage) -> PoolUsage:
    most = None if one.most is None or other.most is None else one.most + other.most
    return PoolUsage(one.name, one.used + other.used, one.idle + other.idle, most)
