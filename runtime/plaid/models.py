"""Plaid's answers, decoded exactly: amounts as Decimal, and every field without a name here as JSON.

Fields that Plaid adds later must survive until this code has them (Source: PLAID.md 1.3: all objects are open). A page
is first decoded by structs that refuse unknown fields, which is fast; where that fails, its transactions are decoded
one by one, and refused ones again by a tolerant struct, with the raw fields beside it.
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import NamedTuple

import msgspec
from msgspec import Raw, Struct

from runtime.plaid import repair
from runtime.plaid.decoding import decode, raw_text, repaired, unknown_fields
from runtime.plaid.repair import Repair
from schemas.errors import Quarantine
from schemas.log.records import Account, Removal, Transaction
from schemas.money import SURELY_STORABLE_CHARS, decimal_text, is_storable
from schemas.times import is_date

NOT_READY = "NOT_READY"
"""`transactions_update_status` of an Item whose history Plaid has not read yet."""
HISTORY_COMPLETE = "HISTORICAL_UPDATE_COMPLETE"
"""`transactions_update_status` of an Item whose whole history Plaid has read."""

OUTAGE_CODES = ("INSTITUTION_DOWN", "INSTITUTION_NOT_RESPONDING", "INSTITUTION_NOT_AVAILABLE")
"""`error_code` of a bank's outage (PLAID.md 1.9)."""

CLEAR_TEXT_MAX = 4096
"""Longest cursor or status, in characters. Plaid promises 256 at most for a cursor (PLAID.md 1.1)."""

ID_CHARS_MAX = 1_000
"""Longest id; Plaid's have 37 characters."""

_ABSENT = Raw()
_ODD_ESCAPES = (b"\\u0000", b"\\ud", b"\\uD")
"""Escapes that may be NUL or half of a surrogate pair; the decoder passes over them in fields that stay raw."""


class SyncPage(NamedTuple):
    """One answer of /transactions/sync. `status` is `transactions_update_status`."""

    added: list[Transaction]
    modified: list[Transaction]
    removed: list[Removal]
    accounts: list[Account]
    next_cursor: str
    has_more: bool
    status: str | None
    request_id: str | None


class AccountsAnswer(NamedTuple):
    """The answer of /accounts/get or /accounts/balance/get."""

    accounts: list[Account]
    request_id: str | None


class _Category(Struct, gc=False):
    primary: str | None = None
    detailed: str | None = None
    confidence_level: str | None = None
    version: str | None = None


class _Transaction(Struct, gc=False):
    transaction_id: str
    account_id: str
    amount: Decimal
    date: str
    pending: bool
    iso_currency_code: str | None = None
    unofficial_currency_code: str | None = None
    pending_transaction_id: str | None = None
    datetime: str | None = None
    authorized_date: str | None = None
    authorized_datetime: str | None = None
    name: str | None = None
    merchant_name: str | None = None
    merchant_entity_id: str | None = None
    original_description: str | None = None
    logo_url: str | None = None
    website: str | None = None
    personal_finance_category: _Category | None = None
    personal_finance_category_icon_url: str | None = None
    payment_channel: str | None = None
    transaction_code: str | None = None
    transaction_type: str | None = None
    merchant_category_code: str | None = None
    check_number: str | None = None
    account_owner: str | None = None
    location: Raw = _ABSENT
    counterparties: Raw = _ABSENT
    payment_meta: Raw = _ABSENT


class _StrictCategory(_Category, forbid_unknown_fields=True, gc=False):
    pass


class _StrictTransaction(_Transaction, forbid_unknown_fields=True, gc=False):
    """A transaction without fields outside Plaid's specification; those that the log lacks go into extra_json.

    Fields that Plaid sends on request only must be null here, so that they cost the fast path nothing.
    """

    personal_finance_category: _StrictCategory | None = None
    category: list[str] | None = None
    category_id: str | None = None
    business_finance_category: None = None
    running_balance: None = None
    client_customization: None = None


class _Page(Struct):
    next_cursor: str | None
    has_more: bool
    accounts: list[Raw] | None
    removed: list[Removal] | None
    transactions_update_status: str | None = None
    request_id: str | None = None


class _StrictPage(_Page, kw_only=True):
    added: list[_StrictTransaction] | None
    modified: list[_StrictTransaction] | None


class _TolerantPage(_Page, kw_only=True):
    added: list[Raw] | None
    modified: list[Raw] | None


class _Balances(Struct, gc=False):
    current: Decimal | None = None
    available: Decimal | None = None
    limit: Decimal | None = None
    iso_currency_code: str | None = None
    unofficial_currency_code: str | None = None
    last_updated_datetime: str | None = None


class _Account(Struct, gc=False):
    account_id: str
    type: str
    balances: _Balances
    persistent_account_id: str | None = None
    name: str | None = None
    official_name: str | None = None
    mask: str | None = None
    subtype: str | None = None
    holder_category: str | None = None
    verification_status: str | None = None


class _Accounts(Struct):
    accounts: list[Raw] | None
    request_id: str | None = None


def sync_page(body: bytes) -> SyncPage:
    """Decode an answer of /transactions/sync. Raises: Retry, Quarantine, as `decode`."""
    if b"\\" in body and any(escape in body for escape in _ODD_ESCAPES):
        body = repair.text(body)
    try:
        strict: _StrictPage = decode(_StrictPage, body)
        return _page(strict, *([_strict(wire) for wire in wires or ()] for wires in (strict.added, strict.modified)))
    except (Quarantine, UnicodeDecodeError):
        page = decode(_TolerantPage, repair.text(body))
        return _page(page, *([_either(raw) for raw in raws or ()] for raws in (page.added, page.modified)))


def accounts(body: bytes) -> AccountsAnswer:
    """Decode an answer of /accounts/get. Raises: Retry, Quarantine, as `decode`."""
    answer = decode(_Accounts, repair.text(body))
    return AccountsAnswer([_account(raw) for raw in answer.accounts or ()], answer.request_id)


def _page(page: _Page, added: list[Transaction], modified: list[Transaction]) -> SyncPage:
    for name, text in (("cursor", page.next_cursor), ("status", page.transactions_update_status)):
        # Heads contain them in clear and Postgres stores them as text: a text that it refuses would stop the readers.
        if text is not None and ("\0" in text or "\ufffd" in text or len(text) > CLEAR_TEXT_MAX):
            raise Quarantine(f"Plaid's answer has a {name} that cannot be kept")
    removed = page.removed or []
    if not all(_is_id(removal.transaction_id) for removal in removed):
        raise Quarantine("Plaid's answer has a removal whose id cannot be kept")
    return SyncPage(
        added,
        modified,
        removed,
        [_account(raw) for raw in page.accounts or ()],
        page.next_cursor or "",
        page.has_more,
        page.transactions_update_status,
        page.request_id,
    )


def _strict(wire: _StrictTransaction) -> Transaction:
    legacy = {"category": wire.category, "category_id": wire.category_id}
    present = {name: value for name, value in legacy.items() if value is not None}
    return _transaction(wire, msgspec.json.encode(present).decode() if present else None)


def _transaction(wire: _Transaction, extra: str | None) -> Transaction:
    """Build a transaction of the log. Positional, because keywords cost a third more, 500 times a page.

    Raises: Quarantine, where the fold could not read it.
    """
    category = wire.personal_finance_category or _NO_CATEGORY
    amount, currency = decimal_text(wire.amount), wire.iso_currency_code
    day = wire.authorized_date
    if (
        not (_is_id(wire.transaction_id) and _is_id(wire.account_id))
        or not (is_date(wire.date) and (day is None or is_date(day)))
        or (len(amount) > SURELY_STORABLE_CHARS and not is_storable(amount))
    ):
        raise Quarantine("Plaid's answer has a transaction whose id, dates or amount cannot be kept")
    if currency is not None and not currency.isupper():
        currency = currency.upper()  # `usd` is no other currency than `USD`
    return Transaction(
        wire.transaction_id,
        wire.account_id,
        amount,
        currency,
        wire.unofficial_currency_code,
        wire.pending,
        wire.pending_transaction_id,
        wire.date,
        wire.datetime,
        wire.authorized_date,
        wire.authorized_datetime,
        wire.name,
        wire.merchant_name,
        wire.merchant_entity_id,
        wire.original_description,
        wire.logo_url,
        wire.website,
        category.primary,
        category.detailed,
        category.confidence_level,
        category.version,
        wire.personal_finance_category_icon_url,
        wire.payment_channel,
        wire.transaction_code,
        wire.transaction_type,
        wire.merchant_category_code,
        wire.check_number,
        wire.account_owner,
        raw_text(wire.location),
        raw_text(wire.counterparties),
        raw_text(wire.payment_meta),
        extra,
    )


_NO_CATEGORY = _Category()


def _either(raw: Raw) -> Transaction:
    body = bytes(raw)
    for read in (_strict_body, _tolerant):
        try:
            return read(body)
        except Quarantine:
            continue
    return _tolerant(repaired(body, _TRANSACTION_REPAIRS, _TRANSACTION_REQUIRED))


def _strict_body(body: bytes) -> Transaction:
    return _strict(decode(_StrictTransaction, body))


def _tolerant(body: bytes) -> Transaction:
    fields, wire = decode(dict[str, Raw], body), decode(_Transaction, body)
    nested = None if wire.personal_finance_category is None else ("personal_finance_category", _Category)
    return _transaction(wire, unknown_fields(fields, _Transaction, nested))


def _texts(shape: type[Struct]) -> dict[str, Repair]:
    """Return the repair of each field of a struct that is a text or absent."""
    return {field.name: repair.as_text for field in msgspec.structs.fields(shape) if field.type == str | None}


_TRANSACTION_REPAIRS: Mapping[str, Repair] = {
    **_texts(_Transaction),
    **dict.fromkeys(("transaction_id", "account_id"), repair.as_required_text),
    "amount": repair.as_required_amount,
    "date": repair.as_required_date,
    "authorized_date": repair.as_date,
    "pending": repair.as_flag,
    "personal_finance_category": repair.nested(_texts(_Category)),
}
_TRANSACTION_REQUIRED = frozenset({"transaction_id", "account_id", "amount", "date", "pending"})


def _account(raw: Raw) -> Account:
    try:
        return _tolerant_account(bytes(raw))
    except Quarantine:
        return _tolerant_account(repaired(bytes(raw), _ACCOUNT_REPAIRS, _ACCOUNT_REQUIRED))


def _tolerant_account(body: bytes) -> Account:
    fields, wire = decode(dict[str, Raw], body), decode(_Account, body)
    current, available, limit = map(_decimal, (wire.balances.current, wire.balances.available, wire.balances.limit))
    if not _is_id(wire.account_id) or not all(is_storable(amount or "") for amount in (current, available, limit)):
        raise Quarantine("Plaid's answer has an account whose id or balances cannot be kept")
    return Account(
        wire.account_id,
        wire.persistent_account_id,
        wire.name,
        wire.official_name,
        wire.mask,
        wire.type,
        wire.subtype,
        wire.holder_category,
        wire.verification_status,
        current,
        available,
        limit,
        _currency(wire.balances.iso_currency_code),
        wire.balances.unofficial_currency_code,
        wire.balances.last_updated_datetime,
        unknown_fields(fields, _Account, ("balances", _Balances)),
    )


_ACCOUNT_REPAIRS: Mapping[str, Repair] = {
    **_texts(_Account),
    "account_id": repair.as_required_text,
    "type": repair.or_else(repair.as_text, "other"),
    "balances": repair.or_else(
        repair.nested({**_texts(_Balances), **dict.fromkeys(("current", "available", "limit"), repair.as_amount)}), {}
    ),
}
_ACCOUNT_REQUIRED = frozenset({"account_id", "type", "balances"})


def _currency(code: str | None) -> str | None:
    """Return an ISO 4217 code in capitals: `usd` is no other currency than `USD`."""
    return code if code is None or code.isupper() else code.upper()


def _decimal(amount: Decimal | None) -> str | None:
    return None if amount is None else decimal_text(amount)


def _is_id(text: str) -> bool:
    return 0 < len(text) <= ID_CHARS_MAX
