"""`tartan archive verify`: is every sealed record still there, byte for byte, and the same that the topic has."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
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
"""Of a segment that are compared at once."""


class Verified(NamedTuple):
    """What was looked at in one partition, and what is wrong.

    `compared` counts the records that were compared with the topic's. `unnamed` counts segments that no manifest
    names: what a crash between the two left, which is no fault.
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
    """Walk every chain, hash every byte again, and compare every record that the topic keeps with it.

    Memory: a segment and a list of the topic's records. Raises: Retry, where Kafka or the archive does not answer.
    """
    ends = LogEnds(settings)
    await ends.start()
    try:
        for topic, partition in await _places(settings, store):
            found, chain, _ = await _chain(store, topic, partition)
            kept = (await ends.ends(topic, [partition]))[partition] if partition < settings.partitions else Ends(0, 0)
            faults = [*chain.faults, *_seam(topic, partition, chain, kept)]
            start, end = kept.start, min(kept.end, chain.end)
            compared = 0
            async with aclosing(topic_range.records(settings, topic, partition, start, end)) as lists:
                topic_records = _Cursor(lists, Ends(start, end))
                for link in chain.links:
                    matched, wrong = await _segment(store, link.manifest, topic_records)
                    compared += matched
                    faults += wrong
            yield found._replace(compared=compared, faults=tuple(sorted(faults)))
    finally:
        await ends.stop()


async def verify_chains(settings: Settings, store: ArchiveStore) -> AsyncGenerator[Verified, None]:
    """Walk every chain, and look whether each segment is there in its size. Asks nothing of Kafka. Raises: Retry."""
    for topic, partition in await _places(settings, store):
        found, chain, objects = await _chain(store, topic, partition)
        sizes = {entry.name: entry.bytes for entry in objects}
        wrong = [fault for link in chain.links if (fault := _size_fault(link.manifest, sizes))]
        yield found._replace(faults=tuple(sorted([*chain.faults, *wrong])))


async def _places(settings: Settings, store: ArchiveStore) -> list[tuple[str, int]]:
    """Every partition that is there or should be: one that is gone from the settings is still walked."""
    names = [full_name(topic, settings.topic_prefix) for topic in seal.TOPICS]
    places = {(name, partition) for name in names for partition in range(settings.partitions)}
    for name in names:
        places |= {(name, int(folder)) for folder in await store.folders(name) if folder.isdecimal()}
    return sorted(places)


async def _chain(store: ArchiveStore, topic: str, partition: int) -> tuple[Verified, Chain, list[Stored]]:
    """A partition's totals, its chain, and the objects of its folder."""
    objects = await store.listed(manifests.folder(topic, partition))
    chain = await archive_chain.read(store, topic, partition, objects)
    held = {manifests.segment_name(link.manifest): link.manifest for link in chain.links}
    unnamed = sum(1 for entry in objects if manifests.parse_segment_name(entry.name) and entry.name not in held)
    totals = Verified(
        topic,
        partition,
        segments=len(held),
        records=sum(one.count for one in held.values()),
        bytes=sum(one.bytes for one in held.values()),
        compared=0,
        unnamed=unnamed,
        faults=(),
    )
    return totals, chain, objects


def _size_fault(manifest: Manifest, sizes: dict[str, int]) -> Fault | None:
    found = sizes.get(manifests.segment_name(manifest))
    if found == manifest.bytes:
        return None
    what = (
        "its segment is missing"
        if found is None
        else f"its segment has {found} bytes, its manifest says {manifest.bytes}"
    )
    return Fault(manifest.topic, manifest.partition, manifest.first, manifest.last, what)


def _seam(topic: str, partition: int, chain: Chain, kept: Ends) -> Iterator[Fault]:
    """What is wrong between a chain's end and the topic."""
    if kept.start > chain.end:
        yield Fault(topic, partition, chain.end, kept.start - 1, "neither the topic nor the archive has them")
    if kept.end < chain.end:
        what = f"the archive has them, the topic ends at {kept.end}: truncated, or another log"
        yield Fault(topic, partition, kept.end, chain.end - 1, what)


class _Cursor:
    """Gives a topic's records of a range in order, as many as are asked for."""

    def __init__(self, lists: AsyncIterator[list[Any]], held: Ends) -> None:
        self.held = held
        self._lists = lists
        self._next = held.start
        self._waiting: list[Any] = []

    async def take(self, first: int, last: int) -> list[Record]:
        """The records from `first` to `last`, both included and within what is held; those before are passed over."""
        found: list[Record] = []
        while self._next <= last:
            if not self._waiting:
                self._waiting = await anext(self._lists)
            count = last + 1 - self._next
            taken, self._waiting = self._waiting[:count], self._waiting[count:]
            self._next += len(taken)
            found += [topic_range.as_record(record) for record in taken if record.offset >= first]
        return found


async def _segment(store: ArchiveStore, manifest: Manifest, topic: _Cursor) -> tuple[int, list[Fault]]:
    """Check a segment and compare it with what the topic keeps of it: records compared, and what is wrong."""
    compared, differing = 0, list[int]()
    try:
        records = await archive_chain.records(store, manifest)
        while archived := list(islice(records, RECORDS_MAX)):
            both = [record for record in archived if topic.held.start <= record.offset < topic.held.end]
            if both:
                differing += _differing(both, await topic.take(both[0].offset, both[-1].offset))
                compared += len(both)
    except Damaged as error:
        return compared, [Fault(manifest.topic, manifest.partition, manifest.first, manifest.last, str(error))]
    return compared, [
        Fault(manifest.topic, manifest.partition, first, last, "the topic has other records there than the archive")
        for first, last in _runs(differing)
    ]


def _differing(archived: Iterable[Record], kept: Iterable[Record]) -> list[int]:
    """Offsets at which the topic has another record."""
    return [
        mine.offset
        for mine, theirs in zip(archived, kept, strict=True)
        if segments.encode_record(mine) != segments.encode_record(theirs)
    ]


def _runs(offsets: Sequence[int]) -> list[tuple[int, int]]:
    """Offsets in a row as first and last."""
    runs: list[tuple[int, int]] = []
    for offset in offsets:
        if runs and runs[-1][1] == offset - 1:
            runs[-1] = (runs[-1][0], offset)
        else:
            runs.append((offset, offset))
    return runs
