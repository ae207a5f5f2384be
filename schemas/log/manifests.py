"""Manifests: the chain of an archived partition, one manifest a segment, each with the SHA-256 of the one before. Pure.

Names within the archive, so that they sort by offset:

    TOPIC/PARTITION/FIRST.json                        a manifest; put only where there is none, so no chain has a fork
    TOPIC/PARTITION/FIRST-LAST-SHA256.segment         its segment
    TOPIC/PARTITION/head.json                         the last manifest that was put, or one of the last

The head separates a chain whose end is missing from one that ends there. It is put after its manifest and may lag; a
chain goes through it and on.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from schemas.log import segments
from schemas.log.segments import Damaged

VERSION = 1
_DIGITS = 20
"""Of the largest offset, 2^63 - 1, and one more."""
_MANIFEST, _SEGMENT = ".json", ".segment"


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Description of one segment and its predecessor; all digests are SHA-256 as hex digits.

    `sha256` is of the segment's whole file, `previous` of the manifest before (None in the first of a partition),
    `last_record` of the last record in the form of schemas.log.segments. `bytes` is the file's size.
    """

    version: int
    topic: str
    partition: int
    first: int
    last: int
    count: int
    first_ms: int
    last_ms: int
    bytes: int
    sha256: str
    last_record: str
    previous: str | None


class Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Pointer to the manifest that begins at `first`, with its SHA-256 when it was put."""

    first: int
    last: int
    sha256: str


class Link(NamedTuple):
    """A manifest and the SHA-256 of its bytes."""

    manifest: Manifest
    sha256: str


class Fault(NamedTuple):
    """A problem of a range of offsets, `first` to `last`, both included."""

    topic: str
    partition: int
    first: int
    last: int
    what: str

    def __str__(self) -> str:
        return f"{self.topic} {self.partition}, offsets {self.first}..{self.last}: {self.what}"


class Chain(NamedTuple):
    """The links that could be read, in the order of their offsets, the faults of or between them, and the head."""

    links: tuple[Link, ...]
    faults: tuple[Fault, ...]
    head: Head | None = None

    @property
    def end(self) -> int:
        """Return the offset behind the last record."""
        return self.links[-1].manifest.last + 1 if self.links else 0


def folder(topic: str, partition: int) -> str:
    """Return the folder of a partition within the archive."""
    return f"{topic}/{partition:05d}"


def manifest_name(first: int) -> str:
    """Return the file name of the manifest that begins at an offset, within its folder."""
    return f"{first:0{_DIGITS}d}{_MANIFEST}"


def head_name() -> str:
    """Return the file name of the head within its folder."""
    return f"head{_MANIFEST}"


def segment_name(manifest: Manifest) -> str:
    """Return the file name of a manifest's segment within its folder."""
    return f"{manifest.first:0{_DIGITS}d}-{manifest.last:0{_DIGITS}d}-{manifest.sha256}{_SEGMENT}"


def parse_manifest_name(name: str) -> int | None:
    """Return the first offset of a manifest by its name; None where the name is not a manifest's."""
    digits = name.removesuffix(_MANIFEST)
    return int(digits) if name.endswith(_MANIFEST) and len(digits) == _DIGITS and digits.isdecimal() else None


def parse_segment_name(name: str) -> tuple[int, int] | None:
    """Return first and last offset of a segment by its name; None where the name is not a segment's."""
    first, _, rest = name.removesuffix(_SEGMENT).partition("-")
    last = rest.partition("-")[0]
    valid = name.endswith(_SEGMENT) and first.isdecimal() and last.isdecimal()
    return (int(first), int(last)) if valid else None


def make_manifest(content: bytes, header: segments.Header, *, last: segments.Record, previous: str | None) -> Manifest:
    """Return the manifest of a segment, from its bytes, header and last record."""
    return Manifest(
        version=VERSION,
        **msgspec.structs.asdict(header),
        bytes=len(content),
        sha256=segments.sha256_hex(content),
        last_record=segments.sha256_hex(segments.encode_record(last)),
        previous=previous,
    )


def decode(content: bytes) -> Link:
    """Read a manifest. Raises: Damaged."""
    try:
        manifest = msgspec.json.decode(content, type=Manifest)
    except msgspec.MsgspecError as error:
        raise Damaged(f"its manifest cannot be read: {error}") from error
    if manifest.version != VERSION:
        raise Damaged(f"its manifest is of version {manifest.version}, this code reads {VERSION}")
    return Link(manifest, segments.sha256_hex(content))


def decode_head(content: bytes) -> Head:
    """Read a head. Raises: Damaged."""
    try:
        return msgspec.json.decode(content, type=Head)
    except msgspec.MsgspecError as error:
        raise Damaged(f"the head of its chain cannot be read: {error}") from error


def decode_segment(manifest: Manifest, content: bytes | None) -> Iterator[segments.Record]:
    """Check every byte of a manifest's segment and return its records. Raises: Damaged."""
    if content is None:
        raise Damaged("its segment is missing")
    if len(content) != manifest.bytes:
        raise Damaged(f"its segment has {len(content)} bytes, its manifest has {manifest.bytes}")
    if segments.sha256_hex(content) != manifest.sha256:
        raise Damaged("its segment does not have the SHA-256 of its manifest")
    header, records = segments.decode(content)
    if any(getattr(header, name) != getattr(manifest, name) for name in ("topic", "partition", "first", "last")):
        raise Damaged(f"its segment holds {header.topic} {header.partition}, {header.first}..{header.last}")
    return records


def check_chain(
    topic: str,
    partition: int,
    entries: Sequence[tuple[int, Link | Damaged]],
    head: Head | Damaged | None,
    *,
    start: int = 0,
) -> Chain:
    """Check that manifests make one chain from an offset on.

    Shape: `entries` are the manifests by the first offsets in their names, in that order. `start` is 0, or the first
    offset of a manifest whose own predecessor is left unchecked.
    A manifest is not the one that was put if the next one, or the head, has another SHA-256; the fault has its range.
    """
    links: list[Link] = []
    faults: list[Fault] = []
    expected = start
    before: Link | None = None
    whole = start == 0  # the manifest before this one could be read and ends where this one begins

    def fault(first: int, last: int, problem: str) -> None:
        faults.append(Fault(topic, partition, first, last, problem))

    for index, (first, entry) in enumerate(entries):
        if first > expected:
            fault(expected, first - 1, "its manifest is missing")
            whole = False
        if isinstance(entry, Damaged) or _is_misplaced(topic, partition, first, entry.manifest):
            if index + 1 < len(entries):
                last = entries[index + 1][0] - 1
            else:
                last = head.last if isinstance(head, Head) and head.first == first else first
            fault(first, last, str(entry) if isinstance(entry, Damaged) else "its manifest is of another place")
            expected, before, whole = last + 1, None, False
            continue
        if first < expected:
            fault(first, min(expected - 1, entry.manifest.last), "two manifests hold it")
        elif whole and entry.manifest.previous != (before.sha256 if before else None):
            changed = before.manifest if before else entry.manifest
            fault(changed.first, changed.last, "its manifest is not the one that the next names as the one before it")
        links.append(entry)
        expected, before, whole = entry.manifest.last + 1, entry, True
    if isinstance(head, Damaged):
        fault(links[-1].manifest.first if links else start, max(start, expected - 1), str(head))
        return Chain(tuple(links), tuple(faults))
    if head is not None:
        target = next((link for link in reversed(links) if link.manifest.first == head.first), None)
        if target is not None and target.sha256 != head.sha256:
            fault(target.manifest.first, target.manifest.last, "its manifest is not the one that the head names")
        elif target is None and not any(fault.first <= head.first <= fault.last for fault in faults):
            fault(min(expected, head.first), head.last, "its manifest is missing, which the head names")
    return Chain(tuple(links), tuple(faults), head)


def _is_misplaced(topic: str, partition: int, first: int, manifest: Manifest) -> bool:
    place = (manifest.topic, manifest.partition, manifest.first)
    return place != (topic, partition, first) or manifest.last - first + 1 != manifest.count or manifest.count < 1
