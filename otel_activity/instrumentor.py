"""How ``opentelemetry-instrument`` finds us: distro, pre-instrument hook and instrumentor.

The three start the same thing, whoever comes first. The distro comes before the SDK is configured, so a typo
in another signal's variable cannot keep auditing from starting; the hook comes before all instrumentors, so
an error in one of them cannot either.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.instrumentation.distro import BaseDistro, DefaultDistro
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor

from otel_activity.errors import ActivityError, without_messages
from otel_activity.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Collection
    from importlib.metadata import EntryPoint

__all__ = ["ActivityDistro", "ActivityInstrumentor", "pre_instrument"]

_logger: Final = logging.getLogger("otel_activity")
_started = False


def pre_instrument() -> None:
    """Start auditing from the environment, once; what is wrong in itself ends the process.

    An exception would only be logged by ``opentelemetry-instrument``, and the program would run unaudited;
    so a wrong setting prints one line and ends the process with status 2, before the program's code runs.
    ``OTEL_ACTIVITY_STARTUP=warn`` runs it unaudited instead, and says so.
    """
    global _started
    if _started:
        return
    _started = True
    try:
        _api().instrument()
    except ActivityError as error:
        _stop_or_warn(str(error))
    except KeyboardInterrupt:
        # Raised out of here it would be a fatal error of the interpreter's start, with a dump.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    except ImportError as error:
        # psycopg without a libpq, first of all. An import at the top of this module would fail unseen.
        reason = " ".join(str(error).split())
        _stop_or_warn(
            f'cannot be loaded ({reason}); pip install "otel-activity[binary]" brings what it needs'
        )
    except Exception as error:  # noqa: BLE001 - whatever it is, the process is to say it in one line
        _logger.error("otel_activity: internal error at start-up\n%s", without_messages(error))
        _stop_or_warn(f"internal error at start-up: {type(error).__name__}")


def _api() -> Any:
    """The composition root, imported late: `opentelemetry-instrument` only logs what fails to import."""
    from otel_activity import api

    return api


def _stop_or_warn(reason: str) -> None:
    line = f"otel_activity: {reason}"
    if Settings.startup_mode() == "warn":
        _print(f"{line}\notel_activity: THIS PROCESS RUNS UNAUDITED (OTEL_ACTIVITY_STARTUP=warn)")
        return
    _print(line)
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    os._exit(2)  # SystemExit would be reported as a fatal error of the interpreter's start


def _print(text: str) -> None:
    """To standard error, if there is one: a line that cannot be written must not undo what it is about."""
    with contextlib.suppress(Exception):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


class ActivityDistro(BaseDistro):  # type: ignore[misc]  # its package is not typed
    """Starts auditing, and is otherwise the distro that would have been used."""

    _inner: Any = None

    def _configure(self, **kwargs: Any) -> None:
        self._inner = _other_distro()
        pre_instrument()
        self._inner.configure(**kwargs)

    def load_instrumentor(self, entry_point: EntryPoint, **kwargs: Any) -> None:
        """Load an instrumentor the way the other distro does."""
        inner = self._inner
        if inner is None:
            super().load_instrumentor(entry_point, **kwargs)
        else:
            inner.load_instrumentor(entry_point, **kwargs)


def _other_distro() -> BaseDistro:
    from importlib.metadata import entry_points

    for entry_point in entry_points(group="opentelemetry_distro"):
        if entry_point.name == "otel_activity":
            continue
        try:
            distro = entry_point.load()()
        except Exception:
            _logger.exception("otel_activity: the distro %s could not be loaded", entry_point.name)
            continue
        if isinstance(distro, BaseDistro):
            return distro
    return DefaultDistro()


class ActivityInstrumentor(BaseInstrumentor):  # type: ignore[misc]  # its package is not typed
    """The OpenTelemetry instrumentor; `otel_activity.instrument` in the form that tools expect."""

    def instrumentation_dependencies(self) -> Collection[str]:
        """The versions of SQLAlchemy that are captured."""
        return ("sqlalchemy >= 2.0.40, < 2.2",)

    def _instrument(self, **kwargs: Any) -> None:
        # Under opentelemetry-instrument the decision has been made; a direct call raises what is wrong.
        if kwargs or not _started:
            _api().instrument(**kwargs)

    def _uninstrument(self, **kwargs: Any) -> None:
        global _started
        _api().uninstrument()
        _started = False
