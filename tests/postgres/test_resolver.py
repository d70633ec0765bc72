"""What a database answers about a transaction, and what it cannot know."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import psycopg
import pytest
from sqlalchemy import make_url

from otel_activity.capture import ProofReader
from otel_activity.embedded import EmbeddedPostgres
from otel_activity.errors import StoreUnavailable
from otel_activity.events import Proof, Verdict
from otel_activity.postgres.resolver import TransactionResolver, conninfo_of

if TYPE_CHECKING:
    from collections.abc import Iterator


class Cluster(NamedTuple):
    dsn: str
    system: str
    timeline: int
    run: str

    def proof(
        self, xid: int, *, timeline: int | None = None, system: str | None = None, run: str | None = None
    ) -> Proof:
        return Proof(system or self.system, timeline or self.timeline, "app", xid, run or self.run)


@pytest.fixture
def cluster(postgres_dsn: str) -> Iterator[Cluster]:
    """A database and what its cluster calls itself."""
    with psycopg.connect(postgres_dsn, autocommit=True) as connection:
        row = connection.execute(
            "SELECT system_identifier::text, substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8),"
            " (SELECT extract(epoch FROM stats_reset)::text FROM pg_stat_wal) FROM pg_control_system()"
        ).fetchone()
        assert row is not None
        yield Cluster(postgres_dsn, row[0], int(row[1], 16), row[2])


def begin(connection: psycopg.Connection) -> int:
    row = connection.execute("SELECT pg_current_xact_id()::text").fetchone()
    assert row is not None
    return int(row[0])


def test_each_fate_is_told(cluster: Cluster) -> None:
    """Committed, aborted, still running, and not given out yet, in the order of the questions."""
    with psycopg.connect(cluster.dsn) as running, psycopg.connect(cluster.dsn) as connection:
        committed = begin(connection)
        connection.commit()
        aborted = begin(connection)
        connection.rollback()
        open_ = begin(running)
        proofs = [cluster.proof(xid) for xid in (aborted, committed, open_, 1 << 40)]
        assert TransactionResolver([cluster.dsn]).resolve(proofs) == [
            Verdict.ABORTED,
            Verdict.COMMITTED,
            Verdict.IN_PROGRESS,
            Verdict.UNKNOWN,
        ]
        running.rollback()
    assert TransactionResolver([cluster.dsn]).resolve([cluster.proof(open_)]) == [Verdict.ABORTED]


def test_another_timeline_is_unknown(cluster: Cluster) -> None:
    """After a failover an id may have been given to another transaction: its answer does not count."""
    with psycopg.connect(cluster.dsn) as connection:
        committed = begin(connection)
    proof = cluster.proof(committed, timeline=cluster.timeline + 1)
    assert TransactionResolver([cluster.dsn]).resolve([proof]) == [Verdict.UNKNOWN]


def test_after_a_crash_only_aborted_is_certain(cluster: Cluster) -> None:
    """A crash may lose that an id was given out: "committed" may then be another transaction's answer."""
    with psycopg.connect(cluster.dsn) as connection:
        committed = begin(connection)
        connection.commit()
        aborted = begin(connection)
        connection.rollback()
    proofs = [cluster.proof(xid, run="0") for xid in (committed, aborted)]
    assert TransactionResolver([cluster.dsn]).resolve(proofs) == [Verdict.UNKNOWN, Verdict.ABORTED]


def test_a_crash_of_the_server_is_noticed() -> None:
    """The server discards its statistics when it recovers, and keeps them over an orderly restart."""
    with EmbeddedPostgres() as server:
        runs = [_run(server.dsn())]
        for how in ("fast", "immediate"):
            server.restart(how)
            runs.append(_run(server.dsn()))
    assert runs[0] == runs[1] != runs[2]


def _run(dsn: str) -> str:
    reader = ProofReader()
    with psycopg.connect(dsn) as connection:
        found = reader._ask(connection)
    assert found is not None
    return found.run


def test_another_cluster_is_not_asked(cluster: Cluster) -> None:
    """An answer of a cluster that the id does not come from would be a lie; the question stays open."""
    resolver = TransactionResolver([cluster.dsn])
    with pytest.raises(StoreUnavailable, match="OTEL_ACTIVITY_PROOF_DSN"):
        resolver.resolve([cluster.proof(3, system="7000000000000000001")])
    with psycopg.connect(cluster.dsn) as connection:
        committed = begin(connection)
    mixed = [cluster.proof(3, system="7000000000000000001"), cluster.proof(committed)]
    assert resolver.resolve(mixed) == [Verdict.IN_PROGRESS, Verdict.COMMITTED]


def test_engines_tell_where_their_cluster_is(cluster: Cluster) -> None:
    """Without a DSN the address of a live engine serves; before there is one, nobody can be asked."""
    resolver = TransactionResolver()
    with psycopg.connect(cluster.dsn) as connection:
        committed = begin(connection)
    with pytest.raises(StoreUnavailable):
        resolver.resolve([cluster.proof(committed)])
    resolver.know(cluster.system, make_url(cluster.dsn))
    assert resolver.resolve([cluster.proof(committed)]) == [Verdict.COMMITTED]


def test_a_database_that_is_down_is_an_error_without_its_password(cluster: Cluster) -> None:
    """Nobody answers: the caller asks again, and the message names no secret."""
    resolver = TransactionResolver(["postgresql://u:hunter2@127.0.0.1:1/app"])
    with pytest.raises(StoreUnavailable) as caught:
        resolver.resolve([cluster.proof(3)])
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (
            "psycopg://u:p%40ss@h:5433/app?sslmode=require&application_name=shop",
            "user=u password=p@ss host=h port=5433 dbname=app sslmode=require application_name=shop",
        ),
        ("psycopg2://u@/app?host=h1:5432&host=h2:5433", "user=u host=h1,h2 port=5432,5433 dbname=app"),
        (
            "psycopg://u@/app?host=/run/shop&prepare_threshold=0&sslmode=verify-full",
            "user=u host=/run/shop dbname=app sslmode=verify-full",
        ),
        (
            "asyncpg://u:p@h/app?ssl=verify-full&prepared_statement_cache_size=0",
            "user=u password=p host=h dbname=app sslmode=verify-full",
        ),
        ("asyncpg://u@/app?host=/run/shop", "user=u host=/run/shop dbname=app"),
        ("asyncpg://u@/app?host=h1:5432&host=h2:5433", "user=u host=h1,h2 port=5432,5433 dbname=app"),
        ("psycopg://", ""),
    ],
)
def test_the_address_of_an_engine(url: str, expected: str) -> None:
    """Where its driver would connect, and with what TLS; options that libpq does not know are left out."""
    found = psycopg.conninfo.conninfo_to_dict(conninfo_of(make_url(f"postgresql+{url}")))
    assert found == dict(pair.split("=", 1) for pair in expected.split())
