"""Fixtures: the Collector and Kafka's jars, built or fetched once and kept in the cache of the user."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from tests.collector.processes import CONFIGURATIONS
from tests.support import require_tool, skip_missing

COMPOSE: Final = "v2.6.0"
"""Of the loader that Docker Compose is made with."""


def _cache() -> Path:
    """Where what takes long to get is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "otel_activity"


@pytest.fixture(scope="session")
def collector_program() -> Path:
    """The Collector that ``collector-config/build.sh`` builds; the first time it takes minutes."""
    done = subprocess.run([str(CONFIGURATIONS / "build.sh")], capture_output=True, text=True)
    if done.returncode and shutil.which("go") is None:
        skip_missing(done.stderr.strip())
    assert done.returncode == 0, done.stderr[-4000:]
    return Path(done.stdout.strip())


@pytest.fixture(scope="session")
def compose_program() -> Path:
    """Compose's loader, which needs no Docker: it reads, checks against the schema and resolves."""
    go = require_tool("go")
    program = _cache() / f"compose-go-{COMPOSE}" / "cmd"
    if not program.exists():
        module = f"github.com/compose-spec/compose-go/v2/cmd@{COMPOSE}"
        environment = {**os.environ, "GOBIN": str(program.parent), "CGO_ENABLED": "0"}
        done = subprocess.run([go, "install", module], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
    return program


@pytest.fixture(scope="session")
def kafka_jars() -> Path:
    """The jars of Apache Kafka, from Maven Central."""
    maven, _ = require_tool("mvn"), require_tool("java")
    cache = _cache() / "kafka"
    jars = cache / "4.1.1"
    if not jars.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        fresh = cache / f"fetching-{os.getpid()}"
        pom = Path(__file__).parent / "kafka.pom.xml"
        fetch = ["dependency:copy-dependencies", f"-DoutputDirectory={fresh}"]
        done = subprocess.run([maven, "-q", "-B", "-f", str(pom), *fetch], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:]
        fresh.rename(jars)  # whole or not at all
    return jars
