"""Count the stored net events of a changeset by type."""

from collections import Counter

import zstandard

from projections.events import public_events
from projections.model.unit_of_work import NetEvent
from schemas.encoding import codec
from schemas.events import TRANSACTION_ADDED, TRANSACTION_MODIFIED, TRANSACTION_REMOVED
from schemas.log.changesets import EVENTS_BYTES_MAX

TRANSACTION_TYPES = (TRANSACTION_ADDED, TRANSACTION_MODIFIED, TRANSACTION_REMOVED)


def transaction_counts(stored: bytes, changeset: bytes | None) -> Counter[str]:
    """Count the events about transactions in a row's compressed block, by type.

    Args:
        stored: The column `events`; empty bytes where there are none.
        changeset: Id of the changeset to count, since a redrive stores the events of several; None counts all.
    """
    if not stored:
        return Counter()
    block = zstandard.ZstdDecompressor().decompress(stored, max_output_size=EVENTS_BYTES_MAX)
    return Counter(
        event.type
        for event in codec.decode_events(block)
        if event.type in TRANSACTION_TYPES
        and (
            changeset is None
            or public_events.changeset_id_of(NetEvent(event.type, event.schema, b"", event.data)) == changeset
        )
    )
