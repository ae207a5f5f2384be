"""Serve the endpoints that only Plaid's sandbox has."""

import datetime as dt
from typing import Any

from sandbox.simulator.api.calls import Call, endpoints, healthy_item
from sandbox.simulator.api.plaid_errors import PlaidFailure
from sandbox.simulator.bank.generators import TransactionGenerator
from sandbox.simulator.bank.transactions import Change, Transaction
from sandbox.simulator.control import scripted_data
from sandbox.simulator.simulated_plaid import DAYS_REQUESTED_DEFAULT

CREATED_AT_ONCE_MAX = 10
"""Source: Plaid API, /sandbox/transactions/create: at most ten, dated within 14 days."""

CREATED_DAYS_MAX = 14


def _sandbox_public_token_create(call: Call) -> dict[str, Any]:
    dates = call.options.get("transactions") or {}
    days = DAYS_REQUESTED_DEFAULT
    if "start_date" in dates:
        days = max(1, (call.plaid.clock.now().date() - dt.date.fromisoformat(dates["start_date"])).days)
    user = call.options.get("override_username") or "user_good"
    item = call.plaid.create_item(
        user,
        custom=call.options.get("override_password") if user == "user_custom" else None,
        institution_id=call.body["institution_id"],
        days=days,
        webhook_url=call.options.get("webhook"),
        products=tuple(call.body["initial_products"]),
        ready=False,
    )
    return {"public_token": call.plaid.public_token(item)}


def _sandbox_item_fire_webhook(call: Call) -> dict[str, Any]:
    code = call.body["webhook_code"]
    item = call.linked
    if item.webhook_url is None:
        raise PlaidFailure("SANDBOX_WEBHOOK_INVALID", "webhook was not configured for this item")
    if code == "SYNC_UPDATES_AVAILABLE":
        fired = call.plaid.notifier.notify_updates(item)
    else:
        webhook_type = call.body.get("webhook_type") or _WEBHOOK_TYPES.get(code, "TRANSACTIONS")
        fired = call.plaid.notifier.notify(item, webhook_type, code, _extra_fields(call, code))
    return {"webhook_fired": fired}


def _extra_fields(call: Call, code: str) -> dict[str, object]:
    item = call.linked
    if code == "USER_ACCOUNT_REVOKED":
        return {"account_id": next(iter(item.accounts))}
    if code == "PENDING_DISCONNECT":
        return {"reason": "INSTITUTION_MIGRATION"}
    if code == "RECURRING_TRANSACTIONS_UPDATE":
        return {"account_ids": [account.account_id for account in item.transaction_accounts]}
    if code == "DEFAULT_UPDATE":
        return {"new_transactions": call.options.get("new_transactions", 1), "error": None}
    return {} if code == "LOGIN_REPAIRED" else {"error": None}


def _sandbox_item_reset_login(call: Call) -> dict[str, Any]:
    call.plaid.break_item(call.linked, "ITEM_LOGIN_REQUIRED")
    return {"reset_login": True}


def _sandbox_transactions_create(call: Call) -> dict[str, Any]:
    item = healthy_item(call)
    rows = call.body["transactions"]
    if not 1 <= len(rows) <= CREATED_AT_ONCE_MAX:
        raise PlaidFailure("INVALID_FIELD", "transactions must hold between 1 and 10 transactions")
    call.plaid.apply_update(item, lambda generator: [Change("added", _transaction(generator, row)) for row in rows])
    return {}


def _transaction(generator: TransactionGenerator, row: dict[str, Any]) -> Transaction:
    today = generator.now.date()
    days = (dt.date.fromisoformat(row[name]) for name in ("date_transacted", "date_posted"))
    if any(abs((day - today).days) > CREATED_DAYS_MAX for day in days):
        raise PlaidFailure("INVALID_FIELD", "dates must be within 14 days of today")
    accounts = [account for account in generator.accounts if account.plan.type == "depository"]
    if "account_id" in row:
        accounts = [account for account in accounts if account.account_id == row["account_id"]]
    if not accounts:
        raise PlaidFailure("INVALID_ACCOUNT_ID")
    iso_code = accounts[0].plan.currency.iso_code
    if row.get("iso_currency_code") not in (None, iso_code):
        raise PlaidFailure("INVALID_FIELD", f"iso_currency_code must be that of the account, {iso_code}")
    return scripted_data.custom_transaction(generator, accounts[0], row)


_WEBHOOK_TYPES = {
    "NEW_ACCOUNTS_AVAILABLE": "ITEM",
    "USER_PERMISSION_REVOKED": "ITEM",
    "USER_ACCOUNT_REVOKED": "ITEM",
    "PENDING_DISCONNECT": "ITEM",
    "LOGIN_REPAIRED": "ITEM",
    "ERROR": "ITEM",
    "SMS_MICRODEPOSITS_VERIFICATION": "AUTH",
    "AUTHORIZATION_GRANTED": "AUTH",
}

ENDPOINTS = endpoints(
    {
        "/sandbox/public_token/create": _sandbox_public_token_create,
        "/sandbox/item/fire_webhook": _sandbox_item_fire_webhook,
        "/sandbox/item/reset_login": _sandbox_item_reset_login,
        "/sandbox/transactions/create": _sandbox_transactions_create,
    },
    without_item={"/sandbox/public_token/create"},
)
