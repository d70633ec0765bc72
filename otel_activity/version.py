"""The version of this package, which the build reads from here, and how it was built."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

__all__ = ["__version__", "is_compiled"]

__version__ = "0.1.0"

_COMPILED: Final = ("fragments", "protobuf", "recordlines")


def is_compiled() -> bool:
    """Whether this installation has the modules compiled that ``hatch_build.py`` compiles."""
    specs = [find_spec(f"otel_activity.receiver.{name}") for name in _COMPILED]
    return all(spec is not None and not str(spec.origin).endswith(".py") for spec in specs)
