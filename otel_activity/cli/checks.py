"""The doctor's checks of the installation, the settings and what would be loaded. They change nothing."""

from __future__ import annotations

import enum
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Final

from otel_activity import __version__
from otel_activity.cli.render import many
from otel_activity.delivery import concern, find_leftovers, journal_directory
from otel_activity.errors import ConfigurationError
from otel_activity.settings import FIELDS, Settings, lookalikes
from otel_activity.version import is_compiled

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Check", "Level", "environment_checks", "left_behind"]

DISTRIBUTION: Final = "otel-activity"
SHOWN: Final = ("opentelemetry-sdk", "sqlalchemy", "psycopg")
"""Requirements whose version is worth a line; the others get one only when they are wrong."""
ENTRY_POINTS: Final = (
    "opentelemetry_distro",
    "opentelemetry_pre_instrument",
    "opentelemetry_instrumentor",
)
SIGNALS: Final = {
    "OTEL_TRACES_EXPORTER": "opentelemetry_traces_exporter",
    "OTEL_METRICS_EXPORTER": "opentelemetry_metrics_exporter",
    "OTEL_LOGS_EXPORTER": "opentelemetry_logs_exporter",
}
OURS: Final = "otel_activity"


class Level(enum.StrEnum):
    """How a check ended."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        name: which.
        level: how it ended.
        text: what was found.
        fix: what to do about it; `None` when all is well.
    """

    name: str
    level: Level
    text: str
    fix: str | None = None


def environment_checks(environ: Mapping[str, str], *, interactive: bool, dsn_given: bool) -> list[Check]:
    """Everything that can be checked without the store.

    Args:
        environ: the variables that a service started from here would see.
        interactive: whether its output would be a terminal.
        dsn_given: whether the doctor was told of a store, so that this may not be the service's environment.
    """
    return [
        *_versions(),
        *_settings(environ, interactive=interactive, dsn_given=dsn_given),
        *_loading(environ),
        _telemetry(environ),
        *_other_signals(environ),
        *_capture(),
    ]


# --- versions -------------------------------------------------------------------------------------


def _versions() -> Iterator[Check]:
    yield Check("otel-activity", Level.OK, __version__ + (", compiled" if is_compiled() else ""))
    yield Check("python", Level.OK, f"{platform.python_version()} at {sys.executable}")
    try:
        required = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        yield Check("packages", Level.FAIL, "not installed, only importable", "pip install otel-activity")
        return
    for text in required:
        yield from _requirement(text)


def _requirement(text: str) -> Iterator[Check]:
    from packaging.requirements import Requirement

    requirement = Requirement(text)
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
        return
    fix = f'pip install "{requirement.name}{requirement.specifier}"'
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        yield Check(requirement.name, Level.FAIL, "not installed", fix)
        return
    if not requirement.specifier.contains(version, prereleases=True):
        problem = f"{version} is not supported (needs {requirement.specifier})"
        yield Check(requirement.name, Level.FAIL, problem, fix)
    elif requirement.name in SHOWN:
        yield Check(requirement.name, Level.OK, f"{version} (needs {requirement.specifier})")


# --- settings -------------------------------------------------------------------------------------


def _settings(environ: Mapping[str, str], *, interactive: bool, dsn_given: bool) -> Iterator[Check]:
    try:
        settings = Settings.from_env(environ, interactive=interactive)
    except ConfigurationError as error:
        shown = f"{error.variable}={error.value!r}: {error.problem}"
        yield Check("settings", Level.FAIL, shown, error.fix)
        return
    except ImportError as error:
        reason = " ".join(str(error).split())
        yield Check("settings", Level.FAIL, reason, 'pip install "otel-activity[binary]"')
        return
    given = [field.variable for field in FIELDS if environ.get(field.variable, "").strip()]
    yield Check("settings", Level.OK, ", ".join(given) if given else "all default")
    for variable, meant in lookalikes(environ):
        text = f"{variable} is no setting, and is not read"
        yield Check("misspelt", Level.WARN, text, f"rename it {meant}")
    yield _active(settings, environ, dsn_given=dsn_given)
    if settings.active:
        yield _service(environ)
        yield _journal(settings, environ)
        left = left_behind(settings, environ)
        if left is not None:
            yield left


def _active(settings: Settings, environ: Mapping[str, str], *, dsn_given: bool) -> Check:
    """Whether anything would be exported, and why."""
    if settings.disabled:
        return Check("exporters", Level.WARN, "none: OTEL_ACTIVITY_DISABLED is set", "unset it to be audited")
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        text = "none: OTEL_SDK_DISABLED=true switches OpenTelemetry off, auditing included"
        return Check("exporters", Level.FAIL, text, "unset it")
    if settings.exporters == ("none",):
        text = "none: OTEL_ACTIVITY_EXPORTERS says so"
        return Check("exporters", Level.WARN, text, "name postgres or otlp to be audited")
    if settings.logger_provider == "global":
        text = "the application's LoggerProvider (OTEL_ACTIVITY_LOGGER_PROVIDER=global); ours are not used"
        return Check("exporters", Level.OK, text)
    if not settings.exporters:
        level = Level.WARN if dsn_given else Level.FAIL
        text = "none: a service started with these variables would run unaudited"
        return Check("exporters", level, text, "set OTEL_ACTIVITY_POSTGRES_DSN or OTEL_ACTIVITY_EXPORTERS")
    shown = ", ".join(f"{name} ({_why(name, environ)})" for name in settings.exporters)
    if settings.exporters == ("console",):
        return Check("exporters", Level.WARN, f"{shown}: events are printed, not kept", "name a store")
    return Check("exporters", Level.OK, shown)


def _why(name: str, environ: Mapping[str, str]) -> str:
    if environ.get("OTEL_ACTIVITY_EXPORTERS", "").strip():
        return "OTEL_ACTIVITY_EXPORTERS names it"
    return {
        "postgres": "OTEL_ACTIVITY_POSTGRES_DSN is set",
        "otlp": "OTEL_ACTIVITY_OTLP_ENDPOINT is set",
        "console": "output is a terminal and nothing else is set",
    }[name]


def _service(environ: Mapping[str, str]) -> Check:
    """Whether events would say which service they are of; by the SDK's own variables."""
    name = environ.get("OTEL_SERVICE_NAME", "").strip()
    for pair in environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","):
        key, _, value = pair.partition("=")
        if key.strip() == "service.name":
            name = name or value.strip()
    if name:
        return Check("service", Level.OK, name)
    text = "has no name: events say unknown_service, as those of every other one that has none"
    return Check("service", Level.WARN, text, "set OTEL_SERVICE_NAME, unless the program names it")


def _journal(settings: Settings, environ: Mapping[str, str]) -> Check:
    """Whether a process started from here could write its journal, and where it would stand."""
    if settings.deliveries == {"best_effort"}:
        text = "none: events are lost with the process (best_effort)"
        return Check("journal", Level.WARN, text, "set OTEL_ACTIVITY_DELIVERY=durable")
    try:
        directory = journal_directory(settings.journal_dir, environ)
    except ConfigurationError as error:
        return Check("journal", Level.FAIL, error.problem, error.fix)
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        text = f"{directory} cannot be written by this user"
        return Check("journal", Level.FAIL, text, "name another with OTEL_ACTIVITY_JOURNAL_DIR")
    trouble = concern(directory)
    if trouble is not None:
        fix = "name a directory on a local disk with OTEL_ACTIVITY_JOURNAL_DIR"
        return Check("journal", Level.WARN, f"{directory}: {trouble}", fix)
    return Check("journal", Level.OK, str(directory))


def left_behind(settings: Settings, environ: Mapping[str, str]) -> Check | None:
    """Whether journals of dead processes hold events that nobody has delivered; None when they do not."""
    try:
        directory = journal_directory(settings.journal_dir, environ)
        found = find_leftovers(directory, settings.exporters)
    except (ConfigurationError, OSError):  # whether it can be written is another check
        return None
    if found.events:
        places = ", ".join(map(str, found.homes))
        text = f"{many(found.events, 'event')} of dead processes not delivered yet, in {places}"
        relay = f"run `otel-activity relay --journal {directory}`"
        return Check("left behind", Level.WARN, text, f"start the service, which delivers them, or {relay}")
    if found.unreadable:
        text = f"{many(found.unreadable, 'journal')} in {directory} cannot be read"
        return Check("left behind", Level.WARN, text, "run this as the service's user")
    return None


# --- loading --------------------------------------------------------------------------------------


def _loading(environ: Mapping[str, str]) -> Iterator[Check]:
    beside = Path(sys.executable).with_name("opentelemetry-instrument")
    launcher = str(beside) if beside.exists() else shutil.which("opentelemetry-instrument")
    if launcher is None:
        fix = "pip install opentelemetry-instrumentation"
        yield Check("launcher", Level.FAIL, "opentelemetry-instrument is not installed", fix)
    else:
        yield Check("launcher", Level.OK, launcher)
    yield _entry_points()
    yield _distro(environ)
    excluded = {part.strip() for part in environ.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "").split(",")}
    if excluded & {OURS, "*"}:
        text = "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS does not switch auditing off"
        yield Check("exclusion", Level.WARN, text, "set OTEL_ACTIVITY_DISABLED=true if that is meant")


def _entry_points() -> Check:
    missing = [
        group for group in ENTRY_POINTS if not any(e.name == OURS for e in metadata.entry_points(group=group))
    ]
    if missing:
        fix = "pip install --force-reinstall --no-deps otel-activity"
        return Check("entry points", Level.FAIL, f"not registered in {', '.join(missing)}", fix)
    return Check("entry points", Level.OK, "registered with opentelemetry-instrument")


def _chosen_distro(environ: Mapping[str, str]) -> str | None:
    """What `opentelemetry-instrument` would take: the one that is named, else the first."""
    names = [entry.name for entry in metadata.entry_points(group="opentelemetry_distro")]
    wanted = environ.get("OTEL_PYTHON_DISTRO")
    if wanted is None:
        return names[0] if names else None
    return wanted if wanted in names else None


def _distro(environ: Mapping[str, str]) -> Check:
    chosen = _chosen_distro(environ)
    if chosen == OURS:
        return Check("distro", Level.OK, "ours: auditing starts before anything else can fail")
    named = environ.get("OTEL_PYTHON_DISTRO")
    reason = f"OTEL_PYTHON_DISTRO={named}" if named else f"{chosen} comes first"
    text = f"{reason}: auditing starts after it, and not at all if the other signals fail to start"
    return Check("distro", Level.WARN, text, "set OTEL_PYTHON_DISTRO=otel_activity")


def _telemetry(environ: Mapping[str, str]) -> Check:
    """Whether `opentelemetry-instrument` would set up traces and metrics: that takes a configurator."""
    if metadata.entry_points(group="opentelemetry_configurator"):
        return Check("telemetry", Level.OK, "traces and metrics are set up by opentelemetry-instrument")
    missing = "nothing is installed that sets up traces and metrics"
    asked = [name for name in SIGNALS if environ.get(name, "").strip().lower() not in {"", "none"}]
    if asked:
        return Check(
            "telemetry", Level.WARN, f"{asked[0]} is set, but {missing}", "pip install opentelemetry-distro"
        )
    text = f"{missing} (opentelemetry-distro does): events have no trace, unless the program sets it up"
    return Check("telemetry", Level.OK, text)


def _other_signals(environ: Mapping[str, str]) -> Iterator[Check]:
    """An exporter that is not installed stops OpenTelemetry's own start-up, whatever the signal."""
    for variable, group in SIGNALS.items():
        known = {entry.name for entry in metadata.entry_points(group=group)}
        wanted = [name.strip() for name in environ.get(variable, "").split(",")]
        unknown = [name for name in wanted if name and name != "none" and name not in known]
        if unknown:
            first = _chosen_distro(environ) == OURS
            text = (
                f"{variable} names {', '.join(unknown)}, which is not installed: OpenTelemetry will not start"
            )
            level, text = (Level.WARN, text) if first else (Level.FAIL, f"{text}, and neither will auditing")
            yield Check("other signals", level, text, f"use any of {', '.join(sorted(known))}, or none")


def _capture() -> Iterator[Check]:
    try:
        from otel_activity.capture import check
    except ImportError as error:
        reason = " ".join(str(error).split())
        yield Check(
            "capture", Level.FAIL, f"does not load: {reason}", "reinstall otel-activity and sqlalchemy"
        )
        return
    problems = check()
    for problem in problems:
        yield Check("capture", Level.FAIL, problem, "use a SQLAlchemy version that is supported")
    if not problems:
        yield Check("capture", Level.OK, "SQLAlchemy has every hook that is needed")
