"""Plaid's answer about an Item: its state and the times of Plaid's contacts with its bank."""

from datetime import UTC, datetime
from typing import NamedTuple

from msgspec import Struct

from runtime.plaid import repair
from runtime.plaid.decoding import decode

YEAR_MIN, YEAR_MAX = 1970, 2100
"""Years of the times that a bank or Plaid can mean."""


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


def item(body: bytes) -> ItemAnswer:
    """Decode an answer of /item/get. Raises: Retry, Quarantine, as `decode`."""
    answer = decode(_ItemGet, repair.text(body))
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


def parse_time(text: str | None) -> datetime | None:
    """Parse a time of Plaid's as one in UTC, which it is where it has no offset; None where it is no possible time.

    Other clients' zero times (year 1) and "never" (year 9999) are unknown times.
    """
    try:
        time = datetime.fromisoformat(text or "")
        time = time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
    return time if YEAR_MIN <= time.year <= YEAR_MAX else None
