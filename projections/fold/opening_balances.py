"""Opening balance of a bank's ledger account: the reported balance, less the sum of its posted rows.

It is posted once, by the changeset with which the Item's history is complete and the account's balance is known. An
account that continues an older one takes over the ledger balance of that one, so money is there once.
"""

from collections.abc import Iterable

from projections.decode.changeset import Changeset
from projections.gate.check import AcceptedRecord
from projections.matching import linked_items
from projections.matching.accounts import walk
from projections.model import book, pg_copy
from projections.model.book import LedgerAccount, Posting
from projections.model.record_context import RecordContext
from projections.model.unit_of_work import CACHED, AccountRow, ItemRow, UnitOfWork
from schemas import money
from schemas.encoding import codec
from schemas.ids import ledger_account_id, opening_id
from schemas.log.records import Account

COMPLETE = "HISTORICAL_UPDATE_COMPLETE"
"""Plaid's status of a complete history. Source: PLAID.md 1.2, `transactions_update_status`."""

EQUITY_REFERENCE = "opening"
"""Reference of the equity account, one a user and currency, that opening balances come from."""

EFFECTIVE = pg_copy.date("0001-01-01")
"""Before every date."""

_LIABILITIES = frozenset({"credit", "loan"})
"""Types of accounts whose `current` is the user's debt. Source: PLAID.md 1.4."""


def post(work: UnitOfWork, item: ItemRow, context: RecordContext) -> None:
    """Post the opening balances of an Item that are due, and move the balances of continued accounts on.

    Idempotence: `AccountRow.opened` is set once; no later report is an opening.
    """
    for account_id in sorted(item.accounts):
        account = item.accounts[account_id]
        if account.opened is None and account.continued_by is None and item.history_status == COMPLETE:
            reported = _reported(account)
            target = None if reported is None else _target(reported)
            if reported is not None and target is not None:
                _open(work, account, context, reported.currency, target)
        if account.continues is not None or account.continued_by is not None:
            _pass_on(work, account, context)


def users_to_load(work: UnitOfWork, records: Iterable[AcceptedRecord]) -> set[int]:
    """Return the users whose stored balances the openings of these records may need.

    An Item without a stored row has no stored balance: a new one costs no look-up, unless it may continue another one.
    """
    complete, opening = set[str](), dict[str, ItemRow]()
    users: set[int] = set()
    for record in records:
        item, changeset = record.item, record.changeset
        if item is None:
            continue
        if item.has_linked_accounts or (linked_items.has_new_accounts(record) and _may_have_balances(work, item)):
            users.add(item.user)
        reported = [plaid_item.history_status for _, plaid_item, *_ in changeset.items]
        if COMPLETE in (item.history_status, record.log_record.head.history_status, *reported):
            complete.add(item.item_id)
        if item.item_id not in opening and _may_open(item, changeset):
            opening[item.item_id] = item
    return users | {
        item.user for item_id, item in opening.items() if item_id in complete and _may_have_balances(work, item)
    }


def _may_open(item: ItemRow, changeset: Changeset) -> bool:
    reports = {report.account.account_id: report.account for report in changeset.balances if report.source == CACHED}
    for account_id, account in item.accounts.items():
        if account.opened is not None or account.continued_by is not None:
            reports.pop(account_id, None)
        elif account_id not in reports and (reported := _reported(account)) is not None:
            reports[account_id] = reported
    return any(_target(reported) is not None for reported in reports.values())


def _may_have_balances(work: UnitOfWork, item: ItemRow) -> bool:
    has_others = any(other.user == item.user and other is not item for other in work.items.values())
    # An opening is a balance without a row.
    has_openings = any(account.opened is not None for account in item.accounts.values())
    return not item.is_complete or item.has_linked_items or has_others or has_openings


def _reported(account: AccountRow) -> Account | None:
    if account.cached_payload is None:
        return None
    reported: Account = codec.decoder(account.cached_payload_schema)(account.cached_payload, 0)[0]
    return reported


def _target(reported: Account) -> int | None:
    """Return the ledger account's balance for this report, at the ledger's scale; None where it cannot be opened.

    A balance with more decimals than the ledger's opens nothing: it is not rounded, and the next one may do.
    """
    is_opened = reported.type in ("depository", "credit") or (reported.type == "loan" and reported.subtype == "student")
    if reported.current is None or not is_opened:
        return None
    amount = money.parse_decimal(reported.current)
    if amount.scale > money.ledger_scale(reported.currency):
        return None
    balance = money.ledger_amount(amount, reported.currency)
    return -balance if reported.type in _LIABILITIES else balance


def _open(work: UnitOfWork, account: AccountRow, context: RecordContext, currency: str, target: int) -> None:
    account.opened = context.offset
    _take_over(work, account, context)
    bank = work.book.account(context.user, book.BANK, account.account_id, currency)
    equity = work.book.account(context.user, book.EQUITY, EQUITY_REFERENCE, currency)
    _transfer(work, account, context, equity, bank, target - bank.posted, currency)


def _pass_on(work: UnitOfWork, account: AccountRow, context: RecordContext) -> None:
    """Move money that arrived at an older account on to the youngest one, as all that was there before.

    A purchase that moves from the one to the other later, by a person's decision, would be deducted twice else. The
    older ones come first: a transaction that goes on under this account has left its amount in one of them.
    """
    key = (account.item_id, account.account_id)
    older = list(walk(work, key, "continues"))
    for item_id, account_id in [*reversed(older), key, *walk(work, key, "continued_by")]:
        _take_over(work, work.items[item_id].accounts[account_id], context)


def _take_over(work: UnitOfWork, account: AccountRow, context: RecordContext) -> None:
    reported = _reported(account)
    if account.opened is None or account.continues is None or reported is None:
        return
    older_id, currency = account.continues[1], reported.currency
    if older_id == account.account_id:
        return  # another Item's, under the same id: it is one ledger account
    older = work.book.account_by_id(ledger_account_id(context.user, book.BANK, older_id, currency))
    if older.posted:
        bank = work.book.account(context.user, book.BANK, account.account_id, currency)
        _transfer(work, account, context, older, bank, older.posted, currency)


def _transfer(
    work: UnitOfWork,
    account: AccountRow,
    context: RecordContext,
    source: LedgerAccount,
    bank: LedgerAccount,
    amount: int,
    currency: str,
) -> None:
    debit, credit = (bank, source) if amount >= 0 else (source, bank)
    size = abs(amount)
    posting = Posting(debit, credit, size, pg_copy.numeric(size), currency, book.POSTED, EFFECTIVE)
    own = opening_id(context.user, account.item_id, account.account_id)
    account.opening_transfers = work.book.post(own, [posting], context, account.opening_transfers)
    work.changed_accounts[account.item_id, account.account_id] = account
