"""The beginning of a bank's ledger account: what the bank reports, less what its posted rows add up to. Pure.

It is posted once, in the changeset with which the Item's history is complete and the account's balance is known. An
account that goes on from an older one takes over what the ledger still has of that one, so money is there once.
"""

from collections.abc import Iterable

from projections.decode.changeset import CACHED, Changeset
from projections.gate.check import AcceptedRecord
from projections.matching import accounts, linked_items
from projections.model import book, pg_copy
from projections.model.book import AccountSpec, LedgerAccount, Posting
from projections.model.record_context import RecordContext
from projections.model.unit_of_work import AccountRow, ItemRow, UnitOfWork
from schemas import money
from schemas.encoding import codec
from schemas.ids import ledger_account_id, opening_id
from schemas.log.records import Account

COMPLETE = "HISTORICAL_UPDATE_COMPLETE"
"""Plaid's word for a history of which nothing is missing. Source: PLAID.md 1.2, `transactions_update_status`."""

EQUITY_REFERENCE = "opening"
"""Of the equity account, one a user and currency, that opening balances come from."""

EFFECTIVE = pg_copy.date("0001-01-01")
"""Before every date."""

_LIABILITIES = frozenset({"credit", "loan"})
"""Types of accounts whose `current` is what the user owes. Source: PLAID.md 1.4."""


def post(working: UnitOfWork, item: ItemRow, place: RecordContext) -> None:
    """Open the accounts of an Item that can be opened now and were not, and let none that is over keep money.

    Idempotence: `AccountRow.opened` says that an account has been; whatever the bank reports later is no opening.
    """
    for account_id in sorted(item.accounts):
        account = item.accounts[account_id]
        if account.opened is None and account.continued_by is None and item.history_status == COMPLETE:
            reported = _reported(account)
            target = None if reported is None else _target(reported)
            if reported is not None and target is not None:
                _open(working, account, place, reported.currency, target)
        if account.continues is not None or account.continued_by is not None:
            _pass_on(working, account, place)


def users_to_load(working: UnitOfWork, records: Iterable[AcceptedRecord]) -> set[int]:
    """The users whose stored balances the openings of these records may need.

    What has no stored row has no stored balance: a new Item costs no look-up, unless it may go on from another one.
    """
    complete, wanted = set[str](), dict[str, ItemRow]()
    joined: set[int] = set()
    for record in records:
        item, said = record.item, record.changeset
        if item is None:
            continue
        if linked_items.has_linked_accounts(item) or (
            linked_items.has_new_accounts(record) and _may_have_balances(working, item)
        ):
            joined.add(item.user)
        statuses = (
            item.history_status,
            record.log_record.head.history_status,
            *(one[1].history_status for one in said.items),
        )
        if COMPLETE in statuses:
            complete.add(item.item_id)
        if item.item_id not in wanted and _wants_to_open(item, said):
            wanted[item.item_id] = item
    return joined | {
        item.user for name, item in wanted.items() if name in complete and _may_have_balances(working, item)
    }


def is_liability(kind: str) -> bool:
    """Whether the `current` of accounts of this type is what the user owes."""
    return kind in _LIABILITIES


def _wants_to_open(item: ItemRow, said: Changeset) -> bool:
    told = {one.account.account_id: one.account for one in said.balances if one.source == CACHED}
    for account_id, account in item.accounts.items():
        if account.opened is not None or account.continued_by is not None:
            told.pop(account_id, None)
        elif account_id not in told and (reported := _reported(account)) is not None:
            told[account_id] = reported
    return any(_target(reported) is not None for reported in told.values())


def _may_have_balances(working: UnitOfWork, item: ItemRow) -> bool:
    has_others = any(other.user == item.user and other is not item for other in working.items.values())
    # An opening is a balance without a row.
    has_openings = any(account.opened is not None for account in item.accounts.values())
    return not item.is_complete or item.has_linked_items or has_others or has_openings


def _reported(account: AccountRow) -> Account | None:
    if account.cached_payload is None:
        return None
    reported: Account = codec.decoder(account.cached_payload_schema)(account.cached_payload, 0)[0]
    return reported


def _target(reported: Account) -> int | None:
    """What the ledger account's balance must be for this report, at the ledger's scale; None where there is no saying.

    A balance with more decimals than the ledger keeps opens nothing: it is not rounded, and the next one may do.
    """
    is_opened = reported.type in ("depository", "credit") or (reported.type == "loan" and reported.subtype == "student")
    if reported.current is None or not is_opened:
        return None
    amount = money.parse_decimal(reported.current)
    if amount.scale > money.ledger_scale(reported.currency):
        return None
    held = money.ledger_amount(amount, reported.currency)
    return -held if is_liability(reported.type) else held


def _open(working: UnitOfWork, account: AccountRow, place: RecordContext, currency: str, target: int) -> None:
    account.opened = place.offset
    _take_over(working, account, place)
    bank = _ledger_account(working, place.user, book.BANK, account.account_id, currency)
    equity = _ledger_account(working, place.user, book.EQUITY, EQUITY_REFERENCE, currency)
    _transfer(working, account, place, _moved(equity, bank, target - bank.posted, currency))


def _pass_on(working: UnitOfWork, account: AccountRow, place: RecordContext) -> None:
    """Let what came to an account after a younger one was opened go there too, as does all that was there before.

    A purchase that moves from the one to the other later, by a person's decision, would be deducted twice else. The
    older ones come first: a transaction that goes on under this account has left its amount in one of them.
    """
    key = (account.item_id, account.account_id)
    older = list(accounts.walk(working, key, "continues"))
    for item_id, account_id in [*reversed(older), key, *accounts.walk(working, key, "continued_by")]:
        _take_over(working, working.items[item_id].accounts[account_id], place)


def _take_over(working: UnitOfWork, account: AccountRow, place: RecordContext) -> None:
    reported = _reported(account)
    if account.opened is None or account.continues is None or reported is None:
        return
    older_id, currency = account.continues[1], reported.currency
    if older_id == account.account_id:
        return  # another Item's, under the same id: it is one ledger account
    older = working.book.account_by_id(ledger_account_id(place.user, book.BANK, older_id, currency))
    if older.posted:
        bank = _ledger_account(working, place.user, book.BANK, account.account_id, currency)
        _transfer(working, account, place, _moved(older, bank, older.posted, currency))


def _transfer(working: UnitOfWork, account: AccountRow, place: RecordContext, posting: Posting) -> None:
    own = opening_id(place.user, account.item_id, account.account_id)
    account.opening_transfers = working.book.settle(own, account.opening_transfers, book.NOTHING, [posting], place)
    working.changed_accounts[account.item_id, account.account_id] = account


def _ledger_account(working: UnitOfWork, user: int, kind: str, reference: str, currency: str) -> LedgerAccount:
    return working.book.account(AccountSpec(user, kind, reference, currency, money.ledger_scale(currency)))


def _moved(source: LedgerAccount, bank: LedgerAccount, amount: int, currency: str) -> Posting:
    debit, credit = (bank, source) if amount >= 0 else (source, bank)
    size = abs(amount)
    return Posting(debit, credit, size, pg_copy.numeric(size), currency, book.POSTED, EFFECTIVE)
