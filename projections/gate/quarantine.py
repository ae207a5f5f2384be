"""QuarantineSpan Items: where each was set aside, what of it is withheld, which redrive ends it. Pure.

A item_quarantine is a stored fact: a replay withholds and folds the same records at the same places, whatever its code can do.
"""

from collections.abc import Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

from runtime.kafka.reader import Received

Record = TypeVar("Record")


class QuarantineSpan(NamedTuple):
    """A item_quarantine as stored: what lies from `first` up to the redrive is withheld."""

    first: int
    redrive: int | None

    def holds(self, offset: int) -> bool:
        """Whether the record at this offset is withheld."""
        return self.first <= offset and (self.redrive is None or offset < self.redrive)

    def ends_at(self, offset: int) -> bool:
        """Whether a redrive at this offset ends it, for the first time or in a replay."""
        return self.first < offset and self.redrive in (None, offset)


class ItemQuarantine(NamedTuple):
    """A item_quarantine that is new in this batch: the record that began it, and the redrive that ended it, if one has."""

    item_id: str
    original: Received
    reason: str
    redrive: int | None = None

    @property
    def partition(self) -> int:
        """Where the Item's records are."""
        return self.original.partition

    @property
    def first_offset(self) -> int:
        """The first record that is withheld; where a redrive failed the redrive, behind which all is."""
        return self.original.offset


class EndedQuarantine(NamedTuple):
    """A stored item_quarantine that a redrive of this batch ended."""

    item_id: str
    first_offset: int
    redrive: int


class QuarantinedItems(Generic[Record]):
    """The quarantined Items of a batch, from its first record to its last.

    Shape: `withheld` has what is stored of the Items that the batch redrives, in the order of the log.
    """

    def __init__(
        self, quarantined: Mapping[str, Sequence[QuarantineSpan]], withheld: Mapping[str, Sequence[Record]]
    ) -> None:
        self.ended: list[EndedQuarantine] = []
        self.freed: list[Record] = []
        self._quarantined = {item: list(quarantines) for item, quarantines in quarantined.items()}
        self._stored = {item: list(records) for item, records in withheld.items()}
        self._new: dict[str, list[Record]] = {}
        self._quarantines: dict[tuple[str, int], ItemQuarantine] = {}

    def quarantines(self) -> list[ItemQuarantine]:
        """The quarantines that are new."""
        return list(self._quarantines.values())

    def withheld(self) -> list[Record]:
        """What is new among the withheld records and still is withheld."""
        return [record for records in self._new.values() for record in records]

    def holds(self, item_id: str, offset: int) -> bool:
        """Whether a record of an Item is withheld."""
        return any(quarantined.holds(offset) for quarantined in self._quarantined.get(item_id, ()))

    def withhold(self, item_id: str, record: Record) -> None:
        """Set a record aside, behind those that are withheld already."""
        self._new.setdefault(item_id, []).append(record)

    def quarantine(self, item_id: str, original: Received, reason: str) -> None:
        """Begin a item_quarantine at a record."""
        self._quarantined.setdefault(item_id, []).append(QuarantineSpan(original.offset, None))
        self._quarantines[item_id, original.offset] = ItemQuarantine(item_id, original, reason)

    def end(self, item_id: str, offset: int) -> bool:
        """End the quarantines that a redrive at this offset ends; False where there is none."""
        found = False
        quarantines = self._quarantined.get(item_id, [])
        for place, quarantined in enumerate(quarantines):
            if not quarantined.ends_at(offset):
                continue
            found = True
            if quarantined.redrive is not None:
                continue
            quarantines[place] = QuarantineSpan(quarantined.first, offset)
            new = self._quarantines.get((item_id, quarantined.first))
            if new is not None:
                self._quarantines[item_id, quarantined.first] = new._replace(redrive=offset)
            else:
                self.ended.append(EndedQuarantine(item_id, quarantined.first, offset))
        return found

    def begins(self, item_id: str, offset: int) -> bool:
        """Whether a stored item_quarantine begins at this offset: a redrive there failed when it was first read."""
        return any(quarantined.first == offset for quarantined in self._quarantined.get(item_id, ()))

    def waiting(self, item_id: str) -> list[Record]:
        """All that is withheld of an Item, in the order of the log."""
        return [*self._stored.get(item_id, ()), *self._new.get(item_id, ())]

    def free(self, item_id: str) -> None:
        """Withhold nothing of an Item any more."""
        self.freed += self._stored.pop(item_id, [])
        self._new.pop(item_id, None)
