"""Sealing: write the records of `webhooks` and `changesets` into segments of the archive, each once.

Records below a topic's end are committed and never change, so sealing waits for no reader. A segment is written before
its manifest, and a manifest only where none exists: of two archivers one writes it, and the other goes on behind it.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import NamedTuple

import msgspec

from runtime.archive import chain as archive_chain
from runtime.archive import topic_range
from runtime.archive.store import ArchiveStore
from runtime.kafka.clients import Ends, LogEnds
from runtime.settings import Settings
from schemas.errors import Halt
from schemas.log import manifests, segments
from schemas.log.manifests import Fault, Head, Link
from schemas.log.segments import Damaged, Record
from schemas.topics import CHANGESETS, WEBHOOKS, full_name

TOPICS = (WEBHOOKS, CHANGESETS)
"""Primary topics, which are archived for ever (decision 14); all others can be published again."""

SEGMENT_BYTES_MAX = 16 * 1024 * 1024
"""Bytes of records in one segment. A reader has one of each partition in memory: twelve are 192 MiB."""
SEGMENT_RECORDS_MAX = 100_000
"""Records of one segment: so many webhooks of 160 bytes fill one."""


class Sealed(NamedTuple):
    """A segment that this run added: first and last offset, and size of the file."""

    topic: str
    partition: int
    first: int
    last: int
    bytes: int


class Reached(NamedTuple):
    """The extent of a partition's archive: offsets 0 up to `archived_end`, of a topic that ends at `topic_end`.

    `head` is the SHA-256 of the last manifest; a copy elsewhere proves everything before it.
    """

    topic: str
    partition: int
    archived_end: int
    topic_end: int
    head: str | None


class Archived(NamedTuple):
    """The result of a run."""

    sealed: list[Sealed]
    reached: list[Reached]
    faults: list[Fault]


async def archive(
    settings: Settings, store: ArchiveStore, *, sealed_before_ms: int | None, on_sealed: Callable[[Sealed], None]
) -> Archived:
    """Seal each full segment, and the rest where its first record is older than `sealed_before_ms` or that is None.

    `on_sealed` is called for each segment. A partition that cannot go on is a fault; the others go on.
    Idempotence: a crash leaves at most a segment without its manifest, and the next run seals the same range again.
    Raises: Retry, where Kafka or the archive does not answer; Halt, where a written manifest is gone.
    """
    done = Archived([], [], [])
    ends = LogEnds(settings)
    await ends.start()
    try:
        for topic in (full_name(topic, settings.topic_prefix) for topic in TOPICS):
            for partition in range(settings.partitions):
                sealer = _Sealer(settings, store, topic, partition)
                chain = await archive_chain.tail(store, topic, partition)
                # Read after the chain's end, or another archiver at work would seem to be a topic that lost its end.
                topic_ends = (await ends.ends(topic, [partition]))[partition]
                last = chain.links[-1] if chain.links else None
                faults = chain.faults or await sealer.faults(last, topic_ends)
                if faults:
                    done.faults.extend(faults)
                    continue
                if last is not None and (chain.head is None or chain.head.first != last.manifest.first):
                    await sealer.write_head(last)  # a crash came between manifest and head
                async with aclosing(sealer.seal(last, topic_ends.end, sealed_before_ms)) as links:
                    async for last, own in links:
                        if own:
                            manifest = last.manifest
                            sealed = Sealed(topic, partition, manifest.first, manifest.last, manifest.bytes)
                            done.sealed.append(sealed)
                            on_sealed(sealed)
                end, head = (last.manifest.last + 1, last.sha256) if last else (0, None)
                done.reached.append(Reached(topic, partition, end, topic_ends.end, head))
    finally:
        await ends.stop()
    return done


class _Sealer:
    """Seals one partition."""

    def __init__(self, settings: Settings, store: ArchiveStore, topic: str, partition: int) -> None:
        self._settings = settings
        self._store = store
        self._topic = topic
        self._partition = partition
        self._folder = manifests.folder(topic, partition)

    async def faults(self, last: Link | None, topic_ends: Ends) -> tuple[Fault, ...]:
        """Return why this chain cannot go on from this topic; empty where it can."""
        end = last.manifest.last + 1 if last else 0
        if topic_ends.start > end:
            reason = "the topic no longer keeps them and the archive never had them: they are lost"
            return self._fault(end, topic_ends.start - 1, reason)
        if topic_ends.end < end:
            reason = f"the archive has them, the topic ends at {topic_ends.end}: truncated, or another log"
            return self._fault(topic_ends.end, end - 1, reason)
        if last is None or topic_ends.start == end:
            return ()
        record = await topic_range.record(self._settings, self._topic, self._partition, end - 1)
        if segments.sha256_hex(segments.encode_record(record)) == last.manifest.last_record:
            return ()
        return self._fault(end - 1, end - 1, "the topic has another record there than the archive: another log")

    def _fault(self, first: int, last: int, reason: str) -> tuple[Fault, ...]:
        return (Fault(self._topic, self._partition, first, last, reason),)

    async def seal(
        self, last: Link | None, end: int, sealed_before_ms: int | None
    ) -> AsyncGenerator[tuple[Link, bool], None]:
        """Extend the chain; yield each new link behind `last`, and whether this run wrote it."""
        start = last.manifest.last + 1 if last else 0
        cut = await self._left_behind(start, end)
        source = topic_range.records(self._settings, self._topic, self._partition, start, end)
        async with aclosing(source) as lists:
            async for records, full in _cuts(lists, cut):
                old = sealed_before_ms is None or records[0].timestamp_ms < sealed_before_ms
                if not (full or old):
                    return
                link, own = await self._put(records, last)
                yield link, own
                last = link
                if link.manifest.last != records[-1].offset:
                    break  # another archiver cut elsewhere: begin again behind its segment
            else:
                return
        async with aclosing(self.seal(last, end, sealed_before_ms)) as rest:
            async for pair in rest:
                yield pair

    async def _left_behind(self, start: int, end: int) -> int | None:
        """Return the last offset of the longest segment at the chain's end that a crash left without its manifest.

        A cut at the same offset gives the same bytes, so the segment is no orphan any more.
        """
        listed = await self._store.listed(self._folder, after=manifests.manifest_name(start - 1) if start else "")
        ranges = (offsets for entry in listed if (offsets := manifests.parse_segment_name(entry.name)))
        return max((last for first, last in ranges if first == start and last < end), default=None)

    async def _put(self, records: list[Record], before: Link | None) -> tuple[Link, bool]:
        """Write a segment, its manifest and the head; return the archive's manifest, and whether it is this run's."""
        content = segments.encode(self._topic, self._partition, records)
        header, _ = segments.decode(content)
        manifest = manifests.make_manifest(
            content, header, last=records[-1], previous=before.sha256 if before else None
        )
        await self._put_segment(f"{self._folder}/{manifests.segment_name(manifest)}", content, manifest.sha256)

        encoded = msgspec.json.format(msgspec.json.encode(manifest)) + b"\n"
        path = f"{self._folder}/{manifests.manifest_name(manifest.first)}"
        own = await self._store.create(path, encoded)
        stored = encoded if own else await self._store.get(path)
        if stored is None:
            raise Halt(f"archive {self._store.address}: {path} was there and is gone: who deletes from the archive?")
        try:
            link = manifests.decode(stored)
        except Damaged as error:
            raise Halt(f"archive {self._store.address}: {path}: {error}") from error
        if own:
            await self.write_head(link)
        return link, own

    async def write_head(self, link: Link) -> None:
        """Write the head, which names the last manifest."""
        head = Head(link.manifest.first, link.manifest.last, link.sha256)
        await self._store.replace(f"{self._folder}/{manifests.head_name()}", msgspec.json.encode(head))

    async def _put_segment(self, path: str, content: bytes, sha256: str) -> None:
        if await self._store.create(path, content):
            return
        # The name determines the content, so writing a segment again that a power cut tore changes nothing.
        stored = await self._store.get(path)
        if stored is None or segments.sha256_hex(stored) != sha256:
            await self._store.replace(path, content)


async def _cuts(lists: AsyncIterator[list[object]], cut: int | None) -> AsyncIterator[tuple[list[Record], bool]]:
    """Yield the records of each segment, and whether it is full; the last one may not be.

    `cut` is the last offset of the first segment, if it has to end there.
    """
    segment: list[Record] = []
    filled = 0
    async for batch in lists:
        for record in map(topic_range.as_record, batch):
            if segment and filled + segments.encoded_size(record) > SEGMENT_BYTES_MAX:
                yield segment, True
                segment, filled = [], 0
            segment.append(record)
            filled += segments.encoded_size(record)
            if record.offset == cut or len(segment) >= SEGMENT_RECORDS_MAX:
                yield segment, True
                segment, filled = [], 0
    if segment:
        yield segment, False
