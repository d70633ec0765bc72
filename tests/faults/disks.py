"""File systems that a test mounts for a program alone: small ones, and such as cannot be written."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, NamedTuple

from tests.support import skip_missing

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["OWN_MOUNTS", "SmallDisk", "require_mounts", "small_disk"]

OWN_MOUNTS = ("unshare", "--map-root-user", "--mount")
"""Before a command: it has a mount namespace of its own."""


def require_mounts() -> None:
    """Skip where nobody may mount, as `skip_missing` does."""
    command = [*OWN_MOUNTS, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        skip_missing("this kernel lets nobody mount a file system of his own")


class SmallDisk(NamedTuple):
    """A file system of a few kilobytes, in a namespace of its own."""

    directory: Path
    namespace: list[str]
    mount: str


def small_disk(parent: Path, size: str) -> SmallDisk:
    """What makes one. Without the right to do so: `require_mounts`."""
    directory = parent / "small"
    directory.mkdir()
    require_mounts()
    return SmallDisk(directory, [*OWN_MOUNTS], f"mount -t tmpfs -o size={size} tmpfs {directory}")
