"""Define the bank's values: currencies, merchants, places, transactions and changes.

All are immutable. Values compared by identity (`eq=False`) are created once and shared, so that their rendering can
be cached by identity.
"""

import datetime as dt
from decimal import Decimal
from typing import Literal

import msgspec

Confidence = Literal["VERY_HIGH", "HIGH", "MEDIUM", "LOW", "UNKNOWN"]
ChangeKind = Literal["added", "modified", "removed"]
CategoryVersion = Literal["v1", "v2"]


class Currency(msgspec.Struct, frozen=True, gc=False):
    """A currency with exactly one of the two codes.

    Units: `decimals`: usual number in its amounts; a bank may send more.
    """

    iso_code: str | None
    unofficial_code: str | None
    decimals: int


class Place(msgspec.Struct, frozen=True, gc=False, eq=False):
    """A store of a merchant, or the place of a card payment."""

    address: str | None
    city: str | None
    region: str | None
    postal_code: str | None
    country: str | None
    lat: Decimal | None
    lon: Decimal | None
    store_number: str | None


class Category(msgspec.Struct, frozen=True, gc=False, eq=False):
    """A personal finance category with its name in both versions of Plaid's taxonomy."""

    primary: str
    detailed: str
    primary_v2: str
    detailed_v2: str

    def names(self, version: CategoryVersion) -> tuple[str, str]:
        """Return the primary and the detailed name."""
        return (self.primary_v2, self.detailed_v2) if version == "v2" else (self.primary, self.detailed)


class Counterparty(msgspec.Struct, frozen=True, gc=False, eq=False):
    """Another party of a transaction; `confidence` None takes that of the category."""

    name: str
    type: str
    entity_id: str | None
    website: str | None
    logo_url: str | None
    confidence: Confidence | None = None


class Merchant(msgspec.Struct, frozen=True, eq=False):
    """A merchant, and the form of its transactions at a bank."""

    name: str
    entity_id: str
    website: str | None
    logo_url: str | None
    category: Category
    counterparties: tuple[Counterparty, ...]
    channel: str
    descriptor: str
    code: str | None
    lowest: int
    highest: int
    takes_tips: bool
    holds: bool
    places: tuple[Place, ...]


class PaymentMeta(msgspec.Struct, frozen=True, gc=False):
    """Details of a transfer; every key is always sent, most are null.

    Source: Plaid API, Transaction, payment_meta.
    """

    reference_number: str | None = None
    ppd_id: str | None = None
    payee: str | None = None
    by_order_of: str | None = None
    payer: str | None = None
    payment_method: str | None = None
    payment_processor: str | None = None
    reason: str | None = None


NO_META = PaymentMeta()


class Transaction(msgspec.Struct, frozen=True, gc=False):
    """One version of a transaction; a change creates a new object with a higher version.

    Units: `amount` is positive where money leaves the account, as in Plaid.
    """

    transaction_id: str
    account_id: str
    amount: Decimal
    currency: Currency
    date: dt.date
    authorized_date: dt.date | None
    datetime: str | None
    authorized_datetime: str | None
    name: str
    original_description: str
    merchant: Merchant | None
    counterparties: tuple[Counterparty, ...]
    category: Category | None
    confidence: Confidence | None
    place: Place | None
    pending: bool
    pending_transaction_id: str | None
    payment_channel: str
    transaction_code: str | None
    check_number: str | None
    account_owner: str | None
    payment_meta: PaymentMeta
    novelty: int = 0
    version: int = 0


class Change(msgspec.Struct, frozen=True, gc=False):
    """One entry of an Item's log; a removal has the removed transaction."""

    kind: ChangeKind
    transaction: Transaction


def amount_text(amount: Decimal) -> str:
    """Format an amount as a JSON number: exact, without exponent or trailing zeros."""
    text = format(amount, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
