"""The ledger over any history: in balance after every changeset, and what the bank says."""

from collections import defaultdict
from decimal import Decimal
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from projections.model.book import PENDING, POSTED
from sandbox.simulation.memory.projection_tables import MemoryProjections
from schemas import money
from schemas.encoding import codec
from schemas.log.records import Transaction
from tests.support.examples import examples
from tests.support.projections_log import Event, Log, account, added, balance, modified, owners, removed, transaction

ACTS = ("add", "hold", "tip", "drop", "amount", "currency", "category", "date", "account", "balance")
CURRENCIES = ("USD", "JPY", "ETH")

STEPS = st.lists(
    st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 5), st.integers(-9999, 9999)), min_size=1, max_size=5),
    min_size=1,
    max_size=10,
)


class Bank:
    """What the bank has, and the log of what it said of it."""

    def __init__(self) -> None:
        self.live: dict[str, Transaction] = {}
        self.log = Log()
        self.log.link("item")
        self._made = 0

    def step(self, acts: list[tuple[str, int, int]], *, complete: bool) -> None:
        """One update: each transaction is named at most once."""
        said: dict[str, list[Event]] = {}
        for act, which, cents in acts:
            free = [name for name in self.live if name not in said]
            if act == "balance":
                said[f"balance of {which % 2}"] = balance(
                    account(("checking", "card")[which % 2], f"{cents}.07", type=("depository", "credit")[which % 2])
                )
            elif act in ("add", "hold") or not free:
                self._add(said, which, cents, pending=act == "hold")
            else:
                self._change(said, free[which % len(free)], act, which, cents)
        events = [event for one in said.values() for event in one]
        self.log.sync("item", *events, history_status="HISTORICAL_UPDATE_COMPLETE" if complete else None)

    def _add(self, said: dict[str, list[Event]], which: int, cents: int, *, pending: bool) -> None:
        self._made += 1
        made = self._words(f"t{self._made}", f"{cents}.01", which, pending=pending)
        self.live[made.transaction_id] = made
        said[made.transaction_id] = added(made)

    def _words(self, name: str, amount: str, which: int, **fields: Any) -> Transaction:
        currency = CURRENCIES[which % 3]
        official = {"iso_currency_code": currency, "unofficial_currency_code": None}
        other = {"iso_currency_code": None, "unofficial_currency_code": currency}
        return transaction(
            name,
            amount,
            account_id=("checking", "card")[which % 2],
            **{**(official if money.is_iso(currency) else other), **fields},
        )

    def _change(self, said: dict[str, list[Event]], name: str, act: str, which: int, cents: int) -> None:
        old = self.live[name]
        if act == "drop":
            del self.live[name]
            said[name] = removed(name)
        elif act == "tip" and old.pending:
            self._made += 1
            posted = Decimal(old.amount) + abs(cents)
            new = self._words(f"t{self._made}", str(posted), which, pending_transaction_id=name)
            del self.live[name]
            self.live[new.transaction_id] = new
            said[name] = [*removed(name), *added(new)]
            said[new.transaction_id] = []
        else:
            fields = {
                "category_primary": ("TRAVEL", None)[which % 2] if act == "category" else old.category_primary,
                "date": f"2026-04-0{1 + which}" if act == "date" else old.date,
                "pending": old.pending,
            }
            amount = f"{cents}.0000001" if act == "amount" else old.amount
            place = which if act in ("currency", "account") else CURRENCIES.index(old.currency)
            self.live[name] = self._words(name, amount, place, **fields)
            said[name] = modified(self.live[name])


@given(STEPS, st.integers(0, 10))
@settings(deadline=None, max_examples=examples(400))
def test_after_every_changeset_the_ledger_sums_to_zero_and_says_what_the_bank_says(steps: Any, complete: int) -> None:
    bank, memory = Bank(), MemoryProjections(owners)

    for number, acts in enumerate(steps):
        bank.step(acts, complete=number >= complete)
        memory.project(bank.log.records)

        sums_to_zero(memory)
        assert memory.balances == summed(memory)
        assert spent(memory) == told(bank)


def sums_to_zero(memory: MemoryProjections) -> None:
    by_currency: dict[object, int] = defaultdict(int)
    for (ledger_account, _), (debits, credits_) in memory.balances.items():
        by_currency[memory.meanings[ledger_account][3]] += debits - credits_
    assert not any(by_currency.values())


def summed(memory: MemoryProjections) -> dict[tuple[bytes, str], tuple[int, int]]:
    """The balances that the transfers add up to."""
    sums: dict[tuple[bytes, str], list[int]] = defaultdict(lambda: [0, 0])
    for one in memory.transfers:
        sums[one.debit, one.layer][0] += one.amount
        sums[one.credit, one.layer][1] += one.amount
    return {key: (debits, credits_) for key, (debits, credits_) in sums.items() if debits or credits_}


Spent = dict[tuple[object, object, str], int]


def spent(memory: MemoryProjections) -> Spent:
    """What the ledger's categories hold, by category, currency and layer: openings have none."""
    found = {
        (*memory.meanings[ledger_account][2:4], layer): debits - credits_
        for (ledger_account, layer), (debits, credits_) in memory.balances.items()
        if memory.meanings[ledger_account][1] == "category"
    }
    return {key: value for key, value in found.items() if value}


def told(bank: Bank) -> Spent:
    sums: Spent = defaultdict(int)
    for one in bank.live.values():
        layer = PENDING if one.pending else POSTED
        exact = money.ledger_amount(money.parse_decimal(money.decimal_text(Decimal(one.amount))), one.currency)
        sums[one.category_primary or "UNCATEGORISED", one.currency, layer] += exact
    return {key: value for key, value in sums.items() if value}


def test_a_tip_is_three_transfers_and_48_dollars() -> None:
    log, memory = Log(), MemoryProjections(owners)
    log.link("item")
    log.sync("item", *added(transaction("pending", "40", pending=True)))
    log.sync("item", *removed("pending"), *added(transaction("posted", "48", pending_transaction_id="pending")))

    memory.project(log.records)

    cents = 10**money.ISO_LEDGER_SCALE
    assert [(one.number, one.layer, one.amount, one.reverses) for one in memory.transfers] == [
        (1, PENDING, 40 * cents, None),
        (2, PENDING, 40 * cents, 1),
        (3, POSTED, 48 * cents, None),
    ]
    assert spent(memory) == {("FOOD_AND_DRINK", "USD", POSTED): 48 * cents}
    [row] = memory.rows.values()
    assert codec.decode(Transaction, row.payload).amount == "48"
