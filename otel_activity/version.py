"""The version of this package, which the build reads from here, and how it was built."""

from __future__ import annotations

from importlib.util import find_spec

__all__ = ["__version__", "is_compiled"]

__version__ = "0.1.0"


def is_compiled() -> bool:
    """Whether this installation has the modules compiled that ``hatch_build.py`` compiles."""
    spec = find_spec("otel_activity.receiver.recordlines")
    return spec is not None and not str(spec.origin).endswith(".py")
