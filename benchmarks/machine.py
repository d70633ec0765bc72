"""What a measurement depends on, for the reader of its result."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Final

import psycopg.pq

from otel_activity.version import __version__, is_compiled

__all__ = ["facts"]

PACKAGES: Final = ("sqlalchemy", "psycopg", "opentelemetry-sdk", "msgspec")


def facts() -> dict[str, str]:
    """Interpreter, system, processor and the versions of what the hot path runs through."""
    found = {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": f"{_cores()}, {_processor()}",
    }
    found |= {name: version(name) for name in PACKAGES}
    found["psycopg"] += f" ({psycopg.pq.__impl__})"
    found["otel_activity"] = f"{__version__}, {'compiled' if is_compiled() else 'interpreted'}"
    return found


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"
    )
