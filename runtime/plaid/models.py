"""Plaid's answers, decoded exactly: amounts as Decimal, and every field without a name here as JSON.

Fields that Plaid adds later must survive until this code has them (Source: PLAID.md 1.3: all objects are open). A page
is first decoded by structs that refuse unknown fields, which is fast; where that fails, its transactions are decoded
one by one, and refused ones again by a tolerant struct, with the raw fields beside it.
"""

from collections.abc import Hashable
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from typing import Any, NamedTuple, TypeVar, cast

import msgspec
from msgspec import Raw, Struct

from schemas.errors import Quarantine, Retry
from schemas.log.records import Account, Removal, Transaction
from schemas.money import decimal_text

Answer = TypeVar("Answer")

NOT_READY = "NOT_READY"
"""`transactions_update_status` of an Item whose history Plaid has not read yet."""
HISTORY_COMPLETE = "HISTORICAL_UPDATE_COMPLETE"
"""`transactions_update_status` of an Item whose whole history Plaid has read."""

OUTAGE_CODES = ("INSTITUTION_DOWN", "INSTITUTION_NOT_RESPONDING", "INSTITUTION_NOT_AVAILABLE")
"""`error_code` of a bank's outage (PLAID.md 1.9)."""

CLEAR_TEXT_MAX = 4096
"""Longest cursor or status, in characters. Plaid promises 256 at most for a cursor (PLAID.md 1.1)."""

_ABSENT = Raw()


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


class ItemAnswer(NamedTuple):
    """The answer of /item/get. Times are as Plaid wrote them."""

    item_id: str
    institution_id: str | None
    institution_name: str | None
    webhook: str | None
    error_type: str | None
    error_code: str | None
    error_reason: str | None
    consent_expiration_time: str | None
    last_webhook_at: str | None
    last_webhook_code: str | None
    last_successful_update: str | None
    last_failed_update: str | None
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
    accounts: list[Raw]
    removed: list[Removal]
    transactions_update_status: str | None = None
    request_id: str | None = None


class _StrictPage(_Page, kw_only=True):
    added: list[_StrictTransaction]
    modified: list[_StrictTransaction]


class _TolerantPage(_Page, kw_only=True):
    added: list[Raw]
    modified: list[Raw]


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
    accounts: list[Raw]
    request_id: str | None = None


class _ItemError(Struct):
    error_type: str | None = None
    error_code: str | None = None
    error_code_reason: str | None = None


class _Item(Struct):
    item_id: str
    institution_id: str | None = None
    institution_name: str | None = None
    webhook: str | None = None
    error: _ItemError | None = None
    consent_expiration_time: str | None = None


class _TransactionsStatus(Struct):
    last_successful_update: str | None = None
    last_failed_update: str | None = None


class _LastWebhook(Struct):
    sent_at: str | None = None
    code_sent: str | None = None


class _Status(Struct):
    transactions: _TransactionsStatus | None = None
    last_webhook: _LastWebhook | None = None


class _ItemGet(Struct):
    item: _Item
    status: _Status | None = None
    request_id: str | None = None


def decode(shape: type[Answer], body: bytes) -> Answer:
    """Decode an answer's JSON as a struct.

    Raises: Retry, where it is no JSON (a proxy's page); Quarantine, where it lacks a field that the struct needs.
    """
    try:
        return cast(Answer, _decoder(cast(Hashable, shape)).decode(body))
    except msgspec.ValidationError as error:
        # msgspec names the field and the types, never a value.
        raise Quarantine(f"Plaid's answer is no {shape.__name__.strip('_')}: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Retry("Plaid's answer is no JSON") from error


def parse_time(text: str | None) -> datetime | None:
    """Parse a time of Plaid's as an aware one, UTC where it has no offset; None where it is no time."""
    try:
        time = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def sync_page(body: bytes) -> SyncPage:
    """Decode an answer of /transactions/sync. Raises: Retry, Quarantine, as `decode`."""
    try:
        strict: _StrictPage = _decoder(_StrictPage).decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        page = decode(_TolerantPage, body)
        return _page(page, [_either(raw) for raw in page.added], [_either(raw) for raw in page.modified])
    return _page(strict, [_strict(wire) for wire in strict.added], [_strict(wire) for wire in strict.modified])


def accounts(body: bytes) -> AccountsAnswer:
    """Decode an answer of /accounts/get. Raises: Retry, Quarantine, as `decode`."""
    answer = decode(_Accounts, body)
    return AccountsAnswer([_account(raw) for raw in answer.accounts], answer.request_id)


def item(body: bytes) -> ItemAnswer:
    """Decode an answer of /item/get. Raises: Retry, Quarantine, as `decode`."""
    answer = decode(_ItemGet, body)
    item, error = answer.item, answer.item.error or _ItemError()
    status = answer.status or _Status()
    updates, webhook = status.transactions or _TransactionsStatus(), status.last_webhook or _LastWebhook()
    return ItemAnswer(
        item.item_id,
        item.institution_id,
        item.institution_name,
        item.webhook,
        error.error_type,
        error.error_code,
        error.error_code_reason,
        item.consent_expiration_time,
        webhook.sent_at,
        webhook.code_sent,
        updates.last_successful_update,
        updates.last_failed_update,
        answer.request_id,
    )


def _page(page: _Page, added: list[Transaction], modified: list[Transaction]) -> SyncPage:
    for name, text in (("cursor", page.next_cursor), ("status", page.transactions_update_status)):
        # Heads contain them in clear and Postgres stores them as text: a text that it refuses would stop the readers.
        if text is not None and ("\0" in text or len(text) > CLEAR_TEXT_MAX):
            raise Quarantine(f"Plaid's answer has a {name} that cannot be kept")
    return SyncPage(
        added,
        modified,
        page.removed,
        [_account(raw) for raw in page.accounts],
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
    """Build a transaction of the log. Positional, because keywords cost a third more, 500 times a page."""
    category = wire.personal_finance_category or _NO_CATEGORY
    return Transaction(
        wire.transaction_id,
        wire.account_id,
        decimal_text(wire.amount),
        wire.iso_currency_code,
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
        _text(wire.location),
        _text(wire.counterparties),
        _text(wire.payment_meta),
        extra,
    )


_NO_CATEGORY = _Category()


def _either(raw: Raw) -> Transaction:
    try:
        return _strict(_decoder(_StrictTransaction).decode(raw))
    except msgspec.ValidationError:
        return _tolerant(raw)


def _tolerant(raw: Raw) -> Transaction:
    fields = decode(dict[str, Raw], bytes(raw))
    wire = decode(_Transaction, bytes(raw))
    nested = None if wire.personal_finance_category is None else ("personal_finance_category", _Category)
    return _transaction(wire, _unknown(fields, _Transaction, nested))


def _unknown(fields: dict[str, Raw], shape: type[Struct], nested: tuple[str, type[Struct]] | None) -> str | None:
    """Return the fields that a struct lacks, those of one nested object included, as JSON."""
    unknown = {name: raw for name, raw in fields.items() if name not in shape.__struct_fields__}
    if nested is not None:
        name, inner = nested
        extra = _unknown(decode(dict[str, Raw], bytes(fields[name])), inner, None)
        if extra is not None:
            unknown[name] = Raw(extra.encode())
    present = {name: unknown[name] for name in sorted(unknown) if _text(unknown[name]) is not None}
    return msgspec.json.encode(present).decode() if present else None


def _account(raw: Raw) -> Account:
    fields = decode(dict[str, Raw], bytes(raw))
    wire = decode(_Account, bytes(raw))
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
        _decimal(wire.balances.current),
        _decimal(wire.balances.available),
        _decimal(wire.balances.limit),
        wire.balances.iso_currency_code,
        wire.balances.unofficial_currency_code,
        wire.balances.last_updated_datetime,
        _unknown(fields, _Account, ("balances", _Balances)),
    )


def _text(raw: Raw) -> str | None:
    text = str(raw, "utf-8")
    return None if text in ("null", "") else text


def _decimal(amount: Decimal | None) -> str | None:
    return None if amount is None else decimal_text(amount)


@cache
def _decoder(shape: Hashable) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(shape)
