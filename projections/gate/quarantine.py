"""Quarantined Items: the offset of each quarantine, its withheld records and the redrive that ends it.

A quarantine is a stored fact: a replay withholds and folds the same records at the same offsets, with any code.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from projections.decode.log_record import LogRecord
from runtime.kafka.reader import Received


class QuarantineSpan(NamedTuple):
    """A stored quarantine: records from offset `first` up to the redrive are withheld."""

    first: int
    redrive: int | None

    def withholds(self, offset: int) -> bool:
        """Return whether the record at this offset is withheld."""
        return self.first <= offset and (self.redrive is None or offset < self.redrive)

    def ends_at(self, offset: int) -> bool:
        """Return whether a redrive at this offset ends it, for the first time or in a replay."""
        return self.first < offset and self.redrive in (None, offset)


class ItemQuarantine(NamedTuple):
    """A quarantine that is new in this batch: its first record, and the redrive that ended it, if any."""

    item_id: str
    original: Received
    reason: str
    redrive: int | None = None

    @property
    def partition(self) -> int:
        """Partition of the Item's records."""
        return self.original.partition

    @property
    def first_offset(self) -> int:
        """Offset of the first withheld record, or of the redrive that failed."""
        return self.original.offset


class EndedQuarantine(NamedTuple):
    """A stored quarantine that a redrive of this batch ended."""

    item_id: str
    first_offset: int
    redrive: int


class QuarantinedItems:
    """Quarantined Items of a batch, from its first record to its last.

    Shape: `withheld` has the stored records of the Items that the batch redrives, in the order of the log.
    """

    def __init__(
        self, spans: Mapping[str, Sequence[QuarantineSpan]], withheld: Mapping[str, Sequence[LogRecord]]
    ) -> None:
        self.ended: list[EndedQuarantine] = []
        self.released: list[LogRecord] = []
        self.new: dict[tuple[str, int], ItemQuarantine] = {}
        self.newly_withheld: dict[str, list[LogRecord]] = {}
        self._spans = {item: list(stored) for item, stored in spans.items()}
        self._stored = {item: list(records) for item, records in withheld.items()}

    def withholds(self, item_id: str, offset: int) -> bool:
        """Return whether a record of an Item is withheld."""
        return any(span.withholds(offset) for span in self._spans.get(item_id, ()))

    def withhold(self, item_id: str, record: LogRecord) -> None:
        """Withhold a record, behind those that are withheld already."""
        self.newly_withheld.setdefault(item_id, []).append(record)

    def quarantine(self, item_id: str, original: Received, reason: str) -> None:
        """Begin a quarantine at a record."""
        self._spans.setdefault(item_id, []).append(QuarantineSpan(original.offset, None))
        self.new[item_id, original.offset] = ItemQuarantine(item_id, original, reason)

    def end(self, item_id: str, offset: int) -> bool:
        """End the quarantines that a redrive at this offset ends; False where there is none."""
        spans = self._spans.get(item_id, [])
        ending = [number for number, span in enumerate(spans) if span.ends_at(offset)]
        for number in ending:
            first, redrive = spans[number]
            if redrive is not None:
                continue
            spans[number] = QuarantineSpan(first, offset)
            if new := self.new.get((item_id, first)):
                self.new[item_id, first] = new._replace(redrive=offset)
            else:
                self.ended.append(EndedQuarantine(item_id, first, offset))
        return bool(ending)

    def begins(self, item_id: str, offset: int) -> bool:
        """Return whether a stored quarantine begins at this offset: a redrive there failed when it was first read."""
        return any(span.first == offset for span in self._spans.get(item_id, ()))

    def waiting(self, item_id: str) -> list[LogRecord]:
        """Return the withheld records of an Item, in the order of the log."""
        return [*self._stored.get(item_id, ()), *self.newly_withheld.get(item_id, ())]

    def release(self, item_id: str) -> None:
        """Stop withholding the records of an Item."""
        self.released += self._stored.pop(item_id, [])
        self.newly_withheld.pop(item_id, None)
