"""All pages of one Plaid update, folded into the final outcome of each transaction. Core."""

from collections.abc import Sequence
from typing import NamedTuple

from runtime.plaid.models import NOT_READY, SyncPage
from schemas.events import TRANSACTION_ADDED, TRANSACTION_MODIFIED, TRANSACTION_REMOVED
from schemas.log.records import Account, Removal, Transaction


class Change(NamedTuple):
    """What became of one transaction: the type of its event, and its last words."""

    type: str
    record: Transaction | Removal


class Update(NamedTuple):
    """One Plaid update: what `/transactions/sync` said from the first page to the last."""

    changes: list[Change]
    accounts: dict[str, Account]
    next_cursor: str
    status: str | None
    request_ids: list[str]
    pages: int


def is_ready(page: SyncPage) -> bool:
    """Whether Plaid has read anything of the Item's history: before that, an answer looks like a quiet account.

    Source: PLAID.md 1.2, Not-ready looks like a quiet account.
    """
    return page.status != NOT_READY and page.next_cursor != ""


def fold(pages: Sequence[SyncPage], *, fresh: bool) -> Update:
    """Fold all pages of one update into the final outcome of each transaction.

    Shape: pages in the order received; within a page added, modified, removed; of several words about one id the
    last count. What was added and removed again leaves a removal, because it may have been known before; only where
    `fresh`, the update began without a cursor, it leaves nothing.
    Idempotence: the same pages give the same update.
    Source: PLAID.md 1.2, points 10, 12, 15.
    """
    outcomes: dict[str, Change] = {}
    accounts: dict[str, Account] = {}
    for page in pages:
        for transaction in page.added:
            outcomes[transaction.transaction_id] = Change(TRANSACTION_ADDED, transaction)
        for transaction in page.modified:
            before = outcomes.get(transaction.transaction_id)
            kind = before.type if before is not None else TRANSACTION_MODIFIED
            outcomes[transaction.transaction_id] = Change(
                TRANSACTION_MODIFIED if kind == TRANSACTION_REMOVED else kind, transaction
            )
        for removal in page.removed:
            before = outcomes.get(removal.transaction_id)
            if fresh and before is not None and before.type == TRANSACTION_ADDED:
                del outcomes[removal.transaction_id]
            else:
                outcomes[removal.transaction_id] = Change(TRANSACTION_REMOVED, removal)
        for account in page.accounts:
            accounts[account.account_id] = account
    last = pages[-1]
    return Update(
        list(outcomes.values()),
        accounts,
        last.next_cursor,
        last.status,
        [page.request_id for page in pages if page.request_id],
        len(pages),
    )
