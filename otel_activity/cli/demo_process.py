"""The example application as a process of its own, audited by nothing but environment variables."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Final

from otel_activity.cli.demo_store import EVENTS_SCHEMA, application_url
from otel_activity.embedded import bound_to_this_process, free_port
from otel_activity.errors import ActivityError

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["SERVICE_NAME", "ProjectBoard", "environment", "locate"]

SERVICE_NAME: Final = "project-board"
START_TIMEOUT: Final = 60.0
STOP_TIMEOUT: Final = 60.0
LOG_TAIL_LINES: Final = 15
# Ctrl-C in the terminal is for the demo, which then stops the application in order.
_CREATION_FLAGS: Final = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)


def locate() -> list[str]:
    """uvicorn's arguments that name the application: in the installed package, or in a checkout.

    Raises:
        ActivityError: it is in neither.
    """
    package = Path(__file__).parent
    if (package / "project_board" / "app.py").is_file():
        return ["otel_activity.cli.project_board.app:app"]
    examples = package.parents[1] / "examples"
    if (examples / "project_board" / "app.py").is_file():
        return ["project_board.app:app", "--app-dir", str(examples)]
    raise ActivityError("the example application is missing; reinstall otel-activity")


def environment(dsn: str, instance: str, journal: Path) -> dict[str, str]:
    """The application's variables. OpenTelemetry's of the caller are left out, they are meant for others."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return kept | {
        "DATABASE_URL": application_url(dsn),
        "OTEL_ACTIVITY_POSTGRES_DSN": dsn,
        "OTEL_ACTIVITY_POSTGRES_SCHEMA": EVENTS_SCHEMA,
        "OTEL_ACTIVITY_JOURNAL_DIR": str(journal),
        "OTEL_SERVICE_NAME": SERVICE_NAME,
        "OTEL_RESOURCE_ATTRIBUTES": f"service.instance.id={instance}",
        "OTEL_BLRP_SCHEDULE_DELAY": "250",  # the default of a second is a long time for a person who watches
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "PYTHONUNBUFFERED": "1",
    }


class ProjectBoard:
    """The running application. Leaving the context stops it, by force if it must be.

    Args:
        dsn: the database it works on, and its events go to.
        directory: where it runs and writes its log; it need not be empty.
    """

    def __init__(self, dsn: str, directory: Path) -> None:
        self.instance = str(uuid.uuid4())
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = directory / "application.log"
        self._dsn = dsn
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                bound_to_this_process(self.command()),
                cwd=self._directory,
                env=environment(self._dsn, self.instance, self._directory / "journal"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                creationflags=_CREATION_FLAGS,
                start_new_session=sys.platform != "win32",
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()

    def command(self) -> list[str]:
        """What one would type."""
        serve = ["-m", "uvicorn", *locate(), "--host", "127.0.0.1", "--port", str(self.port)]
        quiet = ["--log-level", "warning", "--timeout-graceful-shutdown", "10"]
        return [*_instrument(), sys.executable, *serve, *quiet]

    def wait_until_ready(self) -> None:
        """Return when the application and its database answer.

        Raises:
            ActivityError: it ended, or does not answer; the text has the end of its log.
        """
        import httpx

        deadline = time.monotonic() + START_TIMEOUT
        while True:
            self.check()
            try:
                if httpx.get(f"{self.url}/health", timeout=5, trust_env=False).is_success:
                    return
            except httpx.TransportError:
                pass
            if time.monotonic() > deadline:
                raise ActivityError(f"the application does not answer; its log says:\n{self._log_tail()}")
            time.sleep(0.05)

    def check(self) -> None:
        """Raise if the application has ended by itself."""
        if self._process is None or self._process.poll() is not None:
            status = None if self._process is None else self._process.returncode
            raise ActivityError(
                f"the application ended with status {status}; its log says:\n{self._log_tail()}"
            )

    def stop(self) -> None:
        """Ask the application to end, as any service manager would, and wait until it has.

        Raises:
            ActivityError: it does not end, or had ended before.
        """
        self.check()
        assert self._process is not None  # noqa: S101 - check() has looked
        self._process.send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM))
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise ActivityError(f"the application does not stop; its log says:\n{self._log_tail()}") from None

    def _log_tail(self) -> str:
        lines = self.log_path.read_text(errors="replace").splitlines()
        return "\n".join(lines[-LOG_TAIL_LINES:]) or "(nothing)"


def _instrument() -> list[str]:
    """``opentelemetry-instrument`` of the same environment, whether or not that is active."""
    beside = Path(sys.executable).parent
    found = shutil.which("opentelemetry-instrument", path=str(beside))
    if found is not None:
        return [found]
    return [sys.executable, "-c", "from opentelemetry.instrumentation.auto_instrumentation import run; run()"]
