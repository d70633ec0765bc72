"""What several test modules share."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

__all__ = ["require_tool", "skip_missing"]


def skip_missing(reason: str) -> NoReturn:
    """Skip for something that is not installed; with CI=true that is a failure, so nothing skips unseen."""
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(f"CI=true, and a test would be skipped: {reason}")
    pytest.skip(reason)


def require_tool(name: str) -> str:
    """The path of a program from the system, or `skip_missing`."""
    path = shutil.which(name)
    if path is None:
        skip_missing(f"the program {name!r} is not installed")
    return path
