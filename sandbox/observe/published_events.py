"""Topics as any consumer sees them, and what the tables say should be there."""

import base64
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
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
"""The simulator signs within the second in which it sends, or a busy machine's next ones."""

Place = tuple[str, int]
"""A topic's short name and a partition."""
Published = tuple[int, int, str]
"""Source offset, index within its changeset, type of the event."""


class Sent(NamedTuple):
    """A webhook that was answered with 200."""

    item_id: str
    code: str
    at_s: int


@asynccontextmanager
async def _reading(settings: Settings, places: Iterable[TopicPartition]) -> AsyncIterator[AIOKafkaConsumer]:
    consumer = AIOKafkaConsumer(
        group_id=None, auto_offset_reset="none", enable_auto_commit=False, **connection(settings)
    )
    await consumer.start()
    try:
        consumer.assign(list(places))
        yield consumer
    finally:
        await consumer.stop()


async def whole(settings: Settings, topics: Sequence[Topic]) -> dict[Place, list[ConsumerRecord]]:
    """All records of topics, in order, up to the ends that they have now.

    Raises: Retry, where they cannot be read to their ends within READ_S_MAX.
    """
    names = {full_name(topic, settings.topic_prefix): topic.name for topic in topics}
    places = [TopicPartition(name, number) for name in names for number in range(settings.partitions)]
    found: dict[Place, list[ConsumerRecord]] = {(names[place.topic], place.partition): [] for place in places}
    async with _reading(settings, places) as consumer:
        ends = await consumer.end_offsets(places)
        for place in places:
            consumer.seek(place, 0)
        behind = {place for place in places if ends[place]}
        for _ in range(int(READ_S_MAX * 1000 / POLL_MS)):
            if not behind:
                return found
            for place, records in (await consumer.getmany(*behind, timeout_ms=POLL_MS)).items():
                found[names[place.topic], place.partition] += records
                if records and records[-1].offset + 1 >= ends[place]:
                    behind.discard(place)
    if behind:
        raise Retry(f"{len(behind)} partitions were not read to their ends within {READ_S_MAX:g} s")
    return found


def deduplicate(records: Iterable[ConsumerRecord]) -> list[Published]:
    """What a reader keeps that drops whatever is not above the last position it has seen (docs/architecture.md)."""
    return kept(map(published, records))


def published(record: ConsumerRecord | Received) -> Published:
    """The event of a record of a public topic."""
    headers = dict(record.headers)
    offset, _, index = headers[HEADER_POSITION].decode().partition(".")
    return int(offset), int(index), headers["ce_type"].decode()


def kept(events: Iterable[Published]) -> list[Published]:
    """The events of a partition that the reader's rule keeps."""
    found: list[Published] = []
    for event in events:
        if not found or event[:2] > found[-1][:2]:
            found.append(event)
    return found


async def to_publish(connected: asyncpg.Connection, partition: int | None = None) -> dict[Place, list[Published]]:
    """What the fold says was to be published, of one partition or all, in the same form."""
    topic_of = {kind: topic.name for topic in PUBLIC for kind in topic.event_types}
    found: dict[Place, list[Published]] = defaultdict(list)
    for row in await connected.fetch(_NET_EVENTS, partition):
        block = zstandard.ZstdDecompressor().decompress(row["events"], max_output_size=EVENTS_BYTES_MAX)
        for index, event in enumerate(codec.decode_events(block)):
            found[topic_of[event.type], row["partition"]].append((row["source_offset"], index, event.type))
    return found


def unlike(place: str, found: Sequence[Published], wanted: Sequence[Published]) -> list[str]:
    """Where what a reader keeps of a partition is not what was to be published; empty where it is."""
    if list(found) == list(wanted):
        return []
    for number, (one, other) in enumerate(zip(found, wanted, strict=False)):
        if one != other:
            return [f"{place}: event {number} is {one}, expected {other}"]
    return [f"{place}: {len(found)} events were published, expected {len(wanted)}"]


def lost_webhooks(sent: Iterable[Sent], logged: Iterable[ConsumerRecord]) -> list[Sent]:
    """The webhooks that were answered with 200 and for which the log has no record of their own."""
    signed: dict[tuple[str, str], list[int]] = defaultdict(list)
    for record in logged:
        webhook = codec.decode(Webhook, record.value)
        if webhook.body is not None:
            body = msgspec.json.decode(webhook.body)
            signed[body.get("item_id", ""), body["webhook_code"]].append(_signed_at_s(webhook.jwt))
    for times in signed.values():
        times.sort(reverse=True)
    lost = []
    for one in sorted(sent, key=lambda one: one.at_s):
        times = signed[one.item_id, one.code]
        while times and times[-1] < one.at_s:  # of an attempt that got no 200, and is in the log all the same
            times.pop()
        if times and times[-1] <= one.at_s + CLOCK_S:
            times.pop()
        else:
            lost.append(one)
    return lost


def accepted(deliveries: Iterable[Mapping[str, Any]]) -> list[Sent]:
    """The simulator's deliveries that were answered with 200."""
    return [Sent(one["item_id"], one["code"], int(one["sent_at"])) for one in deliveries if one["status"] == 200]


def _signed_at_s(jwt: str) -> int:
    claims = jwt.split(".")[1]
    return int(msgspec.json.decode(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["iat"])


_NET_EVENTS = """
SELECT partition, source_offset, events FROM changesets
 WHERE net_events > 0 AND ($1::int IS NULL OR partition = $1) ORDER BY 1, 2"""
