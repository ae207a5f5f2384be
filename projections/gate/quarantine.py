"""Parked Items: where each was set aside, what of it is withheld, which redrive ends it. Pure.

A parking is a stored fact: a replay withholds and folds the same records at the same places, whatever its code can do.
"""

from collections.abc import Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

from runtime.kafka.reader import Received

Record = TypeVar("Record")


class Parked(NamedTuple):
    """A parking as stored: what lies from `first` up to the redrive is withheld."""

    first: int
    redrive: int | None

    def holds(self, offset: int) -> bool:
        """Whether the record at this offset is withheld."""
        return self.first <= offset and (self.redrive is None or offset < self.redrive)

    def ends_at(self, offset: int) -> bool:
        """Whether a redrive at this offset ends it, for the first time or in a replay."""
        return self.first < offset and self.redrive in (None, offset)


class Parking(NamedTuple):
    """A parking that is new in this batch: the record that began it, and the redrive that ended it, if one has."""

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


class Ended(NamedTuple):
    """A stored parking that a redrive of this batch ended."""

    item_id: str
    first_offset: int
    redrive: int


class Lot(Generic[Record]):
    """The parked Items of a batch, from its first record to its last.

    Shape: `withheld` has what is stored of the Items that the batch redrives, in the order of the log.
    """

    def __init__(self, parked: Mapping[str, Sequence[Parked]], withheld: Mapping[str, Sequence[Record]]) -> None:
        self.ended: list[Ended] = []
        self.freed: list[Record] = []
        self._parked = {item: list(parkings) for item, parkings in parked.items()}
        self._stored = {item: list(records) for item, records in withheld.items()}
        self._new: dict[str, list[Record]] = {}
        self._parkings: dict[tuple[str, int], Parking] = {}

    def parkings(self) -> list[Parking]:
        """The parkings that are new."""
        return list(self._parkings.values())

    def withheld(self) -> list[Record]:
        """What is new among the withheld records and still is withheld."""
        return [record for records in self._new.values() for record in records]

    def holds(self, item_id: str, offset: int) -> bool:
        """Whether a record of an Item is withheld."""
        return any(parked.holds(offset) for parked in self._parked.get(item_id, ()))

    def withhold(self, item_id: str, record: Record) -> None:
        """Set a record aside, behind those that are withheld already."""
        self._new.setdefault(item_id, []).append(record)

    def park(self, item_id: str, original: Received, reason: str) -> None:
        """Begin a parking at a record."""
        self._parked.setdefault(item_id, []).append(Parked(original.offset, None))
        self._parkings[item_id, original.offset] = Parking(item_id, original, reason)

    def end(self, item_id: str, offset: int) -> bool:
        """End the parkings that a redrive at this offset ends; False where there is none."""
        found = False
        parkings = self._parked.get(item_id, [])
        for place, parked in enumerate(parkings):
            if not parked.ends_at(offset):
                continue
            found = True
            if parked.redrive is not None:
                continue
            parkings[place] = Parked(parked.first, offset)
            new = self._parkings.get((item_id, parked.first))
            if new is not None:
                self._parkings[item_id, parked.first] = new._replace(redrive=offset)
            else:
                self.ended.append(Ended(item_id, parked.first, offset))
        return found

    def begins(self, item_id: str, offset: int) -> bool:
        """Whether a stored parking begins at this offset: a redrive there failed when it was first read."""
        return any(parked.first == offset for parked in self._parked.get(item_id, ()))

    def waiting(self, item_id: str) -> list[Record]:
        """All that is withheld of an Item, in the order of the log."""
        return [*self._stored.get(item_id, ()), *self._new.get(item_id, ())]

    def free(self, item_id: str) -> None:
        """Withhold nothing of an Item any more."""
        self.freed += self._stored.pop(item_id, [])
        self._new.pop(item_id, None)
