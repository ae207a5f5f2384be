"""`tartan topics` on a real Kafka: made as the table says, safe to repeat, never another number of partitions."""

import asyncio
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from runtime import topics
from runtime.settings import Settings
from schemas.errors import Halt, Retry
from schemas.topics import CHANGESETS, TOPICS, WEBHOOKS, full_name
from tests.integration.runtime_kafka import make_topic, settings


@pytest.fixture
def given(kafka_address: str, topic_prefix: str) -> Settings:
    return settings(kafka_address, topic_prefix)


async def test_every_topic_is_made_as_the_table_says(given: Settings) -> None:
    done = await topics.apply(given)

    assert {row.topic for row in done} == set(TOPICS)
    found = await configs(given)
    for topic in TOPICS:
        made = found[full_name(topic, given.topic_prefix)]
        assert made == {
            "partitions": given.partitions,
            "cleanup.policy": "delete",
            "retention.ms": "-1" if topic.retention_ms is None else str(topic.retention_ms),
            "retention.bytes": "-1",
            "max.message.bytes": str(topic.message_bytes_max),
            "min.insync.replicas": "1",
            "compression.type": "producer",
            "message.timestamp.type": "CreateTime",
        }, topic.name


async def test_what_nothing_can_make_again_is_kept_for_ever() -> None:
    assert [topic.retention_ms for topic in (WEBHOOKS, CHANGESETS)] == [None, None]


async def test_applied_again_nothing_changes(given: Settings) -> None:
    await topics.apply(given)
    before = await configs(given)

    assert await topics.apply(given) == []
    assert await topics.compare(given) == []
    await topics.verify(given)
    assert await configs(given) == before


async def test_what_is_missing_is_listed_by_name_and_made_beside_the_rest(given: Settings) -> None:
    await make_topic(given.kafka_address, full_name(CHANGESETS, given.topic_prefix))

    with pytest.raises(Halt, match=r"tartan topics apply") as refused:
        await topics.verify(given)
    missing = [full_name(topic, given.topic_prefix) for topic in TOPICS if topic is not CHANGESETS]

    assert all(f"{name} (0 of {given.partitions})" in str(refused.value) for name in missing)
    assert full_name(CHANGESETS, given.topic_prefix) not in str(refused.value)
    assert [row.name for row in await topics.apply(given)] == missing
    await topics.verify(given)


@pytest.mark.parametrize("settled", [2, 5])
async def test_another_number_of_partitions_is_refused_and_nothing_is_made(given: Settings, settled: int) -> None:
    name = full_name(CHANGESETS, given.topic_prefix)
    await make_topic(given.kafka_address, name, partitions=settled)

    with pytest.raises(Halt, match=f"topic {name} has {settled} partitions, TARTAN_PARTITIONS says 3"):
        await topics.apply(given)
    with pytest.raises(Halt, match=f"{settled} of 3"):
        await topics.verify(given)

    assert list(await configs(given)) == [name]


async def test_two_that_apply_at_once_make_each_topic_once(given: Settings) -> None:
    await asyncio.gather(*(topics.apply(given) for _ in range(3)))

    await topics.verify(given)


async def test_a_setting_that_somebody_changed_is_told_and_left_as_it_is(given: Settings) -> None:
    await topics.apply(given)
    assert await topics.drift(given) == []
    name = full_name(CHANGESETS, given.topic_prefix)
    await alter(given, name, {"retention.ms": "604800000", "cleanup.policy": "compact"})

    async with asyncio.timeout(10):
        while not (told := await topics.drift(given)):
            await asyncio.sleep(0.01)  # the broker answers before it knows of it itself

    assert {
        f"{name}: cleanup.policy is compact, the table says delete",
        f"{name}: retention.ms is 604800000, the table says -1",
    } <= set(told)
    assert all(line.startswith(f"{name}: ") for line in told)
    assert await topics.apply(given) == []
    assert sorted(await topics.drift(given)) == sorted(told)


async def test_topics_that_are_missing_have_no_settings_that_differ(given: Settings) -> None:
    assert await topics.drift(given) == []


async def test_more_replicas_than_brokers_are_refused_by_name(given: Settings) -> None:
    with pytest.raises(Halt, match=rf"topic {given.topic_prefix}\S+ cannot be created: InvalidReplicationFactor"):
        await topics.apply(given.model_copy(update={"replication_factor": 3}))


async def test_no_broker_is_a_retry_that_names_the_address(given: Settings) -> None:
    nowhere = given.model_copy(update={"kafka_address": "127.0.0.1:1"})

    for work in (topics.apply, topics.compare, topics.verify, topics.drift):
        with pytest.raises(Retry, match=r"127\.0\.0\.1:1"):
            await work(nowhere)


async def configs(given: Settings) -> dict[str, dict[str, Any]]:
    """What each topic of this test was made with: settings of its own, and the number of its partitions."""
    admin = AIOKafkaAdminClient(bootstrap_servers=given.kafka_address)
    await admin.start()
    try:
        names = [name for name in await admin.list_topics() if name.startswith(given.topic_prefix)]
        made: dict[str, dict[str, Any]] = {
            row["topic"]: {"partitions": len(row["partitions"])} for row in await admin.describe_topics(names)
        }
        asked = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
        for answer in await admin.describe_configs(asked):
            for _, _, _, name, entries in answer.resources:
                # Entry: name, value, read-only, source, sensitive. Source 1 is the topic's own setting.
                made[name] |= {entry[0]: entry[1] for entry in entries if entry[3] == 1}
        return made
    finally:
        await admin.close()


async def alter(given: Settings, name: str, changed: dict[str, str]) -> None:
    """Set a topic's settings as an operator's tool does: what is not named has the cluster's default again."""
    admin = AIOKafkaAdminClient(bootstrap_servers=given.kafka_address)
    await admin.start()
    try:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, configs=changed)])
    finally:
        await admin.close()
