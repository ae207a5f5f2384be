"""`tartan archive`: seals what is below the end of `webhooks` and `changesets` into segments, each once.

All below a topic's end is committed and never changes, so nobody is waited for. A segment is put before its manifest,
and a manifest only where none is: of two archivers at once one puts it, and the other goes on behind it.
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
"""What is primary (decision 14) and so kept for ever; all other topics can be published again."""

SEGMENT_BYTES_MAX = 16 * 1024 * 1024
"""Of records in one segment. A reader holds one of each partition: twelve partitions at once are 192 MiB."""
SEGMENT_RECORDS_MAX = 100_000
"""As many webhooks of 160 bytes fill a segment."""


class Sealed(NamedTuple):
    """A segment that this run has added: how many records and bytes of file."""

    topic: str
    partition: int
    first: int
    last: int
    bytes: int


class Reached(NamedTuple):
    """How far a partition is archived: offsets 0 up to `archived_end`, of a topic that ends at `topic_end`.

    `head` is the SHA-256 of the last manifest: kept elsewhere, it vouches for everything before it.
    """

    topic: str
    partition: int
    archived_end: int
    topic_end: int
    head: str | None


class Archived(NamedTuple):
    """What a run has done."""

    sealed: list[Sealed]
    reached: list[Reached]
    faults: list[Fault]


async def archive(
    settings: Settings, store: ArchiveStore, *, sealed_before_ms: int | None, told: Callable[[Sealed], None]
) -> Archived:
    """Seal every full segment, and a rest whose first record is older than `sealed_before_ms`; None is every rest.

    `told` is called for each segment as it is sealed. A partition that cannot go on is a fault; the others do.
    Idempotence: a crash leaves at most a segment without its manifest, and the next run seals the same range again.
    Raises: Retry, where Kafka or the archive does not answer; Halt, where a manifest that was put is not there.
    """
    done = Archived([], [], [])
    ends = LogEnds(settings)
    await ends.start()
    try:
        for topic in (full_name(topic, settings.topic_prefix) for topic in TOPICS):
            for partition in range(settings.partitions):
                sealer = _Sealer(settings, store, topic, partition)
                chain = await archive_chain.tail(store, topic, partition)
                # Read after the chain's end: another archiver at work must not look like a topic that lost its end.
                kept = (await ends.ends(topic, [partition]))[partition]
                last = chain.links[-1] if chain.links else None
                faults = chain.faults or await sealer.faults(last, kept)
                if faults:
                    done.faults.extend(faults)
                    continue
                await sealer.catch_up(last, chain.head)
                async with aclosing(sealer.seal(last, kept.end, sealed_before_ms)) as links:
                    async for last, own in links:
                        if own:
                            done.sealed.append(_sealed(last))
                            told(done.sealed[-1])
                end, head = (last.manifest.last + 1, last.sha256) if last else (0, None)
                done.reached.append(Reached(topic, partition, end, kept.end, head))
    finally:
        await ends.stop()
    return done


def _sealed(link: Link) -> Sealed:
    manifest = link.manifest
    return Sealed(manifest.topic, manifest.partition, manifest.first, manifest.last, manifest.bytes)


class _Sealer:
    """Seals one partition."""

    def __init__(self, settings: Settings, store: ArchiveStore, topic: str, partition: int) -> None:
        self._settings = settings
        self._store = store
        self._topic = topic
        self._partition = partition
        self._folder = manifests.folder(topic, partition)

    async def faults(self, last: Link | None, kept: Ends) -> tuple[Fault, ...]:
        """Why this chain cannot go on from this topic; nothing where it can."""
        end = last.manifest.last + 1 if last else 0
        if kept.start > end:
            what = "the topic no longer keeps them and the archive never had them: they are lost"
            return (Fault(self._topic, self._partition, end, kept.start - 1, what),)
        if kept.end < end:
            what = f"the archive has them, the topic ends at {kept.end}: truncated, or another log"
            return (Fault(self._topic, self._partition, kept.end, end - 1, what),)
        if last is None or kept.start == end:
            return ()
        found = await topic_range.record(self._settings, self._topic, self._partition, end - 1)
        if segments.sha256_hex(segments.encode_record(found)) == last.manifest.last_record:
            return ()
        what = "the topic has another record there than the archive: another log"
        return (Fault(self._topic, self._partition, end - 1, end - 1, what),)

    async def catch_up(self, last: Link | None, head: Head | None) -> None:
        """Let the head name the last manifest where a crash has kept it from that."""
        if last is not None and (head is None or head.first != last.manifest.first):
            await self.name_head(last)

    async def seal(
        self, last: Link | None, end: int, sealed_before_ms: int | None
    ) -> AsyncGenerator[tuple[Link, bool], None]:
        """Extend the chain; gives each manifest that is behind `last` now, and whether this run put it."""
        start = last.manifest.last + 1 if last else 0
        cut = await self._left_behind(start, end)
        found = topic_range.records(self._settings, self._topic, self._partition, start, end)
        async with aclosing(found) as lists:
            async for records, full in _cuts(lists, cut):
                old = sealed_before_ms is None or records[0].timestamp_ms < sealed_before_ms
                if not (full or old):
                    return
                link, own = await self._put(records, last)
                yield link, own
                last = link
                if link.manifest.last != records[-1].offset:
                    break  # another archiver cut elsewhere: what was read does not begin where it ended
            else:
                return
        async with aclosing(self.seal(last, end, sealed_before_ms)) as rest:
            async for pair in rest:
                yield pair

    async def _left_behind(self, start: int, end: int) -> int | None:
        """Where a segment ends that a crash left without its manifest at the chain's end, the longest one.

        Cut there again, its bytes are the same, and it is no orphan any more.
        """
        listed = await self._store.listed(self._folder, after=manifests.manifest_name(start - 1) if start else "")
        ranges = (found for entry in listed if (found := manifests.parse_segment_name(entry.name)))
        return max((last for first, last in ranges if first == start and last < end), default=None)

    async def _put(self, records: list[Record], before: Link | None) -> tuple[Link, bool]:
        """Put a segment, its manifest and the head; the manifest that is there, and whether it is this one."""
        content = segments.encode(self._topic, self._partition, records)
        header, _ = segments.decode(content)
        manifest = manifests.make_manifest(
            content, header, last=records[-1], previous=before.sha256 if before else None
        )
        await self._put_segment(f"{self._folder}/{manifests.segment_name(manifest)}", content, manifest.sha256)

        encoded = msgspec.json.format(msgspec.json.encode(manifest)) + b"\n"
        path = f"{self._folder}/{manifests.manifest_name(manifest.first)}"
        own = await self._store.create(path, encoded)
        there = encoded if own else await self._store.get(path)
        if there is None:
            raise Halt(f"archive {self._store.address}: {path} was there and is gone: who deletes from the archive?")
        try:
            link = manifests.decode(there)
        except Damaged as error:
            raise Halt(f"archive {self._store.address}: {path}: {error}") from error
        if own:
            await self.name_head(link)
        return link, own

    async def name_head(self, link: Link) -> None:
        """Let the head name the last manifest."""
        head = Head(link.manifest.first, link.manifest.last, link.sha256)
        await self._store.replace(f"{self._folder}/{manifests.head_name()}", msgspec.json.encode(head))

    async def _put_segment(self, path: str, content: bytes, sha256: str) -> None:
        if await self._store.create(path, content):
            return
        # Its name says what it holds, so putting it again where a crash of the machine tore it changes nothing.
        there = await self._store.get(path)
        if there is None or segments.sha256_hex(there) != sha256:
            await self._store.replace(path, content)


async def _cuts(lists: AsyncIterator[list[object]], cut: int | None) -> AsyncIterator[tuple[list[Record], bool]]:
    """Records of Kafka's as they go into segments, and whether each segment is full; the last one may not be.

    `cut` is the last offset of the first segment, where one has to end there.
    """
    segment: list[Record] = []
    filled = 0
    async for found in lists:
        for record in map(topic_range.as_record, found):
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
