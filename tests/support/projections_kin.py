"""A bank whose one account is told by several Items, each in its own time and under its own ids."""

import json
from dataclasses import dataclass, field

import msgspec
from hypothesis import strategies as st

from runtime.kafka.reader import Received
from sandbox.simulation.memory.projection_tables import MemoryProjections
from schemas import events
from schemas.encoding import catalogue, codec
from schemas.ids import own_id
from schemas.log import gate
from schemas.log.records import Decision, Transaction
from schemas.log.records import Item as ItemWords
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
"""What purchases cost that nobody can tell apart, if they are made on one day in one shop."""

Step = tuple[str, int, int]
"""What happens: the name of an act, which transaction or Item, which variant."""

ACTS = (
    *("buy", "buy_twin", "buy_pending", "tell", "tell", "tell_all") * 2,
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
class Teller:
    """An Item: what it told, by purchase, and under which ids."""

    item_id: str
    told: dict[int, Transaction] = field(default_factory=dict)
    is_unlinked: bool = False


class Bank:
    """Acts out steps. `purchases` are what the bank has, by a number that outlives all ids."""

    def __init__(self, steps: list[Step]) -> None:
        self.log = Log()
        self.purchases: dict[int, Transaction] = {}
        self.tellers: list[Teller] = []
        self._changed_ids: dict[int, int] = {}
        self._made = 0
        self._memory = MemoryProjections(owners)
        self._read = 0
        self._link()
        for act, which, variant in steps:
            self._act(act, which, variant)
        for teller in self.tellers:
            self._tell(teller)

    def known(self) -> MemoryProjections:
        """All that was said so far, folded record by record."""
        for record in self.log.records[self._read :]:
            self._memory.project([record])
        self._read = len(self.log.records)
        return self._memory

    @property
    def records(self) -> list[Received]:
        """The log."""
        return self.log.records

    def _act(self, act: str, which: int, variant: int) -> None:
        numbers = sorted(self.purchases)
        if act in ("buy", "buy_twin", "buy_pending"):
            self._made += 1
            amount = TWINS if act == "buy_twin" else str(100 * self._made)
            self.purchases[self._made] = transaction(
                "",
                amount,
                date=f"2026-03-0{1 + variant}",
                original_description=f"SHOP {which} STREET",
                pending=act == "buy_pending",
            )
        elif act == "tell":
            self._tell(self.tellers[which % len(self.tellers)])
        elif act == "tell_all":
            for teller in self.tellers:
                self._tell(teller)
        elif act == "link" and len(self.tellers) < 3:
            self._link()
        elif act == "unlink":
            self._unlink(self.tellers[which % len(self.tellers)])
        elif act == "edit":
            self._edit(which, variant)
        elif act in ("approve", "reject"):
            self._decide(act, which)
        elif numbers:
            self._change(act, numbers[which % len(numbers)], variant)

    def _change(self, act: str, number: int, variant: int) -> None:
        before = self.purchases[number]
        if act == "drop":
            del self.purchases[number]
        elif act == "churn" or (act == "post" and before.pending):
            self._changed_ids[number] = self._changed_ids.get(number, 0) + 1
            tipped = {"amount": str(int(before.amount) + 10 * variant), "pending": False} if act == "post" else {}
            self.purchases[number] = msgspec.structs.replace(before, **tipped)
        elif act == "rename":
            self.purchases[number] = msgspec.structs.replace(
                before, original_description=f"{str(before.original_description)[:13]} {variant}"
            )
        elif act == "redate":
            self.purchases[number] = msgspec.structs.replace(before, date=f"2026-03-0{2 + variant}")

    def _link(self) -> None:
        teller = Teller(f"item{len(self.tellers)}")
        self.tellers.append(teller)
        said = ItemWords(teller.item_id, "active", institution_id="ins_1", institution_name="Bank")
        self.log.append(teller.item_id, about_item(events.ITEM_LINKED, said), type=gate.LINK)

    def _unlink(self, teller: Teller) -> None:
        if teller.is_unlinked or len([one for one in self.tellers if not one.is_unlinked]) == 1:
            return
        self._tell(teller)
        teller.is_unlinked = True
        said = ItemWords(teller.item_id, "unlinked", institution_id="ins_1", institution_name="Bank")
        self.log.append(teller.item_id, about_item(events.ITEM_UNLINKED, said), type=gate.UNLINK)

    def _tell(self, teller: Teller) -> None:
        """Say all that is new to an Item, in one update."""
        if teller.is_unlinked:
            return
        said: list[Event] = []
        for number in sorted(teller.told.keys() | self.purchases.keys()):
            before, now = teller.told.get(number), self.purchases.get(number)
            if now is not None:
                name = f"{teller.item_id}-{number}-{self._changed_ids.get(number, 0)}"
                now = msgspec.structs.replace(now, transaction_id=name, account_id=f"{teller.item_id}-checking")
            if before is not None and (now is None or now.transaction_id != before.transaction_id):
                said += removed(before.transaction_id)
                before = None
            if now is not None and before is None:
                said += added(now)
            elif now is not None and now != before:
                said += modified(now)
            if now is None:
                teller.told.pop(number, None)
            else:
                teller.told[number] = now
        if said:
            said += balance(account(f"{teller.item_id}-checking"))
            self.log.sync(teller.item_id, *said)

    def _edit(self, which: int, variant: int) -> None:
        told = [(teller, one) for teller in self.tellers for one in teller.told.values()]
        if told:
            teller, one = told[which % len(told)]
            own = own_id(one.transaction_id, salt=teller.item_id.encode())
            if own in self.known().rows:
                self.log.edit(teller.item_id, own, one.transaction_id, notes=f"note {variant}")

    def _decide(self, act: str, which: int) -> None:
        waiting = sorted(one.id for one in self.known().reviews.values() if one.state == "open")
        if waiting:
            review = self.known().reviews[waiting[which % len(waiting)]]
            chosen = json.loads(review.candidates)[0]["own_id"]
            kind = events.APPROVE_REVIEW if act == "approve" else events.REJECT_REVIEW
            made = Decision(review.id.hex(), kind, "ada", json.dumps({"own_id": chosen}))
            self.log.free(
                review.item_id, [(events.DECISION_MADE, catalogue.DECISION, codec.encode(made))], type=gate.DECISION
            )
