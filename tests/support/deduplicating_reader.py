"""A reader of public topics that drops duplicates by the reader's rule (docs/architecture.md)."""

from collections.abc import Iterable, Sequence
from typing import Self

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from runtime.kafka.clients import connection
from runtime.settings import Settings
from schemas.topics import HEADER_POSITION, Topic, full_name

Lane = tuple[str, int]
"""Short name of a topic, and a partition of it."""
Record = tuple[bytes | None, bytes | None, tuple[tuple[str, bytes], ...]]
"""Key, value and headers."""
UniqueRecords = dict[Lane, list[Record]]


class DeduplicatingReader:
    """Read on from call to call, and drop each record whose position is not above the last one of its partition."""

    def __init__(self, settings: Settings, topics: Sequence[Topic]) -> None:
        self.records: UniqueRecords = {
            (topic.name, number): [] for topic in topics for number in range(settings.partitions)
        }
        self.dropped = 0
        self._names = {topic.name: full_name(topic, settings.topic_prefix) for topic in topics}
        self._last: dict[Lane, tuple[int, int]] = {}
        self._settings = settings

    async def __aenter__(self) -> Self:
        # A consumer at the old end of a recreated topic starts at its beginning.
        self._consumer = AIOKafkaConsumer(
            group_id=None, auto_offset_reset="earliest", enable_auto_commit=False, **connection(self._settings)
        )
        await self._consumer.start()
        self._consumer.assign([self._place(lane) for lane in self.records])
        await self._consumer.seek_to_beginning()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._consumer.stop()

    async def drain(self) -> None:
        """Read up to the present ends of the topics."""
        places = {self._place(lane): lane for lane in self.records}
        ends = await self._consumer.end_offsets(list(places))
        while behind := [place for place, end in ends.items() if await self._consumer.position(place) < end]:
            for place, records in (await self._consumer.getmany(*behind, timeout_ms=500)).items():
                for record in records:
                    self._read(places[place], record)

    async def places(self, lanes: Iterable[Lane]) -> list[tuple[TopicPartition, int]]:
        """Return partitions of the cluster, each with the next offset to read."""
        return [(place, await self._consumer.position(place)) for place in map(self._place, lanes)]

    def _read(self, lane: Lane, record: ConsumerRecord) -> None:
        # Records of `push` have a position and no event type.
        offset, _, index = dict(record.headers)[HEADER_POSITION].decode().partition(".")
        position = (int(offset), int(index))
        if position <= self._last.get(lane, (-1, -1)):
            self.dropped += 1
            return
        self._last[lane] = position
        self.records[lane].append((record.key, record.value, tuple(record.headers)))

    def _place(self, lane: Lane) -> TopicPartition:
        topic, partition = lane
        return TopicPartition(self._names[topic], partition)
