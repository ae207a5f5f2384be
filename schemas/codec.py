"""Records to bytes and back, each under its number in the catalogue.

Flat records go through generated code (schemas.flat), the others, one a changeset, through fastavro.
"""

import io
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple, TypeVar, cast

import fastavro
import msgspec

from schemas import catalogue, flat, records
from schemas.errors import Quarantine

Record = TypeVar("Record")

STRUCTS: dict[int, type] = {
    catalogue.TRANSACTION: records.Transaction,
    catalogue.ACCOUNT: records.Account,
    catalogue.REMOVAL: records.Removal,
    catalogue.ITEM: records.Item,
    catalogue.EDIT: records.Edit,
    catalogue.DECISION: records.Decision,
    catalogue.HISTORY: records.History,
    catalogue.HEAD: records.Head,
    catalogue.WEBHOOK: records.Webhook,
}
NUMBERS = {struct: number for number, struct in STRUCTS.items()}
_FLAT = frozenset(range(catalogue.TRANSACTION, catalogue.ACCOUNT + 1)) | {
    catalogue.REMOVAL,
    catalogue.ITEM,
    catalogue.EDIT,
    catalogue.DECISION,
}


class Event(NamedTuple):
    """One event of a changeset: its type, the number of its data's schema, and its data's place in `block`.

    Shape: `block[start:end]` is the data; it is not copied until somebody needs it.
    """

    type: str
    schema: int
    block: bytes
    start: int
    end: int

    @property
    def data(self) -> bytes:
        """The data's bytes."""
        return self.block[self.start : self.end]


@cache
def encoder(number: int) -> flat.Encode:
    """The function that writes a struct of this schema."""
    if number in _FLAT:
        return flat.encoder(catalogue.declared(number))
    return lambda record: _general_encode(number, record)


@cache
def decoder(number: int) -> flat.Decode:
    """The function that reads a struct of this schema at a position.

    Raises: Quarantine, where the catalogue has no such number.
    """
    if number in _FLAT:
        return flat.decoder(catalogue.declared(number), STRUCTS[number])
    return lambda data, start: _general_decode(number, data, start)


def encode(record: Any) -> bytes:
    """Write a struct under the number of its own type."""
    return encoder(NUMBERS[type(record)])(record)


def decode(record: type[Record], data: bytes) -> Record:
    """Read bytes that hold one record of this type and nothing else.

    Raises: Quarantine, where they do not.
    """
    value, end = decoder(NUMBERS[record])(data, 0)
    if end != len(data):
        raise Quarantine(f"{record.__name__} ends at byte {end} of {len(data)}")
    return cast(Record, value)


def encode_events(events: list[tuple[str, int, bytes]]) -> bytes:
    """Write the block of events of a changeset: (type, schema number, data) each. Source: avro/events.v1.avsc."""
    if not events:
        return b"\x00"
    types = {kind: flat.text(kind) for kind in {event[0] for event in events}}
    parts = [flat.zigzag(len(events))]
    for kind, number, data in events:
        parts += (types[kind], flat.zigzag(number), flat.zigzag(len(data)), data)
    parts.append(b"\x00")
    return b"".join(parts)


def decode_events(block: bytes) -> Iterator[Event]:
    """Walk through a block of events without copying or decoding their data.

    Raises: Quarantine, where the bytes are no such block.
    """
    read_long = flat.read_long
    try:
        count, position = read_long(block, 0)
        while count:
            if count < 0:  # a block written by another library may carry its size
                count = -count
                _, position = read_long(block, position)
            for _ in range(count):
                size, position = read_long(block, position)
                kind = block[position : position + size].decode()
                number, position = read_long(block, position + size)
                size, position = read_long(block, position)
                end = position + size
                if size < 0 or end > len(block):
                    raise Quarantine(f"an event of {size} bytes at {position} does not fit its block of {len(block)}")
                yield Event(kind, number, block, position, end)
                position = end
            count, position = read_long(block, position)
    except (IndexError, UnicodeDecodeError) as error:
        raise Quarantine("bytes are no block of events") from error


def decode_event(event: Event) -> Any:
    """Read an event's data as the struct of its schema.

    Raises: Quarantine, where the schema is unknown or the data does not fit it.
    """
    value, end = decoder(event.schema)(event.block, event.start)
    if end != event.end:
        raise Quarantine(f"data of {event.type} ends at {end}, its event at {event.end}")
    return value


def _general_encode(number: int, record: Any) -> bytes:
    buffer = io.BytesIO()
    plain = msgspec.to_builtins(record, builtin_types=(bytes,)) if isinstance(record, msgspec.Struct) else record
    fastavro.schemaless_writer(buffer, catalogue.parsed(number), plain)
    return buffer.getvalue()


def _general_decode(number: int, data: bytes, start: int) -> tuple[Any, int]:
    if number not in catalogue.FILES:
        raise Quarantine(f"no schema has the number {number}; this code knows 1 to {max(catalogue.FILES)}")
    buffer = io.BytesIO(data)
    buffer.seek(start)
    try:
        plain = fastavro.schemaless_reader(buffer, catalogue.parsed(number), None)
    except (EOFError, IndexError, UnicodeDecodeError, ValueError, OverflowError, StopIteration) as error:
        raise Quarantine(f"bytes are no {catalogue.FILES[number]}") from error
    return (msgspec.convert(plain, STRUCTS[number]) if number in STRUCTS else plain), buffer.tell()
