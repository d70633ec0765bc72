"""Table statistics of audited databases on the receiver's metrics page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import psycopg
from prometheus_client.parser import text_string_to_metric_families
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from otel_activity.receiver.tablestats import STATISTICS
from tests.collector.processes import eventually
from tests.receiver.support import Receiver

if TYPE_CHECKING:
    from tests.conftest import Server

Samples = dict[tuple[str, str, str, str], float]


def samples(receiver: Receiver) -> Samples:
    """Value by name, database, table and the attribute of the metric itself."""
    text = httpx.get(f"{receiver.url}/metrics", timeout=30).raise_for_status().text
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = sample.labels
            also = labels.get("operation") or labels.get("state") or labels.get("source") or ""
            place = (labels.get("postgresql_database_name", ""), labels.get("postgresql_table_name", ""))
            found[sample.name, *place, also] = sample.value
    return found


def write(dsn: str) -> str:
    """Five inserts, two updates, one delete; returns the database's name."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE goods (id int PRIMARY KEY, price int)")
        connection.execute("INSERT INTO goods SELECT n, n FROM generate_series(1, 5) AS n")
        connection.execute("UPDATE goods SET price = 7 WHERE id < 3")
        connection.execute("DELETE FROM goods WHERE id = 5")
        return connection.info.dbname


def test_rows_and_operations_of_two_databases(store_dsn: str, postgres_server: Server) -> None:
    """Every metric is there for both databases, and operations are what was written."""
    second = postgres_server.create_database("table_statistics")
    try:
        names = [write(store_dsn), write(second)]
        again = make_conninfo(second, application_name="again")
        with Receiver(
            store_dsn,
            "--table-stats-interval",
            "0.2",
            variables={"OTEL_ACTIVITY_RECEIVE_TABLE_STATS_DSN": f"{store_dsn}\n{second}\n{again}"},
        ) as receiver:
            for name in names:
                for operation, count in {"ins": 5, "upd": 2, "del": 1}.items():
                    key = ("postgresql_operations_total", name, "public.goods", operation)
                    eventually(lambda key=key, n=count: samples(receiver).get(key) == n, str(key), 60)  # type: ignore[misc]
            shown = {(key[0], key[1]) for key in samples(receiver)}
            assert {(each.exposed, name) for each in STATISTICS for name in names} <= shown
            lines = httpx.get(f"{receiver.url}/metrics").text.splitlines()
            series = [line.rpartition(" ")[0] for line in lines if not line.startswith("#")]
            assert len(series) == len(set(series)), "Prometheus refuses a page with a series twice"
    finally:
        postgres_server.drop_database("table_statistics")


def test_a_database_that_fails_disturbs_nothing(store_dsn: str) -> None:
    """It is said in one line without the password, shown as down, and records are still taken."""
    dead = "postgresql://watcher:hush@127.0.0.1:1/nowhere"
    with Receiver(
        store_dsn, "--table-stats-dsn", dead, "--table-stats-dsn", store_dsn, "--table-stats-interval", "0.2"
    ) as receiver:
        name = conninfo_to_dict(store_dsn)["dbname"]
        eventually(
            lambda: any(key[:2] == ("postgresql_commits_total", name) for key in samples(receiver)),
            "the other database is shown",
            60,
        )
        eventually(lambda: "no table statistics" in receiver.errors, "the failure is said", 60)
        labels = 'postgresql_database_name="nowhere",server_address="127.0.0.1:1"'
        down = f"activity_receiver_table_stats_up{{{labels}}} 0.0"
        eventually(lambda: down in httpx.get(f"{receiver.url}/metrics").text, "it is shown as down", 60)
        assert receiver.post(b"").status_code == 200
        assert receiver.errors.count("no table statistics") == 1
        assert "hush" not in receiver.errors


def test_off_unless_asked_for(receiver: Receiver) -> None:
    """Without the option there is no such metric."""
    assert not any(key[0].startswith("postgresql_") for key in samples(receiver))
