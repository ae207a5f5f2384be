"""`tartan topics` on a real Kafka: made as the table says, safe to repeat, never another number of partitions."""

import asyncio
import json
from typing import Any

import asyncpg
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from runtime.kafka import topics
from runtime.kafka.topics_plan import Plan
from runtime.settings import Settings
from schemas.errors import Halt, Retry
from schemas.topics import CHANGESETS, ITEMS, TOPICS, TRANSACTIONS, WEBHOOKS, full_name
from tests.conftest import finish
from tests.support.command_line import tartan_process
from tests.support.runtime_kafka import make_topic, settings

DAY_MS = 86_400_000


@pytest.fixture
def given(kafka_address: str, topic_prefix: str) -> Settings:
    return settings(kafka_address, topic_prefix)


@pytest.fixture
def tartan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: Settings) -> Any:
    """Runs `tartan topics WORDS` as a user does: exit code, standard output, standard error."""
    monkeypatch.setenv("TARTAN_KAFKA_ADDRESS", given.kafka_address)
    monkeypatch.setenv("TARTAN_TOPIC_PREFIX", given.topic_prefix)
    monkeypatch.setenv("TARTAN_PARTITIONS", str(given.partitions))
    monkeypatch.setenv("TARTAN_POSTGRES_DSN", "postgresql://tartan@127.0.0.1:1/tartan")

    def run(*words: str) -> tuple[object, str, str]:
        return tartan_process(monkeypatch, capsys, "topics", *words)

    return run


def document(said: tuple[object, str, str]) -> Any:
    return json.loads(said[1].splitlines()[-1])


async def test_every_topic_is_made_as_the_table_says(given: Settings) -> None:
    done = await topics.apply(given)

    assert set(done) == {full_name(topic, given.topic_prefix) for topic in TOPICS}
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
    assert await topics.planned(given) == Plan()
    await topics.verify(given)
    assert await configs(given) == before


async def test_another_number_of_partitions_is_refused_and_nothing_is_made(given: Settings) -> None:
    name = full_name(CHANGESETS, given.topic_prefix)
    await make_topic(given.kafka_address, name, partitions=5)

    with pytest.raises(Halt, match=f"topic {name} has 5 partitions, TARTAN_PARTITIONS says 3"):
        await topics.apply(given)

    assert list(await configs(given)) == [name]


async def test_a_stage_does_not_start_where_topics_are_missing_or_have_other_partitions(given: Settings) -> None:
    name = full_name(CHANGESETS, given.topic_prefix)
    await make_topic(given.kafka_address, name, partitions=5)

    with pytest.raises(Halt, match="run `tartan topics apply`") as refused:
        await topics.verify(given)

    assert f"{name} (5 of 3)" in str(refused.value)
    assert f"{full_name(WEBHOOKS, given.topic_prefix)} (0 of 3)" in str(refused.value)


async def test_two_that_apply_at_once_make_each_topic_once(given: Settings) -> None:
    await asyncio.gather(*(topics.apply(given) for _ in range(3)))

    assert await topics.planned(given) == Plan()


async def test_more_replicas_than_brokers_are_refused_by_name(given: Settings) -> None:
    with pytest.raises(Halt, match=rf"topic {given.topic_prefix}\S+ cannot be created: InvalidReplicationFactor"):
        await topics.apply(given.model_copy(update={"replication_factor": 3}))


async def test_no_broker_is_a_retry_that_names_the_address(given: Settings) -> None:
    with pytest.raises(Retry, match=r"127\.0\.0\.1:1"):
        await topics.apply(given.model_copy(update={"kafka_address": "127.0.0.1:1"}))


def test_a_plan_shows_what_apply_then_does_and_afterwards_nothing_is_left(tartan: Any, given: Settings) -> None:
    name = full_name(CHANGESETS, given.topic_prefix)
    made: Any = {"retention.ms": str(7 * DAY_MS), "segment.ms": "600000"}
    finish(make_topic(given.kafka_address, name, **made))
    finish(make_topic(given.kafka_address, f"{given.topic_prefix}stranger", partitions=1))

    code, out, err = tartan("plan")
    assert code == 2
    assert f"~ {name}: retention.ms {7 * DAY_MS} -> -1\n" in out
    assert f"+ {full_name(WEBHOOKS, given.topic_prefix)}: create with 3 partitions" in out
    assert f"{given.topic_prefix}stranger: not in the table" in out
    assert f"WARNING: {name} IS LOSING RECORDS" in err

    # Without --yes what is missing is made, and what is there is left.
    code, out, _ = tartan("apply")
    assert code == 0
    assert f"unchanged: {name} retention.ms {7 * DAY_MS}; `tartan topics apply --yes` changes it" in out
    assert tartan("verify", "--json")[0] == 1

    code, out, _ = tartan("apply", "--yes")
    assert (code, out.splitlines()[-1]) == (0, "Created 0 topics, changed 2 settings.")
    assert tartan("plan")[0] == 0
    code, *_ = said = tartan("verify", "--json")
    told = document(said)
    assert (code, told["violations"], told["strangers"]) == (0, 0, [f"{given.topic_prefix}stranger"])
    # What an operator set besides stays.
    assert finish(configs(given))[name]["segment.ms"] == "600000"
    assert tartan("apply", "--yes")[1].splitlines()[-1] == "Nothing to do."


def test_a_change_that_deletes_records_is_asked_for_by_the_topics_name(tartan: Any, given: Settings) -> None:
    finish(topics.apply(given))
    kept = {topic: full_name(topic, given.topic_prefix) for topic in (TRANSACTIONS, ITEMS)}
    for name in kept.values():
        finish(alter(given, name, {"retention.ms": "-1", "cleanup.policy": "delete"}))

    code, *_ = said = tartan("apply", "--yes", "--allow-deletion", "items", "--json")

    told = document(said)
    changed = {(step["topic"], step["setting"]) for step in told["changed"]}
    assert code == 1
    assert (kept[ITEMS], "retention.ms") in changed
    assert [(step["topic"], step["deletes"]) for step in told["left"]] == [(kept[TRANSACTIONS], True)]
    found = finish(configs(given))
    assert found[kept[ITEMS]]["retention.ms"] == str(30 * DAY_MS)
    assert found[kept[TRANSACTIONS]]["retention.ms"] == "-1"
    assert tartan("apply")[0] == 0
    assert tartan("apply", "--yes")[0] == 1
    assert tartan("apply", "--allow-deletion", "thing")[0] == 2


def test_what_postgres_has_read_of_a_topic_that_is_gone_is_not_hidden_by_an_empty_one(
    tartan: Any, given: Settings, monkeypatch: pytest.MonkeyPatch, database: str
) -> None:
    monkeypatch.setenv("TARTAN_POSTGRES_DSN", database)
    finish(execute(database, "INSERT INTO tartan.positions (reader, partition, position) VALUES ('mark_due', 1, 70)"))

    code, *_ = said = tartan("plan", "--json")
    assert code == 1
    assert [step["topic"] for step in document(said)["refused"]] == [full_name(WEBHOOKS, given.topic_prefix)]

    code, *_ = said = tartan("apply", "--json")
    assert code == 1
    assert "Postgres has read it up to 70" in document(said)["error"]
    assert finish(configs(given)) == {}


async def execute(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute(statement)
    await connection.close()


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
        asked = ConfigResource(ConfigResourceType.TOPIC, name)
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, configs=changed)])
        async with asyncio.timeout(10):  # the broker answers before it knows of it itself
            while not changed.items() <= in_force(await admin.describe_configs([asked])).items():
                await asyncio.sleep(0.01)
    finally:
        await admin.close()


def in_force(answers: Any) -> dict[str, str]:
    return {entry[0]: entry[1] for answer in answers for *_, entries in answer.resources for entry in entries}
