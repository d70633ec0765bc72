"""Where journals go, and whether that is a place that keeps them."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from otel_activity.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["concern", "default_directory", "file_system", "journal_directory", "service_directory"]

_OURS: Final = "otel_activity"
_VOLATILE: Final = frozenset({"tmpfs", "ramfs", "devtmpfs", "rootfs"})
_LAYERED: Final = frozenset({"overlay", "aufs", "fuse.fuse-overlayfs"})
_NETWORK: Final = frozenset(
    {"9p", "afs", "ceph", "cifs", "fuse.sshfs", "gfs2", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2"}
    | {"fuse.ceph", "fuse.glusterfs", "fuse.s3fs", "smb3", "smbfs"}
)
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")


def journal_directory(given: str | None, environ: Mapping[str, str]) -> Path:
    """The directory of the journals of all services.

    Args:
        given: ``OTEL_ACTIVITY_JOURNAL_DIR``.
        environ: the variables of the process.

    Raises:
        ConfigurationError: none was given, and the user has no home directory.
    """
    if given:
        return Path(given)
    try:
        return default_directory(environ, root=hasattr(os, "geteuid") and os.geteuid() == 0)
    except RuntimeError:
        problem = "not set, and this user has no home directory"
        raise ConfigurationError(
            "OTEL_ACTIVITY_JOURNAL_DIR", "", problem, "name a directory on a local disk"
        ) from None


def default_directory(
    environ: Mapping[str, str], platform: str = sys.platform, *, root: bool = False
) -> Path:
    """Where journals go by the conventions of the platform.

    On Linux: what systemd made for the service (``StateDirectory=``), ``XDG_STATE_HOME``, ``/var/lib`` for
    root, ``~/.local/state``.

    Args:
        environ: the variables of the process.
        platform: as `sys.platform`.
        root: whether the process runs as root, whose home is no place for a service's state.

    Raises:
        RuntimeError: the user has no home directory.
    """
    if platform == "win32":
        local = environ.get("LOCALAPPDATA")
        base = Path(local) if local else Path.home() / "AppData" / "Local"
    elif platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = _state_directory(environ, root=root)
    return base / _OURS


def _state_directory(environ: Mapping[str, str], *, root: bool) -> Path:
    # systemd names several with colons. By the XDG specification a relative path is to be ignored.
    for given in (environ.get("STATE_DIRECTORY", "").split(":")[0], environ.get("XDG_STATE_HOME", "")):
        if given.startswith("/"):
            return Path(given)
    return Path("/var/lib") if root else Path.home() / ".local" / "state"


def service_directory(resource: Mapping[str, Any]) -> str:
    """One name for each service and environment: nobody adopts, and relabels, the events of another.

    Args:
        resource: attributes of the OpenTelemetry resource.
    """
    identity = [
        str(resource.get(name, ""))
        for name in ("service.namespace", "service.name", "deployment.environment.name")
    ]
    digest = hashlib.sha256("\0".join(identity).encode(errors="backslashreplace")).hexdigest()[:12]
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', identity[1])[:60].lstrip('.')}-{digest}"


def concern(path: Path, mounts: str | None = None) -> str | None:
    """Why a journal there does not survive what it is for; None when nothing speaks against it.

    Args:
        path: a directory, existing or not.
        mounts: text of ``/proc/self/mountinfo``; read by default. Elsewhere than on Linux nothing is known.
    """
    kind = file_system(path, mounts)
    if kind in _VOLATILE:
        return f"it is in memory ({kind}): journals do not survive a restart of the machine"
    if kind in _LAYERED:
        return f"it is a container's own layer ({kind}): journals are gone with the container; mount a volume"
    if kind in _NETWORK:
        return f"it is a network file system ({kind}), where locks and syncs may not mean what they must"
    return None


def file_system(path: Path, mounts: str | None = None) -> str | None:
    """Type of the file system that a path is on; None when that is not known."""
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
        except OSError:
            return None
    wanted = Path(os.path.realpath(path))
    best, kind = -1, None
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        if len(fields) < 5 or not right:
            continue
        point = Path(_ESCAPED.sub(lambda found: chr(int(found[1], 8)), fields[4]))
        # The last of several mounts on one point hides the others.
        if (wanted == point or point in wanted.parents) and len(point.parts) >= best:
            best, kind = len(point.parts), right.split(" ")[0]
    return kind
