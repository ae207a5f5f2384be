"""Segment: a closed range of one partition's records as one immutable file, byte for byte as Kafka has them. Pure.

Shape, integers big-endian:

    magic            8 bytes, TARTSEG1
    header           u32 length, then JSON: topic, partition, first, last, count, first_ms, last_ms
    blocks           u32 length, then one zstd frame of about 1 MiB of records; a length of 0 ends them
    SHA-256          32 bytes, over everything before

    a record         i64 offset, i64 timestamp in ms, i32 length and bytes of the key, i32 length and bytes of the
                     value, u32 number of headers, for each i32 length and UTF-8 of its name, i32 length and bytes
                     of its value; a length of -1 is none

Offsets have no holes. The same records give the same bytes, so a segment that a crash left behind is written again
without change. docs/operations.md describes the format for readers without this code.
"""

import hashlib
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec
import zstandard

MAGIC = b"TARTSEG1"
HASH_BYTES = 32
BLOCK_BYTES = 1024 * 1024
"""Of records in one frame, so that a reader unpacks no more than this at once; a single record may be larger."""
BLOCK_BYTES_MAX = 64 * 1024 * 1024
"""No frame is unpacked to more than this: a block before its last record, and a record of Kafka's largest size."""
LEVEL = 3
"""Sealed changesets do not shrink at any level; webhooks are JSON and do so at this one."""

_LENGTH = struct.Struct(">I")
_RECORD = struct.Struct(">qqi")
_SIZE = struct.Struct(">i")
_NONE = -1


class Damaged(ValueError):
    """The bytes are no segment, or not as they were sealed; the message has the difference."""


class Record(NamedTuple):
    """One record of a partition; `headers` in Kafka's order, a name may occur twice."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Range of a segment: `first` and `last` are offsets, `first_ms` and `last_ms` these records' timestamps."""

    topic: str
    partition: int
    first: int
    last: int
    count: int
    first_ms: int
    last_ms: int


def encoded_size(record: Record) -> int:
    """Return the bytes of a record in a block, within a few."""
    headers = sum(8 + len(name) + len(value or b"") for name, value in record.headers)
    return 32 + len(record.key or b"") + len(record.value or b"") + headers


def sha256_hex(content: bytes) -> str:
    """Return SHA-256 as 64 hex digits."""
    return hashlib.sha256(content).hexdigest()


def encode(topic: str, partition: int, records: Sequence[Record]) -> bytes:
    """Return the segment of at least one record, in the order of their offsets.

    Raises: ValueError, where an offset is missing between them.
    """
    first, last = records[0], records[-1]
    header = Header(topic, partition, first.offset, last.offset, len(records), first.timestamp_ms, last.timestamp_ms)
    for expected, record in enumerate(records, start=first.offset):
        if record.offset != expected:
            raise ValueError(f"{topic} {partition}: offset {record.offset} follows {expected - 1}")
    encoded_header = msgspec.json.encode(header)
    parts = [MAGIC, _LENGTH.pack(len(encoded_header)), encoded_header]
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=False)
    for block in _blocks(records):
        frame = compressor.compress(block)
        parts += [_LENGTH.pack(len(frame)), frame]
    parts.append(_LENGTH.pack(0))
    body = b"".join(parts)
    return body + hashlib.sha256(body).digest()


def decode(content: bytes) -> tuple[Header, Iterator[Record]]:
    """Check every byte of a segment; return its header and its records, unpacked block by block.

    Raises: Damaged, at once where a byte is not as it was sealed; while the records are iterated where they are not
    those of the header, which only a wrong writer can cause.
    """
    if not content.startswith(MAGIC):
        raise Damaged("it does not begin as a segment does")
    if hashlib.sha256(memoryview(content)[:-HASH_BYTES]).digest() != content[-HASH_BYTES:]:
        raise Damaged("its bytes do not have the SHA-256 that it ends with")
    end = len(content) - HASH_BYTES
    encoded_header, position = _read_sized(content, len(MAGIC), end)
    try:
        header = msgspec.json.decode(encoded_header, type=Header)
    except msgspec.MsgspecError as error:
        raise Damaged(f"its header cannot be read: {error}") from error
    return header, _records(content, position, end, header)


def encode_record(record: Record) -> bytes:
    """Return a record as in a block; two records are equal when these bytes are."""
    key = _NONE if record.key is None else len(record.key)
    parts = [_RECORD.pack(record.offset, record.timestamp_ms, key), record.key or b"", *_optional(record.value)]
    parts.append(_LENGTH.pack(len(record.headers)))
    for name, value in record.headers:
        parts += [*_optional(name.encode()), *_optional(value)]
    return b"".join(parts)


def _optional(value: bytes | None) -> tuple[bytes, bytes]:
    return (_SIZE.pack(_NONE), b"") if value is None else (_SIZE.pack(len(value)), value)


def _blocks(records: Sequence[Record]) -> Iterator[bytes]:
    block = bytearray()
    for record in records:
        block += encode_record(record)
        if len(block) >= BLOCK_BYTES:
            yield bytes(block)
            block.clear()
    if block:
        yield bytes(block)


def _read_sized(content: bytes, position: int, end: int) -> tuple[bytes, int]:
    start = position + _LENGTH.size
    length = _LENGTH.unpack_from(content, position)[0] if start <= end else 0
    if start + length > end:
        raise Damaged(f"it ends within what begins at byte {position}")
    return content[start : start + length], start + length


def _records(content: bytes, position: int, end: int, header: Header) -> Iterator[Record]:
    expected = header.first
    while True:
        frame, position = _read_sized(content, position, end)
        if not frame:
            break
        for record in _block_records(_unpacked(frame)):
            if record.offset != expected:
                raise Damaged(f"offset {record.offset} follows {expected - 1}")
            expected += 1
            yield record
    if position != end or expected != header.last + 1 or header.count != expected - header.first:
        raise Damaged(f"its header has {header.first}..{header.last}, its records end at {expected - 1}")


def _unpacked(frame: bytes) -> bytes:
    try:
        length = zstandard.frame_content_size(frame)
        if not 0 <= length <= BLOCK_BYTES_MAX:
            raise Damaged(f"a block declares {length} bytes")
        return zstandard.ZstdDecompressor().decompress(frame)
    except zstandard.ZstdError as error:
        raise Damaged(f"a block cannot be unpacked: {error}") from error


def _block_records(block: bytes) -> Iterator[Record]:
    position = 0
    try:
        while position < len(block):
            offset, timestamp_ms, length = _RECORD.unpack_from(block, position)
            key, position = _read_bytes(block, position + _RECORD.size, length)
            value, position = _read_optional(block, position)
            (count,) = _LENGTH.unpack_from(block, position)
            position += _LENGTH.size
            headers = []
            for _ in range(count):
                name, position = _read_optional(block, position)
                content, position = _read_optional(block, position)
                headers.append(((name or b"").decode(), content))
            yield Record(offset, timestamp_ms, key, value, tuple(headers))
    except (struct.error, UnicodeDecodeError) as error:
        raise Damaged(f"a record cannot be read: {error}") from error


def _read_optional(block: bytes, position: int) -> tuple[bytes | None, int]:
    return _read_bytes(block, position + _SIZE.size, _SIZE.unpack_from(block, position)[0])


def _read_bytes(block: bytes, position: int, length: int) -> tuple[bytes | None, int]:
    if length == _NONE:
        return None, position
    end = position + length
    if length < 0 or end > len(block):
        raise Damaged(f"a record cannot be read: {length} bytes where {len(block) - position} are left")
    return block[position:end], end
