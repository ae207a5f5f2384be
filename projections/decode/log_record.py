"""Records of `changesets` with their decoded heads, cut into batches of bounded size."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from runtime.kafka.reader import Received
from schemas.log import changesets
from schemas.log.changesets import Envelope
from schemas.log.records import Head

TIME_MAX = 253_402_300_799_999_999
"""The last microsecond of the year 9999. A record that claims a later time has none: dates end there."""


class LogRecord(NamedTuple):
    """A record whose head is decoded.

    Units: `known_at` in microseconds since 1970, UTC; 0 until the position lock gives the time of the record before.
    """

    received: Received
    envelope: Envelope
    known_at: int = 0

    @property
    def head(self) -> Head:
        """The clear head."""
        return self.envelope.head


def decode_record(received: Received) -> LogRecord:
    """Decode the head of a record. Raises: Halt, where it cannot be read."""
    return LogRecord(received, changesets.read(received.value))


def known_time(record: LogRecord, before: int) -> int:
    """Return the later of a record's own time and that of the record before it in its partition.

    Units: microseconds since 1970, UTC.
    """
    produced_at = record.head.at
    return max(produced_at if 0 <= produced_at <= TIME_MAX else 0, before)


def cut_batches(records: Sequence[LogRecord], events_max: int) -> Iterator[Sequence[LogRecord]]:
    """Cut records into batches of at most `events_max` events by the heads' counts, or of one record."""
    begin = events = 0
    for number, record in enumerate(records):
        count = sum(record.head.counts.values())
        if events and events + count > events_max:
            yield records[begin:number]
            begin, events = number, 0
        events += count
    yield records[begin:]
