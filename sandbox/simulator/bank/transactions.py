"""The nouns of the bank: currencies, merchants, places, transactions and changes of them.

All are immutable. Those compared by identity (`eq=False`) are made once and shared, so that what is
rendered from them can be kept by identity.
"""

import datetime as dt
from decimal import Decimal
from typing import Literal

import msgspec

Confidence = Literal["VERY_HIGH", "HIGH", "MEDIUM", "LOW", "UNKNOWN"]
ChangeKind = Literal["added", "modified", "removed"]
CategoryVersion = Literal["v1", "v2"]


class Currency(msgspec.Struct, frozen=True, gc=False):
    """A currency as Plaid names it: exactly one of the two codes is set.

    Units: `decimals` are those its amounts usually carry; a bank may send more.
    """

    iso_code: str | None
    unofficial_code: str | None
    decimals: int


class Place(msgspec.Struct, frozen=True, gc=False, eq=False):
    """One store of a merchant, or where a bank saw a card used."""

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


class Counterparty(msgspec.Struct, frozen=True, gc=False, eq=False):
    """Another party of a transaction; `confidence` None takes that of the category."""

    name: str
    type: str
    entity_id: str | None
    website: str | None
    logo_url: str | None
    confidence: Confidence | None = None


class Merchant(msgspec.Struct, frozen=True, eq=False):
    """A merchant as Plaid knows it, and how its transactions look at a bank."""

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


class Transaction(msgspec.Struct, frozen=True, gc=False):
    """One transaction at one moment of its life; a change of it is a new object with a higher version.

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
    """One entry of an Item's log; a removal keeps the transaction it took away."""

    kind: ChangeKind
    transaction: Transaction


def amount_text(amount: Decimal) -> str:
    """Write an amount as a JSON number: exact, without exponent, without trailing zeros."""
    text = format(amount, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
