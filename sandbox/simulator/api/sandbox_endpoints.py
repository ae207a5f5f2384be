"""Endpoints that only Plaid's sandbox has."""

import datetime as dt
from decimal import Decimal
from typing import Any

import msgspec

from sandbox.simulator.api.calls import Call, endpoint, healthy
from sandbox.simulator.api.plaid_errors import PlaidFailure
from sandbox.simulator.bank.generators import TransactionGenerator
from sandbox.simulator.bank.transactions import Change, Transaction
from sandbox.simulator.control import scripted_data
from sandbox.simulator.simulated_plaid import DAYS_REQUESTED_DEFAULT

CREATED_AT_ONCE_MAX = 10
"""Source: Plaid API, /sandbox/transactions/create: at most ten, dated within 14 days."""

CREATED_DAYS_MAX = 14


def _sandbox_public_token_create(call: Call) -> dict[str, Any]:
    options = call.body.get("options") or {}
    dates = options.get("transactions") or {}
    days = DAYS_REQUESTED_DEFAULT
    if "start_date" in dates:
        days = max(1, (call.world.clock.now().date() - dt.date.fromisoformat(dates["start_date"])).days)
    user = options.get("override_username") or "user_good"
    item = call.world.create_item(
        user,
        custom=options.get("override_password") if user == "user_custom" else None,
        institution_id=call.body["institution_id"],
        days=days,
        webhook_url=options.get("webhook"),
        products=tuple(call.body["initial_products"]),
        ready=False,
    )
    return {"public_token": call.world.public_token(item)}


def _sandbox_item_fire_webhook(call: Call) -> dict[str, Any]:
    code = call.body["webhook_code"]
    kind = call.body.get("webhook_type") or _FIRED_AS.get(code, "TRANSACTIONS")
    item = call.linked
    if item.webhook_url is None:
        raise PlaidFailure("SANDBOX_WEBHOOK_INVALID", "webhook was not configured for this item")
    if code == "SYNC_UPDATES_AVAILABLE":
        fired = call.world.notifier.notify_updates(item)
    else:
        fired = call.world.notifier.notify(item, kind, code, _extra(call, code))
    return {"webhook_fired": fired}


def _extra(call: Call, code: str) -> dict[str, object]:
    item = call.linked
    some_account = next(iter(item.accounts))
    if code == "USER_ACCOUNT_REVOKED":
        return {"account_id": some_account}
    if code == "PENDING_DISCONNECT":
        return {"reason": "INSTITUTION_MIGRATION"}
    if code == "RECURRING_TRANSACTIONS_UPDATE":
        return {"account_ids": [held.account_id for held in item.transaction_accounts]}
    if code == "DEFAULT_UPDATE":
        new = (call.body.get("options") or {}).get("new_transactions", 1)
        return {"new_transactions": new, "error": None}
    return {} if code == "LOGIN_REPAIRED" else {"error": None}


def _sandbox_item_reset_login(call: Call) -> dict[str, Any]:
    call.world.break_item(call.linked, "ITEM_LOGIN_REQUIRED")
    return {"reset_login": True}


def _sandbox_transactions_create(call: Call) -> dict[str, Any]:
    item = healthy(call)
    world = call.world
    asked = call.body["transactions"]
    if not 1 <= len(asked) <= CREATED_AT_ONCE_MAX:
        raise PlaidFailure("INVALID_FIELD", "transactions must hold between 1 and 10 transactions")
    world.apply_update(item, lambda drawing: [Change("added", _dictated(drawing, wish)) for wish in asked])
    return {}


def _dictated(drawing: TransactionGenerator, wish: dict[str, Any]) -> Transaction:
    today = drawing.now.date()
    transacted, posted = (dt.date.fromisoformat(wish[name]) for name in ("date_transacted", "date_posted"))
    if any(abs((day - today).days) > CREATED_DAYS_MAX for day in (transacted, posted)):
        raise PlaidFailure("INVALID_FIELD", "dates must be within 14 days of today")
    accounts = [held for held in drawing.accounts if held.plan.type == "depository"]
    if "account_id" in wish:
        accounts = [held for held in accounts if held.account_id == wish["account_id"]]
    if not accounts:
        raise PlaidFailure("INVALID_ACCOUNT_ID")
    currency = accounts[0].currency
    if wish.get("iso_currency_code") not in (None, currency.iso_code):
        raise PlaidFailure("INVALID_FIELD", f"iso_currency_code must be that of the account, {currency.iso_code}")
    pending = posted > today
    row = scripted_data.scripted_transaction(
        drawing,
        accounts[0],
        amount=Decimal(wish["amount"]),
        description=wish["description"],
        day=transacted if pending else posted,
        pending=pending,
    )
    return msgspec.structs.replace(row, authorized_date=transacted)


_FIRED_AS = {
    "NEW_ACCOUNTS_AVAILABLE": "ITEM",
    "USER_PERMISSION_REVOKED": "ITEM",
    "USER_ACCOUNT_REVOKED": "ITEM",
    "PENDING_DISCONNECT": "ITEM",
    "LOGIN_REPAIRED": "ITEM",
    "ERROR": "ITEM",
    "SMS_MICRODEPOSITS_VERIFICATION": "AUTH",
    "AUTHORIZATION_GRANTED": "AUTH",
}

ENDPOINTS = {
    "/sandbox/public_token/create": endpoint(
        "/sandbox/public_token/create", _sandbox_public_token_create, needs_item=False
    ),
    "/sandbox/item/fire_webhook": endpoint("/sandbox/item/fire_webhook", _sandbox_item_fire_webhook),
    "/sandbox/item/reset_login": endpoint("/sandbox/item/reset_login", _sandbox_item_reset_login),
    "/sandbox/transactions/create": endpoint("/sandbox/transactions/create", _sandbox_transactions_create),
}
