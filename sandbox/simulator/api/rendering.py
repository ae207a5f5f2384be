"""Render transactions, accounts and Items as Plaid's JSON.

A transaction is about 1.4 kB, of which all but 300 bytes belong to its merchant, place and category. Those pieces
are cached by identity and a transaction by id and version, so a page of 500 is a join of bytes.
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
    NO_META,
    Category,
    CategoryVersion,
    Change,
    Confidence,
    Counterparty,
    Merchant,
    Place,
    Transaction,
    amount_text,
)

PIECES_MAX = 65_536
"""Cached pieces of each sort; the catalogue has a few thousand combinations."""

CACHED_MAX = 1_000_000
"""Cached transactions; at 1.4 kB each this is 1.4 GB, then the oldest half is dropped."""


class Variant(NamedTuple):
    """The form of transactions that a request selects."""

    original_description: bool
    category_version: CategoryVersion


class RenderCache:
    """Cache rendered transactions by variant, id and version."""

    def __init__(self) -> None:
        self._bodies: dict[Variant, dict[tuple[str, int], bytes]] = {}

    def body(self, row: Transaction, variant: Variant) -> bytes:
        """Return a transaction's JSON, rendered at the first request."""
        bodies = self._bodies.setdefault(variant, {})
        key = (row.transaction_id, row.version)
        body = bodies.get(key)
        if body is None:
            if len(bodies) >= CACHED_MAX:
                for old in list(bodies)[: CACHED_MAX // 2]:
                    del bodies[old]
            body = bodies[key] = transaction(row, variant)
        return body

    def array(self, changes: list[Change], variant: Variant) -> bytes:
        """Return the JSON array of a page's transactions."""
        bodies = self._bodies.setdefault(variant, {})
        try:
            rows = [bodies[c.transaction.transaction_id, c.transaction.version] for c in changes]
        except KeyError:
            rows = [self.body(c.transaction, variant) for c in changes]
        return b"[" + b",".join(rows) + b"]"


def transaction(row: Transaction, variant: Variant) -> bytes:
    """Render a transaction with every field that Plaid sends, in its order."""
    iso, unofficial = row.currency.iso_code, row.currency.unofficial_code
    novel_top, channel = _novelties(row) if row.novelty else ("", row.payment_channel)
    description = text(row.original_description) if variant.original_description else "null"
    meta = _NO_META if row.payment_meta == NO_META else _encoder.encode(row.payment_meta).decode()
    head, tail = _merchant(row.merchant)
    return (
        f'{{"account_id":"{row.account_id}","account_owner":{text(row.account_owner)},'
        f'"amount":{amount_text(row.amount)},"authorized_date":{_day(row.authorized_date)},'
        f'"authorized_datetime":{_ascii(row.authorized_datetime)},"category":null,"category_id":null,'
        f'"check_number":{_ascii(row.check_number)},'
        f'"counterparties":{_parties(row.counterparties, row.confidence, row.novelty != 0)},'
        f'"date":{_day(row.date)},"datetime":{_ascii(row.datetime)},"iso_currency_code":{_ascii(iso)},'
        f'"location":{_place(row.place)},{head},"name":{text(row.name)},"original_description":{description},'
        f'"payment_channel":"{channel}","payment_meta":{meta},'
        f'"pending":{"true" if row.pending else "false"},'
        f'"pending_transaction_id":{_ascii(row.pending_transaction_id)},'
        f"{_category(row.category, row.confidence, variant.category_version)},{novel_top}"
        f'"transaction_code":{_ascii(row.transaction_code)},"transaction_id":"{row.transaction_id}",'
        f'"transaction_type":"{_TYPES.get(row.payment_channel, "special")}",'
        f'"unofficial_currency_code":{_ascii(unofficial)},{tail}}}'
    ).encode()


def removal(row: Transaction) -> bytes:
    """Render a removed transaction: two ids and no values."""
    return f'{{"account_id":"{row.account_id}","transaction_id":"{row.transaction_id}"}}'.encode()


def account(row: Account, *, novel: bool, updated_at: dt.datetime | None = None) -> dict[str, Any]:
    """Return an account as `/accounts/get` and `/transactions/sync` do; `updated_at`: where the bank dates balances."""
    plan = row.plan
    body: dict[str, Any] = {
        "account_id": row.account_id,
        "balances": {
            "available": number(row.available),
            "current": number(row.current) if plan.reports_current else None,
            "iso_currency_code": plan.currency.iso_code,
            "limit": number(row.limit_amount) if plan.limit is not None else None,
            "unofficial_currency_code": plan.currency.unofficial_code,
        },
        "holder_category": "personal",
        "mask": row.mask,
        "name": plan.name,
        "official_name": plan.official_name,
        "persistent_account_id": row.persistent_id,
        "subtype": plan.subtype,
        "type": plan.type,
    }
    if plan.subtype not in ("checking", "savings"):
        del body["persistent_account_id"]
    if updated_at is not None:
        body["balances"]["last_updated_datetime"] = moment(updated_at)
    if novel:
        body["stewardship"] = {"tier": "TIER_GREEN", "since": "2026-02-01"}
    return body


def item(row: Item, *, consent: bool) -> dict[str, Any]:
    """Return an Item; `consent` adds the fields of `/item/get`."""
    error = item_error(row.error_code, reason=row.error_reason) if row.error_code else None
    body: dict[str, Any] = {
        "available_products": ["balance", "identity", "recurring_transactions"],
        "billed_products": list(row.products),
        "consent_expiration_time": None,
        "error": error,
        "institution_id": row.institution.institution_id,
        "institution_name": row.institution.name,
        "item_id": row.item_id,
        "products": list(row.products),
        "update_type": "background",
        "webhook": row.webhook_url,
    }
    if consent:
        body["auth_method"] = "INSTANT_AUTH"
        body["consented_data_scopes"] = ["account_balance_info", "transactions"]
        body["consented_use_cases"] = []
        body["consented_products"] = list(row.products)
        body["created_at"] = moment(row.created_at)
    return body


def status(row: Item) -> dict[str, Any]:
    """Return the `status` of `/item/get`: the last updates and the last webhook."""
    webhook = None
    if row.last_webhook_at is not None:
        webhook = {"code_sent": row.last_webhook_code, "sent_at": moment(row.last_webhook_at)}
    return {
        "investments": None,
        "last_webhook": webhook,
        "transactions": {
            "last_failed_update": moment(row.last_failed_update),
            "last_successful_update": moment(row.last_successful_update),
        },
    }


def number(amount: Decimal | None) -> msgspec.Raw | None:
    """Encode an exact amount as a JSON number, without a float."""
    return None if amount is None else msgspec.Raw(amount_text(amount).encode())


def moment(time: dt.datetime | None) -> str | None:
    """Format a time as Plaid does: UTC, milliseconds, Z."""
    return None if time is None else time.astimezone(dt.UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def text(value: str | None) -> str:
    """Encode a string as JSON."""
    return "null" if value is None else _encoder.encode(value).decode()


_encoder = msgspec.json.Encoder()
_NO_META = _encoder.encode(NO_META).decode()
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
    novelty = {"reputation": "TRUSTED_SINCE_2026"} if novel else {}
    fields = [
        {
            "confidence_level": party.confidence or confidence,
            "entity_id": party.entity_id,
            "logo_url": party.logo_url,
            "name": party.name,
            "type": party.type,
            "website": party.website,
            **novelty,
        }
        for party in parties
    ]
    return _encoder.encode(fields).decode()


@lru_cache(maxsize=PIECES_MAX)
def _place(place: Place | None) -> str:
    fields = {
        "address": place and place.address,
        "city": place and place.city,
        "country": place and place.country,
        "lat": number(place.lat) if place else None,
        "lon": number(place.lon) if place else None,
        "postal_code": place and place.postal_code,
        "region": place and place.region,
        "store_number": place and place.store_number,
    }
    return _encoder.encode(fields).decode()


@lru_cache(maxsize=PIECES_MAX)
def _category(kind: Category | None, confidence: Confidence | None, version: CategoryVersion) -> str:
    if kind is None:
        icon = "https://plaid-category-icons.plaid.com/PFC_OTHER.png"
        return f'"personal_finance_category":null,"personal_finance_category_icon_url":"{icon}"'
    primary, detailed = kind.names(version)
    return (
        f'"personal_finance_category":{{"confidence_level":{_ascii(confidence)},"detailed":"{detailed}",'
        f'"primary":"{primary}","version":"{version}"}},'
        f'"personal_finance_category_icon_url":"https://plaid-category-icons.plaid.com/PFC_{primary}.png"'
    )


def _novelties(row: Transaction) -> tuple[str, str]:
    # Fields and values that no published schema has yet, as Plaid adds them without a notice.
    rng = derive(row.novelty, "novelty")
    carbon = amount_text(Decimal(rng.randrange(1, 900_000)).scaleb(-4))
    top = f'"sustainability":{{"carbon_kg":{carbon},"method":"MODEL_{rng.randrange(9)}","sources":[1,null]}},'
    return top, row.payment_channel if rng.random() < 0.5 else "agentic checkout"
