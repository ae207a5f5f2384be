"""A public topic against the net events of the fold: what a reader keeps of it, and what is wrong with that. Core."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from projections.events import public_events
from projections.model.unit_of_work import NetEvent
from runtime.kafka.clients import Outgoing
from runtime.kafka.reader import Received
from schemas.topics import HEADER_POSITION

WIRE_BYTES = 5
"""Confluent's wire format: magic 0 and the schema's id in 4 bytes, which may be a registry's own."""

Position = tuple[int, int]
"""Source offset, and index within its changeset."""


BEGINNING: Position = (0, 0)


def position(record: Received) -> Position | None:
    """A record's position; None where it has none."""
    offset, dot, index = record.headers.get(HEADER_POSITION, b"").partition(b".")
    return (int(offset), int(index)) if dot and offset.isdigit() and index.isdigit() else None


def same(record: Received, wanted: Outgoing) -> bool:
    """Whether a record is the one wanted, whatever number its schema has in a registry."""
    assert wanted.value is not None, "an event has a body"
    return (
        record.key == wanted.key
        and record.headers == dict(wanted.headers)
        and record.value[:1] == wanted.value[:1]
        and record.value[WIRE_BYTES:] == wanted.value[WIRE_BYTES:]
    )


def compared(
    found: Sequence[Received], fold: Sequence[Outgoing], *, begins: Position = BEGINNING, is_acknowledged: bool = True
) -> str | None:
    """Say how what a reader keeps of one changeset is not what the fold says; None where it is.

    `begins`: what lies below was deleted by the topic's retention. Not acknowledged, the last ones may be missing.
    """
    wanted = [one for one in fold if _position_of(one) >= begins]
    for record, one in zip(found, wanted, strict=False):
        if not same(record, one):
            return f"{_place(record)} is not event {_text(one)} of the fold"
    if len(found) > len(wanted):
        return f"{_place(found[len(wanted)])} is no event of the fold"
    if len(found) < len(wanted) and is_acknowledged:
        return f"event {_text(wanted[len(found)])} is missing"
    return None


def is_repeat(record: Received, fold: Iterable[Outgoing]) -> bool:
    """Whether a record that readers drop is one that the fold has published at this position."""
    return any(same(record, one) for one in fold)


def equals_digest(found: Iterable[Received], digest: bytes, schemas: Mapping[int, int]) -> bool | None:
    """Whether the records of one changeset, of all topics, are the block of which only the digest is kept.

    `schemas`: ids on the wire to catalogue numbers; None where a record has an id that is not among them.
    """
    block = []
    for record in sorted(found, key=lambda one: position(one) or BEGINNING):
        schema = schemas.get(int.from_bytes(record.value[1:WIRE_BYTES], "big"))
        if schema is None:
            return None
        kind = record.headers.get("ce_type", b"").decode(errors="replace")
        block.append(NetEvent(kind, schema, b"", record.value[WIRE_BYTES:]))
    return hashlib.sha256(public_events.encode_block(block)).digest() == digest


def _position_of(wanted: Outgoing) -> Position:
    offset, _, index = dict(wanted.headers)[HEADER_POSITION].partition(b".")
    return int(offset), int(index)


def _text(wanted: Outgoing) -> str:
    return "{}.{}".format(*_position_of(wanted))


def _place(record: Received) -> str:
    return f"record {record.partition}.{record.offset}"
