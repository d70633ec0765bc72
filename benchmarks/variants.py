"""The variants side by side: what their databases hold, and how it is counted what they recorded."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Final

import msgspec
import psycopg
from psycopg import sql
from sqlalchemy import create_engine

from benchmarks import workloads
from benchmarks.models import TABLES, Base
from benchmarks.server import sqlalchemy_url

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.server import Server

__all__ = ["BASE", "VARIANTS", "Databases", "Variant", "WrongCount"]


class Variant(msgspec.Struct, frozen=True):
    """One way of auditing.

    Attributes:
        name: short, for tables and JSON.
        title: what it is, for people.
        triggers: whether the application's tables have row-level triggers.
        store: where our events go: ``same`` database, ``other`` database of the server, or None for nowhere.
        delivery: ``OTEL_ACTIVITY_DELIVERY``.
        proof: ``OTEL_ACTIVITY_COMMIT_PROOF``.
    """

    name: str
    title: str
    triggers: bool = False
    store: str | None = None
    delivery: str = "best_effort"
    proof: str = "off"

    @property
    def settings(self) -> dict[str, str]:
        """Environment of its client, the address of the store apart."""
        return {"OTEL_ACTIVITY_DELIVERY": self.delivery, "OTEL_ACTIVITY_COMMIT_PROOF": self.proof}


BASE: Final = Variant("none", "without auditing")
VARIANTS: Final = (
    Variant("triggers", "row triggers, 33 columns, 7 indexes", triggers=True),
    Variant("same", "otel_activity, best_effort, store in the same database", store="same"),
    Variant("other", "otel_activity, best_effort, store in another database", store="other"),
    Variant(
        "durable", "otel_activity, durable, store in another database", store="other", delivery="durable"
    ),
    Variant("proven", "the same with proof of commit", store="other", delivery="durable", proof="auto"),
    Variant("strict", "otel_activity, strict: outbox in the transaction", store="other", delivery="strict"),
)


class WrongCount(Exception):
    """A variant recorded something else than what was done; its times mean nothing."""


class Databases:
    """Templates for every variant, and a fresh copy of them for every client.

    Args:
        server: where.
        attachments: rows to seed for requests to delete; the most requests one client can do.
        prefix: of all the databases' names.
    """

    def __init__(self, server: Server, attachments: int, prefix: str) -> None:
        self._server = server
        self._attachments = attachments
        self._prefix = prefix

    def create_templates(self, variants: tuple[Variant, ...]) -> None:
        """The application's tables with their rows, for each variant with what it needs."""
        dsn = self._server.create(self._name("app"))
        engine = create_engine(sqlalchemy_url(dsn))
        Base.metadata.create_all(engine)
        engine.dispose()
        with psycopg.connect(dsn, cursor_factory=psycopg.ClientCursor) as connection:
            connection.execute(
                _statement("seed"), {"tasks": workloads.TASKS, "attachments": self._attachments}
            )
        _analyse(dsn)
        if any(variant.triggers for variant in variants):
            _add_triggers(self._server.create(self._name("app_triggers"), self._name("app")))
        if any(variant.store == "same" for variant in variants):
            _add_store(self._server.create(self._name("app_store"), self._name("app")))
        if any(variant.store == "other" for variant in variants):
            _add_store(self._server.create(self._name("store")))

    def open(self, variant: Variant) -> None:
        """Fresh databases for one client of the variant."""
        suffix = "_triggers" if variant.triggers else "_store" if variant.store == "same" else ""
        application = self._server.create(self.application(variant), self._name(f"app{suffix}"))
        if variant.delivery == "strict":
            _add_outbox(application)
        if variant.store == "other":
            self._server.create(self.store(variant), self._name("store"))

    def close(self, variant: Variant) -> None:
        """Drop what `open` created."""
        self._server.drop({self.application(variant), self.store(variant)})

    def drop_all(self, variants: tuple[Variant, ...]) -> None:
        """Drop everything of ours, also what a run that was interrupted left behind."""
        for variant in variants:
            self.close(variant)
        self._server.drop(self._name(name) for name in ("app", "app_triggers", "app_store", "store"))

    def application(self, variant: Variant) -> str:
        """Name of the application's database."""
        return self._name(f"run_{variant.name}")

    def store(self, variant: Variant) -> str:
        """Name of the database that our events go to."""
        return (
            self._name(f"run_{variant.name}_store") if variant.store == "other" else self.application(variant)
        )

    def check(self, variant: Variant, workload: str, executions: int) -> None:
        """Count what was done and what was recorded, both as the database has it.

        Raises:
            WrongCount: they differ from what `executions` of the workload must give.
        """
        with psycopg.connect(self._server.dsn(self.application(variant))) as connection:
            row = connection.execute(_statement("work_done"), {"attachments": self._attachments}).fetchone()
            assert row is not None
            inserted, updated, deleted, items = row
            _compare(
                f"{variant.name}: work done",
                _expected_work(workload, executions),
                {
                    "inserted": inserted,
                    "updated": updated,
                    "deleted": deleted,
                    "items": items,
                },
            )
        if variant.triggers:
            self._check_recorded(variant, workload, executions, self.application(variant), "trigger_rows")
        if variant.store:
            self._check_recorded(variant, workload, executions, self.store(variant), "stored_events")

    def _check_recorded(
        self, variant: Variant, workload: str, executions: int, database: str, statement: str
    ) -> None:
        with psycopg.connect(self._server.dsn(database)) as connection:
            cursor = connection.execute(_statement(statement))
            row = cursor.fetchone()
            assert row is not None
            assert cursor.description is not None
            found = dict(zip((column.name for column in cursor.description), row, strict=True))
        _compare(f"{variant.name}: recorded", _expected_events(workload, executions), found)

    def _name(self, suffix: str) -> str:
        return f"{self._prefix}_{suffix}"


def _expected_work(workload: str, executions: int) -> dict[str, int]:
    if workload == "insert":
        return {"inserted": 0, "updated": 0, "deleted": 0, "items": executions * workloads.ITEMS}
    return {"inserted": executions, "updated": executions, "deleted": executions, "items": 0}


def _expected_events(workload: str, executions: int) -> dict[str, int]:
    total = executions * workloads.EVENTS[workload]
    each = executions if workload == "request" else 0
    created = executions if workload == "request" else total
    return {"created": created, "updated": each, "deleted": each, "rows": total, "distinct_ids": total}


def _compare(what: str, expected: Mapping[str, int], found: Mapping[str, int]) -> None:
    wrong = [
        f"{name} {found[name]}, not {number}" for name, number in expected.items() if found[name] != number
    ]
    if wrong:
        raise WrongCount(f"{what}: {'; '.join(wrong)}")


def _add_triggers(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute(_statement("triggers"))
        for table in TABLES:
            connection.execute(sql.SQL(_statement("trigger")).format(table=sql.Identifier(table)))
    _analyse(dsn)


def _add_store(dsn: str) -> None:
    from otel_activity.postgres import schema

    schema.apply(dsn)
    _analyse(dsn)


def _add_outbox(dsn: str) -> None:
    from otel_activity.postgres.outbox import apply_outbox

    apply_outbox(dsn)


def _analyse(dsn: str) -> None:
    """Statistics and hint bits, once in the template instead of at random in the copies."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("VACUUM (ANALYZE, FREEZE)")


def _statement(name: str) -> str:
    return resources.files("benchmarks").joinpath("sql", f"{name}.sql").read_text(encoding="utf-8")
