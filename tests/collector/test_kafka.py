"""Agents to Apache Kafka to two gateways to two receivers: the road for more than one machine can store."""

from __future__ import annotations

import threading
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tests.collector.pipeline import Board, Pipeline, Receiver
from tests.collector.processes import Collector, Kafka, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


pytestmark = [pytest.mark.external, pytest.mark.e2e, pytest.mark.timeout(300)]

PARTITIONS = 4
TASKS = 1_200


class World(Pipeline):
    """kafka-agent.yaml and twice kafka-gateway.yaml, each gateway with a receiver of its own."""

    def __init__(self, application: str, directory: Path, program: Path, jars: Path) -> None:
        super().__init__(application, directory)
        self.kafka = Kafka(jars, directory, PARTITIONS)
        variables = {"KAFKA": f"[{self.kafka.address}]"}
        self.receivers = [Receiver(directory, self.store) for _ in range(2)]
        self.gateways = [
            Collector(
                program,
                ["kafka-gateway"],
                directory / f"gateway-{receiver.grpc}",
                STORE=receiver.address,
                **variables,
            )
            for receiver in self.receivers
        ]
        self.agent = Collector(program, ["kafka-agent"], directory / "agent", **variables)

    def start(self) -> None:
        """Start everything and put triggers on the application's tables."""
        self.adopt(self.kafka)
        self.kafka.prepare()
        for part in (*self.receivers, *self.gateways, self.agent):
            self.adopt(part)
            part.start()
        self.endpoint = self.agent.endpoint
        self.board = Board(self)
        self.price_list("setup", articles=0)()
        self.truth.watch()
        self.board.begin()


@pytest.fixture
def world(postgres_dsn: str, collector_program: Path, kafka_jars: Path, tmp_path: Path) -> Iterator[World]:
    """A running pipeline."""
    with closing(World(postgres_dsn, tmp_path, collector_program, kafka_jars)) as made:
        made.start()
        yield made


def test_kills_lose_nothing_and_repeat_nothing(world: World) -> None:
    """Gateway, broker, receiver, PostgreSQL and agent are killed in turn: every row has its one event."""
    finish = world.price_list("faults", articles=8_000, pause=0.4)
    victims = (world.gateways[0], world.kafka, world.receivers[1], world.database, world.agent)
    for victim in victims:
        sender = threading.Thread(target=world.board.tasks, args=(TASKS,))
        sender.start()
        victim.kill()
        sender.join()
        world.board.tasks(TASKS)
        victim.start()
    finish()
    world.wait_for_all()
    result = world.reconciled()
    assert result.clean, result.examples
    stored, ids = world.count()
    assert stored == ids == result.rows
    assert stored >= 20_000
    eventually(lambda: set(world.kafka.lags()) == {0}, "every offset is committed")
    assert len(world.kafka.lags()) == PARTITIONS
