"""The programs of a pipeline as processes that tests start, kill and start again."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from otel_activity.embedded import bound_to_this_process

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = [
    "CONFIGURATIONS",
    "Collector",
    "Kafka",
    "Program",
    "Prometheus",
    "answers",
    "eventually",
    "instrumented",
    "otel_activity",
    "reserved_port",
]

CONFIGURATIONS: Final = Path(__file__).parents[2] / "collector-config"
_BIN: Final = Path(sys.executable).parent
_PORTS: Final = iter(random.sample(range(15_000, 32_000), 17_000))
"""Below those that Linux hands out (32768 and up), each once."""
TOPIC_SETTINGS: Final = ("max.message.bytes=16777216",)


def eventually(check: Callable[[], object], what: str, timeout: float = 60) -> None:
    """Return when `check` is true; fail when it is not within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not check():
        assert time.monotonic() < deadline, f"within {timeout} s: {what}"
        time.sleep(0.05)


def reserved_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on, and that no outgoing connection takes meanwhile.

    A program here is killed and started again on the same port; one that the kernel hands out by itself
    could be gone by then.
    """
    for port in _PORTS:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def answers(url: str) -> bool:
    """Whether an HTTP server says that all is well."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def listens(port: int) -> bool:
    """Whether somebody listens on 127.0.0.1."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Program:
    """A process that writes its output to a file, and may be started again after its end.

    Args:
        name: of the file.
        directory: for the file.
        command: what one would type.
        environment: variables besides those of this process that are not OpenTelemetry's.
        ready: whether it works.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        command: Sequence[str],
        environment: Mapping[str, str],
        ready: Callable[[], bool],
    ) -> None:
        self.name = name
        self.log = directory / f"{name}.log"
        self.command = list(command)
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
        self.environment = {**inherited, **environment}
        self._ready = ready
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it works."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                bound_to_this_process(self.command),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        eventually(self._check, f"{self.name} works")

    def _check(self) -> bool:
        assert self._process is not None
        status = self._process.poll()
        assert status is None, f"{self.name} ended with {status}:\n{self.log.read_text()[-4000:]}"
        return self._ready()

    def kill(self) -> None:
        """End it as the kernel ends what takes too much memory."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Ask it to end, and wait; its exit status."""
        return self._end(signal.SIGTERM)

    def wait(self, timeout: float = 120) -> int:
        """Wait for its own end; its exit status."""
        process, self._process = self._process, None
        assert process is not None
        try:
            return process.wait(timeout)
        finally:
            process.kill()

    def _end(self, how: signal.Signals) -> int:
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(how)
        try:
            return process.wait(timeout=60)
        finally:
            process.kill()
            process.wait()


class Collector(Program):
    """A Collector with files of ``collector-config/``, on ports and in a directory of its own.

    Args:
        program: the Collector.
        configurations: names without ``.yaml``, each laid over those before.
        directory: for queue and data; made if it is missing.
        variables: further ``COLLECTOR_*`` variables, without that prefix.
    """

    def __init__(
        self, program: Path, configurations: Sequence[str], directory: Path, **variables: str
    ) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.grpc, self.http, self.metrics, self.own_metrics, health = (reserved_port() for _ in range(5))
        files = [str(CONFIGURATIONS / f"{name}.yaml") for name in configurations]
        settings = {
            "OTLP_GRPC": f"127.0.0.1:{self.grpc}",
            "OTLP_HTTP": f"127.0.0.1:{self.http}",
            "METRICS": f"127.0.0.1:{self.metrics}",
            "OWN_METRICS_PORT": str(self.own_metrics),
            "HEALTH": f"127.0.0.1:{health}",
            "QUEUE_DIR": str(directory / "queue"),
            "DATA_DIR": str(directory / "data"),
            "FLUSH_INTERVAL": "1s",
            **variables,
        }
        super().__init__(
            f"collector-{'-'.join(configurations)}",
            directory,
            [str(program), *(part for file in files for part in ("--config", file))],
            {f"COLLECTOR_{name}": value for name, value in settings.items()},
            lambda: answers(f"http://127.0.0.1:{health}"),
        )

    @property
    def endpoint(self) -> str:
        """Where applications send, OTLP over HTTP."""
        return f"http://127.0.0.1:{self.http}"

    def send_logs(self, request: dict[str, Any]) -> None:
        """Post logs in OTLP's JSON; fails unless they are taken."""
        post = urllib.request.Request(
            f"{self.endpoint}/v1/logs",
            data=json.dumps(request).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(post, timeout=60) as response:
            assert response.status == 200

    def validate(self) -> None:
        """Ask the Collector about the files, with the variables that it would run with.

        Raises:
            AssertionError: it finds a fault; says which.
        """
        done = subprocess.run(
            [self.command[0], "validate", *self.command[1:]],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr


class Prometheus(Program):
    """Prometheus with ``collector-config/prometheus.yaml`` and its rules, here every second.

    Args:
        program: the path of ``prometheus``.
        directory: for its data.
        ports: what to scrape instead of the file's ports.
    """

    def __init__(self, program: str, directory: Path, ports: Mapping[int, int]) -> None:
        port = reserved_port()
        self.url = f"http://127.0.0.1:{port}"
        settings = (CONFIGURATIONS / "prometheus.yaml").read_text().replace("15s", "1s")
        for usual, actual in ports.items():
            assert f":{usual}" in settings
            settings = settings.replace(f":{usual}", f":{actual}")
        settings = settings.replace("[prometheus/", f"[{CONFIGURATIONS}/prometheus/")
        settings = settings.replace("global:\n", "global:\n  evaluation_interval: 1s\n")
        file = directory / "prometheus.yaml"
        file.write_text(settings)
        command = [
            program,
            f"--config.file={file}",
            f"--storage.tsdb.path={directory / 'prometheus'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--enable-feature=exemplar-storage",
        ]
        super().__init__("prometheus", directory, command, {}, lambda: answers(f"{self.url}/-/ready"))

    def value(self, expression: str) -> float:
        """The number that an expression yields now; 0 when it yields nothing."""
        found = self.query(expression)
        assert len(found) <= 1, f"{expression} yields {len(found)} series"
        return float(found[0]["value"][1]) if found else 0.0

    def query(self, expression: str, at: float | None = None) -> list[Any]:
        """All series that an expression yields now, or did at a time in seconds since the epoch."""
        when = {} if at is None else {"time": str(at)}
        found: list[Any] = self._ask("query", query=expression, **when)["result"]
        return found

    def exemplars(self, expression: str) -> list[Any]:
        """All exemplars of the last hour of the series that an expression selects."""
        now = time.time()
        found = self._ask("query_exemplars", query=expression, start=str(now - 3600), end=str(now + 60))
        return [exemplar for series in found for exemplar in series["exemplars"]]

    def _ask(self, what: str, **parameters: str) -> Any:
        url = f"{self.url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as response:
            return json.load(response)["data"]


class Kafka(Program):
    """An Apache Kafka of one node, with a topic for audit events.

    Args:
        jars: directory with the broker's jars.
        directory: for its data.
        partitions: of the topic ``activity``.
    """

    def __init__(self, jars: Path, directory: Path, partitions: int) -> None:
        self.port, controller = reserved_port(), reserved_port()
        self.address = f"127.0.0.1:{self.port}"
        self._java = [str(shutil.which("java")), "-XX:TieredStopAtLevel=1", "-cp", f"{jars}/*"]
        self._partitions = partitions
        self._settings = directory / "server.properties"
        self._settings.write_text(
            "process.roles=broker,controller\nnode.id=1\n"
            f"controller.quorum.voters=1@127.0.0.1:{controller}\ncontroller.listener.names=CONTROLLER\n"
            f"listeners=PLAINTEXT://{self.address},CONTROLLER://127.0.0.1:{controller}\n"
            f"advertised.listeners=PLAINTEXT://{self.address}\n"
            "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\n"
            f"log.dirs={directory / 'kafka'}\n"
            "offsets.topic.replication.factor=1\noffsets.topic.num.partitions=1\n"
            "group.initial.rebalance.delay.ms=0\nauto.create.topics.enable=false\n"
        )
        super().__init__(
            "kafka",
            directory,
            [*self._java, "-Xmx256m", "kafka.Kafka", str(self._settings)],
            {},
            lambda: listens(self.port),
        )

    def prepare(self) -> None:
        """Format its disk, start it and create the topic."""
        identity = "MkU3OEVBNTcwNTJENDM2Qg"
        self._run("kafka.tools.StorageTool", "format", "-t", identity, "-c", str(self._settings))
        self.start()
        self._run(
            "org.apache.kafka.tools.TopicCommand",
            *("--bootstrap-server", self.address, "--create", "--topic", "activity"),
            *("--partitions", str(self._partitions), "--replication-factor", "1"),
            *(part for setting in TOPIC_SETTINGS for part in ("--config", setting)),
        )

    def lags(self) -> list[int]:
        """For each partition that a gateway has ever read: how many messages are not committed."""
        table = self._run(
            "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
            *("--bootstrap-server", self.address, "--describe", "--group", "otel-activity"),
        )
        rows = [line.split() for line in table.splitlines() if line.strip()]
        column = rows[0].index("LAG")
        return [int(row[column]) for row in rows[1:] if row[column].isdigit()]

    def _run(self, *command: str) -> str:
        done = subprocess.run([*self._java, *command], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def otel_activity(*arguments: str) -> list[str]:
    """Our command, of this environment, whether or not it is active."""
    return [str(_BIN / "otel-activity"), *arguments]


def instrumented(command: Sequence[str]) -> list[str]:
    """A command of this environment under ``opentelemetry-instrument``."""
    program, *arguments = command
    return [str(_BIN / "opentelemetry-instrument"), str(_BIN / program), *arguments]
