"""Following: every event once, in whatever order transactions make them visible."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from otel_activity.embedded import EmbeddedPostgres
from otel_activity.errors import ConfigurationError, ExportError, StoreUnavailable
from otel_activity.store import ActivityStore, EventFilter, activity
from tests.store.support import MINUTE, apply_schema, insert_open, make_event, now, store

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from otel_activity.events import Event

# The server that the other tests have as well; these need one of their own.
BIN_DIR = os.environ.get("ACTIVITY_TEST_PG_BIN") or None


def ids(events: Iterable[Event]) -> list[str]:
    """The events' ids."""
    return [event.id for event in events]


def test_first_poll_returns_the_last_events_and_no_poll_repeats_them(store_dsn: str) -> None:
    """A follower begins with the newest stored events, oldest of them first, and goes on after them."""
    events = [make_event(now() + n) for n in range(5000, 10_000, 1000)]
    store(store_dsn, events)
    with ActivityStore(store_dsn) as reader:
        follower = reader.follow(last=2)
        assert ids(follower.poll()) == ids(events[-2:])
        assert follower.poll() == []
        newer = make_event()
        store(store_dsn, [newer])
        assert ids(follower.poll()) == [newer.id]
        assert follower.poll() == []


def test_late_event_with_an_older_time_is_returned(store_dsn: str) -> None:
    """An event that arrives half an hour after it happened appears although newer ones have been shown."""
    with ActivityStore(store_dsn) as reader:
        follower = reader.follow()
        follower.poll()
        store(store_dsn, [make_event()])
        assert len(follower.poll()) == 1
        late = make_event(now() - 30 * MINUTE)
        store(store_dsn, [late])
        assert ids(follower.poll()) == [late.id]


def test_event_further_back_than_the_lookback_is_left_to_search(store_dsn: str) -> None:
    """The documented limit: an event older than the lookback is not followed, but it is found."""
    with ActivityStore(store_dsn) as reader:
        follower = reader.follow(lookback=timedelta(minutes=5))
        follower.poll()
        store(store_dsn, [make_event(now() - 6 * MINUTE)])
        assert follower.poll() == []
        assert reader.count() == 1


def test_event_from_a_clock_that_is_ahead_is_returned(store_dsn: str) -> None:
    """An event whose time is still to come is not held back."""
    with ActivityStore(store_dsn) as reader:
        follower = reader.follow()
        follower.poll()
        early = make_event(now() + 90 * MINUTE)
        store(store_dsn, [early])
        assert ids(follower.poll()) == [early.id]


def test_transaction_that_commits_after_a_younger_one(store_dsn: str) -> None:
    """Events of a transaction that was open while later ones were shown appear when it commits."""
    slow, fast = make_event(), make_event()
    with ActivityStore(store_dsn) as reader, psycopg.connect(store_dsn) as writer:
        follower = reader.follow()
        insert_open(writer, [slow])
        follower.poll()
        store(store_dsn, [fast])
        assert ids(follower.poll()) == [fast.id]
        assert follower.poll() == []
        writer.commit()
        assert ids(follower.poll()) == [slow.id]
        assert follower.poll() == []


def test_rows_of_a_savepoint_are_not_missed(store_dsn: str) -> None:
    """A row written in a subtransaction, whose id no snapshot lists, appears when its parent commits."""
    inner = make_event()
    with ActivityStore(store_dsn) as reader, psycopg.connect(store_dsn) as writer:
        follower = reader.follow()
        writer.execute("SELECT pg_current_xact_id()")
        with writer.transaction():
            insert_open(writer, [inner])
        for _ in range(3):  # younger transactions move the snapshot's upper end beyond the savepoint's id
            store(store_dsn, [make_event()])
        assert inner.id not in ids(follower.poll())
        writer.commit()
        assert ids(follower.poll()) == [inner.id]


def test_connection_lost_between_polls_loses_nothing(store_dsn: str) -> None:
    """A follower goes on over a new connection where the old one stopped."""
    with ActivityStore(store_dsn) as reader:
        follower = reader.follow()
        follower.poll()
        event = make_event()
        store(store_dsn, [event])
        reader.close()
        assert ids(follower.poll()) == [event.id]


def test_ids_that_are_given_out_again_after_a_crash_hide_no_event() -> None:
    """What the server had not flushed it forgets, and gives the same ids to the next transactions."""
    unflushed = {"wal_writer_delay": "10s"}
    with EmbeddedPostgres(bin_dir=BIN_DIR, fsync=False, settings=unflushed) as server:
        dsn = apply_schema(server.create_database("trail"))
        before, after = make_event(), make_event()
        store(dsn, [before])
        with ActivityStore(dsn) as reader, psycopg.connect(dsn) as connection:
            follower = reader.follow(last=1)
            assert ids(follower.poll()) == [before.id]
            for _ in range(50):
                connection.execute("SELECT pg_current_xact_id()")
                connection.rollback()
            assert follower.poll() == []
            server.kill()
            server.start()
            store(dsn, [after])
            assert ids(follower.poll()) == [after.id]
            assert follower.poll() == []


def test_a_backup_that_takes_the_servers_place_hides_no_event(tmp_path: Path) -> None:
    """Its ids are behind those that were followed: the follower does not wait until they have caught up."""
    with EmbeddedPostgres(bin_dir=BIN_DIR, fsync=False) as server:
        dsn = apply_schema(server.create_database("trail"))
        server.stop()
        shutil.copytree(server._data, tmp_path / "backup")
        server.start()
        store(dsn, [make_event()])
        with ActivityStore(dsn) as reader:
            follower = reader.follow()
            follower.poll()
            with psycopg.connect(dsn, autocommit=True) as connection:
                for _ in range(50):
                    connection.execute("SELECT pg_current_xact_id()")
            assert follower.poll() == []
            server.stop()
            for path in (tmp_path / "backup").iterdir():
                target = server._data / path.name
                shutil.rmtree(target) if path.is_dir() else target.unlink(missing_ok=True)
                owner = server._data.stat()
                path.rename(target)
                for moved in (target, *target.rglob("*")):
                    os.chown(moved, owner.st_uid, owner.st_gid)
            server.start()
            after = make_event()
            store(dsn, [after])
            assert ids(follower.poll()) == [after.id]


def test_failed_poll_loses_nothing(store_dsn: str, postgres_server: Any) -> None:
    """A poll that fails because the store is away is made up for by the next one."""
    with ActivityStore(store_dsn) as reader, psycopg.connect(postgres_server.dsn(), autocommit=True) as admin:
        follower = reader.follow()
        follower.poll()
        event = make_event()
        store(store_dsn, [event])
        name = psycopg.conninfo.conninfo_to_dict(store_dsn)["dbname"]
        admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        admin.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", [name]
        )
        with pytest.raises(ExportError):
            follower.poll()
        admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        assert ids(follower.poll()) == [event.id]


def test_burst_larger_than_a_poll(store_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A burst is returned over several polls without rest between them, each event once."""
    monkeypatch.setattr(activity, "POLL_ROWS", 3)
    with ActivityStore(store_dsn) as reader:
        follower = reader.follow()
        follower.poll()
        events = [make_event(now() - n * 1000) for n in range(8)]
        store(store_dsn, events)
        polls: list[list[str]] = []
        while not polls or follower.rest(1.0) == 0.0:
            polls.append(ids(follower.poll()))
        assert [len(poll) for poll in polls] == [3, 3, 2]
        assert sorted(itertools.chain(*polls)) == sorted(ids(events))
        assert follower.poll() == []


def test_filter_applies_to_what_is_followed(store_dsn: str) -> None:
    """Only matching events are followed."""
    with ActivityStore(store_dsn) as reader:
        follower = reader.follow(EventFilter(entity_type="project"), last=5)
        follower.poll()
        wanted = make_event(activity__entity__type="project")
        store(store_dsn, [make_event(), wanted])
        assert ids(follower.poll()) == [wanted.id]


def test_tail_yields_until_it_is_stopped(store_dsn: str) -> None:
    """The generator gives stored and new events and ends when told to."""
    first, second = make_event(), make_event()
    store(store_dsn, [first])
    stop = threading.Event()
    with ActivityStore(store_dsn) as reader:
        tail = reader.tail(last=5, interval=0.01, stop=stop)
        assert next(tail).id == first.id
        store(store_dsn, [second])
        assert next(tail).id == second.id
        stop.set()
        assert list(tail) == []


@pytest.mark.parametrize("arguments", [{"last": -1}, {"lookback": timedelta(0)}])
def test_impossible_arguments_are_refused(store_dsn: str, arguments: dict[str, Any]) -> None:
    """A negative number of events and a lookback of nothing are mistakes."""
    with ActivityStore(store_dsn) as reader, pytest.raises(ConfigurationError):
        reader.follow(**arguments)


def test_unavailable_store_is_raised_to_the_caller(free_port: int) -> None:
    """A follower does not hide that the store is away."""
    with ActivityStore(f"postgresql://x@127.0.0.1:{free_port}/x") as reader, pytest.raises(StoreUnavailable):
        reader.follow().poll()


class Writers(RuleBasedStateMachine):
    """Four writers open, fill, commit and roll back transactions in any order while one follower polls."""

    dsn = ""

    def __init__(self) -> None:
        super().__init__()
        self.writers = [psycopg.connect(self.dsn) for _ in range(4)]
        self.pending: list[list[str]] = [[] for _ in self.writers]
        self.committed: list[str] = []
        self.seen: list[str] = []
        self.reader = ActivityStore(self.dsn)
        self.follower = self.reader.follow()
        self.follower.poll()

    @rule(writer=st.integers(0, 3), age=st.integers(-5, 50), savepoint=st.booleans())
    def insert(self, writer: int, age: int, savepoint: bool) -> None:
        """Write one event of any age, perhaps in a savepoint."""
        event = make_event(now() - age * MINUTE)
        connection = self.writers[writer]
        if savepoint:
            connection.execute("SAVEPOINT s")
        insert_open(connection, [event])
        if savepoint:
            connection.execute("RELEASE SAVEPOINT s")
        self.pending[writer].append(event.id)

    @rule(writer=st.integers(0, 3))
    def begin(self, writer: int) -> None:
        """Take a transaction id early and do nothing with it yet."""
        self.writers[writer].execute("SELECT pg_current_xact_id()")

    @rule(writer=st.integers(0, 3))
    def commit(self, writer: int) -> None:
        """Make the writer's events visible."""
        self.writers[writer].commit()
        self.committed += self.pending[writer]
        self.pending[writer] = []

    @rule(writer=st.integers(0, 3))
    def roll_back(self, writer: int) -> None:
        """Take the writer's events away."""
        self.writers[writer].rollback()
        self.pending[writer] = []

    @rule()
    def poll(self) -> None:
        """All that has been committed has been seen, each once, and nothing else."""
        self.seen += ids(self.follower.poll())
        assert sorted(self.seen) == sorted(self.committed)

    def teardown(self) -> None:
        """Look once more, then let go of the connections."""
        try:
            self.poll()
        finally:
            for connection in self.writers:
                connection.close()
            self.reader.close()


def test_interleaved_writers_lose_and_repeat_nothing(postgres_dsn: str) -> None:
    """Whatever the interleaving of transactions, polls return the committed events, each exactly once."""

    class Bound(Writers):
        dsn = apply_schema(postgres_dsn)

    run_state_machine_as_test(
        Bound,
        settings=settings(
            max_examples=60,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_concurrent_writers(store_dsn: str) -> None:
    """Threads that write at the same time as the follower polls lose nothing."""
    written: list[str] = []
    lock = threading.Lock()

    def write(seed: int) -> None:
        rng = random.Random(seed)
        with psycopg.connect(store_dsn) as connection:
            for _ in range(40):
                events = [make_event(now() - rng.randrange(50) * MINUTE) for _ in range(rng.randrange(1, 4))]
                insert_open(connection, events)
                connection.commit()
                with lock:
                    written.extend(ids(events))

    with ActivityStore(store_dsn) as reader:
        follower = reader.follow()
        follower.poll()
        threads = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        seen: list[str] = []
        while any(thread.is_alive() for thread in threads):
            seen += ids(follower.poll())
        for thread in threads:
            thread.join()
        seen += ids(follower.poll())
    assert sorted(seen) == sorted(written)
