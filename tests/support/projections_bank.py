"""Random histories of a bank for the projections' tests, with the bank's data at their end."""

from dataclasses import dataclass, field

import msgspec
from hypothesis import strategies as st

from schemas.log.records import Account, Transaction
from tests.support.projections_log import Event, Log, account, added, balance, modified, removed, restated, transaction

AMOUNTS = ("0", "12.5", "-40", "0.0000001", "48", "123456789.12")
CATEGORIES = ("FOOD_AND_DRINK", "TRAVEL", None)
ITEMS = 2

Step = tuple[int, list[tuple[str, int, int]]]
"""An Item's number, and acts: the name, which transaction, which variant."""

ACTS = (
    "add",
    "drop",
    "modify",
    "repeat",
    "reorder",
    "recategorise",
    "redate",
    "come_back",
    "unknown_removed",
    "unknown_modified",
    "balance",
    "same_balance",
    "post_unlinked",
    "post_late",
    "lose_cursor",
    *("add_pending", "post", "post_first", "modify", "back_to_pending") * 3,
)
"""Acts of a bank. Those from pending to posted and back are frequent, because most rules are about them. A step with a
lost cursor is a full resync instead of its changes."""

histories = st.lists(
    st.tuples(
        st.integers(0, ITEMS - 1),
        st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=5),
    ),
    min_size=1,
    max_size=12,
)


@dataclass
class ItemTruth:
    """The bank's data of an Item, whose accounts differ from those of other Items."""

    mask: str = "0000"
    live: dict[str, Transaction] = field(default_factory=dict)
    gone: dict[str, Transaction] = field(default_factory=dict)
    superseded: list[str] = field(default_factory=list)
    accounts: dict[str, Account] = field(default_factory=dict)


class BankHistory:
    """Act out steps: `log` has their records, `truth` the bank's data at the end."""

    def __init__(self, steps: list[Step], log: Log | None = None) -> None:
        self.log = Log() if log is None else log
        self.truth = {f"item{number}": ItemTruth(f"000{number}") for number in range(ITEMS)}
        self._count = 0
        for item_id in self.truth:
            self.log.link(item_id)  # all of one user: the Items of a user share ledger categories
        for number, acts in steps:
            item_id = f"item{number}"
            truth, block = self.truth[item_id], dict[str, list[Event]]()
            for act, which, variant in acts:
                block.update(self._act(truth, act, which, variant, set(block)))
            if any(act == "lose_cursor" for act, *_ in acts):
                whole = [*restated(*truth.live.values()), *balance(*truth.accounts.values())]
                self.log.restate(item_id, *whole)
            else:
                self.log.sync(item_id, *(event for events in block.values() for event in events))

    def _new(self, variant: int, **fields: object) -> Transaction:
        self._count += 1
        return transaction(
            f"T{self._count}",
            AMOUNTS[variant],
            account_id=("checking", "card")[self._count % 2],
            location_json='{"city":"A","n":1}',
            **fields,
        )

    def _act(
        self, item: ItemTruth, act: str, which: int, variant: int, changed: set[str]
    ) -> list[tuple[str, list[Event]]]:
        """Return the events of an act by transaction, each of which changes at most once in an update."""
        live = [name for name in item.live if name not in changed]
        pending = [name for name in live if item.live[name].pending]
        gone = [name for name in item.gone if name not in changed]
        if act in ("add", "add_pending"):
            new = self._new(variant, pending=act == "add_pending")
            item.live[new.transaction_id] = new
            return [(new.transaction_id, added(new))]
        if act == "balance":
            new_account = account("checking", AMOUNTS[variant], mask=item.mask)
            item.accounts["checking"] = new_account
            return [("balance", balance(new_account))]
        if act == "same_balance" and item.accounts and "balance" not in changed:
            return [("balance", balance(*item.accounts.values()))]
        if act == "unknown_removed":
            return [(f"never{which}", removed(f"never{which}"))]
        if act == "unknown_modified":
            new = self._new(variant)
            item.live[new.transaction_id] = new
            return [(new.transaction_id, modified(new))]
        if act in ("post", "post_first", "post_unlinked") and pending:
            return self._post(item, pending[which % len(pending)], act, variant)
        if act == "post_late" and gone:
            # The pending one was removed in an earlier update; its posted one names it now.
            name = gone[which % len(gone)]
            if item.gone[name].pending:
                del item.gone[name]
                item.superseded.append(name)
                new = self._new(variant, pending_transaction_id=name)
                item.live[new.transaction_id] = new
                return [(name, []), (new.transaction_id, added(new))]
            return []
        if act == "come_back" and gone:
            name = gone[which % len(gone)]
            item.live[name] = item.gone.pop(name)
            return [(name, added(item.live[name]))]
        if act == "back_to_pending" and item.superseded:
            name = item.superseded[which % len(item.superseded)]
            if name in changed or name in item.live:
                return []
            new = transaction(name, AMOUNTS[variant], pending=True)
            item.live[name] = new
            item.superseded.remove(name)
            return [(name, added(new))]
        if not live:
            return []
        return self._change(item, live[which % len(live)], act, variant)

    def _post(self, item: ItemTruth, name: str, act: str, variant: int) -> list[tuple[str, list[Event]]]:
        del item.live[name]
        item.superseded.append(name)
        new = self._new(variant, pending_transaction_id=None if act == "post_unlinked" else name)
        item.live[new.transaction_id] = new
        if act == "post_unlinked":
            item.superseded.remove(name)
            item.gone[name] = msgspec.structs.replace(new, transaction_id=name, pending=False)
        both = [(name, removed(name)), (new.transaction_id, added(new))]
        return both[::-1] if act == "post_first" else both

    def _change(self, item: ItemTruth, name: str, act: str, variant: int) -> list[tuple[str, list[Event]]]:
        old = item.live[name]
        if act == "drop":
            item.gone[name] = item.live.pop(name)
            return [(name, removed(name))]
        if act == "reorder":
            return [(name, modified(msgspec.structs.replace(old, location_json='{ "n": 1, "city": "A" }')))]
        changes: dict[str, object] = {
            "modify": {"amount": AMOUNTS[variant]},
            "recategorise": {"category_primary": CATEGORIES[variant % 3]},
            "redate": {"date": f"2026-04-0{variant + 1}"},
        }.get(act, {})
        item.live[name] = msgspec.structs.replace(old, **changes)  # type: ignore[arg-type]
        return [(name, modified(item.live[name]))]
