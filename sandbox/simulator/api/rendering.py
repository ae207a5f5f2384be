"""Plaid's JSON: transactions, accounts and Items as bytes.

A transaction is about 1.4 kB of which all but 300 bytes belong to its merchant, place and category. Those pieces
are rendered once and kept by identity, and a rendered transaction is kept by id and version: a page of 500 is
then a join of bytes.
"""

import datetime as dt
from decimal import Decimal
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from sandbox.simulator.api.plaid_errors import item_error
from sandbox.simulator.bank.bank import Account, Item
from sandbox.simulator.bank.randomness import derive
from sandbox.simulator.bank.transactions import (
    Category,
    CategoryVersion,
    Change,
    Confidence,
    Counterparty,
    Merchant,
    PaymentMeta,
    Place,
    Transaction,
    amount_text,
)

PIECES_MAX = 65_536
"""Rendered pieces kept of each sort; the catalogue has a few thousand combinations."""

KEPT_MAX = 1_000_000
"""Rendered transactions kept; at 1.4 kB each this is 1.4 GB, then the oldest half of them is let go."""


class Variant(NamedTuple):
    """What a request asks to see in its transactions."""

    original_description: bool
    category_version: CategoryVersion


class Kept:
    """Rendered transactions by variant, id and version."""

    def __init__(self) -> None:
        self._bodies: dict[Variant, dict[tuple[str, int], bytes]] = {}

    def body(self, row: Transaction, variant: Variant) -> bytes:
        """Give a transaction's JSON, rendered the first time that it is asked for."""
        bodies = self._bodies.setdefault(variant, {})
        key = (row.transaction_id, row.version)
        body = bodies.get(key)
        if body is None:
            if len(bodies) >= KEPT_MAX:
                for old in list(bodies)[: KEPT_MAX // 2]:
                    del bodies[old]
            body = bodies[key] = transaction(row, variant)
        return body

    def array(self, changes: list[Change], variant: Variant) -> bytes:
        """Give the JSON array of a page's transactions."""
        bodies = self._bodies.setdefault(variant, {})
        try:
            rows = [bodies[c.transaction.transaction_id, c.transaction.version] for c in changes]
        except KeyError:
            rows = [self.body(c.transaction, variant) for c in changes]
        return b"[" + b",".join(rows) + b"]"


def transaction(row: Transaction, variant: Variant) -> bytes:
    """Render one transaction with every field that Plaid sends, in its order."""
    iso, unofficial = row.currency.iso_code, row.currency.unofficial_code
    novel_top, channel = _novelties(row) if row.novelty else ("", row.payment_channel)
    description = text(row.original_description) if variant.original_description else "null"
    head, tail = _merchant(row.merchant)
    return (
        f'{{"account_id":"{row.account_id}","account_owner":{text(row.account_owner)},'
        f'"amount":{amount_text(row.amount)},"authorized_date":{_day(row.authorized_date)},'
        f'"authorized_datetime":{_ascii(row.authorized_datetime)},"category":null,"category_id":null,'
        f'"check_number":{_ascii(row.check_number)},'
        f'"counterparties":{_parties(row.counterparties, row.confidence, row.novelty != 0)},'
        f'"date":{_day(row.date)},"datetime":{_ascii(row.datetime)},"iso_currency_code":{_ascii(iso)},'
        f'"location":{_place(row.place)},{head},"name":{text(row.name)},"original_description":{description},'
        f'"payment_channel":"{channel}","payment_meta":{_meta(row.payment_meta)},'
        f'"pending":{"true" if row.pending else "false"},'
        f'"pending_transaction_id":{_ascii(row.pending_transaction_id)},'
        f"{_category(row.category, row.confidence, variant.category_version)},{novel_top}"
        f'"transaction_code":{_ascii(row.transaction_code)},"transaction_id":"{row.transaction_id}",'
        f'"transaction_type":"{_TYPES.get(row.payment_channel, "special")}",'
        f'"unofficial_currency_code":{_ascii(unofficial)},{tail}}}'
    ).encode()


def removal(row: Transaction) -> bytes:
    """Render a removed transaction: two ids, nothing to reverse it by."""
    return f'{{"account_id":"{row.account_id}","transaction_id":"{row.transaction_id}"}}'.encode()


def account(held: Account, *, novel: bool, updated_at: dt.datetime | None = None) -> dict[str, Any]:
    """Give an account as `/accounts/get` and `/transactions/sync` show it; `updated_at` where the bank says it."""
    plan = held.plan
    shown: dict[str, Any] = {
        "account_id": held.account_id,
        "balances": {
            "available": number(held.available),
            "current": number(held.current) if plan.reports_current else None,
            "iso_currency_code": plan.currency.iso_code,
            "limit": number(held.limit_amount) if plan.limit is not None else None,
            "unofficial_currency_code": plan.currency.unofficial_code,
        },
        "holder_category": "personal",
        "mask": held.mask,
        "name": plan.name,
        "official_name": plan.official_name,
        "persistent_account_id": held.persistent_id,
        "subtype": plan.subtype,
        "type": plan.type,
    }
    if plan.subtype not in ("checking", "savings"):
        del shown["persistent_account_id"]
    if updated_at is not None:
        shown["balances"]["last_updated_datetime"] = moment(updated_at)
    if novel:
        shown["stewardship"] = {"tier": "TIER_GREEN", "since": "2026-02-01"}
    return shown


def item(held: Item, *, consent: bool) -> dict[str, Any]:
    """Give an Item; `/item/get` shows more of its consent than other endpoints do."""
    error = item_error(held.error_code, reason=held.error_reason) if held.error_code else None
    shown: dict[str, Any] = {
        "available_products": ["balance", "identity", "recurring_transactions"],
        "billed_products": list(held.products),
        "consent_expiration_time": None,
        "error": error,
        "institution_id": held.institution.institution_id,
        "institution_name": held.institution.name,
        "item_id": held.item_id,
        "products": list(held.products),
        "update_type": "background",
        "webhook": held.webhook_url,
    }
    if consent:
        shown["auth_method"] = "INSTANT_AUTH"
        shown["consented_data_scopes"] = ["account_balance_info", "transactions"]
        shown["consented_use_cases"] = []
        shown["consented_products"] = list(held.products)
        shown["created_at"] = moment(held.created_at)
    return shown


def status(held: Item) -> dict[str, Any]:
    """Give the `status` of `/item/get`: when Plaid last reached the bank and last sent a webhook."""
    webhook = None
    if held.last_webhook_at is not None:
        webhook = {"code_sent": held.last_webhook_code, "sent_at": moment(held.last_webhook_at)}
    return {
        "investments": None,
        "last_webhook": webhook,
        "transactions": {
            "last_failed_update": moment(held.last_failed_update),
            "last_successful_update": moment(held.last_successful_update),
        },
    }


def number(amount: Decimal | None) -> msgspec.Raw | None:
    """Put an exact amount into JSON without a float on the way."""
    return None if amount is None else msgspec.Raw(amount_text(amount).encode())


def moment(at: dt.datetime | None) -> str | None:
    """Write a time as Plaid does: UTC, milliseconds, Z."""
    return None if at is None else at.astimezone(dt.UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def text(value: str | None) -> str:
    """Write a string as JSON, any character in it escaped as needed."""
    return "null" if value is None else _encoder.encode(value).decode()


_encoder = msgspec.json.Encoder()
_TYPES = {"online": "digital", "in store": "place", "other": "special"}


def _ascii(value: str | None) -> str:
    return "null" if value is None else f'"{value}"'


@lru_cache(maxsize=4096)
def _day(day: dt.date | None) -> str:
    return "null" if day is None else f'"{day.isoformat()}"'


@lru_cache(maxsize=PIECES_MAX)
def _merchant(merchant: Merchant | None) -> tuple[str, str]:
    if merchant is None:
        return (
            '"logo_url":null,"merchant_category_code":null,"merchant_entity_id":null,"merchant_name":null',
            '"website":null',
        )
    return (
        f'"logo_url":{text(merchant.logo_url)},"merchant_category_code":{text(merchant.code)},'
        f'"merchant_entity_id":"{merchant.entity_id}","merchant_name":{text(merchant.name)}',
        f'"website":{text(merchant.website)}',
    )


@lru_cache(maxsize=PIECES_MAX)
def _parties(parties: tuple[Counterparty, ...], confidence: Confidence | None, novel: bool) -> str:
    shown = []
    for party in parties:
        fields = {
            "confidence_level": party.confidence or confidence,
            "entity_id": party.entity_id,
            "logo_url": party.logo_url,
            "name": party.name,
            "type": party.type,
            "website": party.website,
        }
        if novel:
            fields["reputation"] = "TRUSTED_SINCE_2026"
        shown.append(fields)
    return _encoder.encode(shown).decode()


@lru_cache(maxsize=PIECES_MAX)
def _place(place: Place | None) -> str:
    shown = {
        "address": place and place.address,
        "city": place and place.city,
        "country": place and place.country,
        "lat": number(place.lat) if place else None,
        "lon": number(place.lon) if place else None,
        "postal_code": place and place.postal_code,
        "region": place and place.region,
        "store_number": place and place.store_number,
    }
    return _encoder.encode(shown).decode()


@lru_cache(maxsize=PIECES_MAX)
def _category(kind: Category | None, confidence: Confidence | None, version: CategoryVersion) -> str:
    if kind is None:
        icon = "https://plaid-category-icons.plaid.com/PFC_OTHER.png"
        return f'"personal_finance_category":null,"personal_finance_category_icon_url":"{icon}"'
    newer = version == "v2"
    primary = kind.primary_v2 if newer else kind.primary
    detailed = kind.detailed_v2 if newer else kind.detailed
    return (
        f'"personal_finance_category":{{"confidence_level":{_ascii(confidence)},"detailed":"{detailed}",'
        f'"primary":"{primary}","version":"{version}"}},'
        f'"personal_finance_category_icon_url":"https://plaid-category-icons.plaid.com/PFC_{primary}.png"'
    )


def _meta(meta: PaymentMeta) -> str:
    return _NO_META if meta == _EMPTY_META else _encoder.encode(meta).decode()


_EMPTY_META = PaymentMeta()
_NO_META = _encoder.encode(_EMPTY_META).decode()


def _novelties(row: Transaction) -> tuple[str, str]:
    # Fields and values that no published schema has yet; what Plaid adds arrives without a warning.
    rng = derive(row.novelty, "novelty")
    carbon = amount_text(Decimal(rng.randrange(1, 900_000)).scaleb(-4))
    top = f'"sustainability":{{"carbon_kg":{carbon},"method":"MODEL_{rng.randrange(9)}","sources":[1,null]}},'
    return top, row.payment_channel if rng.random() < 0.5 else "agentic checkout"
