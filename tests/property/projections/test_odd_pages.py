"""Pages with values that no specification allows are repaired or refused: whatever is appended can be folded."""

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.plaid import models
from sandbox.simulation.memory.projection_tables import MemoryProjections
from schemas.errors import Quarantine
from streams.sync import changeset
from streams.sync.pages import merge_pages
from tests.support.examples import examples
from tests.support.projections_log import Log, owners

DIGITS = [
    *("89.4500000000003", "1e-9", "1e20", "1e-30", "9223372036854775807", "0.1234567890123456789"),
    *("-0.0", "1E+3", "123456789012.34567"),
]
TEXTS = st.sampled_from(
    ["", "a", "0", "usd", "2026-02-30", "2026-03-01T12:00:00Z", "9999-12-31", "Caf\0", "x" * 5_000, "y" * 200_000]
)
ODD = st.none() | st.booleans() | st.integers() | TEXTS | st.text() | st.lists(st.integers(), max_size=2)
ODD |= st.dictionaries(st.text(max_size=5), st.none() | st.text(max_size=5), max_size=2)


def objects(usual: dict[str, Any], fields: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with up to three odd fields; a missing one is odd too."""
    odd = st.dictionaries(st.sampled_from(sorted({*usual, *fields})), ODD | st.just(...), max_size=3)
    return odd.map(lambda drawn: {name: value for name, value in {**usual, **drawn}.items() if value is not ...})


TRANSACTIONS = objects(
    {"transaction_id": "t", "account_id": "a", "amount": 12.5, "date": "2026-03-01", "pending": False, "name": "Shop"},
    [*models.Transaction.__struct_fields__, "personal_finance_category", "location", "counterparties", "unknown"],
)
ACCOUNTS = objects(
    {"account_id": "a", "type": "depository", "balances": {"current": 1.5, "iso_currency_code": "USD"}},
    ["name", "mask", "subtype", "official_name", "persistent_account_id", "unknown"],
)
LISTS = st.none() | st.lists(TRANSACTIONS, max_size=3)


@given(LISTS, LISTS, st.none() | st.lists(ACCOUNTS, max_size=2), st.sampled_from(DIGITS), st.booleans())
@settings(deadline=None, max_examples=examples(200))
def test_what_is_appended_folds(added: Any, modified: Any, accounts: Any, digits: str, is_odd_text: bool) -> None:
    removed = None if added is None else [{"transaction_id": "other"}]
    page = {"added": added, "modified": modified, "removed": removed, "accounts": accounts}
    body = msgspec.json.encode(page | {"next_cursor": "c", "has_more": False}).replace(b"12.5", digits.encode())
    if is_odd_text:
        body = body.replace(b"Shop", rb"Caf\ud83d\u0000").replace(b"depository", b"\xff")
    try:
        pages = [models.sync_page(body)]
    except Quarantine:
        return
    update = merge_pages(pages, fresh=False)
    log, memory = Log(), MemoryProjections(owners)
    log.link("item")
    log.sync("item", *changeset.encode_transactions(update.changes), *changeset.encode_balances(update.accounts))

    memory.project(log.records)

    assert not memory.quarantined
    removals = sum(change.type == "transaction.removed" for change in update.changes)
    assert len(memory.rows) == len(update.changes) - removals
