"""Topics as any consumer reads them, compared with the events that the tables give and the webhooks that were sent."""

import base64
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import asyncpg
import msgspec
import zstandard
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from runtime.kafka.clients import connection
from runtime.kafka.reader import Received
from runtime.settings import Settings
from schemas.encoding import codec
from schemas.errors import Retry
from schemas.log.records import Webhook
from schemas.topics import HEADER_POSITION, PUBLIC, Topic, full_name

READ_S_MAX = 30.0
POLL_MS = 500
EVENTS_BYTES_MAX = 256 * 1024 * 1024
CLOCK_S = 2
"""The simulator signs within the second in which it sends, or in one of the next two on a busy machine."""

Partition = tuple[str, int]
"""Short name of a topic, and a partition of it."""
Published = tuple[int, int, str]
"""Source offset, index within its changeset, type of the event."""


class Delivery(NamedTuple):
    """Webhook that was answered with 200."""

    item_id: str
    code: str
    sent_at_s: int


async def read_topics(settings: Settings, topics: Sequence[Topic]) -> dict[Partition, list[ConsumerRecord]]:
    """Return all records of topics, in order, up to their present ends.

    Raises: Retry, where they cannot be read to their ends within READ_S_MAX.
    """
    names = {full_name(topic, settings.topic_prefix): topic.name for topic in topics}
    partitions = [TopicPartition(name, number) for name in names for number in range(settings.partitions)]
    read: dict[Partition, list[ConsumerRecord]] = {(names[name], number): [] for name, number in partitions}
    consumer = AIOKafkaConsumer(
        group_id=None, auto_offset_reset="none", enable_auto_commit=False, **connection(settings)
    )
    await consumer.start()
    try:
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        for partition in partitions:
            consumer.seek(partition, 0)
        behind = {partition for partition in partitions if ends[partition]}
        for _ in range(int(READ_S_MAX * 1000 / POLL_MS)):
            if not behind:
                return read
            for partition, records in (await consumer.getmany(*behind, timeout_ms=POLL_MS)).items():
                read[names[partition.topic], partition.partition] += records
                if records and records[-1].offset + 1 >= ends[partition]:
                    behind.discard(partition)
    finally:
        await consumer.stop()
    if behind:
        raise Retry(f"{len(behind)} partitions were not read to their ends within {READ_S_MAX:g} s")
    return read


def event_of(record: ConsumerRecord | Received) -> Published:
    """Return the position and type of the event in a record of a public topic."""
    headers = dict(record.headers)
    offset, _, index = headers[HEADER_POSITION].decode().partition(".")
    return int(offset), int(index), headers["ce_type"].decode()


def deduplicate(events: Iterable[Published]) -> list[Published]:
    """Drop each event of a partition whose position is not above the last one (the rule in docs/architecture.md)."""
    unique: list[Published] = []
    for event in events:
        if not unique or event[:2] > unique[-1][:2]:
            unique.append(event)
    return unique


async def expected_events(
    connection: asyncpg.Connection, partition: int | None = None
) -> dict[Partition, list[Published]]:
    """Return the events of the table `changesets`, of one partition or all."""
    topic_of = {kind: topic.name for topic in PUBLIC for kind in topic.event_types}
    expected: dict[Partition, list[Published]] = defaultdict(list)
    for row in await connection.fetch(_NET_EVENTS, partition):
        block = zstandard.ZstdDecompressor().decompress(row["events"], max_output_size=EVENTS_BYTES_MAX)
        for index, event in enumerate(codec.decode_events(block)):
            expected[topic_of[event.type], row["partition"]].append((row["source_offset"], index, event.type))
    return expected


def first_difference(
    partition: Partition, published: Sequence[Published], expected: Mapping[Partition, Sequence[Published]]
) -> list[str]:
    """Return the first difference between a partition's deduplicated events and the expected ones, as a list of one."""
    name, due = "{} {}".format(*partition), list(expected.get(partition, []))
    if list(published) == due:
        return []
    for number, (event, other) in enumerate(zip(published, due, strict=False)):
        if event != other:
            return [f"{name}: event {number} is {event}, expected {other}"]
    return [f"{name}: {len(published)} events were published, expected {len(due)}"]


def lost_webhooks(deliveries: Iterable[Delivery], logged: Iterable[ConsumerRecord]) -> list[Delivery]:
    """Return the webhooks that were answered with 200 and have no record of their own in the log."""
    signed: dict[tuple[str, str], list[int]] = defaultdict(list)
    for record in logged:
        webhook = codec.decode(Webhook, record.value)
        if webhook.body is not None:
            body = msgspec.json.decode(webhook.body)
            signed[body.get("item_id", ""), body["webhook_code"]].append(_signed_at_s(webhook.jwt))
    for times in signed.values():
        times.sort(reverse=True)
    lost = []
    for delivery in sorted(deliveries, key=lambda delivery: delivery.sent_at_s):
        times = signed[delivery.item_id, delivery.code]
        while times and times[-1] < delivery.sent_at_s:  # of an attempt that got no 200 and was logged all the same
            times.pop()
        if times and times[-1] <= delivery.sent_at_s + CLOCK_S:
            times.pop()
        else:
            lost.append(delivery)
    return lost


def accepted(attempts: Iterable[Mapping[str, Any]]) -> list[Delivery]:
    """Return the simulator's delivery attempts that were answered with 200."""
    return [
        Delivery(attempt["item_id"], attempt["code"], int(attempt["sent_at"]))
        for attempt in attempts
        if attempt["status"] == 200
    ]


def _signed_at_s(jwt: str) -> int:
    claims = jwt.split(".")[1]
    return int(msgspec.json.decode(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["iat"])


_NET_EVENTS = """
SELECT partition, source_offset, events FROM changesets
 WHERE net_events > 0 AND ($1::int IS NULL OR partition = $1) ORDER BY 1, 2"""
