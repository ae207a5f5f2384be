"""Stories in which all meets: one login under several Items, users and people who decide, quarantines and redrives,
restated histories, account ids that change, openings. What several features do to one row is looked for here.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from hypothesis import strategies as st

from projections.fold.opening_balances import COMPLETE
from projections.gate.quarantine import QuarantineSpan
from runtime.kafka.reader import Received
from sandbox.simulation.memory.projection_tables import MemoryProjections
from schemas import events
from schemas.encoding import catalogue, codec
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
    restated,
    transaction,
)

ITEMS_MAX = 3
DAYS = ("2026-03-01", "2026-03-02", "2026-03-04", "2026-03-20")
ACCOUNTS = ("checking", "savings")

Step = tuple[str, int, int]
"""What happens: the name of an act, which Item, transaction or review, and which variant."""

ACTS = (
    *("buy", "buy_twin", "buy_pending", "tell", "tell", "tell_all", "edit", "decide") * 2,
    "post",
    "post_linked",
    "churn",
    "drop",
    "rename",
    "redate",
    "link",
    "link",
    "unlink",
    "change_account",
    "restate",
    "decide_removals",
    "quarantine",
    "redrive",
    "realtime",
    "edit_stale",
    "reword",
)

stories = st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 7), st.integers(0, 11)), min_size=4, max_size=40)


@dataclass
class Purchase:
    """What the bank has, whatever Items call it: `ids` counts the ids that it had, `pending` is the id before."""

    payload: Transaction
    account: str
    ids: int = 0
    was_pending: int | None = None


@dataclass
class Teller:
    """An Item: what it told, by purchase, and how often its accounts changed their ids."""

    item_id: str
    told: dict[int, Transaction] = field(default_factory=dict)
    generation: int = 0
    is_unlinked: bool = False


class Story:
    """Acts out steps. `quarantined` are quarantines that an older code stored, so that a redrive frees what they withheld."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.log = Log()
        self.quarantined: dict[str, list[QuarantineSpan]] = {}
        self._tellers: list[Teller] = []
        self._purchases: dict[int, Purchase] = {}
        self._made = 0
        self._memory = MemoryProjections(owners)
        self._read = 0
        self._link(0)
        for act, which, variant in steps:
            getattr(self, f"_{act}")(which, variant)
        self._tell_all(0, 0)

    @property
    def records(self) -> list[Received]:
        """The log."""
        return self.log.records

    def memory(self) -> MemoryProjections:
        """An empty memory in which the story's quarantines are stored."""
        return MemoryProjections(owners, quarantined=self.quarantined)

    def _known(self) -> MemoryProjections:
        for record in self.log.records[self._read :]:
            self._memory.project([record])
        self._read = len(self.log.records)
        return self._memory

    def _buy(self, which: int, variant: int, *, pending: bool = False, amount: str | None = None) -> None:
        self._made += 1
        payload = transaction(
            "",
            amount or str(100 * self._made),
            date=DAYS[variant % 4],
            pending=pending,
            original_description=f"SHOP {which % 3} STREET",
        )
        self._purchases[self._made] = Purchase(payload, ACCOUNTS[which % 2])

    def _buy_twin(self, which: int, variant: int) -> None:
        self._buy(which % 2, variant % 2, amount="5")

    def _buy_pending(self, which: int, variant: int) -> None:
        self._buy(which, variant, pending=True)

    def _post(self, which: int, variant: int) -> None:
        if (one := self._one(which)) and one.payload.pending:
            self._rename_id(one)
            amount = str(int(one.payload.amount) + (variant % 3) * 10)
            one.payload = msgspec.structs.replace(one.payload, pending=False, amount=amount)

    def _post_linked(self, which: int, variant: int) -> None:
        one = self._one(which)
        if one and one.payload.pending:
            before = one.ids
            self._post(which, variant)
            one.was_pending = before

    def _churn(self, which: int, _: int) -> None:
        if one := self._one(which):
            self._rename_id(one)

    def _drop(self, which: int, _: int) -> None:
        if self._purchases:
            del self._purchases[sorted(self._purchases)[which % len(self._purchases)]]

    def _rename(self, which: int, variant: int) -> None:
        if one := self._one(which):
            said = str(one.payload.original_description)[:13]
            one.payload = msgspec.structs.replace(one.payload, original_description=f"{said} {variant % 3}")

    def _redate(self, which: int, variant: int) -> None:
        if one := self._one(which):
            one.payload = msgspec.structs.replace(one.payload, date=DAYS[variant % 4])

    def _reword(self, which: int, variant: int) -> None:
        if one := self._one(which):
            category = ("TRAVEL", "RENT", None)[variant % 3]
            one.payload = msgspec.structs.replace(one.payload, category_primary=category)

    def _link(self, which: int, variant: int = 0) -> None:
        if len(self._tellers) == ITEMS_MAX:
            return
        teller = Teller(f"item{len(self._tellers)}")
        self._tellers.append(teller)
        said = about_item(events.ITEM_LINKED, self._words(teller, "active"))
        said += self._balances(teller, variant) if which % 2 else []
        self.log.append(teller.item_id, said, type=gate.LINK)

    def _unlink(self, which: int, _: int) -> None:
        teller = self._teller(which)
        if not teller.is_unlinked and len([one for one in self._tellers if not one.is_unlinked]) > 1:
            teller.is_unlinked = True
            said = about_item(events.ITEM_UNLINKED, self._words(teller, "unlinked"))
            self.log.append(teller.item_id, said, type=gate.UNLINK)

    def _change_account(self, which: int, _: int) -> None:
        self._teller(which).generation += 1

    def _tell_all(self, _: int, variant: int) -> None:
        for teller in self._tellers:
            self._tell_one(teller, variant)

    def _tell(self, which: int, variant: int) -> None:
        self._tell_one(self._teller(which), variant)

    def _tell_one(self, teller: Teller, variant: int) -> None:
        if teller.is_unlinked:
            return
        said: list[Event] = []
        now = self._as_told(teller)
        for number in sorted(teller.told.keys() | now.keys(), key=lambda number: (number * (variant + 1)) % 7):
            before, one = teller.told.get(number), now.get(number)
            if before is not None and (one is None or one.transaction_id != before.transaction_id):
                said += removed(before.transaction_id)
                before = None
            if one is not None and one != before:
                said += added(one) if before is None else modified(one)
        teller.told = now
        if said or variant % 3 == 0:
            said += self._balances(teller, variant)
            self.log.sync(teller.item_id, *said, **self._status(variant))

    def _restate(self, which: int, variant: int) -> None:
        teller = self._teller(which)
        if teller.is_unlinked:
            return
        names = [self._account_id(teller, name) for name in ACCOUNTS]
        since = DAYS[1] if variant % 4 == 1 else None
        before = {number: one for number, one in teller.told.items() if since is not None and one.date < since}
        now = {number: one for number, one in self._as_told(teller).items() if since is None or one.date >= since}
        teller.told = before | now
        whole = restated(*now.values(), accounts=names, since=since, permille=0 if variant % 3 else 1000)
        self.log.restate(teller.item_id, *whole, *self._balances(teller, variant), **self._status(variant))

    def _realtime(self, which: int, variant: int) -> None:
        teller = self._teller(which)
        said = balance(self._account(teller, ACCOUNTS[variant % 2], variant), realtime=True)
        self.log.free(teller.item_id, said, type=gate.BALANCE)

    def _quarantine(self, which: int, _: int) -> None:
        teller = self._teller(which)
        if any(one.redrive is None for one in self._known().quarantined.get(teller.item_id, ())):
            return
        item_quarantine = QuarantineSpan(len(self.log.records), None)
        self.quarantined.setdefault(teller.item_id, []).append(item_quarantine)
        self._memory.quarantined.setdefault(teller.item_id, []).append(item_quarantine)

    def _redrive(self, which: int, _: int) -> None:
        teller = self._teller(which)
        before = len(self.log.records)
        if any(one.redrive is None and one.first < before for one in self._known().quarantined.get(teller.item_id, ())):
            self.log.redrive(teller.item_id)

    def _edit(self, which: int, variant: int) -> None:
        """Say something of a row as readers have it, or had it."""
        rows = sorted(self._known().rows.values(), key=lambda row: row.own_id)
        if rows:
            row = rows[which % len(rows)]
            self.log.edit(row.item_id, row.own_id, row.transaction_id, **self._fields(row.payload, variant))

    def _edit_stale(self, which: int, variant: int) -> None:
        """Say something of a row under a name that it had, in an Item that it was in, or of one that never was."""
        memory = self._known()
        names = sorted((one.own_id, one.item_id, one.transaction_id) for one in memory.versions)
        names += sorted((one.own_id, one.item_id, one.transaction_id) for one in memory.links.values())
        own, item_id, name = names[which % len(names)] if names else (b"\1" * 16, self._tellers[0].item_id, "never")
        own = own if variant % 3 else b"\2" * 16
        self.log.edit(item_id, own, name, **self._fields(None, variant))

    def _fields(self, payload: bytes | None, variant: int) -> dict[str, Any]:
        amount = int(codec.decode(Transaction, payload).amount) if payload else 7
        splits = [{"category": "RENT", "amount": str(amount - 1)}, {"category": "GIFT", "amount": "1"}]
        return (
            {"notes": f"note {variant}"},
            {"category": "USERS"},
            {"splits": splits},
            {"hidden": True},
            {"category": None, "notes": ""},
            {"splits": None},
            {"tags": ["a"]},
        )[variant % 7]

    def _decide(self, which: int, variant: int) -> None:
        waiting = sorted(one.id for one in self._known().reviews.values() if one.state == "open")
        if waiting:
            review = self._known().reviews[waiting[which % len(waiting)]]
            candidates = json.loads(review.candidates)
            chosen = candidates[variant % len(candidates)]["own_id"]
            kind = events.REJECT_REVIEW if variant % 3 == 0 else events.APPROVE_REVIEW
            made = Decision(review.id.hex(), kind, "ada", json.dumps({"own_id": chosen}))
            self._say(review.item_id, made)

    def _decide_removals(self, which: int, variant: int) -> None:
        waiting = [one for one in self._known().items.values() if one.missing_changeset_id is not None]
        if waiting:
            item = waiting[which % len(waiting)]
            kind = events.APPROVE_REMOVALS if variant % 2 else events.REJECT_REMOVALS
            self._say(item.item_id, Decision((item.missing_changeset_id or b"").hex(), kind))

    def _say(self, item_id: str, made: Decision) -> None:
        self.log.free(item_id, [(events.DECISION_MADE, catalogue.DECISION, codec.encode(made))], type=gate.DECISION)

    def _teller(self, which: int) -> Teller:
        return self._tellers[which % len(self._tellers)]

    def _one(self, which: int) -> Purchase | None:
        numbers = sorted(self._purchases)
        return self._purchases[numbers[which % len(numbers)]] if numbers else None

    @staticmethod
    def _rename_id(one: Purchase) -> None:
        one.ids += 1
        one.was_pending = None

    @staticmethod
    def _words(teller: Teller, state: str) -> ItemWords:
        return ItemWords(teller.item_id, state, institution_id="ins_1", institution_name="Bank")

    @staticmethod
    def _status(variant: int) -> dict[str, Any]:
        return {} if variant % 4 == 0 else {"history_status": COMPLETE}

    @staticmethod
    def _account_id(teller: Teller, name: str) -> str:
        return f"{teller.item_id}-{name}-{teller.generation}"

    def _account(self, teller: Teller, name: str, variant: int) -> Any:
        return account(self._account_id(teller, name), str(1000 + variant), name=name, mask=f"00{len(name)}")

    def _balances(self, teller: Teller, variant: int) -> list[Event]:
        return balance(*(self._account(teller, name, variant) for name in ACCOUNTS))

    def _as_told(self, teller: Teller) -> dict[int, Transaction]:
        def name(number: int, ids: int) -> str:
            return f"{teller.item_id}-{number}-{ids}-{teller.generation}"

        return {
            number: msgspec.structs.replace(
                one.payload,
                transaction_id=name(number, one.ids),
                account_id=self._account_id(teller, one.account),
                pending_transaction_id=None if one.was_pending is None else name(number, one.was_pending),
            )
            for number, one in self._purchases.items()
        }


def cut(records: Sequence[Received], cuts: Sequence[int]) -> list[Sequence[Received]]:
    """The records in batches that end at these places."""
    ends = [*sorted({at % (len(records) + 1) for at in cuts} - {0}), len(records)]
    return [records[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True) if end > begin]
