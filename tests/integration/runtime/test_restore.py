"""A database that was restored from a backup is noticed: Kafka's committed offset is the continuity."""

import asyncio
from collections.abc import Collection, Mapping

from prometheus_client import REGISTRY

from runtime.kafka import faust_app, topics
from runtime.kafka.clients import Appender, Outgoing
from runtime.settings import Settings
from schemas.topics import WEBHOOKS, full_name

WAIT_S_MAX = 60.0


async def test_a_position_below_what_was_committed_is_told_and_read_again(
    kafka_address: str, topic_prefix: str
) -> None:
    settings = Settings(kafka_address=kafka_address, topic_prefix=topic_prefix, partitions=1)
    await topics.apply(settings)
    topic = full_name(WEBHOOKS, topic_prefix)
    appender = Appender(settings, client="test")
    await appender.start()
    for number in range(3):
        await appender.append(topic, Outgoing(b"item", str(number).encode()))
    await appender.stop()
    await read(settings, topic, position=0, records=3)
    before = went_back(settings)

    values = await read(settings, topic, position=1, records=2)

    assert values == [b"1", b"2"]
    assert went_back(settings) == before + 1


async def read(settings: Settings, topic: str, *, position: int, records: int) -> list[bytes]:
    async def positions(pairs: Collection[tuple[str, int]]) -> Mapping[tuple[str, int], int]:
        return dict.fromkeys(pairs, position)

    app = faust_app.build(settings, name="restore", positions=positions)
    gathered = faust_app.reader(app, topic, agent="restore", records_max=10, bytes_max=1000)
    values: list[bytes] = []
    async with asyncio.timeout(WAIT_S_MAX), faust_app.running(app):
        while len(values) < records:
            taken = await gathered.take()
            values += [record.value for record in taken]
            gathered.acknowledge(taken)
        await asyncio.sleep(1.5)  # Faust commits once a second, and only what was acknowledged
    return values


def went_back(settings: Settings) -> float:
    name = "tartan_database_went_back_total"
    return REGISTRY.get_sample_value(name, {"reader": f"{settings.topic_prefix}restore"}) or 0.0
