"""The double-entry ledger: each transaction is one transfer between a bank account and a category, by construction
in balance. A correction takes the transfer back by its reverse and posts another one; nothing is ever changed.
"""

from typing import NamedTuple

from msgspec import Struct

from projections.words import Words
from schemas import money
from schemas.ids import ledger_account_id

BANK, CATEGORY, EQUITY = "bank", "category", "equity"
PENDING, POSTED = "pending", "posted"


class Meaning(NamedTuple):
    """What a ledger account stands for. Units: `scale` decimals of all its amounts."""

    user: int
    kind: str
    reference: str
    currency: str
    scale: int


class LedgerAccount(Struct, gc=False):
    """A ledger account and what a batch adds to its debits and credits, by layer.

    `meaning` is None where only a known transfer names it: then its row exists already.
    """

    id: bytes
    meaning: Meaning | None = None
    pending_debits: int = 0
    pending_credits: int = 0
    posted_debits: int = 0
    posted_credits: int = 0


class Posting(NamedTuple):
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


class Transfer(NamedTuple):
    """A row of `ledger_transfers`. `place` is (user, partition, offset, known_at) of the changeset that caused it."""

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
    place: tuple[int, int, int, int]


class Book:
    """The ledger accounts that a batch touches, and the transfers that it posts."""

    def __init__(self) -> None:
        self.accounts: dict[bytes, LedgerAccount] = {}
        self.transfers: list[Transfer] = []
        self._bank: dict[tuple[int, bytes, bytes], LedgerAccount] = {}
        self._category: dict[tuple[int, bytes, bytes], LedgerAccount] = {}

    def known(self, account: bytes) -> LedgerAccount:
        """The account with this id, which a known transfer names."""
        found = self.accounts.get(account)
        if found is None:
            found = self.accounts[account] = LedgerAccount(account)
        return found

    def posting(self, user: int, words: Words) -> Posting:
        """What the ledger has to say of these words: money out is a debit of the category, money in a credit."""
        key = (user, words.account, words.currency)
        bank = self._bank.get(key) or self._found(self._bank, key, BANK)
        key = (user, words.category, words.currency)
        category = self._category.get(key) or self._found(self._category, key, CATEGORY)
        amount = words.amount
        debit, credit = (category, bank) if amount.is_outflow else (bank, category)
        assert bank.meaning is not None
        return Posting(
            debit, credit, amount.ledger, amount.ledger_field, bank.meaning.currency,
            PENDING if words.is_pending else POSTED, words.date,
        )  # fmt: skip

    def settle(
        self,
        own_id: bytes,
        transfers: int,
        before: Posting | None,
        after: Posting | None,
        place: tuple[int, int, int, int],
    ) -> int:
        """Post what leads from one posting to another, and give the number of transfers of the transaction then.

        `transfers` is their number so far: the last one is `before`, where there is one.
        """
        if before is not None and after is not None and before.same_as(after):
            return transfers
        if before is not None:
            # The reverse has the effective date of what it takes back, so both vanish together as of any date.
            self._post(own_id, transfers + 1, before.credit, before.debit, before, transfers, place)
            transfers += 1
        if after is not None:
            transfers += 1
            self._post(own_id, transfers, after.debit, after.credit, after, None, place)
        return transfers

    def _post(
        self, own_id: bytes, number: int, debit: LedgerAccount, credit: LedgerAccount, what: Posting,
        reverses: int | None, place: tuple[int, int, int, int],
    ) -> None:  # fmt: skip
        amount = what.amount
        if what.layer == POSTED:
            debit.posted_debits += amount
            credit.posted_credits += amount
        else:
            debit.pending_debits += amount
            credit.pending_credits += amount
        self.transfers.append(
            Transfer(
                own_id, number, debit.id, credit.id, amount, what.amount_field, what.currency, what.layer, reverses,
                what.effective, place,
            )
        )  # fmt: skip

    def _found(
        self, known: dict[tuple[int, bytes, bytes], LedgerAccount], key: tuple[int, bytes, bytes], kind: str
    ) -> LedgerAccount:
        user, reference, currency = key[0], key[1].decode(), key[2].decode()
        account = self.known(ledger_account_id(user, kind, reference, currency))
        account.meaning = Meaning(user, kind, reference, currency, money.ledger_scale(currency))
        known[key] = account
        return account
