"""The fold of pages: any way of cutting and telling one update gives one outcome."""

from hypothesis import given
from hypothesis import strategies as st

from runtime.plaid.models import SyncPage
from schemas.events import TRANSACTION_ADDED, TRANSACTION_MODIFIED, TRANSACTION_REMOVED
from schemas.log.records import Removal, Transaction
from streams.sync.pages import Update, merge_pages

IDS = st.sampled_from([f"t{number}" for number in range(6)])
WORDS = st.tuples(st.sampled_from([TRANSACTION_ADDED, TRANSACTION_MODIFIED, TRANSACTION_REMOVED]), IDS)
"""One word of Plaid's about one transaction; its amount is the word's number, so the last one can be told."""


def transaction(name: str, amount: int) -> Transaction:
    return Transaction(name, "a", str(amount), "USD", None, False, None, "2026-01-01")


def page(updates: list[tuple[int, tuple[str, str]]]) -> SyncPage:
    """A page of numbered words."""
    transactions = {TRANSACTION_ADDED: [], TRANSACTION_MODIFIED: []}  # type: dict[str, list[Transaction]]
    removed = []
    for number, (kind, name) in updates:
        if kind == TRANSACTION_REMOVED:
            removed.append(Removal(name, "a"))
        else:
            transactions[kind].append(transaction(name, number))
    return SyncPage(
        transactions[TRANSACTION_ADDED],
        transactions[TRANSACTION_MODIFIED],
        removed,
        [],
        f"c{len(updates)}",
        True,
        None,
        "r",
    )


def singly(updates: list[tuple[str, str]]) -> list[SyncPage]:
    """Each word on a page of its own: the order of the words is the order of the pages."""
    return [page([entry]) for entry in enumerate(updates)]


def applied(update: Update, before: dict[str, str]) -> dict[str, str]:
    """What a reader holds that upserts and deletes: id to amount."""
    rows = dict(before)
    for change in update.changes:
        if isinstance(change.record, Removal):
            rows.pop(change.record.transaction_id, None)
        else:
            rows[change.record.transaction_id] = change.record.amount
    return rows


def naive(updates: list[tuple[str, str]], before: dict[str, str]) -> dict[str, str]:
    """The same, word by word."""
    rows = dict(before)
    for number, (kind, name) in enumerate(updates):
        if kind == TRANSACTION_REMOVED:
            rows.pop(name, None)
        else:
            rows[name] = str(number)
    return rows


@given(st.lists(WORDS, min_size=1, max_size=30), st.sets(IDS))
def test_a_reader_of_the_fold_ends_where_a_reader_of_every_word_does(
    updates: list[tuple[str, str]], known: set[str]
) -> None:
    before = dict.fromkeys(known, "before")

    update = merge_pages(singly(updates), fresh=False)

    assert applied(update, before) == naive(updates, before)


@given(st.lists(WORDS, min_size=1, max_size=30))
def test_a_fresh_update_ends_the_same_for_a_reader_that_knows_nothing(updates: list[tuple[str, str]]) -> None:
    assert applied(merge_pages(singly(updates), fresh=True), {}) == naive(updates, {})


@given(st.lists(WORDS, min_size=1, max_size=30), st.booleans())
def test_each_id_has_one_outcome_and_the_same_pages_the_same_update(
    updates: list[tuple[str, str]], fresh: bool
) -> None:
    update = merge_pages(singly(updates), fresh=fresh)

    names = [change.record.transaction_id for change in update.changes]
    assert len(names) == len(set(names))
    assert set(names) <= {name for _, name in updates}
    assert merge_pages(singly(updates), fresh=fresh) == update


@given(st.lists(IDS, unique=True, min_size=1), st.data())
def test_where_pages_are_cut_does_not_matter(names: list[str], data: st.DataObject) -> None:
    kinds = [data.draw(st.sampled_from([TRANSACTION_ADDED, TRANSACTION_MODIFIED, TRANSACTION_REMOVED])) for _ in names]
    updates = list(enumerate(zip(kinds, names, strict=True)))
    cut = data.draw(st.integers(0, len(updates)))

    whole = merge_pages([page(updates)], fresh=False)
    parts = merge_pages([page(updates[:cut]), page(updates[cut:])], fresh=False)

    assert sorted(map(repr, whole.changes)) == sorted(map(repr, parts.changes))


@given(st.lists(WORDS, min_size=1, max_size=20), st.lists(WORDS, max_size=20))
def test_what_was_known_before_never_outlives_its_removal(
    updates: list[tuple[str, str]], more: list[tuple[str, str]]
) -> None:
    all_changes = updates + more
    update = merge_pages(singly(all_changes), fresh=False)

    last = {name: kind for kind, name in all_changes}
    outcomes = {change.record.transaction_id: change.type for change in update.changes}
    assert {name for name, kind in outcomes.items() if kind == TRANSACTION_REMOVED} == {
        name for name, kind in last.items() if kind == TRANSACTION_REMOVED
    }
