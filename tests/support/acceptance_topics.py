"""Reading whole topics from outside, as any consumer could."""

from collections.abc import Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from runtime.kafka.clients import connection
from runtime.settings import Settings
from schemas.topics import Topic, full_name


async def whole(settings: Settings, topics: Sequence[Topic]) -> dict[tuple[str, int], list[Any]]:
    """All records of topics: (topic's short name, partition) to the records in order."""
    names = {full_name(topic, settings.topic_prefix): topic.name for topic in topics}
    places = [TopicPartition(name, number) for name in names for number in range(settings.partitions)]
    found: dict[tuple[str, int], list[Any]] = {(names[place.topic], place.partition): [] for place in places}
    consumer = AIOKafkaConsumer(
        group_id=None, auto_offset_reset="none", enable_auto_commit=False, **connection(settings)
    )
    await consumer.start()
    try:
        ends = await consumer.end_offsets(places)
        consumer.assign(places)
        for place in places:
            consumer.seek(place, 0)
        behind = {place for place in places if ends[place]}
        while behind:
            for place, records in (await consumer.getmany(*behind, timeout_ms=500)).items():
                found[names[place.topic], place.partition] += records
                if records and records[-1].offset + 1 >= ends[place]:
                    behind.discard(place)
    finally:
        await consumer.stop()
    return found
