"""The table of topics against the cluster: what is missing, what differs, make it so."""

import asyncio
from collections.abc import Iterable
from typing import NamedTuple

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    KafkaError,
    LeaderNotAvailableError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
    for_code,
)

from runtime.kafka import connection
from runtime.settings import Settings
from schemas.errors import Halt, Retry
from schemas.topics import TOPICS, Topic, full_name

READY_S_MAX = 30.0
"""A topic is led within milliseconds of its creation; a cluster that takes longer than this is not well."""


class Difference(NamedTuple):
    """One way in which the cluster is not as the table says. `partitions_found` is 0 where the topic is missing."""

    topic: Topic
    name: str
    partitions_wanted: int
    partitions_found: int


async def compare(settings: Settings) -> list[Difference]:
    """List what the cluster lacks. Raises: Retry, where it does not answer."""
    admin = await _admin(settings)
    try:
        described = await _described(admin, [full_name(topic, settings.topic_prefix) for topic in TOPICS])
    finally:
        await admin.close()
    wanted = settings.partitions
    rows = ((topic, full_name(topic, settings.topic_prefix)) for topic in TOPICS)
    found = ((topic, name, described[name].partitions if name in described else 0) for topic, name in rows)
    return [Difference(topic, name, wanted, number) for topic, name, number in found if number != wanted]


async def drift(settings: Settings) -> list[str]:
    """Say in which settings the topics that are there differ from the table; `apply` leaves them as they are.

    Most of all a retention that somebody set on what is to be kept for ever: it would lose the truth in silence.
    Raises: Retry, where Kafka does not answer.
    """
    wanted = {full_name(topic, settings.topic_prefix): _configs(topic, settings) for topic in TOPICS}
    admin = await _admin(settings)
    try:
        there = [name for name, found in (await _described(admin, list(wanted))).items() if found.partitions]
        asked = [ConfigResource(ConfigResourceType.TOPIC, name) for name in there]
        answers = await admin.describe_configs(asked) if asked else []
    except KafkaError as error:
        raise Retry(f"Kafka does not tell its topics' settings: {type(error).__name__}") from error
    finally:
        await admin.close()
    found = {
        (name, entry[0]): entry[1]
        for answer in answers
        for _, _, _, name, entries in answer.resources
        for entry in entries
    }
    return [
        f"{name}: {setting} is {found.get((name, setting))}, the table says {value}"
        for name in there
        for setting, value in wanted[name].items()
        if found.get((name, setting)) != value
    ]


async def apply(settings: Settings) -> list[Difference]:
    """Create what is missing, and give what was done.

    Raises: Halt, where a topic has another number of partitions: a key would then be in two of them.
    """
    differences = await compare(settings)
    for difference in differences:
        if difference.partitions_found:
            raise Halt(
                f"topic {difference.name} has {difference.partitions_found} partitions, TARTAN_PARTITIONS says "
                f"{difference.partitions_wanted}: records are ordered by key within a partition, so the number stays"
            )
    if differences:
        await _create(settings, differences)
    return differences


async def verify(settings: Settings) -> None:
    """Raises: Halt, where the cluster is not as the table says."""
    differences = await compare(settings)
    if differences:
        rows = ", ".join(f"{row.name} ({row.partitions_found} of {row.partitions_wanted})" for row in differences)
        raise Halt(f"topics are missing or have other partitions: {rows}; run `tartan topics apply`")


async def _create(settings: Settings, missing: list[Difference]) -> None:
    admin = await _admin(settings)
    try:
        answer = await admin.create_topics([_new(row, settings) for row in missing])
        for name, code, *said in answer.topic_errors:
            problem = for_code(code)
            if code and problem is not TopicAlreadyExistsError:
                words = next((f": {word}" for word in said if word), "")
                raise Halt(f"topic {name} cannot be created: {problem.__name__}{words}")
        await _led(admin, [row.name for row in missing], settings.partitions)
    except KafkaError as error:
        raise Retry(f"Kafka does not create topics: {type(error).__name__}") from error
    finally:
        await admin.close()


def _new(row: Difference, settings: Settings) -> NewTopic:
    return NewTopic(
        name=row.name,
        num_partitions=settings.partitions,
        replication_factor=settings.replication_factor,
        topic_configs=_configs(row.topic, settings),
    )


def _configs(topic: Topic, settings: Settings) -> dict[str, str]:
    """The settings of a topic, written out, so that no cluster's defaults decide what is kept."""
    return {
        "cleanup.policy": "delete",
        "retention.ms": str(-1 if topic.retention_ms is None else topic.retention_ms),
        "retention.bytes": "-1",
        "max.message.bytes": str(topic.message_bytes_max),
        # Two of three replicas have a record before it is acknowledged; one replica can only promise itself.
        "min.insync.replicas": str(max(1, settings.replication_factor - 1)),
        "compression.type": "producer",
        "message.timestamp.type": "CreateTime",
    }


async def _led(admin: AIOKafkaAdminClient, names: Iterable[str], partitions: int) -> None:
    """Wait until each topic is listed whole: just after its creation a producer would be told there is no leader."""
    wanted = list(names)
    try:
        async with asyncio.timeout(READY_S_MAX):
            while any(found.led < partitions for found in (await _described(admin, wanted)).values()):
                await asyncio.sleep(0.05)  # Kafka tells nobody when a leader is there
    except TimeoutError as error:
        raise Retry(f"topics have no leaders after {READY_S_MAX} s: {', '.join(wanted)}") from error


class _Found(NamedTuple):
    """A topic's partitions, and how many of them have a leader: one whose broker is away is there all the same."""

    partitions: int
    led: int


async def _described(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, _Found]:
    """What the cluster has of these topics; no partitions where it has none of them."""
    try:
        answer = await admin.describe_topics(names)
    except KafkaError as error:
        raise Retry(f"Kafka does not list its topics: {type(error).__name__}") from error
    found = {}
    for row in answer:
        problem = for_code(row["error_code"])
        if row["error_code"] and problem not in _NOT_THERE:
            raise Retry(f"Kafka does not describe topic {row['topic']}: {problem.__name__}")
        leaders = [partition["leader"] for partition in row["partitions"]]
        found[row["topic"]] = _Found(len(leaders), sum(1 for leader in leaders if leader >= 0))
    return found


_NOT_THERE = (UnknownTopicOrPartitionError, LeaderNotAvailableError)
"""What Kafka says of a topic that it does not have, or not quite yet."""


async def _admin(settings: Settings) -> AIOKafkaAdminClient:
    options = connection(settings)
    admin = AIOKafkaAdminClient(client_id="tartan-topics", **options)
    try:
        await admin.start()
    except KafkaError as error:
        await admin.close()
        raise Retry(f"no Kafka at {settings.kafka_address}: {type(error).__name__}") from error
    return admin
