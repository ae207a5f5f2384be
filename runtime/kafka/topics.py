"""The table of topics against the cluster: look, plan, make it so. Shell; what is decided is in topics_plan."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager

import asyncpg
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    KafkaError,
    LeaderNotAvailableError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
    for_code,
)

from runtime.kafka.clients import connection
from runtime.kafka.topics_plan import ExistingTopic, Plan, PlannedTopic, ReadProgress, Step, plan
from runtime.settings import Settings
from schemas.errors import Halt, Retry
from schemas.topics import CHANGESETS, TOPICS, WEBHOOKS, full_name

READY_S_MAX = 30.0
"""A topic is led within milliseconds of its creation; a cluster that takes longer than this is not well."""
LOOK_EVERY_S = 0.05
"""Kafka tells nobody when a leader is there or a setting in force."""

OWN = 1
"""Kafka's number for a setting that was made for the topic itself (DescribeConfigs, DYNAMIC_TOPIC_CONFIG)."""

NOTHING_READ: Mapping[str, ReadProgress] = {}


async def planned(settings: Settings, read: Mapping[str, ReadProgress] = NOTHING_READ) -> Plan:
    """Compare the cluster with the table and, where it was asked, with what Postgres has read.

    Raises: Retry, where Kafka does not answer.
    """
    async with _admin(settings) as admin:
        found = await _found(admin, settings)
    return plan(_wanted(settings), found, read, prefix=settings.topic_prefix, address=settings.kafka_address)


async def apply(settings: Settings) -> list[str]:
    """Create what is missing, leave all else as it is, and give the names of what was created.

    Raises: Halt, where the plan refuses something: nothing is created then. Retry, where Kafka does not answer.
    """
    wanted = await planned(settings)
    if refused := wanted.of("refuse"):
        raise Halt("; ".join(f"{step.topic}: {step.why}" for step in refused))
    created = [step.topic for step in wanted.of("create")]
    await create(settings, created)
    return created


async def verify(settings: Settings) -> None:
    """Look whether every topic is there with its partitions, as a stage does at its start.

    Raises: Halt, where one is not; Retry, where Kafka does not answer.
    """
    wanted = _wanted(settings)
    async with _admin(settings) as admin:
        found = await _described(admin, [row.name for row in wanted])
    rows = [(row.name, found[row.name].partitions, row.partitions) for row in wanted]
    if wrong := [f"{name} ({there} of {asked})" for name, there, asked in rows if there != asked]:
        raise Halt(f"topics are missing or have other partitions: {', '.join(wrong)}; run `tartan topics apply`")


async def create(settings: Settings, names: Collection[str]) -> None:
    """Create these topics, and wait until each is led.

    Idempotence: one that another has created meanwhile is left as it is.
    Raises: Halt, where Kafka refuses one; Retry, where it does not answer.
    """
    if not names:
        return
    asked = [
        NewTopic(row.name, row.partitions, row.replicas, topic_configs=dict(row.settings))
        for row in _wanted(settings)
        if row.name in names
    ]
    async with _admin(settings) as admin:
        answer = await admin.create_topics(asked)
        for name, code, *said in answer.topic_errors:
            if code and for_code(code) is not TopicAlreadyExistsError:
                raise Halt(f"topic {name} cannot be created: {_problem(code, said)}")

        async def led() -> bool:
            described = await _described(admin, list(names))
            return all(row.led >= settings.partitions for row in described.values())

        await _until(led, f"topics have no leaders: {', '.join(names)}")


async def change(settings: Settings, steps: Sequence[Step]) -> None:
    """Give topics the settings of these steps, and wait until they are in force.

    Kafka's AlterConfigs takes a topic's settings as a whole: those that are not the table's go along as they are.
    Raises: Halt, where Kafka refuses one; Retry, where it does not answer.
    """
    if not steps:
        return
    changes: dict[str, dict[str, str]] = {}
    for step in steps:
        changes.setdefault(step.topic, {})[step.setting] = step.new
    async with _admin(settings) as admin:
        found = await _configured(admin, await _described(admin, list(changes)))
        asked = [
            ConfigResource(ConfigResourceType.TOPIC, name, configs={**found[name].own, **changed})
            for name, changed in changes.items()
        ]
        for answer in await admin.alter_configs(asked):
            for code, said, _, name in answer.resources:
                if code:
                    raise Halt(f"topic {name} cannot be changed: {_problem(code, [said])}")

        async def in_force() -> bool:
            now = await _configured(admin, await _described(admin, list(changes)))
            return all(changed.items() <= now[name].settings.items() for name, changed in changes.items())

        await _until(in_force, f"settings are not in force: {', '.join(changes)}")


async def read_progress(postgres: asyncpg.Connection) -> dict[str, ReadProgress]:
    """How far the readers of each topic have come, by the topic's short name."""
    rows = {row["reader"]: row for row in await postgres.fetch(_POSITIONS)}
    changesets = [row for reader, row in rows.items() if reader != "mark_due"]
    webhooks = [row for reader, row in rows.items() if reader == "mark_due"]
    known = rows["projections"]["partitions"]
    return {
        CHANGESETS.name: ReadProgress(max(row["furthest"] for row in changesets), known or None),
        WEBHOOKS.name: ReadProgress(max((row["furthest"] for row in webhooks), default=0), None),
    }


def _wanted(settings: Settings) -> list[PlannedTopic]:
    return [
        PlannedTopic(
            topic,
            full_name(topic, settings.topic_prefix),
            settings.partitions,
            settings.replication_factor,
            {
                # Written out, so that no cluster's defaults decide what is kept.
                "cleanup.policy": "delete",
                "retention.ms": str(-1 if topic.retention_ms is None else topic.retention_ms),
                "retention.bytes": "-1",
                "max.message.bytes": str(topic.message_bytes_max),
                # Two of three replicas have a record before it is acknowledged; one replica can only promise itself.
                "min.insync.replicas": str(max(1, settings.replication_factor - 1)),
                "compression.type": "producer",
                "message.timestamp.type": "CreateTime",
            },
        )
        for topic in TOPICS
    ]


async def _found(admin: AIOKafkaAdminClient, settings: Settings) -> dict[str, ExistingTopic]:
    """The topics of the table that are there, and all others that have our prefix."""
    names = {row.name for row in _wanted(settings)}
    there = [name for name in await admin.list_topics() if name in names or _is_ours(name, settings.topic_prefix)]
    return await _configured(admin, await _described(admin, there)) if there else {}


def _is_ours(name: str, prefix: str) -> bool:
    return bool(prefix) and name.startswith(prefix)


async def _described(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, ExistingTopic]:
    """Partitions and replicas of these topics, as yet without their settings; no partitions where one is missing."""
    found = {}
    for row in await admin.describe_topics(names):
        problem = for_code(row["error_code"])
        if row["error_code"] and problem not in _NOT_THERE:
            raise Retry(f"Kafka does not describe topic {row['topic']}: {problem.__name__}")
        partitions = row["partitions"]
        led = sum(partition["leader"] >= 0 for partition in partitions)  # a broker that is away leads nothing
        fewest = min((len(partition["replicas"]) for partition in partitions), default=0)
        found[row["topic"]] = ExistingTopic(len(partitions), led, fewest, {}, {})
    return found


async def _configured(admin: AIOKafkaAdminClient, found: Mapping[str, ExistingTopic]) -> dict[str, ExistingTopic]:
    """The same topics with their settings, without those that are not there."""
    there = [name for name, one in found.items() if one.partitions]
    asked = [ConfigResource(ConfigResourceType.TOPIC, name) for name in there]
    configured = {}
    for answer in await admin.describe_configs(asked) if asked else []:
        for code, said, _, name, entries in answer.resources:
            if code:
                raise Retry(f"Kafka does not tell the settings of topic {name}: {_problem(code, [said])}")
            # An entry: name, value, read-only, source, …
            configured[name] = found[name]._replace(
                settings={entry[0]: entry[1] for entry in entries},
                own={entry[0]: entry[1] for entry in entries if entry[3] == OWN},
            )
    return configured


async def _until(holds: Callable[[], Awaitable[bool]], problem: str) -> None:
    try:
        async with asyncio.timeout(READY_S_MAX):
            while not await holds():
                await asyncio.sleep(LOOK_EVERY_S)
    except TimeoutError as error:
        raise Retry(f"{problem}, after {READY_S_MAX:g} s") from error


def _problem(code: int, said: Iterable[str | None]) -> str:
    return ": ".join([for_code(code).__name__, *(words for words in said if words)])


_NOT_THERE = (UnknownTopicOrPartitionError, LeaderNotAvailableError)
"""What Kafka says of a topic that it does not have, or not quite yet."""

_POSITIONS = """
SELECT reader, max(position) AS furthest, count(*) AS partitions FROM tartan.positions GROUP BY reader
 UNION ALL
SELECT 'projections', coalesce(max(position), 0), count(*) FROM projection.positions"""


@asynccontextmanager
async def _admin(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    """A client for a block. Raises: Retry, where Kafka does not answer, at its start or within the block."""
    admin = AIOKafkaAdminClient(client_id="tartan-topics", **connection(settings))
    try:
        await admin.start()
        yield admin
    except KafkaError as error:
        raise Retry(f"no Kafka at {settings.kafka_address}: {type(error).__name__}") from error
    finally:
        await admin.close()
