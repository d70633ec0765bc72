"""A whole pipeline: two applications, a Collector, the receiver, a store of its own, and the truth."""

from __future__ import annotations

import json
import uuid
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import httpx
import psycopg

from otel_activity.cli.demo_reconcile import EntityEvent, Reconciliation, reconcile
from otel_activity.cli.demo_store import DemoStore, application_url
from otel_activity.embedded import EmbeddedPostgres
from otel_activity.postgres import schema
from tests.collector.processes import Program, answers, eventually, instrumented, otel_activity, reserved_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Board", "Pipeline", "Receiver"]

T = TypeVar("T")
EXAMPLES: Final = Path(__file__).parents[2] / "examples"


class Receiver(Program):
    """``otel-activity receive`` on a port of its own; `options` as one would type them."""

    def __init__(self, directory: Path, store: str, *options: str) -> None:
        self.grpc, self.http = reserved_port(), reserved_port()
        super().__init__(
            f"receive-{self.grpc}",
            directory,
            otel_activity("receive", "--grpc-port", str(self.grpc), "--http-port", str(self.http), *options),
            {"OTEL_ACTIVITY_POSTGRES_DSN": store},
            lambda: answers(f"http://127.0.0.1:{self.http}/healthz"),
        )

    @property
    def address(self) -> str:
        """What a Collector's ``COLLECTOR_STORE`` is set to."""
        return f"127.0.0.1:{self.grpc}"


class Pipeline:
    """Databases and applications; the programs between them are the test's.

    Args:
        application: connection string of an empty database for the applications.
        directory: for logs and data.
    """

    endpoint: str
    """Where the applications send, OTLP over HTTP."""

    def __init__(self, application: str, directory: Path) -> None:
        self.directory = directory
        self.application = application
        self._stack = ExitStack()
        self.database = self._stack.enter_context(EmbeddedPostgres(fsync=False))
        self.store = self.database.create_database("store")
        schema.apply(self.store)
        self.truth = self._stack.enter_context(closing(DemoStore(application)))
        self.truth.prepare()
        self.instances: list[str] = []

    def adopt(self, program: Program) -> None:
        """End this program when the pipeline is closed, before those that were adopted earlier."""
        self._stack.callback(program.kill)

    def keep(self, resource: AbstractContextManager[T]) -> T:
        """Close this resource when the pipeline is closed."""
        return self._stack.enter_context(resource)

    def close(self) -> None:
        """End everything."""
        self._stack.close()

    def application_of(self, name: str, command: list[str], **variables: str) -> Program:
        """A program under ``opentelemetry-instrument`` that sends its audit events to `endpoint`."""
        instance = str(uuid.uuid4())
        self.instances.append(instance)
        environment = {
            "DATABASE_URL": application_url(self.application),
            "OTEL_SERVICE_NAME": name,
            "OTEL_RESOURCE_ATTRIBUTES": f"service.instance.id={instance}",
            "OTEL_ACTIVITY_EXPORTERS": "otlp",
            "OTEL_ACTIVITY_OTLP_ENDPOINT": self.endpoint,
            "OTEL_ACTIVITY_JOURNAL_DIR": str(self.directory / f"journal-{name}"),
            "OTEL_BLRP_SCHEDULE_DELAY": "100",
            "OTEL_TRACES_EXPORTER": "none",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_LOGS_EXPORTER": "none",
            "PYTHONPATH": f"{EXAMPLES.parent}:{EXAMPLES}",
            **variables,
        }
        program = Program(name, self.directory, instrumented(command), environment, lambda: True)
        self.adopt(program)
        return program

    def price_list(
        self, label: str, *, articles: int, pause: float = 0, **variables: str
    ) -> Callable[[], None]:
        """Start the price list's job; the returned function waits for its end."""
        arguments = ["--articles", str(articles), "--label", label, "--pause", str(pause)]
        command = ["python", "-m", "price_list.job", *arguments]
        program = self.application_of("price-list", command, **variables)
        program.start()

        def finish() -> None:
            assert program.wait() == 0, program.log.read_text()[-4000:]

        return finish

    # --- the truth --------------------------------------------------------------------------------

    def reconciled(self) -> Reconciliation:
        """What the store has, held against what the applications' database committed."""
        return reconcile(self.truth.rows(), list(self._events()), self.truth.types)

    def _events(self) -> Iterator[EntityEvent]:
        with closing(DemoStore(self.store)) as store:
            for instance in self.instances:
                for event in store.events(instance):
                    yield _with_parts(event)

    def count(self) -> tuple[int, int]:
        """How many events are stored, and how many ids they have."""
        with psycopg.connect(self.store) as connection:
            row = connection.execute("SELECT count(*), count(DISTINCT id) FROM activity.events").fetchone()
        assert row is not None
        return row[0], row[1]

    def strangers(self) -> str:
        """What is stored besides the changes of the applications' rows."""
        query = (
            "SELECT service, resource_id, name, entity_type, action, count(*)"
            " FROM activity.events GROUP BY 1, 2, 3, 4, 5"
        )
        with psycopg.connect(self.store) as connection:
            return "\n".join(map(str, connection.execute(query).fetchall()))

    def wait_for_all(self, timeout: float = 90) -> None:
        """Return when as many events are stored as rows were committed; more are found by `reconciled`."""
        committed = len(self.truth.rows())
        eventually(lambda: self.count()[0] >= committed, f"{committed} events are stored", timeout)


def _with_parts(event: EntityEvent) -> EntityEvent:
    """A composite key, taken apart: this end of the pipeline does not know which keys are composite."""
    (key,) = event.key
    return replace(event, key=tuple(map(str, json.loads(key)))) if key.startswith("[") else event


class Board:
    """The project board: a web application, used over HTTP."""

    def __init__(self, pipeline: Pipeline) -> None:
        port = reserved_port()
        self.url = f"http://127.0.0.1:{port}"
        self.program = pipeline.application_of(
            "project-board",
            ["uvicorn", "project_board.app:app", "--port", str(port), "--log-level", "warning"],
        )
        self.program.start()
        eventually(lambda: answers(f"{self.url}/health"), "the project board answers")
        self._client = pipeline.keep(httpx.Client(base_url=self.url, timeout=60, trust_env=False))

    def begin(self) -> None:
        """Register a person and start a project."""
        person = {"email": "ann@example.org", "name": "Ann", "password": "correct horse"}
        owner = self._post("/users", person)["id"]
        project = {"owner_id": owner, "name": "Move", "budget": "1000"}
        self._project = self._post("/projects", project)["id"]

    def tasks(self, count: int) -> None:
        """Import tasks in one transaction, and as many again that are rolled back."""
        tasks = [{"title": f"task {number}"} for number in range(count)]
        path = f"/projects/{self._project}/import"
        assert self._post(path, tasks)["added"] == count
        assert self._post(f"{path}?dry_run=true", tasks[:100])["added"] == 0

    def _post(self, path: str, body: Any) -> Any:
        answer = self._client.post(path, json=body)
        assert answer.is_success, answer.text
        return answer.json()
