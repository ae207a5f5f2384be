"""The log as archive and topic have it together, for those who read it from its beginning."""

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
"""Of one list: what a reader holds beside what it works on, whatever the size of the records. One may be more."""

NO_CHAIN = Chain((), ())


class Extent(NamedTuple):
    """What of a partition is there: the archive has all below `archived_end`, the topic what is within `kept`."""

    archived_end: int
    kept: Ends

    @property
    def end(self) -> int:
        """The log's next offset."""
        return self.kept.end

    def missing(self, start: int = 0) -> tuple[int, int] | None:
        """First and last offset from `start` on that neither has; None where all is there."""
        first = max(start, self.archived_end)
        return (first, self.kept.start - 1) if first < self.kept.start else None


class LogReader:
    """Reads partitions of one topic from the archive, where TARTAN_ARCHIVE_URL names one, and from Kafka.

    Records come from the topic where it keeps them and else from the archive; where both have records, one at each
    end of what both have is compared, so that archive and topic of two logs are never joined.
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
        """What archive and topic have of each partition.

        Where the topic no longer keeps its beginning, the archive's whole chain is checked; its segments are checked
        as they are read.
        Raises: Halt, where that chain is broken, naming each range, or archive and topic are of two logs; Retry.
        """
        return {number: await self._extent(number) for number in partitions}

    async def read(self, partition: int, start: int, end: int) -> AsyncGenerator[list[Received], None]:
        """The records from offset `start` up to `end`, which is not given, in order, without gap or overlap.

        Shape: lists of at most 2,000 records or about 4 MiB, a larger record alone. Memory: one list and, from the
        archive, one segment (16 MiB, or one record). Whoever stops before the end closes it (contextlib.aclosing).
        Raises: Halt, where a range is in neither, a segment is missing or not as it was sealed, or archive and topic
        are of two logs: each names its offsets; Retry, where Kafka or the archive does not answer, or the topic drops
        records while they are read: what was given stays right, and reading goes on behind it.
        """
        kept = await self._kept(partition)
        if end > kept.end:
            raise Halt(f"{self._topic} {partition} ends at {kept.end}, and is to be read up to {end}")
        seam = min(max(start, kept.start), end)
        if start < seam:
            missing = (await self._extent(partition)).missing(start)
            if missing is not None and missing[0] < end:
                where = f"{self._topic} {partition}, offsets {missing[0]}..{missing[1]}"
                raise Halt(f"{where}: neither the topic nor the archive has them")
            async with aclosing(self._archived(partition, start, seam)) as lists:
                async for archived in lists:
                    yield archived
        async with aclosing(topic_range.records(self._settings, self._topic, partition, seam, end)) as fetched:
            async for found in fetched:
                for piece in _pieces(_kept_record(partition, record) for record in found):
                    yield piece

    async def _kept(self, partition: int) -> Ends:
        return (await self._ends.ends(self._topic, [partition]))[partition]

    async def _extent(self, partition: int) -> Extent:
        kept = await self._kept(partition)
        if self._store is None:
            return Extent(0, kept)
        if not kept.start:
            chain = await archive_chain.tail(self._store, self._topic, partition)
            archive_chain.refuse(self._store, chain)
        elif (chain := self._chains.get(partition, NO_CHAIN)).end < kept.start:
            chain = await archive_chain.whole(self._store, self._topic, partition)
            archive_chain.refuse(self._store, chain)
            self._chains[partition] = chain
        # The log's end is read again: an archiver at work is ahead of what was its end before.
        kept = await self._kept(partition)
        await self._compare(self._store, partition, chain, kept)
        return Extent(chain.end, kept)

    async def _compare(self, store: ArchiveStore, partition: int, chain: Chain, kept: Ends) -> None:
        """Compare the first and the last record that archive and topic both have."""
        if chain.end > kept.end:
            raise Halt(f"{self._topic} {partition} ends at {kept.end}, the archive at {chain.end}: another log")
        if not chain.links or chain.end <= kept.start:
            return
        if kept.start:
            first = next(link.manifest for link in chain.links if link.manifest.last >= kept.start)
            async with aclosing(self._segment(store, first, kept.start, kept.start + 1)) as lists:
                async for found in lists:
                    await self._is_kept(partition, kept.start, segments.sha256_hex(segments.encode_record(found[0])))
        await self._is_kept(partition, chain.end - 1, chain.links[-1].manifest.last_record)

    async def _is_kept(self, partition: int, offset: int, sha256: str) -> None:
        found = await topic_range.record(self._settings, self._topic, partition, offset)
        if segments.sha256_hex(segments.encode_record(found)) != sha256:
            raise Halt(f"{self._topic} {partition} at {offset}: the topic has another record than the archive")

    async def _archived(self, partition: int, start: int, end: int) -> AsyncGenerator[list[Received], None]:
        if start >= end:
            return
        assert self._store is not None, "nothing is missing below the topic, so it is archived"
        for link in self._chains[partition].links:
            manifest = link.manifest
            if manifest.last < start or manifest.first >= end:
                continue
            async with aclosing(self._segment(self._store, manifest, start, end)) as lists:
                async for found in lists:
                    for piece in _pieces(_received(partition, record) for record in found):
                        yield piece

    async def _segment(
        self, store: ArchiveStore, manifest: Manifest, start: int, end: int
    ) -> AsyncGenerator[list[Record], None]:
        """A segment's records within a range, in lists."""
        try:
            records = await archive_chain.records(store, manifest)
            within = (record for record in records if start <= record.offset < end)
            while found := list(islice(within, RECORDS_MAX)):
                yield found
        except Damaged as error:
            where = f"{self._topic} {manifest.partition}, offsets {manifest.first}..{manifest.last}"
            raise Halt(f"archive {store.address}: {where}: {error}") from error


def _kept_record(partition: int, found: Any) -> Received:
    return Received(partition, found.offset, found.key, found.value or b"", dict(found.headers), found.timestamp)


def _received(partition: int, record: Record) -> Received:
    headers = {name: value or b"" for name, value in record.headers}
    return Received(partition, record.offset, record.key, record.value or b"", headers, record.timestamp_ms)


def _pieces(records: Iterator[Received]) -> Iterator[list[Received]]:
    """Records in lists of bounded size."""
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
