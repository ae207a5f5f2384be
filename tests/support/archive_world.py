"""World of the archive's tests: both primary topics with records of every kind, and an archive in a folder."""

import asyncio
import json
import os
import random
import sys
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.structs import TopicPartition

from cli import main as cli
from runtime.archive.log_reader import LogReader
from runtime.kafka.clients import Appender, Outgoing
from runtime.kafka.reader import Received
from runtime.settings import Settings
from schemas.topics import CHANGESETS, MESSAGE_BYTES_MAX, WEBHOOKS, Topic, full_name
from tests.support.paths import ROOT
from tests.support.runtime_kafka import make_topic, stored

PARTITIONS = 2


@dataclass(frozen=True)
class World:
    """An installation's log and its archive."""

    settings: Settings
    address: str
    folder: Path

    @property
    def changesets(self) -> str:
        return full_name(CHANGESETS, self.settings.topic_prefix)

    def environment(self) -> dict[str, str]:
        return {
            "TARTAN_KAFKA_ADDRESS": self.address,
            "TARTAN_TOPIC_PREFIX": self.settings.topic_prefix,
            "TARTAN_PARTITIONS": str(PARTITIONS),
            "TARTAN_ARCHIVE_URL": self.settings.archive_url,
        }

    def files(self, ending: str, partition: int = 0) -> list[Path]:
        return sorted((self.folder / self.changesets / f"{partition:05d}").glob(f"0*{ending}"))

    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files("segment"))

    async def append(self, count: int, *, seed: int, partition: int = 0, topic: Topic = CHANGESETS) -> None:
        """Append records of every form that Kafka accepts."""
        draw = random.Random(seed)
        appender = Appender(self.settings, client="test")
        await appender.start()
        await appender.append_many(
            full_name(topic, self.settings.topic_prefix), partition, [outgoing(draw) for _ in range(count)]
        )
        await appender.stop()

    async def delete_before(self, offset: int, *, partition: int = 0) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.address)
        await admin.start()
        place = TopicPartition(self.changesets, partition)
        await admin.delete_records({place: RecordsToDelete(before_offset=offset)})
        await admin.close()

    async def recreate(self) -> None:
        """Delete the topic and create it again."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.address)
        await admin.start()
        await admin.delete_topics([self.changesets])
        async with asyncio.timeout(20):
            while self.changesets in await admin.list_topics():
                await asyncio.sleep(0.02)
        await admin.close()
        await make_topic(self.address, self.changesets, partitions=PARTITIONS)

    async def original(self, partition: int = 0) -> list[Received]:
        """Read the records in Kafka, as a stage reads them."""
        rows = await stored(self.address, self.changesets, partition)
        return [
            Received(partition, row.offset, row.key, row.value or b"", dict(row.headers), row.timestamp_ms)
            for row in rows
        ]

    async def read(self, start: int, end: int, partition: int = 0) -> list[Received]:
        """Read a range as a rebuild does."""
        reader = LogReader(self.settings, CHANGESETS)
        await reader.start()
        try:
            async with aclosing(reader.read(partition, start, end)) as lists:
                return [record async for batch in lists for record in batch]
        finally:
            await reader.stop()


def outgoing(draw: random.Random) -> Outgoing:
    names, values = ["ce_id", "é", ""], [b"", b"1", draw.randbytes(9)]
    return Outgoing(
        draw.choice([None, b"", b"17", draw.randbytes(20)]),
        draw.choice([None, b"", draw.randbytes(draw.randrange(3000)), b"x" * 5000]),
        [(draw.choice(names), draw.choice(values)) for _ in range(draw.randrange(4))],
        draw.choice([None, 0, 1_700_000_000_000]),
    )


async def make_world(address: str, prefix: str, folder: Path, *, url: str | None = None) -> World:
    for topic in (WEBHOOKS, CHANGESETS):
        sizes = {"max.message.bytes": str(MESSAGE_BYTES_MAX)}
        await make_topic(address, full_name(topic, prefix), partitions=PARTITIONS, **sizes)
    settings = Settings(
        kafka_address=address, topic_prefix=prefix, partitions=PARTITIONS, archive_url=url or folder.as_uri()
    )
    return World(settings, address, folder)


def tartan(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[Any, Mapping[str, Any]]:
    """Run `tartan archive …`; return its exit code and its last line, decoded."""
    for name, value in world.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["tartan", "archive", *arguments, "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code, json.loads(capsys.readouterr().out.splitlines()[-1])


def child_environment(world: World) -> dict[str, str]:
    return {**os.environ, **world.environment(), "PYTHONPATH": str(ROOT)}
