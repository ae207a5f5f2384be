"""Log reader: archive and topic as one log, from offset 0."""

from collections.abc import AsyncGenerator, Collection, Iterator
from contextlib import aclosing
from itertools import islice
from typing import Any, NamedTuple

from runtime.archive import chain as archive_chain
from runtime.archive import store as archive_store
from runtime.archive import topic_range
from runtime.archive.store import ArchiveStore
from runtime.kafka.clients import Ends, LogEnds
from runtime.kafka.reader import Received
from runtime.settings import Settings
from schemas.errors import Halt
from schemas.log import segments
from schemas.log.manifests import Chain, Manifest
from schemas.log.segments import Damaged, Record
from schemas.topics import Topic, full_name

RECORDS_MAX = 2_000
BYTES_MAX = 4 * 1024 * 1024
"""Most bytes of one list, unless a single record is larger."""

NO_CHAIN = Chain((), ())


class Extent(NamedTuple):
    """The parts of a partition: the archive has records below `archived_end`, the topic within `topic_ends`."""

    archived_end: int
    topic_ends: Ends

    @property
    def end(self) -> int:
        """The log's next offset."""
        return self.topic_ends.end

    def missing(self, start: int = 0) -> tuple[int, int] | None:
        """Return the first and last offset from `start` on that neither has; None where nothing is missing."""
        first = max(start, self.archived_end)
        return (first, self.topic_ends.start - 1) if first < self.topic_ends.start else None


class LogReader:
    """Reads partitions of one topic from the archive, where TARTAN_ARCHIVE_URL names one, and from Kafka.

    Records come from the topic where it has them, else from the archive. Where both have records, the first and the
    last common one are compared, so that archive and topic of two logs are never joined.
    """

    def __init__(self, settings: Settings, topic: Topic) -> None:
        self._settings = settings
        self._topic = full_name(topic, settings.topic_prefix)
        self._store = archive_store.connect(settings) if archive_store.configured(settings) else None
        self._ends = LogEnds(settings)
        self._chains: dict[int, Chain] = {}

    async def start(self) -> None:
        """Connect. Raises: Retry, where no broker answers."""
        await self._ends.start()

    async def stop(self) -> None:
        """Disconnect."""
        await self._ends.stop()

    async def completeness(self, partitions: Collection[int]) -> dict[int, Extent]:
        """Return the extent of each partition in archive and topic.

        Where the topic has lost its beginning, the archive's whole chain is checked; segments are checked when read.
        Raises: Halt, where that chain is broken, naming each range, or archive and topic are of two logs; Retry.
        """
        return {number: await self._extent(number) for number in partitions}

    async def read(self, partition: int, start: int, end: int) -> AsyncGenerator[list[Received], None]:
        """Yield the records from offset `start` up to, but without, `end`, in order, without gap or overlap.

        Shape: lists of at most 2,000 records or about 4 MiB, a larger record alone. Memory: one list and, from the
        archive, one segment (16 MiB, or one record). Use it in contextlib.aclosing.
        Raises: Halt, where a range is in neither, a segment is missing or changed, or archive and topic are of two
        logs, with the offsets; Retry, where Kafka or the archive does not answer, or the topic deletes records
        meanwhile: yielded records stay valid, and a new call goes on behind them.
        """
        topic_ends = await self._read_topic_ends(partition)
        if end > topic_ends.end:
            raise Halt(f"{self._topic} {partition} ends at {topic_ends.end}, and is to be read up to {end}")
        seam = min(max(start, topic_ends.start), end)
        if start < seam:
            missing = (await self._extent(partition)).missing(start)
            if missing is not None and missing[0] < end:
                place = f"{self._topic} {partition}, offsets {missing[0]}..{missing[1]}"
                raise Halt(f"{place}: neither the topic nor the archive has them")
            async with aclosing(self._archived(partition, start, seam)) as lists:
                async for archived in lists:
                    yield archived
        async with aclosing(topic_range.records(self._settings, self._topic, partition, seam, end)) as fetched:
            async for fetched_records in fetched:
                for piece in _pieces(_from_kafka(partition, record) for record in fetched_records):
                    yield piece

    async def _read_topic_ends(self, partition: int) -> Ends:
        return (await self._ends.ends(self._topic, [partition]))[partition]

    async def _extent(self, partition: int) -> Extent:
        topic_ends = await self._read_topic_ends(partition)
        if self._store is None:
            return Extent(0, topic_ends)
        if not topic_ends.start:
            chain = await archive_chain.tail(self._store, self._topic, partition)
            archive_chain.check(self._store, chain)
        elif (chain := self._chains.get(partition, NO_CHAIN)).end < topic_ends.start:
            chain = await archive_chain.whole(self._store, self._topic, partition)
            archive_chain.check(self._store, chain)
            self._chains[partition] = chain
        # The log's end is read again: an archiver at work may be ahead of the first reading.
        topic_ends = await self._read_topic_ends(partition)
        await self._compare(self._store, partition, chain, topic_ends)
        return Extent(chain.end, topic_ends)

    async def _compare(self, store: ArchiveStore, partition: int, chain: Chain, topic_ends: Ends) -> None:
        """Compare the first and the last record that archive and topic both have."""
        if chain.end > topic_ends.end:
            raise Halt(f"{self._topic} {partition} ends at {topic_ends.end}, the archive at {chain.end}: another log")
        if not chain.links or chain.end <= topic_ends.start:
            return
        if topic_ends.start:
            first = next(link.manifest for link in chain.links if link.manifest.last >= topic_ends.start)
            async with aclosing(self._segment(store, first, topic_ends.start, topic_ends.start + 1)) as lists:
                async for records in lists:
                    sha256 = segments.sha256_hex(segments.encode_record(records[0]))
                    await self._compare_record(partition, topic_ends.start, sha256)
        await self._compare_record(partition, chain.end - 1, chain.links[-1].manifest.last_record)

    async def _compare_record(self, partition: int, offset: int, sha256: str) -> None:
        record = await topic_range.record(self._settings, self._topic, partition, offset)
        if segments.sha256_hex(segments.encode_record(record)) != sha256:
            raise Halt(f"{self._topic} {partition} at {offset}: the topic has another record than the archive")

    async def _archived(self, partition: int, start: int, end: int) -> AsyncGenerator[list[Received], None]:
        if start >= end:
            return
        assert self._store is not None, "nothing is missing below the topic, so the archive has it"
        for link in self._chains[partition].links:
            manifest = link.manifest
            if manifest.last < start or manifest.first >= end:
                continue
            async with aclosing(self._segment(self._store, manifest, start, end)) as lists:
                async for records in lists:
                    for piece in _pieces(_from_archive(partition, record) for record in records):
                        yield piece

    async def _segment(
        self, store: ArchiveStore, manifest: Manifest, start: int, end: int
    ) -> AsyncGenerator[list[Record], None]:
        """Yield a segment's records within a range, in lists."""
        try:
            records = await archive_chain.records(store, manifest)
            within = (record for record in records if start <= record.offset < end)
            while batch := list(islice(within, RECORDS_MAX)):
                yield batch
        except Damaged as error:
            place = f"{self._topic} {manifest.partition}, offsets {manifest.first}..{manifest.last}"
            raise Halt(f"archive {store.address}: {place}: {error}") from error


def _from_kafka(partition: int, record: Any) -> Received:
    return Received(partition, record.offset, record.key, record.value or b"", dict(record.headers), record.timestamp)


def _from_archive(partition: int, record: Record) -> Received:
    headers = {name: value or b"" for name, value in record.headers}
    return Received(partition, record.offset, record.key, record.value or b"", headers, record.timestamp_ms)


def _pieces(records: Iterator[Received]) -> Iterator[list[Received]]:
    piece: list[Received] = []
    filled = 0
    for record in records:
        piece.append(record)
        filled += len(record.value)
        if filled >= BYTES_MAX or len(piece) >= RECORDS_MAX:
            yield piece
            piece, filled = [], 0
    if piece:
        yield piece
