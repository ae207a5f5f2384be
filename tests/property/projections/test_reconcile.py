"""Causes are named right, and a clean bank is never accused, on the tables of the real fold."""

import random
from collections.abc import Callable
from decimal import Decimal

import msgspec
import pytest

from projections.reconcile.tie_out import (
    CURRENCY,
    DUPLICATE_ITEM,
    GAP,
    HISTORY_INCOMPLETE,
    MISSING_ROWS,
    PENDING,
    SIGN,
    STALE_BALANCE,
    TIED_OUT,
    UNKNOWN,
)
from sandbox.simulation.memory.projection_tables import MemoryProjections
from schemas import events
from schemas.encoding import catalogue, codec
from schemas.log.records import History
from tests.support.projections_log import added, balance, owners
from tests.support.reconciliation_bank import Story, checked

INJECTED = 50
STORIES, UPDATES = 1_000, 10
RIGHT_AT_LEAST = 0.95


def test_no_alarm_in_ten_thousand_updates_of_a_clean_bank() -> None:
    found: dict[str, int] = {}
    for seed in range(STORIES):
        story, memory, tied_at = Story(seed), MemoryProjections(owners), None
        memory.project(story.log.records)
        for _ in range(UPDATES):
            memory.project([story.step()])
            verdict = checked(memory, "item", tied_at=tied_at)
            tied_at = memory.positions[0]
            found[verdict.state] = found.get(verdict.state, 0) + 1

    assert found == {TIED_OUT: STORIES * UPDATES}


def _drift(rng: random.Random) -> Decimal:
    return Decimal(rng.randrange(100, 50_000)) / 100 * rng.choice((1, -1))


def pending_all(story: Story, memory: MemoryProjections) -> None:
    """The balance holds all pending rows already."""
    rows = story.pending_of(story.rng.randrange(1, 4))
    held = sum(Decimal(one.amount) for one in story.live.values() if one.pending)
    current = story.current + held if story.is_owed else story.current - held
    memory.project([story.tell(added(*rows), current=current)])


def pending_some(story: Story, memory: MemoryProjections) -> None:
    """The balance holds some of the pending rows, or not yet all of the new ones."""
    rows = [story.new(pending=number < 2) for number in range(5)]
    some = story.rng.sample(rows, story.rng.randrange(1, 3))
    late = sum(Decimal(one.amount) * (1 if one.pending else -1) for one in some)
    current = story.current + late if story.is_owed else story.current - late
    memory.project([story.tell(added(*rows), current=current)])


def stale(story: Story, memory: MemoryProjections) -> None:
    """Rows come, and the balance stays that of before."""
    before = story.current
    for _ in range(story.rng.randrange(1, 3)):
        memory.project([story.tell(story.changes(), current=before)])
    while story.current == before:
        memory.project([story.tell(added(story.new()), current=before)])


def incomplete_status(story: Story, memory: MemoryProjections) -> None:
    """Plaid says that it has not read all of the history."""
    story.drift = _drift(story.rng)
    memory.project([story.tell(story.changes(), history_status="INITIAL_UPDATE_COMPLETE")])


def incomplete_removals(story: Story, memory: MemoryProjections) -> None:
    """Removals of a history that was read again wait for a person; the bank has them not any more."""
    rows = [story.new() for _ in range(16)]
    memory.project([story.tell(added(*rows))])
    for one in rows[:12]:
        del story.live[one.transaction_id]
    covered = (
        events.HISTORY_RESTATED,
        catalogue.HISTORY,
        codec.encode(History([story.account_id], None, None, True, 0)),
    )
    told = [covered, *added(*story.live.values()), *balance(story.reported(story.current))]
    memory.project([story.log.restate("item", *told, history_status="HISTORICAL_UPDATE_COMPLETE")])


def sign_of_balance(story: Story, memory: MemoryProjections) -> None:
    """The bank reports what is owed as negative, or what is held as owed."""
    memory.project([story.tell(story.changes(), current=-story.current)])


def sign_of_row(story: Story, memory: MemoryProjections) -> None:
    """A row is told the other way round than the balance counts it."""
    rows = [story.new() for _ in range(3)]
    wrong = story.rng.choice(rows)
    told = [msgspec.structs.replace(one, amount=str(-Decimal(one.amount))) if one is wrong else one for one in rows]
    memory.project([story.tell(added(*told))])


def other_currency_of_balance(story: Story, memory: MemoryProjections) -> None:
    """The balance is told in another currency."""
    said = story.reported(story.current * 7, iso_currency_code="CHF")
    memory.project([story.log.sync("item", *added(story.new()), *balance(said), history_status="X")])


def other_currency_of_row(story: Story, memory: MemoryProjections) -> None:
    """A row is told in the currency of the purchase, the balance counts it in the account's."""
    foreign = story.new(iso_currency_code="CHF")
    rows = [story.new() for _ in range(story.rng.randrange(3))]
    paid = (Decimal(foreign.amount) * Decimal("1.0837")).quantize(Decimal("0.01"))
    current = story.current + paid if story.is_owed else story.current - paid
    memory.project([story.tell(added(foreign, *rows), current=current)])


def duplicate(story: Story, memory: MemoryProjections) -> None:
    """The same bank was linked twice, and what the other Item tells is counted here too."""
    other = Story(story.rng.randrange(10**6), item_id="other", log=story.log, twin_of=story)
    other.tell(added(*[other.new() for _ in range(2)]))
    rows = [story.new() for _ in range(story.rng.randrange(1, 4))]
    twice = [msgspec.structs.replace(one, transaction_id=f"{one.transaction_id}-again") for one in rows]
    theirs = [
        msgspec.structs.replace(one, transaction_id=f"{one.transaction_id}-o", account_id=other.account_id)
        for one in rows
    ]
    other.live |= {one.transaction_id: one for one in theirs}
    other.tell(added(*theirs))
    story.tell(added(*rows, *twice))
    memory.project(story.log.records)


def missing(story: Story, memory: MemoryProjections) -> None:
    """Money moves without a row."""
    story.drift = _drift(story.rng)
    memory.project([story.tell(story.changes())])


def unknown(story: Story, memory: MemoryProjections) -> None:
    """The ledger has what none of its rows says."""
    [place] = [
        key
        for key in memory.balances
        if key[1] == "posted" and memory.meanings[key[0]][1:3] == ("bank", story.account_id)
    ]
    debits, credits_ = memory.balances[place]
    memory.balances[place] = (debits + story.rng.randrange(1, 10**9), credits_)


@pytest.mark.parametrize(
    ("inject", "cause"),
    [
        (pending_all, PENDING),
        (pending_some, PENDING),
        (stale, STALE_BALANCE),
        (incomplete_status, HISTORY_INCOMPLETE),
        (incomplete_removals, HISTORY_INCOMPLETE),
        (sign_of_balance, SIGN),
        (sign_of_row, SIGN),
        (other_currency_of_balance, CURRENCY),
        (other_currency_of_row, CURRENCY),
        (duplicate, DUPLICATE_ITEM),
        (missing, MISSING_ROWS),
        (unknown, UNKNOWN),
    ],
)
def test_each_cause_of_a_gap_is_named(inject: Callable[[Story, MemoryProjections], None], cause: str) -> None:
    named: list[str | None] = []
    for seed in range(INJECTED):
        story, memory = Story(seed), MemoryProjections(owners)
        memory.project(story.log.records)
        tied_at = None
        for _ in range(story.rng.randrange(6)):
            memory.project([story.step()])
            assert checked(memory, "item").state == TIED_OUT
            tied_at = memory.positions[0]
        inject(story, memory)
        verdict = checked(memory, "item", tied_at=tied_at)
        assert verdict.state == GAP
        named.append(verdict.why)

    assert named.count(cause) >= RIGHT_AT_LEAST * INJECTED, {why: named.count(why) for why in set(named)}
