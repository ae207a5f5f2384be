"""The double-entry ledger: each transaction is one transfer between a bank account and a category, or one for each of
its parts, by construction in balance. A correction takes transfers back by their reverses and posts others; nothing
is ever changed.
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
    """What a ledger account stands for. Units: `scale` decimals of all its amounts."""

    user: int
    kind: str
    reference: str
    currency: str
    scale: int


class LedgerAccount(Struct, gc=False):
    """A ledger account and what a batch adds to its debits and credits, by layer.

    `spec` is None where only a known transfer names it: then its row exists already. `stored` is what the database
    has of its posted debits less credits, where the batch may open accounts (fold.opening_balances); else 0.
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
        """Its posted balance now, debits less credits; only where `stored` was read."""
        return self.stored + self.posted_debits - self.posted_credits


class Posting(Struct, frozen=True, gc=False):
    """What the ledger says of a transaction while it lives. `amount_field` and `effective` are as COPY has them."""

    debit: LedgerAccount
    credit: LedgerAccount
    amount: int
    amount_field: bytes
    currency: str
    layer: str
    effective: bytes

    def same_as(self, other: "Posting") -> bool:
        """Whether both say the same. Accounts stand for currency and category too."""
        return (
            self.debit.id == other.debit.id
            and self.credit.id == other.credit.id
            and self.amount == other.amount
            and self.layer == other.layer
            and self.effective == other.effective
        )


NOTHING: tuple[Posting, ...] = ()
"""What the ledger says of a transaction that does not count."""


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
    """The ledger accounts that a batch touches, and the transfers that it posts."""

    def __init__(self) -> None:
        self.accounts: dict[bytes, LedgerAccount] = {}
        self.transfers: list[Transfer] = []
        self._sides: dict[tuple[int, bytes, bytes, bytes], tuple[LedgerAccount, LedgerAccount, str]] = {}

    def account_by_id(self, account: bytes) -> LedgerAccount:
        """The account with this id, which a known transfer names."""
        found = self.accounts.get(account)
        if found is None:
            found = self.accounts[account] = LedgerAccount(account)
        return found

    def account(self, spec: AccountSpec) -> LedgerAccount:
        """The account that stands for this."""
        account = self.account_by_id(ledger_account_id(spec.user, spec.kind, spec.reference, spec.currency))
        account.spec = spec
        return account

    def posting(self, user: int, payload: TransactionPayload) -> Posting:
        """What the ledger has to say of these payload: money out is a debit of the category, money in a credit."""
        key = (user, payload.account, payload.category, payload.currency)
        bank, category, currency = self._sides.get(key) or self._found(key)
        amount = payload.amount
        debit, credit = (category, bank) if amount.is_outflow else (bank, category)
        layer = PENDING if payload.is_pending else POSTED
        return Posting(debit, credit, amount.ledger, amount.ledger_field, currency, layer, payload.date)

    def post(self, own_id: bytes, postings: Sequence[Posting], context: RecordContext, transfers: int = 0) -> int:
        """Post behind the `transfers` that a transaction has, and give their number then."""
        for posting in postings:
            transfers += 1
            self._post(own_id, transfers, posting.debit, posting.credit, posting, None, context)
        return transfers

    def settle(
        self, own_id: bytes, transfers: int, before: Sequence[Posting], after: Sequence[Posting], context: RecordContext
    ) -> int:
        """Post what leads from some postings to others, and give the number of transfers of the transaction then.

        `transfers` is their number so far: the last ones are `before`, in order.
        """
        if len(before) == len(after) and all(map(Posting.same_as, before, after)):
            return transfers
        first = transfers - len(before)
        for number, posting in enumerate(before, first + 1):
            # The reverse has the effective date of what it takes back, so both vanish together as of any date.
            transfers += 1
            self._post(own_id, transfers, posting.credit, posting.debit, posting, number, context)
        return self.post(own_id, after, context, transfers)

    def _post(
        self,
        own_id: bytes,
        number: int,
        debit: LedgerAccount,
        credit: LedgerAccount,
        what: Posting,
        reverses: int | None,
        context: RecordContext,
    ) -> None:
        amount = what.amount
        if what.layer == POSTED:
            debit.posted_debits += amount
            credit.posted_credits += amount
        else:
            debit.pending_debits += amount
            credit.pending_credits += amount
        self.transfers.append(
            Transfer(
                own_id,
                number,
                debit.id,
                credit.id,
                amount,
                what.amount_field,
                what.currency,
                what.layer,
                reverses,
                what.effective,
                context,
            )
        )

    def _found(self, key: tuple[int, bytes, bytes, bytes]) -> tuple[LedgerAccount, LedgerAccount, str]:
        user, account, category, currency = key[0], key[1].decode(), key[2].decode(), key[3].decode()
        bank = self.account(AccountSpec(user, BANK, account, currency, money.ledger_scale(currency)))
        sides = self._sides[key] = (
            bank,
            self.account(AccountSpec(user, CATEGORY, category, currency, money.ledger_scale(currency))),
            currency,
        )
        return sides
