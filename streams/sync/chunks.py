"""An update that is larger than a record, cut into parts and the one chained record that names them. Core.

Events stay in their order: parts are read in the order in which they are named, then the record's own events. So
what opens an update (`history.restated`) stands in the first part, and what closes it in the record.
"""

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import NamedTuple

from schemas.encoding import codec
from schemas.errors import Quarantine
from schemas.ids import chained_id
from schemas.log import changesets, gate
from schemas.log.changesets import UserKeys
from schemas.log.records import Head
from schemas.times import to_micros
from streams.sync import changeset
from streams.sync.changeset import Draft, Events, Part, Sealed, Subject, Tip

PLAIN_A_RECORD = 4
"""A first cut has so many plain bytes for each that a record may have. Bank data compresses to a fifth and better,
so most of these fit; what does not is halved until it does."""
OPENING_BYTES = 32
"""What an event takes beside its data: type, schema number and length."""


class Composed(NamedTuple):
    """Parts in the order in which they are to be appended, then the record that makes them count."""

    parts: list[Part]
    sealed: Sealed


class _Making(NamedTuple):
    """What each record of one update is made with."""

    subject: Subject
    tip: Tip
    keys: UserKeys
    at: datetime
    nonce: Callable[[], bytes]
    bytes_max: int


def compose(
    draft: Draft,
    subject: Subject,
    tip: Tip,
    keys: UserKeys,
    *,
    at: datetime,
    nonce: Callable[[], bytes],
    bytes_max: int,
) -> Composed:
    """Make the record that follows `tip`, and the parts before it where it is too large for one.

    Idempotence: the same draft on the same tip is cut alike, and all its ids are the same, whatever time and nonce.
    Raises: Quarantine, where one event alone, or the clear head, is larger than a record may be.
    """
    making = _Making(subject, tip, keys, at, nonce, bytes_max)
    if _plain_bytes(draft.events) <= changesets.EVENTS_BYTES_MAX:
        try:
            return Composed([], _chained(draft, [], making))
        except Quarantine:
            if not draft.events:
                raise
    *chunks, rest = _cut(draft.events, min(PLAIN_A_RECORD * bytes_max, changesets.EVENTS_BYTES_MAX))
    parts = [part for chunk in chunks for part in _parts(chunk, making)]
    while True:
        try:
            return Composed(parts, _chained(draft._replace(events=rest), parts, making))
        except Quarantine:
            if not rest:
                raise
            half = (len(rest) + 1) // 2
            parts += _parts(rest[:half], making)
            rest = rest[half:]


def _cut(events: Events, plain_max: int) -> Iterator[Events]:
    """Cut events in order into runs of at most so many plain bytes, or of one event."""
    begin = size = 0
    for number, (_, _, data) in enumerate(events):
        length = len(data) + OPENING_BYTES
        if size and size + length > plain_max:
            yield events[begin:number]
            begin, size = number, 0
        size += length
    yield events[begin:]


def _parts(events: Events, making: _Making) -> list[Part]:
    """Seal a run of events, halved as often as it takes."""
    try:
        return [_part(events, making)]
    except Quarantine:
        if len(events) == 1:
            raise
    half = len(events) // 2
    return [*_parts(events[:half], making), *_parts(events[half:], making)]


def _part(events: Events, making: _Making) -> Part:
    block = codec.encode_events(events)
    subject, tip = making.subject, making.tip
    head = Head(
        # Without cursors and time: what an attempt that died has left has the same ids as what the next one makes.
        id=chained_id(making.keys.ids, gate.PART.encode(), subject.item_id.encode(), tip.head or b"", block),
        kind=gate.PART,
        type=gate.PART,
        parent=tip.head,
        item_id=subject.item_id,
        user=subject.user,
        at=to_micros(making.at),
        cause=subject.cause,
        key_generation=making.keys.generation,
        counts=changeset.counted(events),
    )
    value = changesets.seal(head, block, making.keys, nonce=making.nonce(), bytes_max=making.bytes_max)
    return Part(head.id, value, head.counts)


def _chained(draft: Draft, parts: list[Part], making: _Making) -> Sealed:
    return changeset.compose(
        draft,
        making.subject,
        making.tip,
        making.keys,
        at=making.at,
        nonce=making.nonce(),
        bytes_max=making.bytes_max,
        parts=parts,
    )


def _plain_bytes(events: Events) -> int:
    return sum(len(data) + OPENING_BYTES for _, _, data in events)
