"""Serve the endpoints of transactions and accounts."""

import datetime as dt
from collections.abc import Sequence
from typing import Any

import msgspec

from sandbox.simulator.api import rendering
from sandbox.simulator.api.calls import Call, endpoints, healthy_item
from sandbox.simulator.api.plaid_errors import PlaidFailure
from sandbox.simulator.bank import sync
from sandbox.simulator.bank.bank import Account, Item, Phase


def _transactions_sync(call: Call) -> bytes:
    item = healthy_item(call)
    item.synced_once = True
    account_id = call.options.get("account_id") or ""
    if account_id and account_id not in item.accounts:
        raise PlaidFailure("INVALID_ACCOUNT_ID")
    count = call.body.get("count") or sync.COUNT_DEFAULT
    if not 1 <= count <= sync.COUNT_MAX:
        raise PlaidFailure("INVALID_FIELD", "count must be between 1 and 500")
    phase = item.phase
    if phase != "NOT_READY":
        cursor = sync.position(item, call.body.get("cursor") or "", account_id=account_id)
        phase = sync.phase_at(item, cursor)
    if phase == "NOT_READY":
        page = sync.Page(number=1, next_cursor="", has_more=False)
        return _sync_body(call, page, accounts=[], phase=phase)
    page = call.plaid.pager.page(item, cursor, count)
    accounts = [account for account in item.accounts.values() if account.has_rows and account.is_listed]
    if account_id:
        accounts = [account for account in accounts if account.account_id == account_id]
    return _sync_body(call, page, accounts=accounts, phase=phase)


def _sync_body(call: Call, page: sync.Page, *, accounts: Sequence[Account], phase: Phase) -> bytes:
    cache = call.plaid.render_cache
    variant = rendering.Variant(
        original_description=bool(call.options.get("include_original_description")),
        category_version=call.options.get("personal_finance_category_version") or call.plaid.options.category_version,
    )
    removed = b",".join(rendering.removal(change.transaction) for change in page.removed)
    return b"".join(
        (
            b'{"accounts":',
            msgspec.json.encode(_rendered(call, accounts)),
            b',"added":',
            cache.array(page.added, variant),
            b',"has_more":',
            b"true" if page.has_more else b"false",
            b',"modified":',
            cache.array(page.modified, variant),
            b',"next_cursor":"',
            page.next_cursor.encode(),
            b'","removed":[',
            removed,
            b'],"request_id":"',
            call.plaid.request_id().encode(),
            b'","transactions_update_status":"',
            phase.encode(),
            b'"}',
        )
    )


def _transactions_refresh(call: Call) -> dict[str, Any]:
    item = healthy_item(call)
    if item.institution.dates_balances:
        raise PlaidFailure("PRODUCTS_NOT_SUPPORTED")
    call.plaid.refresh(item)
    return {}


def _accounts_get(call: Call) -> dict[str, Any]:
    item = healthy_item(call)
    accounts = _requested_accounts(call, item)
    return {"accounts": _rendered(call, accounts), "item": rendering.item(item, consent=False)}


def _accounts_balance_get(call: Call) -> dict[str, Any]:
    """Answer as if the bank had been polled just now.

    Source: Plaid API, /accounts/balance/get, min_last_updated_datetime.
    """
    item = healthy_item(call)
    accounts = _requested_accounts(call, item)
    if item.institution.dates_balances:
        oldest = call.options.get("min_last_updated_datetime")
        if oldest is None and any(account.plan.type == "credit" for account in accounts):
            raise PlaidFailure("INVALID_FIELD", "min_last_updated_datetime is required for this institution")
        updated_at = item.last_successful_update
        if oldest is not None and updated_at is not None and updated_at < dt.datetime.fromisoformat(oldest):
            raise PlaidFailure("LAST_UPDATED_DATETIME_OUT_OF_RANGE")
    return {"accounts": _rendered(call, accounts), "item": rendering.item(item, consent=False)}


def _requested_accounts(call: Call, item: Item) -> list[Account]:
    account_ids = call.options.get("account_ids")
    accounts = [account for account in item.accounts.values() if account.is_listed]
    if account_ids is None:
        return accounts
    accounts = [account for account in accounts if account.account_id in account_ids]
    if len(accounts) != len(set(account_ids)):
        raise PlaidFailure("INVALID_ACCOUNT_ID")
    return accounts


def _rendered(call: Call, accounts: Sequence[Account]) -> list[dict[str, Any]]:
    item = call.linked
    updated_at = item.last_successful_update if item.institution.dates_balances else None
    novel = call.plaid.options.novelty > 0
    return [rendering.account(account, novel=novel, updated_at=updated_at) for account in accounts]


ENDPOINTS = endpoints(
    {
        "/transactions/sync": _transactions_sync,
        "/transactions/refresh": _transactions_refresh,
        "/accounts/get": _accounts_get,
        "/accounts/balance/get": _accounts_balance_get,
    }
)
