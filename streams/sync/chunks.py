"""Cut an update that is larger than a record into chunks and the one chained record that names them. Core.

Events keep their order: readers take the chunks in the order in which they are named, then the record's own events.
So the event that opens an update (`history.restated`) is in the first chunk.
"""

from collections.abc import Iterator
from typing import NamedTuple

from schemas.encoding import codec
from schemas.errors import Quarantine
from schemas.ids import chained_id
from schemas.log import changesets, gate
from schemas.log.records import Head
from schemas.times import to_micros
from streams.sync import changeset
from streams.sync.changeset import Chunk, Draft, Events, RecordParameters, SealedRecord

PLAIN_PER_SEALED = 4
"""Plain bytes of a first cut for each byte that a record may have. Bank data compresses to a fifth and better, so most
of these cuts fit; the others are halved until they do."""
EVENT_OVERHEAD_BYTES = 32
"""Bytes of an event beside its data: type, schema number and length."""


class ChunkedChangeset(NamedTuple):
    """Chunks in the order in which they are to be appended, then the record that puts them into effect."""

    chunks: list[Chunk]
    record: SealedRecord


def compose(draft: Draft, parameters: RecordParameters) -> ChunkedChangeset:
    """Seal the record that follows the tip, with chunks before it where it is too large for one record.

    Idempotence: the same draft on the same tip is cut alike, with the same ids, whatever the time and nonce.
    Raises: Quarantine, where one event alone, or the clear head, is larger than a record may be.
    """
    bytes_max = changesets.RECORD_BYTES_MAX if parameters.bytes_max is None else parameters.bytes_max
    if sum(map(_plain_bytes, draft.events)) <= changesets.EVENTS_BYTES_MAX:
        try:
            return ChunkedChangeset([], changeset.compose(draft, parameters))
        except Quarantine:
            if not draft.events:
                raise
    *runs, rest = _cut(draft.events, min(PLAIN_PER_SEALED * bytes_max, changesets.EVENTS_BYTES_MAX))
    chunks = [chunk for run in runs for chunk in _seal_chunks(run, parameters)]
    while True:
        try:
            return ChunkedChangeset(chunks, changeset.compose(draft._replace(events=rest), parameters, chunks))
        except Quarantine:
            if not rest:
                raise
            half = (len(rest) + 1) // 2
            chunks += _seal_chunks(rest[:half], parameters)
            rest = rest[half:]


def _cut(events: Events, plain_max: int) -> Iterator[Events]:
    """Cut events in order into runs of at most this many plain bytes, or of one event."""
    begin = size = 0
    for number, event in enumerate(events):
        if size and size + _plain_bytes(event) > plain_max:
            yield events[begin:number]
            begin, size = number, 0
        size += _plain_bytes(event)
    yield events[begin:]


def _plain_bytes(event: tuple[str, int, bytes]) -> int:
    return len(event[2]) + EVENT_OVERHEAD_BYTES


def _seal_chunks(events: Events, parameters: RecordParameters) -> list[Chunk]:
    """Seal a run of events, halved as often as necessary."""
    try:
        return [_seal_chunk(events, parameters)]
    except Quarantine:
        if len(events) == 1:
            raise
    half = len(events) // 2
    return [*_seal_chunks(events[:half], parameters), *_seal_chunks(events[half:], parameters)]


def _seal_chunk(events: Events, parameters: RecordParameters) -> Chunk:
    block = codec.encode_events(events)
    subject, tip, keys, time, nonce, bytes_max = parameters
    head = Head(
        # Without cursors and time, so that a retry gives the same ids as the chunks of an attempt that died.
        id=chained_id(keys.ids, gate.PART.encode(), subject.item_id.encode(), tip.head or b"", block),
        kind=gate.PART,
        type=gate.PART,
        parent=tip.head,
        item_id=subject.item_id,
        user=subject.user,
        at=to_micros(time),
        cause=subject.cause,
        key_generation=keys.generation,
        counts=changeset.count_events(events),
    )
    value = changesets.seal(head, block, keys, nonce=nonce(), bytes_max=bytes_max)
    return Chunk(head.id, value, head.counts)
