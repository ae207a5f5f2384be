"""Create transactions, updates and custom users from scripts instead of the seed."""

import datetime as dt
import json
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

import msgspec

from sandbox.simulator.api.plaid_errors import PlaidFailure
from sandbox.simulator.bank.bank import Account
from sandbox.simulator.bank.generators import TransactionGenerator
from sandbox.simulator.bank.institutions import CURRENCIES, AccountPlan, Institution
from sandbox.simulator.bank.merchants import category
from sandbox.simulator.bank.patterns import Movement
from sandbox.simulator.bank.transactions import Change, ChangeKind, Currency, Merchant, Transaction

CHANGES_MAX = 10_000
"""Changes of one scripted update."""

OVERRIDES_MAX = 10
"""Source: Plaid documentation, Custom Sandbox users: at most ten accounts."""


class ScriptedChange(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One change: `added` needs an amount, the others the id of a live row; an absent field keeps its value.

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


class ScriptedUpdate(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`POST /simulator/changes`: one update of one Item, exactly these changes in this order."""

    item_id: str
    changes: Annotated[list[ScriptedChange], msgspec.Meta(min_length=1, max_length=CHANGES_MAX)]


def scripted_transaction(
    generator: TransactionGenerator, account: Account, *, amount: Decimal, description: str, day: dt.date, pending: bool
) -> Transaction:
    """Create a transaction with only these values."""
    movement = Movement(
        amount=amount,
        name=description,
        description=description,
        category=category("GENERAL_MERCHANDISE_OTHER_GENERAL_MERCHANDISE"),
        channel="other",
        code=None,
    )
    row = generator.transaction(account, movement, day, pending=pending)
    return msgspec.structs.replace(
        row, authorized_date=day, datetime=None, authorized_datetime=None, account_owner=None, novelty=0
    )


def scripted_changes(generator: TransactionGenerator, scripts: Sequence[ScriptedChange]) -> list[Change]:
    """Create the changes of an update. Raises: ValueError, where a script names something that does not exist."""
    live = dict(generator.item.live)
    changes = []
    for script in scripts:
        change = _change(generator, script, live)
        if change.kind == "removed":
            del live[change.transaction.transaction_id]
        else:
            live[change.transaction.transaction_id] = change.transaction
        changes.append(change)
    return changes


def custom_user(text: str, institution: Institution) -> Institution:
    """Return the institution with the accounts of a custom user's `override_password`.

    Raises: PlaidFailure (INVALID_FIELD). Source: Plaid documentation, Custom Sandbox users.
    """
    plans = []
    for number, account in enumerate(_overrides(text), 1):
        meta = account.get("meta") or {}
        currency = account.get("currency") or "USD"
        plans.append(
            AccountPlan(
                name=meta.get("name") or f"Custom Account {number}",
                official_name=meta.get("official_name"),
                type=account.get("type", "depository"),
                subtype=account.get("subtype", "checking"),
                currency=CURRENCIES.get(currency) or Currency(currency, None, 2),
                usual_balance=0,
                limit=int(meta["limit"]) if meta.get("limit") is not None else None,
                reports_available=not account.get("has_null_available_balance", False),
            )
        )
    return institution._replace(plans=tuple(plans))


def custom_history(generator: TransactionGenerator, text: str) -> list[Change]:
    """Set a custom user's balances and create the transactions of its accounts, oldest first."""
    rows = []
    for account, override in zip(generator.item.accounts.values(), _overrides(text), strict=True):
        account.opening = Decimal(override.get("starting_balance") or 0)
        rows += [custom_transaction(generator, account, row) for row in override.get("transactions") or []]
    return [Change("added", row) for row in sorted(rows, key=lambda row: row.date)]


def custom_transaction(generator: TransactionGenerator, account: Account, row: dict[str, Any]) -> Transaction:
    """Create a transaction from Plaid's JSON of a custom one; it is pending where its date of posting is in the future.

    Source: Plaid API, /sandbox/transactions/create, transactions.
    """
    transacted, posted = (dt.date.fromisoformat(row[name]) for name in ("date_transacted", "date_posted"))
    pending = posted > generator.now.date()
    created = scripted_transaction(
        generator,
        account,
        amount=Decimal(row["amount"]),
        description=row["description"],
        day=transacted if pending else posted,
        pending=pending,
    )
    return msgspec.structs.replace(created, authorized_date=transacted)


def _change(generator: TransactionGenerator, script: ScriptedChange, live: dict[str, Transaction]) -> Change:
    if script.kind == "added":
        return Change("added", _with_values(generator, script, _new_transaction(generator, script)))
    row = live.get(script.transaction_id or "")
    if row is None:
        raise ValueError(f"no live transaction {script.transaction_id!r} to be {script.kind}")
    if script.kind == "removed":
        return Change("removed", row)
    if script.pending not in (None, row.pending):
        raise ValueError("a pending row does not change into a posted one: it is removed, and the posted one added")
    return Change("modified", msgspec.structs.replace(_with_values(generator, script, row), version=row.version + 1))


def _new_transaction(generator: TransactionGenerator, script: ScriptedChange) -> Transaction:
    if script.amount is None:
        raise ValueError("an added transaction needs an amount")
    accounts = {account.account_id: account for account in generator.accounts}
    account = accounts.get(script.account_id) if script.account_id else generator.accounts[0]
    if account is None:
        raise ValueError(f"the Item has no account {script.account_id!r} with transactions")
    row = scripted_transaction(
        generator,
        account,
        amount=_amount(script.amount),
        description=script.name or script.original_description or script.merchant or "Dictated",
        day=script.date or generator.now.date(),
        pending=bool(script.pending),
    )
    return msgspec.structs.replace(row, transaction_id=script.transaction_id or row.transaction_id)


_PLAIN_FIELDS = (
    "date",
    "authorized_date",
    "name",
    "original_description",
    "pending_transaction_id",
    "payment_channel",
    "check_number",
)


def _with_values(generator: TransactionGenerator, script: ScriptedChange, row: Transaction) -> Transaction:
    values: dict[str, Any] = {}
    if script.amount is not None:
        values["amount"] = _amount(script.amount)
    if script.merchant is not None:
        merchant = _merchant(generator, script.merchant)
        values |= {"merchant": merchant, "counterparties": merchant.counterparties}
        values |= {"category": merchant.category, "payment_channel": merchant.channel}
    if script.category is not None:
        values |= {"category": category(script.category), "confidence": "VERY_HIGH"}
    values |= {name: value for name in _PLAIN_FIELDS if (value := getattr(script, name)) is not None}
    return msgspec.structs.replace(row, **values)


def _merchant(generator: TransactionGenerator, name: str) -> Merchant:
    for merchant in generator.merchants:
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
