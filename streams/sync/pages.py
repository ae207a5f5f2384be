"""Merge all pages of one Plaid update into the final change of each transaction. Core."""

from collections.abc import Sequence
from typing import NamedTuple

from runtime.plaid.models import NOT_READY, SyncPage
from schemas.events import TRANSACTION_ADDED, TRANSACTION_MODIFIED, TRANSACTION_REMOVED
from schemas.log.records import Account, Removal, Transaction


class Change(NamedTuple):
    """Final change of one transaction: the type of its event, and the last record of it."""

    type: str
    record: Transaction | Removal


class Update(NamedTuple):
    """One Plaid update: the content of `/transactions/sync` from its first page to its last."""

    changes: list[Change]
    accounts: dict[str, Account]
    next_cursor: str
    status: str | None
    request_ids: list[str]


def is_ready(page: SyncPage) -> bool:
    """Return whether Plaid has read any of the Item's history; before that a page is like that of a quiet account.

    Source: PLAID.md 1.2, Not-ready looks like a quiet account.
    """
    return page.status != NOT_READY and page.next_cursor != ""


def merge_pages(pages: Sequence[SyncPage], *, fresh: bool) -> Update:
    """Merge all pages of one update into the final change of each transaction.

    Shape: pages in the order received; within a page added, modified, removed; the last record of an id counts. A
    transaction that was added and removed leaves a removal, because it may have been known before; only where `fresh`,
    the update began without a cursor, it leaves nothing.
    Idempotence: the same pages give the same update.
    Source: PLAID.md 1.2, points 10, 12, 15.
    """
    changes: dict[str, Change] = {}
    accounts: dict[str, Account] = {}
    for page in pages:
        for transaction in page.added:
            changes[transaction.transaction_id] = Change(TRANSACTION_ADDED, transaction)
        for transaction in page.modified:
            before = changes.get(transaction.transaction_id)
            was_added = before is not None and before.type == TRANSACTION_ADDED
            event_type = TRANSACTION_ADDED if was_added else TRANSACTION_MODIFIED
            changes[transaction.transaction_id] = Change(event_type, transaction)
        for removal in page.removed:
            before = changes.get(removal.transaction_id)
            if fresh and before is not None and before.type == TRANSACTION_ADDED:
                del changes[removal.transaction_id]
            else:
                changes[removal.transaction_id] = Change(TRANSACTION_REMOVED, removal)
        accounts |= {account.account_id: account for account in page.accounts}
    last = pages[-1]
    request_ids = [page.request_id for page in pages if page.request_id]
    return Update(list(changes.values()), accounts, last.next_cursor, last.status, request_ids)
