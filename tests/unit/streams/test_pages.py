"""The fold of pages, case by case."""

from runtime.plaid.models import SyncPage
from schemas.events import TRANSACTION_ADDED, TRANSACTION_MODIFIED, TRANSACTION_REMOVED
from schemas.log.records import Account, Removal, Transaction
from streams.sync.pages import Change, is_ready, merge_pages


def transaction(name: str, amount: str = "1") -> Transaction:
    return Transaction(name, "a", amount, "USD", None, False, None, "2026-01-01")


def page(**fields: object) -> SyncPage:
    given: dict[str, object] = {
        "added": [],
        "modified": [],
        "removed": [],
        "accounts": [],
        "next_cursor": "c",
        "has_more": False,
        "status": "HISTORICAL_UPDATE_COMPLETE",
        "request_id": "r",
    }
    return SyncPage(**(given | fields))  # type: ignore[arg-type]


def test_a_pending_removed_on_one_page_and_its_posted_successor_on_the_next_are_one_update() -> None:
    update = merge_pages(
        [page(removed=[Removal("pending", "a")], has_more=True), page(added=[transaction("posted")])], fresh=False
    )

    assert [(change.type, change.record.transaction_id) for change in update.changes] == [
        (TRANSACTION_REMOVED, "pending"),
        (TRANSACTION_ADDED, "posted"),
    ]


def test_added_then_modified_is_added_with_the_last_words() -> None:
    update = merge_pages([page(added=[transaction("t", "1")]), page(modified=[transaction("t", "2")])], fresh=False)

    assert update.changes == [Change(TRANSACTION_ADDED, transaction("t", "2"))]


def test_added_then_removed_vanishes_only_where_nothing_was_known_before() -> None:
    pages = [page(added=[transaction("t")]), page(removed=[Removal("t", "a")])]

    assert merge_pages(pages, fresh=True).changes == []
    assert merge_pages(pages, fresh=False).changes == [Change(TRANSACTION_REMOVED, Removal("t", "a"))]


def test_removed_then_back_again_is_there() -> None:
    back = [page(removed=[Removal("t")]), page(added=[transaction("t")])]
    changed = [page(removed=[Removal("t")]), page(modified=[transaction("t")])]

    assert merge_pages(back, fresh=False).changes == [Change(TRANSACTION_ADDED, transaction("t"))]
    assert merge_pages(changed, fresh=False).changes == [Change(TRANSACTION_MODIFIED, transaction("t"))]


def test_the_last_page_names_cursor_and_status_and_the_last_word_on_an_account_counts() -> None:
    old, new = (Account("a", None, None, None, None, "depository", None, current=amount) for amount in ("1", "2"))

    update = merge_pages(
        [page(accounts=[old], next_cursor="mid", has_more=True), page(accounts=[new], next_cursor="end")], fresh=False
    )

    assert (update.next_cursor, update.accounts, update.request_ids) == ("end", {"a": new}, ["r", "r"])


def test_a_history_that_is_not_there_is_not_an_empty_one() -> None:
    assert not is_ready(page(status="NOT_READY"))
    assert not is_ready(page(next_cursor="", status="TRANSACTIONS_UPDATE_STATUS_UNKNOWN"))
    assert is_ready(page())
    assert is_ready(page(status=None))
