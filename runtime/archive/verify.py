"""Verification of the archive: every sealed record is present, unchanged, and equal to the topic's."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from itertools import islice
from typing import Any, NamedTuple

from runtime.archive import chain as archive_chain
from runtime.archive import seal, topic_range
from runtime.archive.store import ArchiveStore, Stored
from runtime.kafka.clients import Ends, LogEnds
from runtime.settings import Settings
from schemas.log import manifests, segments
from schemas.log.manifests import Chain, Fault, Manifest
from schemas.log.segments import Damaged, Record
from schemas.topics import full_name

RECORDS_MAX = 2_000
"""Records of a segment that are compared at once."""


class Verified(NamedTuple):
    """The verification of one partition.

    `compared` counts records that were compared with the topic's. `unnamed` counts segments without a manifest, which a
    crash between the two leaves and which are no fault.
    """

    topic: str
    partition: int
    segments: int
    records: int
    bytes: int
    compared: int
    unnamed: int
    faults: tuple[Fault, ...]


async def verify(settings: Settings, store: ArchiveStore) -> AsyncGenerator[Verified, None]:
    """Verify every chain, hash every byte again, and compare every record that the topic still has.

    Memory: a segment and a list of the topic's records. Raises: Retry, where Kafka or the archive does not answer.
    """
    ends = LogEnds(settings)
    await ends.start()
    try:
        for topic, partition in await _places(settings, store):
            totals, chain, _ = await _chain(store, topic, partition)
            topic_ends = (
                (await ends.ends(topic, [partition]))[partition] if partition < settings.partitions else Ends(0, 0)
            )
            faults = [*chain.faults, *_seam(topic, partition, chain, topic_ends)]
            start, end = topic_ends.start, min(topic_ends.end, chain.end)
            compared = 0
            async with aclosing(topic_range.records(settings, topic, partition, start, end)) as lists:
                topic_records = _Cursor(lists, Ends(start, end))
                for link in chain.links:
                    matched, wrong = await _segment(store, link.manifest, topic_records)
                    compared += matched
                    faults += wrong
            yield totals._replace(compared=compared, faults=tuple(sorted(faults)))
    finally:
        await ends.stop()


async def verify_chains(settings: Settings, store: ArchiveStore) -> AsyncGenerator[Verified, None]:
    """Verify every chain, and that each segment exists with its size; without Kafka. Raises: Retry."""
    for topic, partition in await _places(settings, store):
        totals, chain, objects = await _chain(store, topic, partition)
        sizes = {entry.name: entry.bytes for entry in objects}
        wrong = [fault for link in chain.links if (fault := _size_fault(link.manifest, sizes))]
        yield totals._replace(faults=tuple(sorted([*chain.faults, *wrong])))


async def _places(settings: Settings, store: ArchiveStore) -> list[tuple[str, int]]:
    """Return every partition that the archive has or should have, also those that the settings no longer have."""
    names = [full_name(topic, settings.topic_prefix) for topic in seal.TOPICS]
    places = {(name, partition) for name in names for partition in range(settings.partitions)}
    for name in names:
        places |= {(name, int(folder)) for folder in await store.folders(name) if folder.isdecimal()}
    return sorted(places)


async def _chain(store: ArchiveStore, topic: str, partition: int) -> tuple[Verified, Chain, list[Stored]]:
    """Return a partition's totals, its chain, and the objects of its folder."""
    objects = await store.listed(manifests.folder(topic, partition))
    chain = await archive_chain.read(store, topic, partition, objects)
    named = {manifests.segment_name(link.manifest): link.manifest for link in chain.links}
    unnamed = sum(1 for entry in objects if manifests.parse_segment_name(entry.name) and entry.name not in named)
    totals = Verified(
        topic,
        partition,
        segments=len(named),
        records=sum(manifest.count for manifest in named.values()),
        bytes=sum(manifest.bytes for manifest in named.values()),
        compared=0,
        unnamed=unnamed,
        faults=(),
    )
    return totals, chain, objects


def _size_fault(manifest: Manifest, sizes: dict[str, int]) -> Fault | None:
    size = sizes.get(manifests.segment_name(manifest))
    if size == manifest.bytes:
        return None
    has = "is missing" if size is None else f"has {size} bytes, its manifest says {manifest.bytes}"
    return Fault(manifest.topic, manifest.partition, manifest.first, manifest.last, f"its segment {has}")


def _seam(topic: str, partition: int, chain: Chain, topic_ends: Ends) -> Iterator[Fault]:
    """Yield the faults between a chain's end and the topic."""
    if topic_ends.start > chain.end:
        yield Fault(topic, partition, chain.end, topic_ends.start - 1, "neither the topic nor the archive has them")
    if topic_ends.end < chain.end:
        reason = f"the archive has them, the topic ends at {topic_ends.end}: truncated, or another log"
        yield Fault(topic, partition, topic_ends.end, chain.end - 1, reason)


class _Cursor:
    """Returns a topic's records of a range in order."""

    def __init__(self, lists: AsyncIterator[list[Any]], span: Ends) -> None:
        self.span = span
        self._lists = lists
        self._next = span.start
        self._waiting: list[Any] = []

    async def take(self, first: int, last: int) -> list[Record]:
        """Return the records from `first` to `last`, both included and within the range; skip those before."""
        records: list[Record] = []
        while self._next <= last:
            if not self._waiting:
                self._waiting = await anext(self._lists)
            count = last + 1 - self._next
            taken, self._waiting = self._waiting[:count], self._waiting[count:]
            self._next += len(taken)
            records += [topic_range.as_record(record) for record in taken if record.offset >= first]
        return records


async def _segment(store: ArchiveStore, manifest: Manifest, topic: _Cursor) -> tuple[int, list[Fault]]:
    """Verify a segment and compare it with the topic; return the number of compared records, and the faults."""
    compared, differing = 0, list[int]()
    try:
        records = await archive_chain.records(store, manifest)
        while archived := list(islice(records, RECORDS_MAX)):
            common = [record for record in archived if topic.span.start <= record.offset < topic.span.end]
            if common:
                topic_ends = await topic.take(common[0].offset, common[-1].offset)
                differing += [
                    mine.offset
                    for mine, theirs in zip(common, topic_ends, strict=True)
                    if segments.encode_record(mine) != segments.encode_record(theirs)
                ]
                compared += len(common)
    except Damaged as error:
        return compared, [Fault(manifest.topic, manifest.partition, manifest.first, manifest.last, str(error))]
    return compared, [
        Fault(manifest.topic, manifest.partition, first, last, "the topic has other records there than the archive")
        for first, last in _runs(differing)
    ]


def _runs(offsets: Sequence[int]) -> list[tuple[int, int]]:
    """Group consecutive offsets into (first, last) pairs."""
    runs: list[tuple[int, int]] = []
    for offset in offsets:
        if runs and runs[-1][1] == offset - 1:
            runs[-1] = (runs[-1][0], offset)
        else:
            runs.append((offset, offset))
    return runs
