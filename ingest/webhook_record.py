"""Build the record of a genuine webhook: its key, its fields, and the parts of the body that are not stored."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from ingest.refusals import Reason, WebhookRefused
from ingest.tokens import Token
from ingest.verification import VerificationKey, is_stale
from schemas.log.records import Webhook
from schemas.times import SECOND_US

ITEM_ID_CHARS_MAX = 256
"""Plaid's Item ids have 37 characters; a longer text is none, and the record has no key."""
KNOWN_TYPES = frozenset(
    {
        "TRANSACTIONS",
        "ITEM",
        "HOLDINGS",
        "INVESTMENTS_TRANSACTIONS",
        "LIABILITIES",
        "AUTH",
        "IDENTITY",
        "INCOME",
        "ASSETS",
        "STATEMENTS",
        "LINK",
        "LINK_DELIVERY",
        "CASH_FLOW_UPDATES",
        "ISSUES",
        "DASHBOARD_CONFIGURED_ALERT",
    }
)
"""Types with a label of their own in metrics; any other is counted as "other". Source: PLAID.md 1.5."""
SECRET_NAMES = frozenset({"public_token", "public_tokens", "link_token", "access_token", "processor_token"})
"""Members that carry tokens. A body with one of them is not stored, whatever its type."""


@dataclass(frozen=True, slots=True)
class WebhookBody:
    """Fields of a body that decide how it is stored; the body itself may be anything."""

    item_id: str | None = None
    type: str = "other"
    environment: object = None
    carries_tokens: bool = False


@dataclass(frozen=True, slots=True)
class WebhookRecord:
    """A record for the topic `webhooks`. `ahead_s` is how far the token's time lies in our future (0 if not)."""

    key: bytes | None
    record: Webhook
    type: str
    ahead_s: float


def read_body(body: bytes) -> WebhookBody:
    """Read the fields of a body that is JSON; any other body has none."""
    try:
        value: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return WebhookBody()
    if not isinstance(value, dict):
        return WebhookBody()
    item_id, kind = value.get("item_id"), value.get("webhook_type")
    has_item = isinstance(item_id, str) and 0 < len(item_id) <= ITEM_ID_CHARS_MAX and _is_utf8(item_id)
    return WebhookBody(
        item_id=item_id if has_item else None,
        type=kind if isinstance(kind, str) and kind in KNOWN_TYPES else "other",
        environment=value.get("environment"),
        carries_tokens=kind == "LINK" or any(name in SECRET_NAMES for name in _names(value)),
    )


def build_record(
    token: Token,
    key: VerificationKey,
    body: bytes,
    *,
    received_at: int,
    stale: Literal["reject", "demote"],
    environment: str,
) -> WebhookRecord:
    """Build the record of a webhook whose body and signature are verified.

    Units: `received_at` in microseconds since 1970, UTC.
    Raises: WebhookRefused, where its time or its environment is wrong.
    """
    now_s = received_at / SECOND_US
    is_late = is_stale(token, now_s=now_s)
    if is_late and stale == "reject":
        raise WebhookRefused(Reason.STALE)
    fields = read_body(body)
    # A production webhook at a sandbox installation names Items that must not get into this database, and vice versa.
    if fields.environment is not None and fields.environment != environment:
        raise WebhookRefused(Reason.ENVIRONMENT)
    record = Webhook(
        received_at=received_at,
        body=None if fields.carries_tokens else body,
        body_sha256=token.body_sha256,
        jwt=token.text,
        jwk_json=key.jwk_json,
        stale=is_late,
    )
    partition_key = fields.item_id.encode() if fields.item_id else None
    return WebhookRecord(partition_key, record, fields.type, max(0.0, token.issued_at - now_s))


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _names(value: Any) -> Iterator[str]:
    """Yield the names of all members, at every depth, without recursion, since bodies nest as deep as they like."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
