"""Properties of who a transaction is, over any story of a bank whose one account several Items tell of."""

from collections import Counter, defaultdict

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from projections.matching.transactions import candidate_ids
from projections.model.unit_of_work import Row
from sandbox.simulation.memory.projection_tables import MemoryProjections
from schemas.encoding import codec
from schemas.log.records import Transaction
from tests.support.projections_kin import TWINS, Bank, Step, stories
from tests.support.projections_log import owners
from tests.support.projections_memory import fold_batches
from tests.support.projections_relink import Login, shown


def folded(bank: Bank, cuts: list[int] | None = None) -> MemoryProjections:
    return fold_batches(bank.records, cuts or [])


def words_of(row: Row) -> Transaction:
    return codec.decode(Transaction, row.payload)


@given(stories, st.lists(st.integers(0, 100), max_size=6))
@settings(deadline=None)
def test_any_cut_into_batches_gives_the_same(steps: list[Step], cuts: list[int]) -> None:
    bank = Bank(steps)

    whole, one_by_one = folded(bank), folded(bank, list(range(len(bank.records))))

    assert folded(bank, cuts).full() == whole.full() == one_by_one.full()
    assert not whole.quarantined


REMOVED_BY_ANOTHER_ITEM: list[Step] = [
    ("buy", 0, 0),
    ("sync", 0, 0),
    ("churn", 0, 0),
    ("link", 0, 0),
    ("link", 0, 0),
    ("sync", 1, 0),
    ("rename", 0, 0),
    ("unlink", 2, 0),
    ("unlink", 0, 0),
]
"""A purchase goes to a second Item and a third; the third is unlinked; then the first removes it under its old id and
reports it under a new one."""


@given(stories)
@example(REMOVED_BY_ANOTHER_ITEM)
@settings(deadline=None)
def test_no_purchase_counts_twice_and_none_is_lost(steps: list[Step]) -> None:
    bank = Bank([step for step in steps if step[0] not in ("approve", "reject")])

    memory = folded(bank)

    def purchase(amount: str) -> int:
        return 0 if amount == TWINS else int(amount) // 100

    bought = Counter(purchase(row.amount) for row in bank.purchases.values())
    # What an Item that is unlinked had, and the bank took back since, nobody tells us of any more.
    forgotten = Counter(
        purchase(row.amount)
        for item in bank.items
        if item.is_unlinked
        for number, row in item.rows.items()
        if number not in bank.purchases
    )
    counted = Counter(purchase(words_of(row).amount) for row in shown(memory))
    held = Counter(purchase(words_of(row).amount) for row in memory.rows.values() if row.review is not None)
    for number in bought | counted:
        assert bought[number] <= counted[number] + held[number]
        assert counted[number] <= bought[number] + forgotten[number]


TWINS_WITH_A_NOTE: list[Step] = [
    *(("buy_twin", 0, 0), ("buy_twin", 0, 0), ("sync", 0, 0), ("edit", 0, 0)),
    *(("churn", 0, 0), ("churn", 1, 0), ("sync", 0, 0)),
]
"""The bank removes two equal purchases, one with a note, and reports both under new ids."""


@given(stories)
@example(TWINS_WITH_A_NOTE)
@settings(deadline=None)
def test_an_open_review_leaves_one_of_its_transactions_counted(steps: list[Step]) -> None:
    memory = folded(Bank(steps))

    for review in memory.reviews.values():
        if review.state == "open":
            candidates = [memory.rows[own] for own in candidate_ids(review)]
            row = memory.rows[review.own_id]
            assert row.is_shown != (row.review is not None)
            assert row.is_shown or any(candidate.is_shown for candidate in candidates)


@given(stories, st.lists(st.integers(0, 100), max_size=3))
@settings(deadline=None)
def test_the_ledger_has_what_is_shown_and_nothing_else(steps: list[Step], cuts: list[int]) -> None:
    memory = folded(Bank(steps), cuts)

    spent: dict[tuple[str, str], int] = defaultdict(int)
    for row in shown(memory):
        payload = words_of(row)
        spent[payload.account_id, "pending" if payload.pending else "posted"] += int(payload.amount) * 10**8
    banked: dict[tuple[object, str], int] = defaultdict(int)
    for (ledger_account, layer), (debits, credits_) in memory.balances.items():
        _, kind, reference = memory.meanings[ledger_account][:3]
        if kind == "bank":
            banked[reference, layer] += credits_ - debits
    assert {key: value for key, value in banked.items() if value} == {key: one for key, one in spent.items() if one}


@pytest.mark.parametrize("lasting_ids", [True, False], ids=["lasting account ids", "accounts by their looks"])
@pytest.mark.parametrize("seed", range(1, 6))
def test_a_login_that_is_linked_again_goes_on_without_one_shared_id(seed: int, lasting_ids: bool) -> None:
    login = Login(seed, transactions=660, lasting_ids=lasting_ids)
    login.add_twins(login.first, pairs=20)
    login.pull(login.first)
    memory = MemoryProjections(owners)
    memory.project(login.log.records)
    known = {row.own_id: row.transaction_id for row in shown(memory)}

    begin = len(login.log.records)
    again, was = login.relink(login.first, share_changed=0.3)
    login.link(again)
    login.pull(again)
    memory.project(login.log.records[begin:])

    old, new = login.first, again
    went_on = {row.own_id: row.transaction_id for row in shown(memory) if row.item_id == new.item_id}
    assert len(known) == len(was) == 700
    assert len(shown(memory)) == 700
    assert went_on.keys() <= known.keys()
    for own, name in went_on.items():
        alike = [old.live[known[own]], old.live[was[name]]]
        assert login.key(old, alike[0]) == login.key(old, alike[1])
    twins = Counter(login.key(old, row) for row in old.live.values())
    single = [name for name, before in was.items() if twins[login.key(old, old.live[before])] == 1]
    assert sum(name in set(went_on.values()) for name in single) >= 0.95 * len(single)
