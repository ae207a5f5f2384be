"""Chains of an archive: read and check manifests, heads and segments."""

import asyncio
from collections.abc import Iterator, Sequence

from runtime.archive.store import ArchiveStore, Stored
from schemas.errors import Halt
from schemas.log import manifests
from schemas.log.manifests import Chain, Head, Link, Manifest
from schemas.log.segments import Damaged, Record

MANIFESTS_AT_ONCE = 16
"""Requests for manifests under way: at 20 ms each, 800 manifests a second."""


async def whole(store: ArchiveStore, topic: str, partition: int) -> Chain:
    """Return all manifests of a partition, checked from offset 0 to the head. Raises: Retry."""
    objects = await store.listed(manifests.folder(topic, partition))
    return await read(store, topic, partition, objects)


async def read(store: ArchiveStore, topic: str, partition: int, objects: Sequence[Stored], *, start: int = 0) -> Chain:
    """Return the chain of the manifests among these objects, from the one that begins at `start`. Raises: Retry."""
    firsts = [first for entry in objects if (first := manifests.parse_manifest_name(entry.name)) is not None]
    head = await _head(store, topic, partition)
    return manifests.check_chain(topic, partition, await _links(store, topic, partition, firsts), head, start=start)


async def tail(store: ArchiveStore, topic: str, partition: int) -> Chain:
    """Return the last links of a chain, from the head's on, unchecked before it. Raises: Retry."""
    head = await _head(store, topic, partition)
    start = head.first if isinstance(head, Head) else 0
    # Stores list names after a given one, and the head's own manifest must be among them.
    after = manifests.manifest_name(start - 1) if start else ""
    objects = await store.listed(manifests.folder(topic, partition), after=after)
    return await read(store, topic, partition, objects, start=start)


def check(store: ArchiveStore, chain: Chain) -> None:
    """Refuse a chain with faults. Raises: Halt, naming the range of each fault."""
    if chain.faults:
        raise Halt(f"archive {store.address}: " + "; ".join(str(fault) for fault in chain.faults))


async def records(store: ArchiveStore, manifest: Manifest) -> Iterator[Record]:
    """Return the records of a segment after a check of every byte.

    Memory: the segment and one block of it unpacked. Raises: Damaged; Retry.
    """
    folder = manifests.folder(manifest.topic, manifest.partition)
    content = await store.get(f"{folder}/{manifests.segment_name(manifest)}")
    return await asyncio.to_thread(manifests.decode_segment, manifest, content)


async def _head(store: ArchiveStore, topic: str, partition: int) -> Head | Damaged | None:
    content = await store.get(f"{manifests.folder(topic, partition)}/{manifests.head_name()}")
    try:
        return None if content is None else manifests.decode_head(content)
    except Damaged as error:
        return error


async def _links(
    store: ArchiveStore, topic: str, partition: int, firsts: Sequence[int]
) -> list[tuple[int, Link | Damaged]]:
    free = asyncio.Semaphore(MANIFESTS_AT_ONCE)

    async def link(first: int) -> tuple[int, Link | Damaged]:
        async with free:
            content = await store.get(f"{manifests.folder(topic, partition)}/{manifests.manifest_name(first)}")
        try:
            return first, Damaged("its manifest is missing") if content is None else manifests.decode(content)
        except Damaged as error:
            return first, error

    return await asyncio.gather(*(link(first) for first in firsts))
