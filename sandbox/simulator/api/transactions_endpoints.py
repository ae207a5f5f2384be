"""Endpoints of transactions and accounts."""

import datetime as dt
from collections.abc import Sequence
from typing import Any

import msgspec

from sandbox.simulator.api import rendering
from sandbox.simulator.api.calls import Call, endpoint, healthy
from sandbox.simulator.api.plaid_errors import PlaidFailure
from sandbox.simulator.bank import sync
from sandbox.simulator.bank.bank import Account, Item, Phase


def _transactions_sync(call: Call) -> bytes:
    item = healthy(call)
    world = call.world
    options = call.body.get("options") or {}
    item.synced_once = True
    variant = rendering.Variant(
        original_description=bool(options.get("include_original_description")),
        category_version=options.get("personal_finance_category_version") or world.options.category_version,
    )
    account_id = options.get("account_id") or ""
    if account_id and account_id not in item.accounts:
        raise PlaidFailure("INVALID_ACCOUNT_ID")
    count = call.body.get("count") or sync.COUNT_DEFAULT
    if not 1 <= count <= sync.COUNT_MAX:
        raise PlaidFailure("INVALID_FIELD", "count must be between 1 and 500")
    if item.phase == "NOT_READY":
        return _not_ready(call, variant)
    cursor = sync.position(item, call.body.get("cursor") or "", account_id=account_id)
    phase = sync.phase_at(item, cursor)
    if phase == "NOT_READY":
        return _not_ready(call, variant)
    page = world.pager.page(item, cursor, count)
    accounts = [held for held in item.accounts.values() if held.has_rows and held.told]
    if account_id:
        accounts = [held for held in accounts if held.account_id == account_id]
    return _sync_body(call, page, variant, accounts=accounts, phase=phase)


def _not_ready(call: Call, variant: rendering.Variant) -> bytes:
    empty = sync.Page(number=1, next_cursor="", has_more=False)
    return _sync_body(call, empty, variant, accounts=[], phase="NOT_READY")


def _sync_body(
    call: Call, page: sync.Page, variant: rendering.Variant, *, accounts: Sequence[Account], phase: Phase
) -> bytes:
    kept = call.world.kept
    removed = b",".join(rendering.removal(change.transaction) for change in page.removed)
    return b"".join(
        (
            b'{"accounts":',
            msgspec.json.encode(_shown(call, accounts)),
            b',"added":',
            kept.array(page.added, variant),
            b',"has_more":',
            b"true" if page.has_more else b"false",
            b',"modified":',
            kept.array(page.modified, variant),
            b',"next_cursor":"',
            page.next_cursor.encode(),
            b'","removed":[',
            removed,
            b'],"request_id":"',
            call.world.request_id().encode(),
            b'","transactions_update_status":"',
            phase.encode(),
            b'"}',
        )
    )


def _transactions_refresh(call: Call) -> dict[str, Any]:
    item = healthy(call)
    if item.institution.dates_balances:
        raise PlaidFailure("PRODUCTS_NOT_SUPPORTED")
    call.world.refresh(item)
    return {}


def _accounts_get(call: Call) -> dict[str, Any]:
    item = healthy(call)
    return {"accounts": _shown(call, _asked_accounts(call, item)), "item": rendering.item(item, consent=False)}


def _accounts_balance_get(call: Call) -> dict[str, Any]:
    """Answer as if the bank had been asked just now.

    Source: Plaid API, /accounts/balance/get, min_last_updated_datetime.
    """
    item = healthy(call)
    accounts = _asked_accounts(call, item)
    if item.institution.dates_balances:
        oldest = (call.body.get("options") or {}).get("min_last_updated_datetime")
        if oldest is None and any(held.plan.type == "credit" for held in accounts):
            raise PlaidFailure("INVALID_FIELD", "min_last_updated_datetime is required for this institution")
        updated_at = item.last_successful_update
        if oldest is not None and updated_at is not None and updated_at < dt.datetime.fromisoformat(oldest):
            raise PlaidFailure("LAST_UPDATED_DATETIME_OUT_OF_RANGE")
    return {"accounts": _shown(call, accounts), "item": rendering.item(item, consent=False)}


def _asked_accounts(call: Call, item: Item) -> list[Account]:
    asked = (call.body.get("options") or {}).get("account_ids")
    accounts = [held for held in item.accounts.values() if held.told]
    if asked is None:
        return accounts
    accounts = [held for held in accounts if held.account_id in asked]
    if len(accounts) != len(set(asked)):
        raise PlaidFailure("INVALID_ACCOUNT_ID")
    return accounts


def _shown(call: Call, accounts: Sequence[Account]) -> list[dict[str, Any]]:
    item = call.linked
    updated_at = item.last_successful_update if item.institution.dates_balances else None
    novel = call.world.options.novelty > 0
    return [rendering.account(held, novel=novel, updated_at=updated_at) for held in accounts]


ENDPOINTS = {
    "/transactions/sync": endpoint("/transactions/sync", _transactions_sync),
    "/transactions/refresh": endpoint("/transactions/refresh", _transactions_refresh),
    "/accounts/get": endpoint("/accounts/get", _accounts_get),
    "/accounts/balance/get": endpoint("/accounts/balance/get", _accounts_balance_get),
}
