"""Table statistics of audited databases, under the names of the Collector's PostgreSQL receiver.

A thread reads them: a database that does not answer delays neither a scrape nor a sender.
"""

from __future__ import annotations

import logging
from contextlib import closing
from importlib import resources
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import psycopg
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row

from otel_activity.errors import ActivityError
from otel_activity.masking import mask_dsn
from otel_activity.postgres.connection import connect

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from prometheus_client.core import Metric

    Rows = Mapping[str, list[dict[str, Any]]]

__all__ = ["STATISTICS", "Statistic", "TableStatistics"]

_log: Final = logging.getLogger("otel_activity.receiver")
MOST: Final = 1_000
"""Tables, and indexes, of one database that are reported: a metrics store pays for each."""
PATIENCE: Final = 10.0
"""Seconds to wait for an answer."""
_TABLE: Final = {"postgresql_database_name": "database", "postgresql_table_name": "table"}
_INDEX: Final = {**_TABLE, "postgresql_index_name": "index"}
_DATABASE: Final = {"postgresql_database_name": "database"}
_BLOCKS: Final = ("heap_read", "heap_hit", "idx_read", "idx_hit", "toast_read", "toast_hit", "tidx_read")


class Statistic(NamedTuple):
    """One metric, and where its values are found."""

    name: str
    """As the Collector's PostgreSQL receiver calls it."""
    kind: str
    """``counter`` or ``gauge``."""
    unit: str
    description: str
    source: str
    """The SQL file without ``_statistics.sql``."""
    labels: Mapping[str, str]
    """Label to column."""
    columns: tuple[str, ...]
    attribute: str | None = None
    """Its values are the columns' names; None with one column."""

    @property
    def exposed(self) -> str:
        """The name in Prometheus."""
        name = self.name.replace(".", "_") + {"By": "_bytes"}.get(self.unit, "")
        return f"{name}_total" if self.kind == "counter" else name


STATISTICS: Final = (
    Statistic(
        "postgresql.rows",
        "gauge",
        "1",
        "Rows of a table, live or dead, as estimated by the server.",
        "table",
        _TABLE,
        ("live", "dead"),
        "state",
    ),
    Statistic(
        "postgresql.operations",
        "counter",
        "1",
        "Rows inserted, updated (of these hot_upd without a new index entry) and deleted.",
        "table",
        _TABLE,
        ("ins", "upd", "del", "hot_upd"),
        "operation",
    ),
    Statistic(
        "postgresql.blocks_read",
        "counter",
        "1",
        "Blocks of a table, its indexes and TOAST, found in the buffer cache (hit) or not (read).",
        "table",
        _TABLE,
        (*_BLOCKS, "tidx_hit"),
        "source",
    ),
    Statistic(
        "postgresql.table.size", "gauge", "By", "Disk space of a table's rows.", "table", _TABLE, ("size",)
    ),
    Statistic(
        "postgresql.table.vacuum.count",
        "counter",
        "{vacuum}",
        "Times a table was vacuumed by hand.",
        "table",
        _TABLE,
        ("vacuum_count",),
    ),
    Statistic(
        "postgresql.sequential_scans",
        "counter",
        "{sequential_scan}",
        "Sequential scans of a table.",
        "table",
        _TABLE,
        ("seq_scan",),
    ),
    Statistic("postgresql.index.size", "gauge", "By", "Disk space of an index.", "index", _INDEX, ("size",)),
    Statistic(
        "postgresql.index.scans", "counter", "{scans}", "Scans of an index.", "index", _INDEX, ("scans",)
    ),
    Statistic(
        "postgresql.db_size", "gauge", "By", "Disk space of a database.", "database", _DATABASE, ("size",)
    ),
    Statistic(
        "postgresql.table.count",
        "gauge",
        "{table}",
        "User tables of a database.",
        "database",
        _DATABASE,
        ("tables",),
    ),
    Statistic(
        "postgresql.backends",
        "gauge",
        "1",
        "Connections to a database.",
        "database",
        _DATABASE,
        ("backends",),
    ),
    Statistic(
        "postgresql.commits",
        "counter",
        "1",
        "Transactions committed.",
        "database",
        _DATABASE,
        ("commits",),
    ),
    Statistic(
        "postgresql.rollbacks",
        "counter",
        "1",
        "Transactions rolled back.",
        "database",
        _DATABASE,
        ("rollbacks",),
    ),
    Statistic(
        "postgresql.deadlocks", "counter", "{deadlock}", "Deadlocks.", "database", _DATABASE, ("deadlocks",)
    ),
)
"""Everything that is reported."""
_SOURCES: Final = ("table", "index", "database")


class TableStatistics(Collector):
    """Reads statistics of some databases again and again; Prometheus sees what was read last.

    Args:
        dsns: the databases. Of two that lead to the same one, the first is shown.
        interval: seconds between two readings.
    """

    def __init__(self, dsns: Sequence[str], interval: float) -> None:
        self._databases = [_Database(dsn) for dsn in dict.fromkeys(dsns)]
        self._interval = interval
        self._stop = Event()
        # A daemon: a database that does not answer must not hold up the end.
        self._threads = [
            Thread(target=self._watch, args=(each,), name="table-statistics", daemon=True)
            for each in self._databases
        ]

    def start(self) -> None:
        """Begin to read, each database in a thread of its own."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Read no more."""
        self._stop.set()

    def _watch(self, database: _Database) -> None:
        while not self._stop.is_set():
            database.look()
            self._stop.wait(self._interval)

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry would read once to learn the names."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """What was read last. A database that failed shows nothing but that."""
        up = GaugeMetricFamily(
            "activity_receiver_table_stats_up",
            "1 when the last reading of a database's table statistics succeeded, else 0.",
            labels=["server_address", "postgresql_database_name"],
        )
        states = {(each.server, each.name): each.up for each in reversed(self._databases)}
        for place, state in states.items():
            if state is not None:
                up.add_metric(place, int(state))
        yield up
        read = [(database.server, database.rows) for database in self._databases]
        for statistic in STATISTICS:
            yield _family(statistic, read)


class _Database:
    """One audited database.

    Attributes:
        server: host and port.
        name: of the database, as the DSN has it.
        rows: what was read last, by source; empty after a failure.
        up: whether the last reading succeeded; None before the first.
    """

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self.server, self.name = _place(dsn)
        self.rows: Rows = {}
        self.up: bool | None = None

    def look(self) -> None:
        """Read once. No error leaves this."""
        try:
            found = self._read()
        except (ActivityError, psycopg.Error) as error:
            self._failed(str(error))
        except Exception as error:  # noqa: BLE001 - the thread must live, or nothing is read any more
            self._failed(type(error).__name__)
        else:
            if self.up is False:
                _log.info("table statistics of %s are read again", mask_dsn(self._dsn))
            self.rows, self.up = found, True

    def _read(self) -> Rows:
        with closing(
            connect(self._dsn, application_name="otel-activity receive", patience=PATIENCE)
        ) as connection:
            cursor = connection.cursor(row_factory=dict_row)
            return {source: cursor.execute(_query(source), {"most": MOST}).fetchall() for source in _SOURCES}

    def _failed(self, reason: str) -> None:
        if self.up is not False:  # once when it begins, not at every reading
            _log.warning(
                "no table statistics of %s: %s; check --table-stats-dsn",
                mask_dsn(self._dsn),
                " ".join(reason.split()),
            )
        self.rows, self.up = {}, False


def _family(statistic: Statistic, read: Iterable[tuple[str, Rows]]) -> Metric:
    kind = CounterMetricFamily if statistic.kind == "counter" else GaugeMetricFamily
    also = [] if statistic.attribute is None else [statistic.attribute]
    labels = ["server_address", *statistic.labels, *also]
    family = kind(statistic.exposed.removesuffix("_total"), statistic.description, labels=labels)
    found: dict[tuple[str, ...], float] = {}  # a series that is there twice would cost the whole scrape
    for server, rows in read:
        for row in rows.get(statistic.source, ()):
            place = (server, *(row[column] for column in statistic.labels.values()))
            for column in statistic.columns:
                found.setdefault((*place, *([column] if also else ())), row[column] or 0)
    for values, number in found.items():
        family.add_metric(values, number)
    return family


def _query(source: str) -> bytes:
    return resources.files("otel_activity.receiver").joinpath(f"sql/{source}_statistics.sql").read_bytes()


def _place(dsn: str) -> tuple[str, str]:
    try:
        given = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError:
        return "invalid", ""
    server = f"{given.get('host') or 'local'}:{given.get('port') or 5432}"
    return server, str(given.get("dbname") or "")
