"""Stories with all features on the same rows: one login under several Items, edits, decisions, quarantines, redrives,
full resyncs, account ids that change, openings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from hypothesis import strategies as st

from projections.fold.opening_balances import COMPLETE
from projections.gate.quarantine import QuarantineSpan
from sandbox.simulation.memory.projection_tables import MemoryProjections
from schemas import events
from schemas.encoding import codec
from schemas.log import gate
from schemas.log.records import Account, Decision, Transaction
from tests.support.projections_kin import LinkedItem, LinkedItemsLog
from tests.support.projections_log import Event, account, balance, owners, restated, transaction

ITEMS_MAX = 3
DAYS = ("2026-03-01", "2026-03-02", "2026-03-04", "2026-03-20")
ACCOUNTS = ("checking", "savings")

Step = tuple[str, int, int]
"""The name of an act, which Item, transaction or review, and which variant."""

ACTS = (
    *("buy", "buy_twin", "buy_pending", "sync", "sync", "sync_all", "edit", "decide") * 2,
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
    """Transaction of the bank: `ids` counts the ids that it had, `was_pending` is the number of its pending id."""

    payload: Transaction
    account: str
    ids: int = 0
    was_pending: int | None = None


class Story(LinkedItemsLog):
    """Act out steps. `quarantined` are stored quarantines of an older release, whose records a redrive releases."""

    def __init__(self, steps: Sequence[Step]) -> None:
        super().__init__()
        self.quarantined: dict[str, list[QuarantineSpan]] = {}
        self._purchases: dict[int, Purchase] = {}
        self._count = 0
        self._link(0)
        for act, which, variant in steps:
            getattr(self, f"_{act}")(which, variant)
        self._sync_all(0, 0)

    def memory(self) -> MemoryProjections:
        """Return empty tables with the story's quarantines."""
        return MemoryProjections(owners, quarantined=self.quarantined)

    def _buy(self, which: int, variant: int, *, pending: bool = False, amount: str | None = None) -> None:
        self._count += 1
        payload = transaction(
            "",
            amount or str(100 * self._count),
            date=DAYS[variant % 4],
            pending=pending,
            original_description=f"SHOP {which % 3} STREET",
        )
        self._purchases[self._count] = Purchase(payload, ACCOUNTS[which % 2])

    def _buy_twin(self, which: int, variant: int) -> None:
        self._buy(which % 2, variant % 2, amount="5")

    def _buy_pending(self, which: int, variant: int) -> None:
        self._buy(which, variant, pending=True)

    def _post(self, which: int, variant: int) -> None:
        if (purchase := self._purchase(which)) and purchase.payload.pending:
            self._rename_id(purchase)
            amount = str(int(purchase.payload.amount) + (variant % 3) * 10)
            purchase.payload = msgspec.structs.replace(purchase.payload, pending=False, amount=amount)

    def _post_linked(self, which: int, variant: int) -> None:
        purchase = self._purchase(which)
        if purchase and purchase.payload.pending:
            before = purchase.ids
            self._post(which, variant)
            purchase.was_pending = before

    def _churn(self, which: int, _: int) -> None:
        if purchase := self._purchase(which):
            self._rename_id(purchase)

    def _drop(self, which: int, _: int) -> None:
        if self._purchases:
            del self._purchases[sorted(self._purchases)[which % len(self._purchases)]]

    def _rename(self, which: int, variant: int) -> None:
        if purchase := self._purchase(which):
            shop = str(purchase.payload.original_description)[:13]
            purchase.payload = msgspec.structs.replace(purchase.payload, original_description=f"{shop} {variant % 3}")

    def _redate(self, which: int, variant: int) -> None:
        if purchase := self._purchase(which):
            purchase.payload = msgspec.structs.replace(purchase.payload, date=DAYS[variant % 4])

    def _reword(self, which: int, variant: int) -> None:
        if purchase := self._purchase(which):
            category = ("TRAVEL", "RENT", None)[variant % 3]
            purchase.payload = msgspec.structs.replace(purchase.payload, category_primary=category)

    def _link(self, which: int, variant: int = 0) -> None:
        if len(self.items) < ITEMS_MAX:
            # The balances of the Item that is appended next.
            item = LinkedItem(f"item{len(self.items)}")
            self.append_link(self._balances(item, variant) if which % 2 else [])

    def _unlink(self, which: int, _: int) -> None:
        item = self._item(which)
        if self.can_unlink(item):
            self.append_unlink(item)

    def _change_account(self, which: int, _: int) -> None:
        self._item(which).generation += 1

    def _sync_all(self, _: int, variant: int) -> None:
        for item in self.items:
            self._sync_item(item, variant)

    def _sync(self, which: int, variant: int) -> None:
        self._sync_item(self._item(which), variant)

    def _sync_item(self, item: LinkedItem, variant: int) -> None:
        if item.is_unlinked:
            return
        rows = self._present_rows(item)
        numbers = sorted(item.rows.keys() | rows.keys(), key=lambda number: (number * (variant + 1)) % 7)
        block = self.changes(item, rows, numbers)
        if block or variant % 3 == 0:
            self.log.sync(item.item_id, *block, *self._balances(item, variant), **self._status(variant))

    def _restate(self, which: int, variant: int) -> None:
        item = self._item(which)
        if item.is_unlinked:
            return
        names = [self._account_id(item, name) for name in ACCOUNTS]
        since = DAYS[1] if variant % 4 == 1 else None
        before = {number: row for number, row in item.rows.items() if since is not None and row.date < since}
        rows = {n: row for n, row in self._present_rows(item).items() if since is None or row.date >= since}
        item.rows = before | rows
        block = restated(*rows.values(), accounts=names, since=since, permille=0 if variant % 3 else 1000)
        self.log.restate(item.item_id, *block, *self._balances(item, variant), **self._status(variant))

    def _realtime(self, which: int, variant: int) -> None:
        item = self._item(which)
        block = balance(self._account(item, ACCOUNTS[variant % 2], variant), realtime=True)
        self.log.free(item.item_id, block, type=gate.BALANCE)

    def _quarantine(self, which: int, _: int) -> None:
        item = self._item(which)
        if any(span.redrive is None for span in self.folded().quarantined.get(item.item_id, ())):
            return
        item_quarantine = QuarantineSpan(len(self.log.records), None)
        self.quarantined.setdefault(item.item_id, []).append(item_quarantine)
        self._memory.quarantined.setdefault(item.item_id, []).append(item_quarantine)

    def _redrive(self, which: int, _: int) -> None:
        item = self._item(which)
        before = len(self.log.records)
        if any(
            span.redrive is None and span.first < before for span in self.folded().quarantined.get(item.item_id, ())
        ):
            self.log.redrive(item.item_id)

    def _edit(self, which: int, variant: int) -> None:
        """Edit a row that readers have or had."""
        rows = sorted(self.folded().rows.values(), key=lambda row: row.own_id)
        if rows:
            row = rows[which % len(rows)]
            self.log.edit(row.item_id, row.own_id, row.transaction_id, **self._fields(row.payload, variant))

    def _edit_stale(self, which: int, variant: int) -> None:
        """Edit a row under an earlier id, in an earlier Item, or one that never existed."""
        memory = self.folded()
        names = sorted((row.own_id, row.item_id, row.transaction_id) for row, *_ in memory.versions)
        names += sorted((link.own_id, link.item_id, link.transaction_id) for link in memory.links.values())
        own, item_id, name = names[which % len(names)] if names else (b"\1" * 16, self.items[0].item_id, "never")
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
        self.decide_review(which, events.REJECT_REVIEW if variant % 3 == 0 else events.APPROVE_REVIEW, variant)

    def _decide_removals(self, which: int, variant: int) -> None:
        waiting = [item for item in self.folded().items.values() if item.missing_changeset_id is not None]
        if waiting:
            item = waiting[which % len(waiting)]
            kind = events.APPROVE_REMOVALS if variant % 2 else events.REJECT_REMOVALS
            self.append_decision(item.item_id, Decision((item.missing_changeset_id or b"").hex(), kind))

    def _item(self, which: int) -> LinkedItem:
        return self.items[which % len(self.items)]

    def _purchase(self, which: int) -> Purchase | None:
        numbers = sorted(self._purchases)
        return self._purchases[numbers[which % len(numbers)]] if numbers else None

    @staticmethod
    def _rename_id(purchase: Purchase) -> None:
        purchase.ids += 1
        purchase.was_pending = None

    @staticmethod
    def _status(variant: int) -> dict[str, Any]:
        return {} if variant % 4 == 0 else {"history_status": COMPLETE}

    @staticmethod
    def _account_id(item: LinkedItem, name: str) -> str:
        return f"{item.item_id}-{name}-{item.generation}"

    def _account(self, item: LinkedItem, name: str, variant: int) -> Account:
        return account(self._account_id(item, name), str(1000 + variant), name=name, mask=f"00{len(name)}")

    def _balances(self, item: LinkedItem, variant: int) -> list[Event]:
        return balance(*(self._account(item, name, variant) for name in ACCOUNTS))

    def _present_rows(self, item: LinkedItem) -> dict[int, Transaction]:
        def transaction_id(number: int, ids: int) -> str:
            return f"{item.item_id}-{number}-{ids}-{item.generation}"

        rows = {}
        for number, purchase in self._purchases.items():
            was_pending = purchase.was_pending
            rows[number] = msgspec.structs.replace(
                purchase.payload,
                transaction_id=transaction_id(number, purchase.ids),
                account_id=self._account_id(item, purchase.account),
                pending_transaction_id=None if was_pending is None else transaction_id(number, was_pending),
            )
        return rows
