"""Chains: apply the gate to the whole log and compare the resulting heads with those that a reader has stored. Pure."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from schemas.log import gate
from schemas.log.gate import ItemGate, Verdict
from schemas.log.records import Head


class ChainHead(NamedTuple):
    """The last accepted chained record of an Item."""

    head: bytes
    offset: int
    user: int
    partition: int
    unlinked: bool

    def __str__(self) -> str:
        return f"{self.partition}.{self.offset} ({self.head.hex()[:12]}{', unlinked' if self.unlinked else ''})"


class Orphan(NamedTuple):
    """A chained record that was not accepted, and whose parent must be in the log before it."""

    partition: int
    offset: int
    item_id: str
    parent: bytes


class Chains:
    """The gates of all Items, advanced record by record up to the positions of one reader.

    `positions` are the reader's, by partition; of users in `erased` it accepts nothing. Memory: 500 bytes an Item.
    """

    def __init__(self, positions: Mapping[int, int], *, erased: Collection[int] = ()) -> None:
        self.heads: dict[str, ChainHead] = {}
        self.rootless: list[tuple[int, int, str]] = []
        self._positions = positions
        self._erased = erased
        self._gates: dict[str, ItemGate] = {}
        self._skipped: set[bytes] = set()
        self._orphans: list[Orphan] = []

    def follow(self, partition: int, offset: int, head: Head) -> Verdict | None:
        """Decide on a record; None where the reader has not read it yet, or it concerns no Item."""
        item_id = head.item_id
        if offset >= self._positions.get(partition, 0) or item_id is None:
            return None
        item = self._gates.get(item_id, ItemGate())
        verdict = gate.decide(head, item, erased=head.user in self._erased, known=False)
        self._gates[item_id] = gate.advance(head, item, verdict)
        if head.kind != gate.CHAINED:
            return verdict
        if verdict is Verdict.ACCEPTED:
            self.heads[item_id] = ChainHead(head.id, offset, head.user, partition, head.type == gate.UNLINK)
            return verdict
        self._skipped.add(head.id)
        if verdict is Verdict.NOT_HEAD and head.parent is not None:
            self._orphans.append(Orphan(partition, offset, item_id, head.parent))
        elif verdict is Verdict.NOT_HEAD and head.type != gate.LINK:
            self.rootless.append((partition, offset, item_id))
        return verdict

    def orphans(self) -> list[Orphan]:
        """Return records whose parent was not skipped: it must be among those that were accepted."""
        return [orphan for orphan in self._orphans if orphan.parent not in self._skipped]


def differing_heads(log: Mapping[str, ChainHead], table: Mapping[str, ChainHead]) -> dict[str, str]:
    """Return a description of each Item whose head in a table is not the log's, by Item."""
    return {
        item_id: f"item {item_id}: the log is at {log.get(item_id, 'nothing')}, the table at "
        f"{table.get(item_id, 'nothing')}"
        for item_id in log.keys() | table.keys()
        if log.get(item_id) != table.get(item_id)
    }
