"""A bank whose one account is linked under several Items, each with its own time of updates and its own ids."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from hypothesis import strategies as st

from runtime.kafka.reader import Received
from sandbox.simulation.memory.projection_tables import MemoryProjections
from schemas import events
from schemas.encoding import catalogue, codec
from schemas.ids import own_id
from schemas.log import gate
from schemas.log.records import Decision, Item, Transaction
from tests.support.projections_log import (
    Event,
    Log,
    about_item,
    account,
    added,
    balance,
    modified,
    owners,
    removed,
    transaction,
)

TWINS = "5"
"""Amount of purchases that are indistinguishable if they have one day and one shop."""

Step = tuple[str, int, int]
"""The name of an act, which transaction, Item or review, and which variant."""

ACTS = (
    *("buy", "buy_twin", "buy_pending", "sync", "sync", "sync_all") * 2,
    "post",
    "churn",
    "drop",
    "rename",
    "redate",
    "link",
    "link",
    "unlink",
    "edit",
    "approve",
    "reject",
)

stories = st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 3), st.integers(0, 2)), min_size=4, max_size=30)


@dataclass
class LinkedItem:
    """An Item: the transactions of its last update, by purchase, and how often its account ids changed."""

    item_id: str
    rows: dict[int, Transaction] = field(default_factory=dict)
    generation: int = 0
    is_unlinked: bool = False


class LinkedItemsLog:
    """A log of Items at one bank, folded in memory as far as a step needs the present state."""

    def __init__(self, log: Log | None = None) -> None:
        self.log = Log() if log is None else log
        self.items: list[LinkedItem] = []
        self._memory = MemoryProjections(owners)
        self._folded = 0

    @property
    def records(self) -> list[Received]:
        """Records of the log."""
        return self.log.records

    def folded(self) -> MemoryProjections:
        """Return the tables of the log, folded record by record."""
        for record in self.log.records[self._folded :]:
            self._memory.project([record])
        self._folded = len(self.log.records)
        return self._memory

    def append_link(self, more: Sequence[Event] = ()) -> None:
        """Append the root record of one more Item."""
        item = LinkedItem(f"item{len(self.items)}")
        self.items.append(item)
        block = about_item(events.ITEM_LINKED, _payload(item, "active"))
        self.log.append(item.item_id, [*block, *more], type=gate.LINK)

    def can_unlink(self, item: LinkedItem) -> bool:
        """Return True unless an Item is unlinked or the last one."""
        return not item.is_unlinked and sum(not other.is_unlinked for other in self.items) > 1

    def append_unlink(self, item: LinkedItem) -> None:
        """Append the end of an Item."""
        item.is_unlinked = True
        self.log.append(item.item_id, about_item(events.ITEM_UNLINKED, _payload(item, "unlinked")), type=gate.UNLINK)

    def changes(self, item: LinkedItem, rows: dict[int, Transaction], numbers: Sequence[int]) -> list[Event]:
        """Return the events from an Item's last update to these rows, purchase by purchase, and store the rows."""
        block: list[Event] = []
        for number in numbers:
            before, row = item.rows.get(number), rows.get(number)
            if before is not None and (row is None or row.transaction_id != before.transaction_id):
                block += removed(before.transaction_id)
                before = None
            if row is not None and row != before:
                block += added(row) if before is None else modified(row)
        item.rows = rows
        return block

    def decide_review(self, which: int, kind: str, candidate: int = 0) -> None:
        """Append a decision on an open review, if there is one."""
        reviews = self.folded().reviews
        open_ids = sorted(review.id for review in reviews.values() if review.state == "open")
        if open_ids:
            review = reviews[open_ids[which % len(open_ids)]]
            candidates = json.loads(review.candidates)
            chosen = json.dumps({"own_id": candidates[candidate % len(candidates)]["own_id"]})
            self.append_decision(review.item_id, Decision(review.id.hex(), kind, "ada", chosen))

    def append_decision(self, item_id: str, decision: Decision) -> None:
        """Append a decision of a person."""
        event = (events.DECISION_MADE, catalogue.DECISION, codec.encode(decision))
        self.log.free(item_id, [event], type=gate.DECISION)


class Bank(LinkedItemsLog):
    """Act out steps. `purchases` has the bank's transactions, by a number that outlives all ids."""

    def __init__(self, steps: Sequence[Step], log: Log | None = None) -> None:
        super().__init__(log)
        self.purchases: dict[int, Transaction] = {}
        self._changed_ids: dict[int, int] = {}
        self._count = 0
        self.append_link()
        for act, which, variant in steps:
            self._act(act, which, variant)
        for item in self.items:
            self._sync(item)

    def _act(self, act: str, which: int, variant: int) -> None:
        numbers, item = sorted(self.purchases), self.items[which % len(self.items)]
        if act in ("buy", "buy_twin", "buy_pending"):
            self._count += 1
            self.purchases[self._count] = transaction(
                "",
                TWINS if act == "buy_twin" else str(100 * self._count),
                date=f"2026-03-0{1 + variant}",
                original_description=f"SHOP {which} STREET",
                pending=act == "buy_pending",
            )
        elif act == "sync":
            self._sync(item)
        elif act == "sync_all":
            for each in self.items:
                self._sync(each)
        elif act == "link" and len(self.items) < 3:
            self.append_link()
        elif act == "unlink" and self.can_unlink(item):
            self._sync(item)
            self.append_unlink(item)
        elif act == "edit":
            self._edit(which, variant)
        elif act in ("approve", "reject"):
            self.decide_review(which, events.APPROVE_REVIEW if act == "approve" else events.REJECT_REVIEW)
        elif numbers:
            self._change(act, numbers[which % len(numbers)], variant)

    def _change(self, act: str, number: int, variant: int) -> None:
        before = self.purchases[number]
        changes: dict[str, Any] = {}
        if act == "drop":
            del self.purchases[number]
            return
        if act == "churn" or (act == "post" and before.pending):
            self._changed_ids[number] = self._changed_ids.get(number, 0) + 1
            if act == "post":
                changes = {"amount": str(int(before.amount) + 10 * variant), "pending": False}
        elif act == "rename":
            changes = {"original_description": f"{str(before.original_description)[:13]} {variant}"}
        elif act == "redate":
            changes = {"date": f"2026-03-0{2 + variant}"}
        self.purchases[number] = msgspec.structs.replace(before, **changes)

    def _sync(self, item: LinkedItem) -> None:
        """Append all changes of an Item as one update."""
        if item.is_unlinked:
            return
        rows = {
            number: msgspec.structs.replace(
                row,
                transaction_id=f"{item.item_id}-{number}-{self._changed_ids.get(number, 0)}",
                account_id=f"{item.item_id}-checking",
            )
            for number, row in self.purchases.items()
        }
        block = self.changes(item, rows, sorted(item.rows.keys() | rows.keys()))
        if block:
            self.log.sync(item.item_id, *block, *balance(account(f"{item.item_id}-checking")))

    def _edit(self, which: int, variant: int) -> None:
        rows = [(item, row) for item in self.items for row in item.rows.values()]
        if rows:
            item, row = rows[which % len(rows)]
            own = own_id(row.transaction_id, salt=item.item_id.encode())
            if own in self.folded().rows:
                self.log.edit(item.item_id, own, row.transaction_id, notes=f"note {variant}")


def _payload(item: LinkedItem, state: str) -> Item:
    return Item(item.item_id, state, institution_id="ins_1", institution_name="Bank")
