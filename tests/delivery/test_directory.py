"""Where journals go by default, and which places the doctor warns of."""

from __future__ import annotations

from pathlib import Path

import pytest

from otel_activity.delivery.directory import concern, default_directory, file_system, service_directory
from otel_activity.errors import ConfigurationError

MOUNTS = """\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
30 22 0:26 / /run rw,nosuid - tmpfs tmpfs rw
31 22 0:27 / /srv/nfs rw - nfs4 host:/export rw
32 22 0:28 / /srv/with\\040space rw - cifs //host/share rw
33 22 0:29 / /srv/twice rw - ext4 /dev/vdb rw
34 22 0:30 / /srv/twice rw - overlay overlay rw
35 30 0:31 / /run/disk rw - xfs /dev/vdc rw
a line that nobody understands
"""


@pytest.mark.parametrize(
    ("environ", "platform", "root", "expected"),
    [
        ({}, "linux", False, Path.home() / ".local/state/otel_activity"),
        ({}, "linux", True, Path("/var/lib/otel_activity")),
        ({"XDG_STATE_HOME": "/state"}, "linux", True, Path("/state/otel_activity")),
        ({"XDG_STATE_HOME": "relative"}, "linux", True, Path("/var/lib/otel_activity")),
        (
            {"STATE_DIRECTORY": "/var/lib/shop:/var/lib/x", "XDG_STATE_HOME": "/state"},
            "linux",
            False,
            Path("/var/lib/shop/otel_activity"),
        ),
        ({}, "darwin", False, Path.home() / "Library/Application Support/otel_activity"),
        ({"LOCALAPPDATA": "/local"}, "win32", False, Path("/local/otel_activity")),
        ({}, "win32", False, Path.home() / "AppData/Local/otel_activity"),
    ],
)
def test_the_default_follows_the_platform(
    environ: dict[str, str], platform: str, root: bool, expected: Path
) -> None:
    """systemd's directory for the service, the user's, or the system's; each platform has its own."""
    assert default_directory(environ, platform, root=root) == expected


@pytest.mark.parametrize(
    ("path", "kind", "words"),
    [
        ("/var/lib/x", "ext4", None),
        ("/run/x", "tmpfs", "restart of the machine"),
        ("/run/disk/x", "xfs", None),
        ("/srv/nfs", "nfs4", "network file system"),
        ("/srv/with space/x", "cifs", "network file system"),
        ("/srv/twice/x", "overlay", "mount a volume"),
        ("/runner", "ext4", None),
    ],
)
def test_a_place_that_does_not_keep_journals_is_named(path: str, kind: str, words: str | None) -> None:
    """The innermost, last mount decides; volatile, layered and network file systems are no place."""
    assert file_system(Path(path), MOUNTS) == kind
    said = concern(Path(path), MOUNTS)
    assert said is None if words is None else said is not None and words in said and kind in said


def test_each_service_and_environment_has_a_directory_of_its_own() -> None:
    """The name is readable, harmless as a file name, and differs whenever the identity does."""
    resources = [
        {"service.name": "shop"},
        {"service.name": "shop", "deployment.environment.name": "staging"},
        {"service.name": "shop", "service.namespace": "staging"},
        {"service.name": "../sh\udcffop"},
        {},
    ]
    names = [service_directory(resource) for resource in resources]
    assert len(set(names)) == len(names)
    assert [name.rpartition("-")[0] for name in names] == ["shop", "shop", "shop", "_sh_op", ""]
    assert service_directory({"service.name": "shop", "host.name": "a"}) == names[0]


def test_nobody_without_a_home_is_left_guessing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No home directory and no setting: the error names the variable and the fix."""
    from otel_activity.delivery import journal_directory

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(ConfigurationError, match="OTEL_ACTIVITY_JOURNAL_DIR"):
        journal_directory(None, {})
    assert journal_directory("/given", {}) == Path("/given")
