"""Openings of an account that several Items tell of, over any story: money is there once."""

from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.simulation.memory.projection_tables import MemoryProjections
from schemas.ids import ledger_account_id
from tests.support.projections_complete import complete_story
from tests.support.projections_kin import Step, stories
from tests.support.projections_log import owners
from tests.support.projections_memory import fold_batches


def posted(memory: MemoryProjections, account_id: str) -> int:
    debits, credits_ = memory.balances.get((ledger_account_id(1, "bank", account_id, "USD"), "posted"), (0, 0))
    return debits - credits_


@given(stories, st.lists(st.integers(0, 100), max_size=6))
@settings(deadline=None)
def test_any_cut_into_batches_opens_and_passes_on_the_same(steps: list[Step], cuts: list[int]) -> None:
    records = complete_story(steps).records

    whole = fold_batches(records)

    assert whole.full() == fold_batches(records, None).full() == fold_batches(records, cuts).full()
    assert not whole.quarantined


@given(stories)
@settings(deadline=None)
def test_an_account_that_a_younger_one_went_on_from_keeps_no_money(steps: list[Step]) -> None:
    memory = MemoryProjections(owners)

    for record in complete_story(steps).records:
        memory.project([record])
        for account in memory.accounts.values():
            if account.opened is not None and account.continues is not None:
                older = account.continues[1]
                assert older == account.account_id or posted(memory, older) == 0
    assert sum(debits - credits_ for debits, credits_ in memory.balances.values()) == 0
