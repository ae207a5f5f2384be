"""What a genuine webhook becomes in the log: its key, its record, and what is not kept of it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from ingest.reasons import Reason, Refused
from ingest.tokens import Token
from ingest.verification import Freshness, VerificationKey, freshness
from schemas.log.records import Webhook
from schemas.times import SECOND_US

ITEM_ID_CHARS_MAX = 256
"""Plaid's Item ids have 37 characters; a longer text than this is none, and the record goes without a key."""

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
"""Members that carry tokens. A body with one of them is not kept, whatever its type."""


@dataclass(frozen=True, slots=True)
class Said:
    """What the body says of itself, as far as it can be read: it may be anything."""

    item_id: str | None
    type: str
    environment: object
    carries_tokens: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """A record for the topic `webhooks`. `ahead_s` is how far the token's time lies in our future (0 if not)."""

    key: bytes | None
    record: Webhook
    type: str
    ahead_s: float


def read_body(body: bytes) -> Said:
    """Read what the body says of itself."""
    try:
        value: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return Said(None, "other", None, carries_tokens=False)
    if not isinstance(value, dict):
        return Said(None, "other", None, carries_tokens=False)
    item_id, kind = value.get("item_id"), value.get("webhook_type")
    has_item = isinstance(item_id, str) and 0 < len(item_id) <= ITEM_ID_CHARS_MAX and _is_utf8(item_id)
    return Said(
        item_id=item_id if has_item else None,
        type=kind if isinstance(kind, str) and kind in KNOWN_TYPES else "other",
        environment=value.get("environment"),
        carries_tokens=kind == "LINK" or any(name in SECRET_NAMES for name in _names(value)),
    )


def entry(
    token: Token,
    key: VerificationKey,
    body: bytes,
    *,
    received_at: int,
    stale: Literal["reject", "demote"],
    environment: str,
) -> Entry:
    """Decide on a webhook whose body and signature were found right, and write its record.

    Units: `received_at` in microseconds since 1970, UTC.
    Raises: Refused, where its time or its environment is wrong.
    """
    now_s = received_at / SECOND_US
    seen = freshness(token, now_s=now_s)
    if seen is Freshness.FUTURE:
        raise Refused(Reason.FUTURE)
    if seen is Freshness.STALE and stale == "reject":
        raise Refused(Reason.STALE)
    said = read_body(body)
    # A production webhook at a sandbox installation names Items that this database must not know, and vice versa.
    if said.environment is not None and said.environment != environment:
        raise Refused(Reason.ENVIRONMENT)
    record = Webhook(
        received_at=received_at,
        body=None if said.carries_tokens else body,
        body_sha256=token.body_sha256,
        jwt=token.text,
        jwk_json=key.jwk_json,
        stale=seen is Freshness.STALE,
    )
    ahead_s = max(0.0, token.issued_at - now_s)
    return Entry(said.item_id.encode() if said.item_id else None, record, said.type, ahead_s)


def _is_utf8(text: str) -> bool:
    """Whether text can be a key's bytes: a lone surrogate cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _names(value: Any) -> Iterator[str]:
    """All names of members, at every depth; with a list of its own, since bodies nest as deep as they like."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
