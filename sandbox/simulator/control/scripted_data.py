"""Transactions, updates and users that somebody dictates, word by word, instead of the seed."""

import datetime as dt
import json
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

import msgspec

from sandbox.simulator.api.plaid_errors import PlaidFailure
from sandbox.simulator.bank.bank import Account
from sandbox.simulator.bank.generators import TransactionGenerator
from sandbox.simulator.bank.institutions import CURRENCIES, AccountPlan, Institution
from sandbox.simulator.bank.merchants import category
from sandbox.simulator.bank.patterns import NO_META, Sketch
from sandbox.simulator.bank.transactions import Change, ChangeKind, Currency, Merchant, Transaction

CHANGES_MAX = 10_000
"""Changes of one dictated update."""

OVERRIDES_MAX = 10
"""Source: Plaid documentation, Custom Sandbox users: at most ten accounts."""


class ScriptedChange(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One change: `added` wants an amount, the others the id of a live row; what is absent stays as it is.

    Units: `amount` as decimal text, positive where money leaves the account.
    """

    kind: ChangeKind = "added"
    transaction_id: str | None = None
    account_id: str | None = None
    amount: str | None = None
    date: dt.date | None = None
    authorized_date: dt.date | None = None
    name: str | None = None
    original_description: str | None = None
    merchant: str | None = None
    category: str | None = None
    pending: bool | None = None
    pending_transaction_id: str | None = None
    payment_channel: str | None = None
    check_number: str | None = None


class Update(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /simulator/changes`: one update of one Item, exactly these changes in this order."""

    item_id: str
    changes: Annotated[list[ScriptedChange], msgspec.Meta(min_length=1, max_length=CHANGES_MAX)]


def scripted_transaction(
    drawing: TransactionGenerator, account: Account, *, amount: Decimal, description: str, day: dt.date, pending: bool
) -> Transaction:
    """Make a transaction of which only this much is known."""
    sketch = Sketch(
        amount=amount,
        name=description,
        raw=description,
        category=category("GENERAL_MERCHANDISE_OTHER_GENERAL_MERCHANDISE"),
        channel="other",
        code=None,
        meta=NO_META,
    )
    row = drawing.transaction(account, sketch, day, pending=pending)
    return msgspec.structs.replace(
        row, authorized_date=day, datetime=None, authorized_datetime=None, account_owner=None, novelty=0
    )


def scripted_changes(drawing: TransactionGenerator, wishes: Sequence[ScriptedChange]) -> list[Change]:
    """Make the changes of an update. Raises: ValueError, where a wish names what there is not."""
    live = dict(drawing.item.live)
    changes = []
    for wish in wishes:
        change = _change(drawing, wish, live)
        if change.kind == "removed":
            del live[change.transaction.transaction_id]
        else:
            live[change.transaction.transaction_id] = change.transaction
        changes.append(change)
    return changes


def custom_user(text: str, institution: Institution) -> Institution:
    """Read the accounts of a custom user from `override_password`, as an institution with those accounts.

    Raises: PlaidFailure (INVALID_FIELD). Source: Plaid documentation, Custom Sandbox users.
    """
    accounts = _overrides(text)
    plans = []
    for number, account in enumerate(accounts):
        meta = account.get("meta") or {}
        plans.append(
            AccountPlan(
                name=meta.get("name") or f"Custom Account {number + 1}",
                official_name=meta.get("official_name"),
                type=account.get("type", "depository"),
                subtype=account.get("subtype", "checking"),
                currency=_currency(account.get("currency") or "USD"),
                usual_balance=0,
                limit=int(meta["limit"]) if meta.get("limit") is not None else None,
                reports_available=not account.get("has_null_available_balance", False),
            )
        )
    return institution._replace(plans=tuple(plans))


def custom_history(drawing: TransactionGenerator, text: str) -> list[Change]:
    """Set a custom user's balances and make the transactions of its accounts, oldest first.

    A transaction whose date of posting lies in the future is pending.
    """
    today = drawing.now.date()
    rows = []
    for account, told in zip(drawing.item.accounts.values(), _overrides(text), strict=True):
        account.opening = Decimal(told.get("starting_balance") or 0)
        for wish in told.get("transactions") or []:
            transacted, posted = (dt.date.fromisoformat(wish[name]) for name in ("date_transacted", "date_posted"))
            pending = posted > today
            row = scripted_transaction(
                drawing,
                account,
                amount=Decimal(wish["amount"]),
                description=wish["description"],
                day=transacted if pending else posted,
                pending=pending,
            )
            rows.append(msgspec.structs.replace(row, authorized_date=transacted))
    return [Change("added", row) for row in sorted(rows, key=lambda row: row.date)]


def _change(drawing: TransactionGenerator, wish: ScriptedChange, live: dict[str, Transaction]) -> Change:
    if wish.kind == "added":
        return Change("added", _worded(drawing, wish, _new(drawing, wish)))
    row = live.get(wish.transaction_id or "")
    if row is None:
        raise ValueError(f"no live transaction {wish.transaction_id!r} to be {wish.kind}")
    if wish.kind == "removed":
        return Change("removed", row)
    if wish.pending not in (None, row.pending):
        raise ValueError("a pending row does not change into a posted one: it is removed, and the posted one added")
    return Change("modified", msgspec.structs.replace(_worded(drawing, wish, row), version=row.version + 1))


def _new(drawing: TransactionGenerator, wish: ScriptedChange) -> Transaction:
    if wish.amount is None:
        raise ValueError("an added transaction needs an amount")
    accounts = {account.account_id: account for account in drawing.accounts}
    account = accounts.get(wish.account_id) if wish.account_id else drawing.accounts[0]
    if account is None:
        raise ValueError(f"the Item has no account {wish.account_id!r} with transactions")
    row = scripted_transaction(
        drawing,
        account,
        amount=_amount(wish.amount),
        description=wish.name or wish.original_description or wish.merchant or "Dictated",
        day=wish.date or drawing.now.date(),
        pending=bool(wish.pending),
    )
    return msgspec.structs.replace(row, transaction_id=wish.transaction_id or row.transaction_id)


def _worded(drawing: TransactionGenerator, wish: ScriptedChange, row: Transaction) -> Transaction:
    said: dict[str, Callable[[Any], dict[str, Any]]] = {
        "amount": lambda told: {"amount": _amount(told)},
        "merchant": lambda told: _of(_merchant(drawing, told)),
        "category": lambda told: {"category": category(told), "confidence": "VERY_HIGH"},
    }
    plain = (
        "date",
        "authorized_date",
        "name",
        "original_description",
        "pending_transaction_id",
        "payment_channel",
        "check_number",
    )
    for name in ("amount", "merchant", "category", *plain):
        told = getattr(wish, name)
        if told is not None:
            words = said[name](told) if name in said else {name: told}
            row = msgspec.structs.replace(row, **words)
    return row


def _of(merchant: Merchant) -> dict[str, Any]:
    return {
        "merchant": merchant,
        "counterparties": merchant.counterparties,
        "category": merchant.category,
        "payment_channel": merchant.channel,
    }


def _merchant(drawing: TransactionGenerator, name: str) -> Merchant:
    for merchant in drawing.around.merchants:
        if merchant.name == name:
            return merchant
    raise ValueError(f"no merchant {name!r} in the catalogue")


def _amount(text: str) -> Decimal:
    try:
        amount = Decimal(text)
    except InvalidOperation as error:
        raise ValueError(f"{text!r} is no amount") from error
    if not amount.is_finite():
        raise ValueError(f"{text!r} is no amount")
    return amount


def _overrides(text: str) -> list[dict[str, Any]]:
    try:
        accounts = json.loads(text, parse_float=Decimal)["override_accounts"]
    except (ValueError, KeyError, TypeError) as error:
        raise PlaidFailure("INVALID_FIELD", "override_password is not a custom user's configuration") from error
    if not isinstance(accounts, list) or not 1 <= len(accounts) <= OVERRIDES_MAX:
        raise PlaidFailure("INVALID_FIELD", f"override_accounts must hold between 1 and {OVERRIDES_MAX} accounts")
    return accounts


def _currency(code: str) -> Currency:
    return CURRENCIES.get(code) or Currency(code, None, 2)
