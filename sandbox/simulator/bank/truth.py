"""Return the ground truth: the final state of a correct reader of the feed.

Hidden accounts and their rows are included, because they return. Amounts and balances are decimal text without
exponent and without trailing zeros; rows are sorted by id.
"""

import hashlib
from typing import Any

import msgspec

from sandbox.simulator.api import rendering
from sandbox.simulator.bank.bank import Account, Item
from sandbox.simulator.bank.transactions import CategoryVersion, Transaction, amount_text


def truth_of(item: Item, *, version: CategoryVersion) -> dict[str, Any]:
    """Return an Item's final transactions and accounts as plain values."""
    accounts = sorted(item.accounts.values(), key=lambda account: account.account_id)
    return {
        "item_id": item.item_id,
        "user": item.user,
        "institution_id": item.institution.institution_id,
        "status": item.phase,
        "error_code": item.error_code,
        "changes": len(item.log),
        "accounts": [account_truth(account) for account in accounts if account.is_open],
        "transactions": [transaction_truth(row, version=version) for row in _rows(item)],
    }


def account_truth(account: Account) -> dict[str, Any]:
    """Return an account as plain values; `opening` is its balance before the first listed row."""
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
    """Return the columns of a transaction as plain values."""
    merchant = row.merchant
    primary, detailed = row.category.names(version) if row.category else (None, None)
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
        "merchant_name": merchant and merchant.name,
        "merchant_entity_id": merchant and merchant.entity_id,
        "logo_url": merchant and merchant.logo_url,
        "category_primary": primary,
        "category_detailed": detailed,
        "category_confidence": row.confidence if row.category else None,
    }


def verbatim(item: Item, *, version: CategoryVersion) -> list[msgspec.Raw]:
    """Return every live transaction exactly as Plaid would send it now, sorted by id."""
    variant = rendering.Variant(original_description=True, category_version=version)
    return [msgspec.Raw(rendering.transaction(row, variant)) for row in _rows(item)]


def digest(value: object) -> str:
    """Return the SHA-256 of a value's JSON with sorted keys, to compare two truths."""
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()


def _rows(item: Item) -> list[Transaction]:
    # A reader deletes the rows of a revoked account.
    rows = (row for row in item.live.values() if not item.accounts[row.account_id].revoked)
    return sorted(rows, key=lambda row: row.transaction_id)
