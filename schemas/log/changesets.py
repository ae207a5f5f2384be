"""Changeset: one record of the topic `changesets`, one atomic update; its layout, sealing and reading. Pure.

Layout of the value, in bytes: `T` | head's schema number (1) | head's length (4, big-endian) | head |
nonce (12) | sealed events. The events are one Avro block, zstd-compressed, then AES-256-GCM under the user's
events key; all bytes before the nonce are its associated data, so a body fits its own head alone.
"""

from dataclasses import dataclass

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from schemas.encoding import catalogue, codec
from schemas.errors import Halt, Quarantine
from schemas.ids import ChangesetId, chained_id
from schemas.log.records import Head

MAGIC = b"T"
NONCE_BYTES = 12
_PREFIX_BYTES = 6
HEADS_READABLE = frozenset({catalogue.HEAD})
"""Head schemas that this code reads. A new one is added here one release before any code writes it."""

PAYLOAD_BYTES_MAX = 128 * 1024
"""Longest payload, 300 times the usual. An event carries two and a push JSON of up to six bytes a character; a record
that no batch of the producer holds would stop its partition's events for good."""
RECORD_BYTES_MAX = 4 * 1024 * 1024
"""Largest record; a larger changeset is cut into chunks. At 90 sealed bytes a transaction that is 45,000."""

EVENTS_BYTES_MAX = 256 * 1024 * 1024
"""Largest events block that is decompressed: zstd reaches 50:1 on bank data, so 4 MiB give at most 200 MiB."""

ZSTD_LEVEL = 1
"""0.1 to 0.4 µs a transaction; higher levels save under 10 % more."""


@dataclass(frozen=True, slots=True)
class UserKeys:
    """Keys derived from a user's data key. They are lost for ever when that key is destroyed."""

    events: bytes
    ids: bytes
    fingerprints: bytes
    generation: int


def user_keys(data_key: bytes, generation: int) -> UserKeys:
    """Derive a user's keys (HKDF-SHA-256, one purpose each) from the user's 32-byte data key."""

    def derive(purpose: bytes) -> bytes:
        return HKDFExpand(algorithm=SHA256(), length=32, info=b"tartan/" + purpose).derive(data_key)

    return UserKeys(derive(b"events"), derive(b"ids"), derive(b"fingerprints"), generation)


@dataclass(frozen=True, slots=True)
class Envelope:
    """A record of `changesets` with its head read and its events still sealed."""

    head: Head
    associated: bytes
    nonce: bytes
    sealed: bytes


def changeset_id(
    keys: UserKeys,
    *,
    parent: bytes | None,
    base_cursor: str | None,
    next_cursor: str | None,
    state: str | None,
    events: bytes,
) -> ChangesetId:
    """Derive the id of a chained changeset from its content and its position in the chain."""
    return chained_id(
        keys.ids,
        parent or b"",
        (base_cursor or "").encode(),
        (next_cursor or "").encode(),
        (state or "").encode(),
        events,
    )


def seal(head: Head, events: bytes, keys: UserKeys, *, nonce: bytes, bytes_max: int | None = None) -> bytes:
    """Return the record's value. `events` is the block of codec.encode_events, `nonce` 12 random bytes.

    Raises: Quarantine, where the record would be larger than `bytes_max`, by default RECORD_BYTES_MAX.
    """
    bytes_max = RECORD_BYTES_MAX if bytes_max is None else bytes_max
    encoded = codec.encode(head)
    associated = MAGIC + bytes((catalogue.HEAD,)) + len(encoded).to_bytes(4, "big") + encoded
    compressed = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(events)
    value = associated + nonce + AESGCM(keys.events).encrypt(nonce, compressed, associated)
    if len(value) > bytes_max:
        raise Quarantine(f"changeset of item {head.item_id} takes {len(value)} bytes, a record at most {bytes_max}")
    return value


def read(value: bytes) -> Envelope:
    """Read the clear part of a record.

    Raises: Halt, where this code cannot read the head: to skip it would break its Item's chain.
    """
    if value[:1] != MAGIC or len(value) < _PREFIX_BYTES:
        raise Halt(f"a record of {len(value)} bytes in changesets does not begin with a head")
    if value[1] not in HEADS_READABLE:
        raise Halt(f"a head has schema {value[1]}, this code reads {sorted(HEADS_READABLE)}: upgrade before going on")
    end = _PREFIX_BYTES + int.from_bytes(value[2:_PREFIX_BYTES], "big")
    try:
        head, stop = codec.decoder(value[1])(value, _PREFIX_BYTES)
    except Quarantine as error:
        raise Halt("a head in changesets cannot be read") from error
    if stop != end or len(value) < end + NONCE_BYTES:
        raise Halt(f"a head in changesets ends at {stop}, its length gives {end} of {len(value)} bytes")
    return Envelope(head, value[:end], value[end : end + NONCE_BYTES], value[end + NONCE_BYTES :])


def unseal(envelope: Envelope, keys: UserKeys) -> bytes:
    """Return a record's events, decrypted and decompressed: the block for codec.decode_events.

    Raises: Quarantine, where the bytes were not sealed under this user's key for this head.
    """
    try:
        compressed = AESGCM(keys.events).decrypt(envelope.nonce, envelope.sealed, envelope.associated)
    except InvalidTag as error:
        raise Quarantine(f"changeset {envelope.head.id.hex()} does not open with its user's key") from error
    try:
        return zstandard.ZstdDecompressor().decompress(compressed, max_output_size=EVENTS_BYTES_MAX)
    except zstandard.ZstdError as error:
        raise Quarantine(f"changeset {envelope.head.id.hex()} does not decompress") from error
