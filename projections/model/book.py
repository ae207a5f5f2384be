"""Double-entry ledger: a transaction is one transfer between a bank account and a category, or one for each split.

A correction reverses transfers and posts others; no transfer is ever changed.
"""

from collections.abc import Sequence
from typing import NamedTuple

from msgspec import Struct

from projections.model.record_context import RecordContext
from projections.model.transaction_payload import TransactionPayload
from schemas import money
from schemas.ids import ledger_account_id

BANK, CATEGORY, EQUITY = "bank", "category", "equity"
PENDING, POSTED = "pending", "posted"


class AccountSpec(NamedTuple):
    """Purpose of a ledger account. Units: `scale` decimals of all its amounts."""

    user: int
    kind: str
    reference: str
    currency: str
    scale: int


class LedgerAccount(Struct, gc=False):
    """A ledger account with the debits and credits that a batch adds, by layer.

    `spec` is None where only a stored transfer names it: then its row exists already. `stored` is the database's posted
    debits less credits where the batch may open accounts (fold.opening_balances), else 0.
    """

    id: bytes
    spec: AccountSpec | None = None
    pending_debits: int = 0
    pending_credits: int = 0
    posted_debits: int = 0
    posted_credits: int = 0
    stored: int = 0

    @property
    def posted(self) -> int:
        """Posted balance, debits less credits; only where `stored` was read."""
        return self.stored + self.posted_debits - self.posted_credits


class Posting(Struct, frozen=True, gc=False):
    """One debit and credit of a transaction. `amount_field` and `effective` are COPY fields."""

    debit: LedgerAccount
    credit: LedgerAccount
    amount: int
    amount_field: bytes
    currency: str
    layer: str
    effective: bytes

    def same_as(self, other: "Posting") -> bool:
        """Compare two postings; the accounts' ids cover currency and category."""
        return (
            self.debit.id == other.debit.id
            and self.credit.id == other.credit.id
            and self.amount == other.amount
            and self.layer == other.layer
            and self.effective == other.effective
        )


NOTHING: tuple[Posting, ...] = ()
"""Postings of a transaction that does not count."""


class Transfer(Struct, frozen=True, gc=False):
    """A row of `ledger_transfers`."""

    own_id: bytes
    number: int
    debit: bytes
    credit: bytes
    amount: int
    amount_field: bytes
    currency: str
    layer: str
    reverses: int | None
    effective: bytes
    context: RecordContext


class Book:
    """Ledger accounts that a batch touches, and the transfers that it posts."""

    def __init__(self) -> None:
        self.accounts: dict[bytes, LedgerAccount] = {}
        self.transfers: list[Transfer] = []
        self._sides: dict[tuple[int, bytes, bytes, bytes], tuple[LedgerAccount, LedgerAccount, str]] = {}

    def account_by_id(self, account_id: bytes) -> LedgerAccount:
        """Return the account with an id that a stored transfer names."""
        account = self.accounts.get(account_id)
        if account is None:
            account = self.accounts[account_id] = LedgerAccount(account_id)
        return account

    def account(self, user: int, kind: str, reference: str, currency: str) -> LedgerAccount:
        """Return the account with this purpose, which the batch creates where the database lacks it."""
        account = self.account_by_id(ledger_account_id(user, kind, reference, currency))
        account.spec = AccountSpec(user, kind, reference, currency, money.ledger_scale(currency))
        return account

    def posting(self, user: int, payload: TransactionPayload) -> Posting:
        """Return the posting of a payload: money out is a debit of the category, money in a credit."""
        key = (user, payload.account, payload.category, payload.currency)
        sides = self._sides.get(key)
        if sides is None:
            currency = payload.currency.decode()
            bank = self.account(user, BANK, payload.account.decode(), currency)
            category = self.account(user, CATEGORY, payload.category.decode(), currency)
            sides = self._sides[key] = (bank, category, currency)
        bank, category, currency = sides
        amount = payload.amount
        debit, credit = (category, bank) if amount.is_outflow else (bank, category)
        layer = PENDING if payload.is_pending else POSTED
        return Posting(debit, credit, amount.ledger, amount.ledger_field, currency, layer, payload.date)

    def post(self, own_id: bytes, postings: Sequence[Posting], context: RecordContext, transfers: int = 0) -> int:
        """Post behind a transaction's `transfers` so far, and return their new number."""
        for posting in postings:
            transfers += 1
            self._post(own_id, transfers, posting, None, context)
        return transfers

    def settle(
        self, own_id: bytes, transfers: int, before: Sequence[Posting], after: Sequence[Posting], context: RecordContext
    ) -> int:
        """Reverse and post the transfers between two states, and return the transaction's new number of transfers.

        `transfers` is their number so far; the last ones are `before`, in order.
        """
        if len(before) == len(after) and all(map(Posting.same_as, before, after)):
            return transfers
        first = transfers - len(before)
        for number, posting in enumerate(before, first + 1):
            # The reverse has the effective date of its transfer, so both vanish together as of any date.
            transfers += 1
            self._post(own_id, transfers, posting, number, context)
        return self.post(own_id, after, context, transfers)

    def _post(self, own_id: bytes, number: int, posting: Posting, reverses: int | None, context: RecordContext) -> None:
        debit, credit, amount, layer = posting.debit, posting.credit, posting.amount, posting.layer
        if reverses is not None:
            debit, credit = credit, debit
        if layer == POSTED:
            debit.posted_debits += amount
            credit.posted_credits += amount
        else:
            debit.pending_debits += amount
            credit.pending_credits += amount
        field, currency, effective = posting.amount_field, posting.currency, posting.effective
        self.transfers.append(
            Transfer(own_id, number, debit.id, credit.id, amount, field, currency, layer, reverses, effective, context)
        )
