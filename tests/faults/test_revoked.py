"""EXECUTE on the function that proves commits is revoked while connections are open and commits go on."""

from __future__ import annotations

import signal
import sys
import time
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.e2e.support import World, events, journals, relay, rows, unexplained, wait_for_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(120),
    pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL"),
]

ROLE = "otel_activity_shop"
FUNCTION = "FUNCTION pg_current_xact_id_if_assigned()"


@pytest.fixture
def application(durable: World) -> Iterator[str]:
    """The application's database for a role that is no superuser; afterwards everybody may execute again."""
    with psycopg.connect(durable.application, autocommit=True) as admin:
        admin.execute(f"DROP ROLE IF EXISTS {ROLE}")
        admin.execute(f"CREATE ROLE {ROLE} LOGIN PASSWORD 'x'")
        admin.execute("CREATE TABLE task (id serial PRIMARY KEY, name text)")
        admin.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {ROLE}")
        admin.execute(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {ROLE}")
    info = psycopg.conninfo.conninfo_to_dict(durable.application)
    yield f"{ROLE}:x@/{info['dbname']}?host={info['host']}&port={info.get('port', 5432)}"
    with psycopg.connect(durable.application, autocommit=True) as admin:
        admin.execute(f"GRANT EXECUTE ON {FUNCTION} TO public")
        admin.execute(f"DROP OWNED BY {ROLE}")
        admin.execute(f"DROP ROLE {ROLE}")


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_a_privilege_that_is_revoked_under_load(
    durable: World, tmp_path: Path, application: str, driver: str
) -> None:
    """What is at that point fails at most, and a line says so; the rest commits, and is in the store."""
    process = durable.start(
        *("python", "crowd.py"),
        DATABASE_URL=f"postgresql+{driver}://{application}",
        OTEL_BLRP_SCHEDULE_DELAY="50",
    )
    wait_for_line(process, "program runs")
    time.sleep(0.5)
    with psycopg.connect(durable.application, autocommit=True) as admin:
        admin.execute(f"REVOKE EXECUTE ON {FUNCTION} FROM public")
    before = len(rows(durable))
    deadline = time.monotonic() + 30
    while len(rows(durable)) < before + 100:
        assert time.monotonic() < deadline, "it does not go on"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=30)
    failed = output.count("program failed")
    survived = output.count("a transaction is not proven because EXECUTE")
    told = output.count("a transaction failed because EXECUTE")
    assert survived + told >= 1, output
    assert max(survived, told) <= 1, output
    # Those that asked at this very moment, on a connection that is not near.
    assert failed <= 4 * told, output
    assert output.count("program failed InsufficientPrivilege") == failed
    status, said = relay(durable, tmp_path / "journal", "--timeout", "60")
    assert status == 0, said
    assert journals(tmp_path) == []
    found = unexplained(durable)
    assert found["missing"] == found["duplicate"] == found["reported without a row"] == []
    # What was open when it was killed had no proof any more: at most one transaction of each thread.
    unknown = {entity for _, entity, fate in events(durable) if fate == "unknown"}
    assert len(unknown) <= 4
