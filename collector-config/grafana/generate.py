"""Writes the Grafana dashboards: ``python collector-config/grafana/generate.py``.

Needs ``grafana-foundation-sdk``, which the extra ``test`` brings. The JSON files are committed; a test
compares them with what is written here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

sys.path.insert(0, str(Path(__file__).parent))

from grafana_foundation_sdk.builders.dashboard import Row
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from panels import bars, board, chosen, compared, curves, fact, facts, listing, typed

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders.dashboard import Dashboard

__all__ = ["DASHBOARDS", "generated"]

FOLDER: Final = Path(__file__).parent / "dashboards"
SERVICES: Final = "label_values(otel_activity_event_released_total, job)"
DATABASES: Final = "label_values(postgresql_backends, postgresql_database_name)"


def overview() -> Dashboard:
    """What happens."""
    return (
        board("overview", "Activity: overview", "Who changes what, across services.")
        .with_variable(chosen("service", "Service", "services"))
        .with_panel(
            facts("In this time", "Events, people, failures, and events by nobody.", 24, "overview_facts")
        )
        .with_panel(bars("Actions", "Events by action.", 12, "overview_actions"))
        .with_panel(bars("Services", "Events by service.", 12, "overview_services"))
        .with_panel(listing("Most changed", "Entity types by events.", 12, "overview_entities"))
        .with_panel(listing("Most active", "Actors by events.", 12, "overview_actors"))
        .with_panel(listing("Failures", "The last 50 actions that failed.", 24, "overview_failures"))
        .with_panel(listing("Newest", "The last 100 events.", 24, "overview_latest", height=12))
    )


def history() -> Dashboard:
    """What happened to one thing."""
    return (
        board("history", "Activity: entity history", "Every change of one entity.", since="now-30d")
        .with_variable(chosen("entity_type", "Entity type", "entity_types", many=False))
        .with_variable(typed("entity_id", "Entity", ""))
        .with_panel(facts("In this time", "Events, people, first and last.", 24, "history_facts"))
        .with_panel(bars("Actions", "When it was changed.", 16, "history_actions"))
        .with_panel(listing("Actors", "Who changed it.", 8, "history_actors", height=8))
        .with_panel(listing("Changes", "Field by field, newest first.", 24, "history_changes", height=16))
    )


def actor() -> Dashboard:
    """What one person or service did."""
    return (
        board("actor", "Activity: actor", "Everything that one actor did.", since="now-7d")
        .with_variable(typed("actor", "Actor", ""))
        .with_panel(facts("In this time", "Events, failures, entities, first and last.", 24, "actor_facts"))
        .with_panel(bars("Actions", "When, and what.", 24, "actor_actions"))
        .with_panel(listing("Done to", "Entity types and actions.", 12, "actor_entities"))
        .with_panel(listing("Came from", "Addresses and user agents.", 12, "actor_addresses"))
        .with_panel(listing("Newest", "The last 200 events.", 24, "actor_latest", height=14))
    )


def pipeline() -> Dashboard:
    """Whether everything that was committed gets stored, and what that costs."""
    made = board("pipeline", "Activity: pipeline health", "From COMMIT to the store.", since="now-6h")
    made = made.with_variable(chosen("job", "Service", SERVICES))
    made = made.with_variable(chosen("database", "Audited database", DATABASES))
    for panel in (
        fact("Lost", "Events lost in this time.", "short", "lost", bad=1),
        fact("Oldest waiting", "Age of the oldest event that waits for an exporter.", "s", "oldest", bad=300),
        fact("Exporters failing", "Whose last attempt failed.", "short", "failing", bad=1),
        fact("Quarantined", "Events put aside in this time.", "short", "quarantined", bad=1),
        fact("Undecided", "Transactions whose COMMIT got no answer.", "short", "undecided", bad=1),
        fact("Stores down", "Receivers that cannot write.", "short", "stores_down", bad=1),
    ):
        made = made.with_panel(panel)
    made = made.with_row(Row("Applications"))
    for curve in (
        curves(
            "Events",
            "Released after COMMIT, and confirmed by exporters.",
            12,
            "ops",
            released="released by {{job}}",
            confirmed="confirmed by {{otel_component_name}}",
        ),
        curves(
            "Queues",
            "How full the exporters' queues are.",
            12,
            "percentunit",
            queues="{{job}} {{otel_component_name}}",
        ),
        curves(
            "Export",
            "The slowest twentieth of the attempts.",
            12,
            "s",
            export_seconds="{{otel_component_name}}",
        ),
        curves("Retries", "Attempts that failed.", 12, "ops", retries="{{otel_component_name}}"),
        curves(
            "Cost of a commit",
            "What delivery takes of a request around COMMIT.",
            12,
            "s",
            commit_median="half of {{otel_activity_step}}",
            commit_slowest="99 % of {{otel_activity_step}}",
        ),
        curves("Journals", "Bytes on disk.", 6, "bytes", journal_bytes="{{job}}"),
        curves("Unconfirmed", "Transactions in the journals.", 6, "short", journal_units="{{job}}"),
        curves(
            "Requests",
            "The slowest twentieth. Exemplars are traces: otel-activity search --trace shows their events.",
            12,
            "s",
            http_seconds="{{http_request_method}} {{http_route}}",
        ),
        curves(
            "Statements and waits",
            "The slowest twentieth, with OTEL_ACTIVITY_DATABASE_METRICS.",
            12,
            "s",
            operation_seconds="{{db_namespace}} {{db_operation_name}}",
            wait_seconds="waiting for {{db_client_connection_pool_name}}",
        ),
        curves(
            "Connections",
            "Of the applications' own pools.",
            24,
            "short",
            connections="{{db_client_connection_pool_name}} {{db_client_connection_state}}",
            connections_most="{{db_client_connection_pool_name}} at most",
        ),
    ):
        made = made.with_panel(curve)
    return _behind_the_applications(made)


def _behind_the_applications(made: Dashboard) -> Dashboard:
    made = made.with_row(Row("Collector and receiver"))
    for curve in (
        curves(
            "Collector",
            "Records in its queues, and those that it gave up.",
            12,
            "short",
            collector_queues="{{exporter}}",
            collector_given_up="given up",
        ),
        curves("Requests to the receiver", "By outcome.", 12, "reqps", receiver_requests="{{outcome}}"),
        curves("Records", "What became of them in the receiver.", 12, "ops", receiver_records="{{result}}"),
        curves(
            "Commits of the receiver",
            "From the first row of a group to its COMMIT: the slowest twentieth.",
            12,
            "s",
            receiver_commits="95 %",
        ),
    ):
        made = made.with_panel(curve)
    made = _audited_databases(made)
    return (
        made.with_row(Row("Store"))
        .with_panel(bars("Stored", "By service.", 12, "pipeline_stored"))
        .with_panel(listing("Quarantine", "What the store put aside.", 12, "pipeline_quarantine", height=8))
        .with_panel(listing("Streams", "Processes, and numbers that are missing.", 24, "pipeline_streams"))
    )


def _audited_databases(made: Dashboard) -> Dashboard:
    made = made.with_row(Row("Audited databases"))
    table = "{{postgresql_database_name}} {{postgresql_table_name}}"
    for curve in (
        curves(
            "Blind spots",
            "Share of the changed rows of an hour that were not captured; an estimate, see docs/alerts.md.",
            12,
            "percentunit",
            blind_spots="{{database}} {{table}}",
        ),
        curves(
            "Rows written and captured",
            "In the last hour. A table without a captured line is not audited.",
            12,
            "short",
            rows_written="{{database}} {{table}} written",
            rows_captured="{{database}} {{table}} captured",
        ),
        curves(
            "Rows changed",
            "Inserted, updated, deleted.",
            12,
            "ops",
            operations="{{postgresql_database_name}} {{operation}}",
        ),
        curves(
            "Cache hit rate",
            "Blocks found in PostgreSQL's buffer cache.",
            12,
            "percentunit",
            cache_hits="{{postgresql_database_name}}",
        ),
        curves(
            "Transactions",
            "A second.",
            12,
            "ops",
            commits="{{postgresql_database_name}} committed",
            rollbacks="{{postgresql_database_name}} rolled back",
        ),
        curves("Connections to databases", "Backends.", 12, "short", backends="{{postgresql_database_name}}"),
        curves("Dead rows", "The ten tables that have most.", 8, "short", dead_rows=table),
        curves("Sequential scans", "The ten tables that have most.", 8, "ops", sequential_scans=table),
        curves(
            "Disk space",
            "Whole databases, and the rows of the ten largest tables.",
            8,
            "bytes",
            database_sizes="{{postgresql_database_name}}",
            table_sizes=table,
        ),
    ):
        made = made.with_panel(curve)
    return made


def migration() -> Dashboard:
    """Whether moving off triggers changed what it was meant to change."""
    made = board("migration", "Activity: before and after", "Now, and the same time before a migration.")
    made = made.with_variable(chosen("job", "Service", SERVICES))
    made = made.with_variable(chosen("database", "Audited database", DATABASES))
    made = made.with_variable(typed("before", "Compare with", "7d"))
    for panel in (
        compared("Requests", "The slowest twentieth.", 12, "s", "request_seconds"),
        compared("Statements", "The slowest twentieth.", 12, "s", "statement_seconds"),
        compared("Load", "Requests a second: compare times of equal load.", 12, "reqps", "requests"),
        compared("Errors", "Share of the requests.", 12, "percentunit", "errors"),
        compared("Connections in use", "Shorter transactions need fewer.", 12, "short", "connections_used"),
        compared("Auditing", "What delivery takes of one commit in twenty.", 12, "s", "commit_overhead"),
        compared("Rows changed", "Triggers write a row of their own for each.", 12, "ops", "rows_changed"),
        compared("Disk space", "Of the audited databases.", 12, "bytes", "disk_space"),
    ):
        made = made.with_panel(panel)
    return made.with_panel(
        bars("Completeness", "Events by how completely they were captured.", 8, "migration_capture")
    ).with_panel(listing("Tables", "What is recorded of each.", 16, "migration_tables", height=8))


DASHBOARDS: Final = {
    "overview": overview,
    "entity-history": history,
    "actor": actor,
    "pipeline": pipeline,
    "migration": migration,
}


def generated(name: str) -> str:
    """The JSON of one dashboard."""
    made = DASHBOARDS[name]().build()
    return json.dumps(made, cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    for each in DASHBOARDS:
        (FOLDER / f"{each}.json").write_text(generated(each))
