"""Position, time and user of a record of the log."""

from msgspec import Struct


class RecordContext(Struct, frozen=True):
    """Position, id, time and user of a record. Units: `known_at` in microseconds since 1970, UTC."""

    partition: int
    offset: int
    changeset_id: bytes
    known_at: int
    user: int
    tenant: str
    user_id: str
