"""Journals of earlier versions: files as they were written then, which every later version reads."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from otel_activity import semconv
from otel_activity.delivery.holding import take_over
from otel_activity.delivery.journal import orphans
from otel_activity.events import Event, Proof, Verdict
from tests.delivery.test_durable import World, flush, world
from tests.delivery.test_undecided import Database, database

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["database", "world"]

GOLDEN = Path(__file__).parent / "golden"
FORMATS = sorted(path for path in GOLDEN.iterdir() if path.is_dir())


def plain(events: Sequence[Event]) -> list[dict[str, object]]:
    """Events as JSON values, without what every delivery gives anew."""
    made = []
    for event in events:
        attributes = dict(event.plain_attributes())
        del attributes[semconv.STREAM_ID], attributes[semconv.SEQUENCE]
        said = {"id": event.id, "name": event.name, "time": event.time, "severity": int(event.severity)}
        made.append(said | {"trace": f"{event.trace_id:x}", "attributes": attributes})
    return sorted(made, key=lambda event: str(event["id"]))


@pytest.mark.parametrize("version", FORMATS, ids=lambda path: path.name)
def test_a_journal_of_each_format_is_delivered(world: World, database: Database, version: Path) -> None:
    """Committed, unknown, aborted, left open with a proof, confirmed by one exporter: all as they were."""
    world.home.mkdir(parents=True)
    shutil.copytree(version / "journal", world.home / "0198f0a0-0000-7000-8000-000000000000")
    database.fates[4242] = Verdict.COMMITTED
    roads = world.road("postgres"), world.road("otlp")
    delivery = world.delivery(*roads, resolver=database)
    delivery.start()
    assert flush(delivery)
    expected = msgspec.json.decode((version / "expected.json").read_bytes())
    assert {road.lane.name: plain(road.taken) for road in roads} == expected
    assert delivery.lost_bytes == delivery.lost_records == 0


@pytest.mark.parametrize("version", FORMATS, ids=lambda path: path.name)
def test_the_proof_and_the_resource_of_each_format_are_read(tmp_path: Path, version: Path) -> None:
    """Whoever takes a journal over knows whose it was, and by what the database can be asked."""
    shutil.copytree(version / "journal", tmp_path / "0198f0a0-0000-7000-8000-000000000000")
    (journal,) = orphans(tmp_path, set())
    found = take_over(journal, ["postgres", "otlp"])
    assert found.source.origin == {"service.name": "shop", "host.name": "gone"}
    proofs = [proof for held in found.undecided if (proof := held.proof_in(journal)) is not None]
    assert proofs == [Proof("7000000000000000001", 1, "app", 4242)]
    journal.abandon()
