"""The ground truth: what a perfect reader of the feed must hold in the end.

An account that is hidden for a while, and its rows, are part of it: they are there, and told again in the end.
Amounts and balances are decimal text without exponent and without trailing zeros; rows are sorted by id.
"""

import hashlib
from typing import Any

import msgspec

from sandbox.simulator.api import rendering
from sandbox.simulator.bank.bank import Account, Item
from sandbox.simulator.bank.transactions import CategoryVersion, Transaction, amount_text


def truth_of(item: Item, *, version: CategoryVersion) -> dict[str, Any]:
    """Give one Item's final transactions and accounts as plain values."""
    accounts = sorted(item.accounts.values(), key=lambda account: account.account_id)
    rows = _rows(item)
    return {
        "item_id": item.item_id,
        "user": item.user,
        "institution_id": item.institution.institution_id,
        "status": item.phase,
        "error_code": item.error_code,
        "changes": len(item.log),
        "accounts": [account_truth(account) for account in accounts if account.shown],
        "transactions": [transaction_truth(row, version=version) for row in rows],
    }


def account_truth(account: Account) -> dict[str, Any]:
    """Give one account as plain values; `opening` is what it held before the first row that is told."""
    plan = account.plan
    return {
        "account_id": account.account_id,
        "name": plan.name,
        "official_name": plan.official_name,
        "mask": account.mask,
        "type": plan.type,
        "subtype": plan.subtype,
        "iso_currency_code": plan.currency.iso_code,
        "unofficial_currency_code": plan.currency.unofficial_code,
        "current": amount_text(account.current) if plan.reports_current else None,
        "available": None if account.available is None else amount_text(account.available),
        "limit": None if plan.limit is None else amount_text(account.limit_amount),
        "opening": amount_text(account.opening),
        "has_transactions": plan.reports_transactions,
    }


def transaction_truth(row: Transaction, *, version: CategoryVersion) -> dict[str, Any]:
    """Give one transaction as plain values, those that a table of transactions has columns for."""
    kind = row.category
    newer = version == "v2"
    return {
        "transaction_id": row.transaction_id,
        "account_id": row.account_id,
        "amount": amount_text(row.amount),
        "iso_currency_code": row.currency.iso_code,
        "unofficial_currency_code": row.currency.unofficial_code,
        "date": row.date.isoformat(),
        "authorized_date": row.authorized_date.isoformat() if row.authorized_date else None,
        "datetime": row.datetime,
        "pending": row.pending,
        "pending_transaction_id": row.pending_transaction_id,
        "name": row.name,
        "original_description": row.original_description,
        "merchant_name": row.merchant.name if row.merchant else None,
        "merchant_entity_id": row.merchant.entity_id if row.merchant else None,
        "logo_url": row.merchant.logo_url if row.merchant else None,
        "category_primary": (kind.primary_v2 if newer else kind.primary) if kind else None,
        "category_detailed": (kind.detailed_v2 if newer else kind.detailed) if kind else None,
        "category_confidence": row.confidence if kind else None,
    }


def verbatim(item: Item, *, version: CategoryVersion) -> list[msgspec.Raw]:
    """Give every live transaction exactly as Plaid would send it now, sorted by id."""
    variant = rendering.Variant(original_description=True, category_version=version)
    return [msgspec.Raw(rendering.transaction(row, variant)) for row in _rows(item)]


def digest(value: object) -> str:
    """Give the SHA-256 of a value's JSON with sorted keys: one line to compare two truths by."""
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()


def _rows(item: Item) -> list[Transaction]:
    # A reader deletes what it has of a withdrawn account, so the truth has nothing of it either.
    told = (row for row in item.live.values() if not item.accounts[row.account_id].revoked)
    return sorted(told, key=lambda row: row.transaction_id)
