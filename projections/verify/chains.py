"""The log's chains against the tables that say where they stand. Core.

The gate is applied to every record from the beginning, as each reader applied it; what a reader keeps must come out.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from schemas.log import gate
from schemas.log.gate import ItemGate, Verdict
from schemas.log.records import Head


class Standing(NamedTuple):
    """Where an Item's chain stands: the last accepted chained record."""

    head: bytes
    offset: int
    user: int
    partition: int
    unlinked: bool


class Orphan(NamedTuple):
    """A chained record that was not accepted, and whose parent is to be found in the log before it."""

    partition: int
    offset: int
    item_id: str
    parent: bytes


class Chains:
    """The gates of all Items, moved on by one record after the other, as far as one reader has come.

    `ends` are the reader's positions; `erased` users of whom it accepts nothing. Memory: 500 bytes an Item.
    """

    def __init__(self, ends: Mapping[int, int], *, erased: Collection[int] = ()) -> None:
        self.standings: dict[str, Standing] = {}
        self.rootless: list[tuple[int, int, str]] = []
        self._ends = ends
        self._erased = erased
        self._gates: dict[str, ItemGate] = {}
        self._skipped: set[bytes] = set()
        self._orphans: list[Orphan] = []

    def follow(self, partition: int, offset: int, head: Head) -> Verdict | None:
        """Decide on a record; None where the reader has not come to it, or it concerns no Item."""
        if offset >= self._ends.get(partition, 0) or head.item_id is None:
            return None
        item = self._gates.get(head.item_id, ItemGate())
        verdict = gate.decide(head, item, erased=head.user in self._erased, known=False)
        self._gates[head.item_id] = gate.advance(head, item, verdict)
        if head.kind == gate.CHAINED:
            self._chained(partition, offset, head, verdict)
        return verdict

    def orphans(self) -> list[Orphan]:
        """Records whose parent is none of those that were skipped: it must be among those that were accepted."""
        return [one for one in self._orphans if one.parent not in self._skipped]

    def _chained(self, partition: int, offset: int, head: Head, verdict: Verdict) -> None:
        assert head.item_id is not None, "the caller has looked"
        if verdict is Verdict.ACCEPTED:
            unlinked = head.type == gate.UNLINK
            self.standings[head.item_id] = Standing(head.id, offset, head.user, partition, unlinked)
            return
        self._skipped.add(head.id)
        if verdict is Verdict.NOT_HEAD and head.parent is not None:
            self._orphans.append(Orphan(partition, offset, head.item_id, head.parent))
        elif verdict is Verdict.NOT_HEAD and head.type != gate.LINK:
            self.rootless.append((partition, offset, head.item_id))


def unlike(found: Mapping[str, Standing], kept: Mapping[str, Standing]) -> dict[str, str]:
    """Each Item that a table has elsewhere than the log, with how."""
    wrong = {}
    for item_id in found.keys() | kept.keys():
        log, table = found.get(item_id), kept.get(item_id)
        if log != table:
            wrong[item_id] = f"item {item_id}: the log stands at {_place(log)}, the table at {_place(table)}"
    return wrong


def _place(at: Standing | None) -> str:
    if at is None:
        return "nothing"
    return f"{at.partition}.{at.offset} ({at.head.hex()[:12]}{', unlinked' if at.unlinked else ''})"
