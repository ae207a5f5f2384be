"""Topics of the cluster: read, plan, create, change, verify."""

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
"""A topic has leaders within milliseconds of its creation; a cluster that takes longer than this is broken."""
LOOK_EVERY_S = 0.05
"""Kafka does not notify of a new leader or a setting in force."""

OWN = 1
"""Kafka's number of a setting of the topic itself (DescribeConfigs, DYNAMIC_TOPIC_CONFIG)."""

NOTHING_READ: Mapping[str, ReadProgress] = {}


async def planned(settings: Settings, read: Mapping[str, ReadProgress] = NOTHING_READ) -> Plan:
    """Compare the cluster with the table and, where it is given, with the progress of readers in Postgres.

    Raises: Retry, where Kafka does not answer.
    """
    topics, prefix = _planned_topics(settings), settings.topic_prefix
    names = {topic.name for topic in topics}
    async with _admin(settings) as admin:
        present = [name for name in await admin.list_topics() if name in names or (prefix and name.startswith(prefix))]
        existing = await _configured(admin, await _described(admin, present)) if present else {}
    return plan(topics, existing, read, prefix=prefix, address=settings.kafka_address)


async def apply(settings: Settings) -> list[str]:
    """Create missing topics, change nothing else, and return the names of the created ones.

    Raises: Halt, where the plan refuses something, so that nothing is created; Retry, where Kafka does not answer.
    """
    steps = await planned(settings)
    if refused := steps.of("refuse"):
        raise Halt("; ".join(f"{step.topic}: {step.why}" for step in refused))
    created = [step.topic for step in steps.of("create")]
    await create(settings, created)
    return created


async def verify(settings: Settings) -> None:
    """Verify that every topic exists with its partitions, at the start of a stage.

    Raises: Halt, where one does not; Retry, where Kafka does not answer.
    """
    topics = _planned_topics(settings)
    async with _admin(settings) as admin:
        existing = await _described(admin, [topic.name for topic in topics])
    if wrong := [
        f"{topic.name} ({existing[topic.name].partitions} of {topic.partitions})"
        for topic in topics
        if existing[topic.name].partitions != topic.partitions
    ]:
        raise Halt(f"topics are missing or have other partitions: {', '.join(wrong)}; run `tartan topics apply`")


async def create(settings: Settings, names: Collection[str]) -> None:
    """Create topics, and wait until each has leaders.

    Idempotence: one that another process has created meanwhile stays as it is.
    Raises: Halt, where Kafka refuses one; Retry, where it does not answer.
    """
    if not names:
        return
    new_topics = [
        NewTopic(topic.name, topic.partitions, topic.replicas, topic_configs=dict(topic.settings))
        for topic in _planned_topics(settings)
        if topic.name in names
    ]
    async with _admin(settings) as admin:
        answer = await admin.create_topics(new_topics)
        for name, code, *messages in answer.topic_errors:
            if code and for_code(code) is not TopicAlreadyExistsError:
                raise Halt(f"topic {name} cannot be created: {_problem(code, messages)}")

        async def led() -> bool:
            described = await _described(admin, list(names))
            return all(row.led >= settings.partitions for row in described.values())

        await _until(led, f"topics have no leaders: {', '.join(names)}")


async def change(settings: Settings, steps: Sequence[Step]) -> None:
    """Change topics to the settings of these steps, and wait until they are in force.

    Kafka's AlterConfigs replaces a topic's settings as a whole, so those that the table lacks are sent unchanged.
    Raises: Halt, where Kafka refuses one; Retry, where it does not answer.
    """
    if not steps:
        return
    changes: dict[str, dict[str, str]] = {}
    for step in steps:
        changes.setdefault(step.topic, {})[step.setting] = step.new
    async with _admin(settings) as admin:
        existing = await _configured(admin, await _described(admin, list(changes)))
        resources = [
            ConfigResource(ConfigResourceType.TOPIC, name, configs={**existing[name].own, **changed})
            for name, changed in changes.items()
        ]
        for answer in await admin.alter_configs(resources):
            for code, message, _, name in answer.resources:
                if code:
                    raise Halt(f"topic {name} cannot be changed: {_problem(code, [message])}")

        async def in_force() -> bool:
            now = await _configured(admin, await _described(admin, list(changes)))
            return all(changed.items() <= now[name].settings.items() for name, changed in changes.items())

        await _until(in_force, f"settings are not in force: {', '.join(changes)}")


async def read_progress(postgres: asyncpg.Connection) -> dict[str, ReadProgress]:
    """Return the progress of the readers of each topic, by the topic's short name."""
    rows = {row["reader"]: row for row in await postgres.fetch(_POSITIONS)}
    changesets = [row for reader, row in rows.items() if reader != "mark_due"]
    webhooks = [row for reader, row in rows.items() if reader == "mark_due"]
    known = rows["projections"]["partitions"]
    return {
        CHANGESETS.name: ReadProgress(max(row["furthest"] for row in changesets), known or None),
        WEBHOOKS.name: ReadProgress(max((row["furthest"] for row in webhooks), default=0), None),
    }


def _planned_topics(settings: Settings) -> list[PlannedTopic]:
    return [
        PlannedTopic(
            topic,
            full_name(topic, settings.topic_prefix),
            settings.partitions,
            settings.replication_factor,
            {
                # Written out, so that no cluster's defaults decide about retention.
                "cleanup.policy": "delete",
                "retention.ms": str(-1 if topic.retention_ms is None else topic.retention_ms),
                "retention.bytes": "-1",
                "max.message.bytes": str(topic.message_bytes_max),
                # Two of three replicas have a record before it is acknowledged.
                "min.insync.replicas": str(max(1, settings.replication_factor - 1)),
                "compression.type": "producer",
                "message.timestamp.type": "CreateTime",
            },
        )
        for topic in TOPICS
    ]


async def _described(admin: AIOKafkaAdminClient, names: list[str]) -> dict[str, ExistingTopic]:
    """Read partitions and replicas of topics, without their settings; a missing topic has no partitions."""
    topics = {}
    for row in await admin.describe_topics(names):
        problem = for_code(row["error_code"])
        if row["error_code"] and problem not in _MISSING:
            raise Retry(f"Kafka does not describe topic {row['topic']}: {problem.__name__}")
        partitions = row["partitions"]
        led = sum(partition["leader"] >= 0 for partition in partitions)  # a broker that is away leads nothing
        fewest = min((len(partition["replicas"]) for partition in partitions), default=0)
        topics[row["topic"]] = ExistingTopic(len(partitions), led, fewest, {}, {})
    return topics


async def _configured(admin: AIOKafkaAdminClient, topics: Mapping[str, ExistingTopic]) -> dict[str, ExistingTopic]:
    """Read the settings of topics; drop missing topics."""
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name, topic in topics.items() if topic.partitions]
    configured = {}
    for answer in await admin.describe_configs(resources) if resources else []:
        for code, message, _, name, entries in answer.resources:
            if code:
                raise Retry(f"Kafka does not tell the settings of topic {name}: {_problem(code, [message])}")
            # An entry: name, value, read-only, source, …
            configured[name] = topics[name]._replace(
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


def _problem(code: int, messages: Iterable[str | None]) -> str:
    return ": ".join([for_code(code).__name__, *filter(None, messages)])


_MISSING = (UnknownTopicOrPartitionError, LeaderNotAvailableError)
"""Kafka's errors of a topic that does not exist, or not yet everywhere."""

_POSITIONS = """
SELECT reader, max(position) AS furthest, count(*) AS partitions FROM tartan.positions GROUP BY reader
 UNION ALL
SELECT 'projections', coalesce(max(position), 0), count(*) FROM projection.positions"""


@asynccontextmanager
async def _admin(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    """Connect an admin client for a block. Raises: Retry, where Kafka does not answer, also within the block."""
    admin = AIOKafkaAdminClient(client_id="tartan-topics", **connection(settings))
    try:
        await admin.start()
        yield admin
    except KafkaError as error:
        raise Retry(f"no Kafka at {settings.kafka_address}: {type(error).__name__}") from error
    finally:
        await admin.close()
