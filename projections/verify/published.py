"""Comparison of a public topic's records with the net events of the fold. Pure."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from projections.events import public_events
from projections.model.unit_of_work import NetEvent
from runtime.kafka.clients import Outgoing
from runtime.kafka.reader import Received
from schemas.topics import HEADER_POSITION

WIRE_BYTES = 5
"""Confluent's wire format: magic 0 and the schema's id in 4 bytes, which may be a registry's own."""

EventPosition = tuple[int, int]
"""Source offset, and index within its changeset."""

BEGINNING: EventPosition = (0, 0)


def position_of(headers: Mapping[str, bytes]) -> EventPosition | None:
    """Return the event position in a record's headers; None where there is none."""
    offset, dot, index = headers.get(HEADER_POSITION, b"").partition(b".")
    return (int(offset), int(index)) if dot and offset.isdigit() and index.isdigit() else None


def is_event(record: Received, event: Outgoing) -> bool:
    """Return True where a record is an event of the fold, whatever id its schema has in a registry."""
    assert event.value is not None, "an event has a body"
    return (
        record.key == event.key
        and record.headers == dict(event.headers)
        and record.value[:1] == event.value[:1]
        and record.value[WIRE_BYTES:] == event.value[WIRE_BYTES:]
    )


def difference(
    records: Sequence[Received],
    events: Sequence[Outgoing],
    *,
    begins: EventPosition = BEGINNING,
    is_acknowledged: bool = True,
) -> str | None:
    """Return the first difference between the records and the events of one changeset; None where they are equal.

    Args:
        records: of the topic, without those that a reader drops.
        events: of the fold.
        begins: events below this position were deleted by the topic's retention.
        is_acknowledged: if not, the last events may be missing.
    """
    expected = [(_expected_position(event), event) for event in events]
    expected = [(position, event) for position, event in expected if position >= begins]
    for record, (position, event) in zip(records, expected, strict=False):
        if not is_event(record, event):
            return f"record {record.partition}.{record.offset} is not event {position[0]}.{position[1]} of the fold"
    if len(records) > len(expected):
        record = records[len(expected)]
        return f"record {record.partition}.{record.offset} is no event of the fold"
    if len(records) < len(expected) and is_acknowledged:
        position = expected[len(records)][0]
        return f"event {position[0]}.{position[1]} is missing"
    return None


def equals_digest(records: Iterable[Received], digest: bytes, schemas: Mapping[int, int]) -> bool | None:
    """Compare the records of one changeset, of all topics, with the digest of its block of events.

    `schemas`: ids on the wire to catalogue numbers; returns None where a record has an id that is not among them.
    """
    block = []
    for record in sorted(records, key=lambda record: position_of(record.headers) or BEGINNING):
        schema = schemas.get(int.from_bytes(record.value[1:WIRE_BYTES], "big"))
        if schema is None:
            return None
        kind = record.headers.get("ce_type", b"").decode(errors="replace")
        block.append(NetEvent(kind, schema, b"", record.value[WIRE_BYTES:]))
    return hashlib.sha256(public_events.encode_block(block)).digest() == digest


def _expected_position(event: Outgoing) -> EventPosition:
    position = position_of(dict(event.headers))
    assert position is not None, "the fold numbers its events"
    return position
