"""Running the command line, in this process and as one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from inspect import signature
from typing import Any

from click.testing import CliRunner, Result

from otel_activity.cli.app import cli

# click before 8.2 mixes stderr into stdout unless it is told not to; later it never does.
_SEPARATE: dict[str, Any] = {"mix_stderr": False} if "mix_stderr" in signature(CliRunner).parameters else {}

__all__ = ["clean_environment", "json_lines", "run", "start"]


def clean_environment(dsn: str | None = None, **variables: str) -> dict[str, str]:
    """This process's environment without OpenTelemetry's variables, and with those given."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "COLUMNS"))}
    named = {} if dsn is None else {"OTEL_ACTIVITY_POSTGRES_DSN": dsn}
    return {**kept, **named, **variables}


def run(*arguments: str, dsn: str | None = None, **variables: str) -> Result:
    """Run a command in this process; an exception that is no exit fails the test."""
    unset: dict[str, str | None] = {
        name: None for name in os.environ if name.startswith(("OTEL_", "COLUMNS"))
    }
    environment = {**unset, **variables}
    if dsn is not None:
        environment["OTEL_ACTIVITY_POSTGRES_DSN"] = dsn
    result = CliRunner(**_SEPARATE).invoke(cli, list(arguments), env=environment, prog_name="otel-activity")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def json_lines(text: str) -> list[dict[str, Any]]:
    """Each line as the JSON object that it is."""
    return [json.loads(line) for line in text.splitlines()]


def start(*arguments: str, dsn: str | None = None, **options: Any) -> subprocess.Popen[str]:
    """Start ``otel-activity`` as a process with pipes for its output."""
    program = "from otel_activity.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env=clean_environment(dsn),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
