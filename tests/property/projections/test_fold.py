"""Properties of the fold over any history of a bank, on the pure core."""

from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from projections.events import public_events
from sandbox.simulation.memory.projection_tables import MemoryProjections
from schemas import events
from schemas.encoding import catalogue, codec
from schemas.log.records import Transaction
from tests.support.projections_bank import BankHistory, Step, histories
from tests.support.projections_memory import fold_batches


def folded(history: BankHistory, cuts: list[int] | None = None) -> MemoryProjections:
    return fold_batches(history.log.records, cuts or [])


def words_of(row_words: bytes) -> Transaction:
    return codec.decode(Transaction, row_words)


@given(histories)
@settings(deadline=None)
def test_the_rows_are_the_banks_own_truth(steps: list[Step]) -> None:
    history = BankHistory(steps)

    memory = folded(history)

    found = {
        (row.item_id, row.transaction_id): words_of(row.payload)
        for row in memory.rows.values()
        if row.removed_at is None
    }
    told = {(item, name): one for item, truth in history.truth.items() for name, one in truth.live.items()}
    assert found.keys() == told.keys()
    for key, payload in found.items():
        assert (payload.amount, payload.date, payload.pending, payload.category_primary) == (
            told[key].amount,
            told[key].date,
            told[key].pending,
            told[key].category_primary,
        )
    assert {key: row.version for key, row in memory.accounts.items()}.keys() == {
        (item, name) for item, truth in history.truth.items() for name in truth.accounts
    }


@given(histories, st.lists(st.integers(0, 100), max_size=8))
@settings(deadline=None)
def test_any_cut_into_batches_gives_the_same(steps: list[Step], cuts: list[int]) -> None:
    history = BankHistory(steps)

    whole, one_by_one = folded(history), folded(history, list(range(len(history.log.records))))

    assert folded(history, cuts).full() == whole.full() == one_by_one.full()


@given(histories, st.lists(st.integers(0, 100), max_size=3))
@settings(deadline=None)
def test_the_ledger_balances_and_says_what_the_rows_say(steps: list[Step], cuts: list[int]) -> None:
    memory = folded(BankHistory(steps), cuts)

    sums: dict[tuple[bytes, str], list[int]] = defaultdict(lambda: [0, 0])
    for transfer in memory.transfers:
        assert transfer.amount >= 0
        sums[transfer.debit, transfer.layer][0] += transfer.amount
        sums[transfer.credit, transfer.layer][1] += transfer.amount
    assert {key: tuple(value) for key, value in sums.items() if any(value)} == memory.balances
    by_currency: dict[object, int] = defaultdict(int)
    for (ledger_account, _), (debits, credits_) in memory.balances.items():
        by_currency[memory.meanings[ledger_account][3]] += debits - credits_
    assert set(by_currency.values()) <= {0}
    spent: dict[tuple[object, object, str], int] = defaultdict(int)
    for row in memory.rows.values():
        if row.is_shown:
            payload = words_of(row.payload)
            layer = "pending" if payload.pending else "posted"
            whole, _, fraction = payload.amount.partition(".")
            spent[row.user, payload.account_id, layer] += int(whole + fraction.ljust(8, "0"))
    banked: dict[tuple[object, object, str], int] = defaultdict(int)
    for (ledger_account, layer), (debits, credits_) in memory.balances.items():
        user, kind, reference = memory.meanings[ledger_account][:3]
        if kind == "bank":
            banked[user, reference, layer] += credits_ - debits
    assert {key: value for key, value in banked.items() if value} == {
        key: value for key, value in spent.items() if value
    }


@given(histories, st.lists(st.integers(0, 100), max_size=3))
@settings(deadline=None)
def test_a_reader_of_the_events_alone_ends_with_the_same_rows(steps: list[Step], cuts: list[int]) -> None:
    memory = folded(BankHistory(steps), cuts)

    seen: dict[str, tuple[int, str]] = {}
    versions: dict[str, int] = defaultdict(int)
    ids: set[str] = set()
    for one in memory.folded:
        for event in public_events.decode_block(one.block):
            ids.add(f"{one.context.changeset_id.hex()}{event.type}{event.entity.hex()}")
            if event.schema != catalogue.TRANSACTION_EVENT:
                continue
            said = public_events.read_transaction(event.data)
            versions[said.id] += 1
            assert said.version == versions[said.id]
            match event.type:
                case events.TRANSACTION_ADDED:
                    assert said.id not in seen
                case events.TRANSACTION_MODIFIED:
                    assert said.id in seen
                    assert said.changed
            seen[said.id] = (said.version, said.transaction.transaction_id)
            if event.type == events.TRANSACTION_REMOVED:
                del seen[said.id]
    assert seen == {row.own_id.hex(): (row.version, row.transaction_id) for row in memory.rows.values() if row.is_shown}
    assert len(ids) == sum(len(one.net_events) for one in memory.folded)


@given(histories)
@settings(deadline=None)
def test_a_log_that_repeats_records_gives_the_same_rows(steps: list[Step]) -> None:
    history = BankHistory(steps)
    once = folded(history)

    for record in list(history.log.records):
        history.log.put(record.value, 1)
    twice = folded(history)

    assert twice.full()["rows"] == once.full()["rows"]
    assert twice.full()["events"] == once.full()["events"]
