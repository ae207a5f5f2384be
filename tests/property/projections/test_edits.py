"""Properties of what users say over any history of a bank, on the pure core."""

import io
import json
from collections import defaultdict
from typing import Any

import fastavro
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from projections.ledger import user_field_values
from sandbox.simulation.memory.projection_tables import MemoryProjections
from schemas import events, money
from schemas.encoding import catalogue, codec
from schemas.log.records import Transaction
from tests.support.examples import examples
from tests.support.projections_life import Life, lives, user_fields_of
from tests.support.projections_memory import fold_batches

USER_FIELDS = "user_fields."


@given(lives)
@settings(deadline=None, max_examples=examples(400))
def test_what_a_user_says_comes_to_the_same_whenever_it_is_said(life: Life) -> None:
    one, other = (fold_batches(log, None) for log in life.logs)
    # Whether equal rows pair off depends by rule on whether a user has spoken of them yet.
    assume(not any((one.links, one.reviews, other.links, other.reviews)))

    assert user_fields_of(one) == user_fields_of(other)
    assert {key: row.waiting_edits.keys() for key, row in one.items.items()} == {
        key: row.waiting_edits.keys() for key, row in other.items.items()
    }
    assert _by_meaning(one) == _by_meaning(other)
    bank = fold_batches(life.bank.log.records, None)
    assert {own: row.payload for own, row in one.rows.items()} == {own: row.payload for own, row in bank.rows.items()}


@given(lives, st.lists(st.integers(0, 100), max_size=8))
@settings(deadline=None)
def test_any_cut_into_batches_gives_every_user_value_back_byte_for_byte(life: Life, cuts: list[int]) -> None:
    assert (
        fold_batches(life.logs[0], cuts).full()
        == fold_batches(life.logs[0], None).full()
        == fold_batches(life.logs[0], []).full()
    )


@given(lives)
@settings(deadline=None)
def test_the_ledger_says_what_the_bank_and_the_user_say_together(life: Life) -> None:
    memory = fold_batches(life.logs[0], None)

    expected: dict[tuple[object, ...], int] = defaultdict(int)
    for row in memory.rows.values():
        if row.is_shown:
            bank = codec.decode(Transaction, row.payload)
            said = user_field_values.values(row.user_fields)
            layer = "pending" if bank.pending else "posted"
            whole = user_field_values.category(said)
            one = (bank.category_primary if whole is None else whole) or "UNCATEGORISED"
            parts = [
                (split.category, split.amount) for split in user_field_values.splits(said, bank.amount, "USD") or ()
            ]
            for category, amount in parts or [(one, money.parse_decimal(bank.amount))]:
                ledger = money.ledger_amount(amount, "USD")
                expected["category", category, layer] += ledger
                expected["bank", bank.account_id, layer] -= ledger
    found = _by_meaning(memory)
    assert {key: value for key, value in found.items() if key[0] != "equity"} == {
        key: value for key, value in expected.items() if value
    }


@given(lives, st.lists(st.integers(0, 100), max_size=3))
@settings(deadline=None)
def test_a_reader_of_the_events_alone_has_what_the_user_says_and_is_told_exactly_what_changed(
    life: Life, cuts: list[int]
) -> None:
    memory = fold_batches(life.logs[0], cuts)

    seen: dict[str, dict[str, Any]] = defaultdict(dict)
    for one in memory.folded:
        for event in one.net_events:
            if event.schema != catalogue.TRANSACTION_EVENT:
                continue
            told: Any = fastavro.schemaless_reader(
                io.BytesIO(event.data), catalogue.parsed_schema(catalogue.TRANSACTION_EVENT), None
            )
            now = json.loads(told["user_fields_json"] or "{}")
            named = {name.removeprefix(USER_FIELDS) for name in told["changed"] if name.startswith(USER_FIELDS)}
            if event.type == events.TRANSACTION_MODIFIED:
                before = seen[told["id"]]
                assert json.loads(told["previous_user_fields_json"] or "{}") == before
                assert named == {name for name in now.keys() | before.keys() if now.get(name) != before.get(name)}
            else:
                assert (named, told["previous_user_fields_json"]) == (set(), None)
            seen[told["id"]] = now
    for row in memory.rows.values():
        if row.is_shown:
            assert seen[row.own_id.hex()] == user_field_values.values(row.user_fields)


def _by_meaning(memory: MemoryProjections) -> dict[tuple[object, ...], int]:
    """Debits less credits of each ledger account and layer, where they are not zero."""
    found: dict[tuple[object, ...], int] = defaultdict(int)
    for (ledger_account, layer), (debits, credits_) in memory.balances.items():
        kind, reference = memory.meanings[ledger_account][1:3]
        found[kind, reference, layer] += debits - credits_
    return {key: value for key, value in found.items() if value}
