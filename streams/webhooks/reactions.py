"""Decide what a webhook changes: it marks an Item as due, leaves a hint, or has no effect. Core.

A webhook carries no id, no time and no data: it means "this Item may have changed". Source: PLAID.md 1.5, 1.7.
"""

import base64
import binascii
import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple, TypeGuard

import msgspec

from runtime.scheduler.types import Hint, Mark
from schemas.log.records import Cause, Webhook
from schemas.times import SECOND_US, from_micros

PROMPT_S = 10
"""The signature's time has whole seconds, so two genuine webhooks about one Item within a second have one key, and
the second one must count. A repeat comes 30 s later at the earliest, when Plaid tries again (PLAID.md 1.7); one that
is sent again sooner costs a sync run without news."""
REACTIONS = ("marked", "hinted", "legacy", "nothing", "unknown", "unreadable")

_LEGACY = frozenset({"INITIAL_UPDATE", "HISTORICAL_UPDATE", "DEFAULT_UPDATE", "TRANSACTIONS_REMOVED"})
_OF_ACCOUNTS = frozenset({"USER_ACCOUNT_REVOKED", "NEW_ACCOUNTS_AVAILABLE", "LOGIN_REPAIRED"})
_HINTS = _OF_ACCOUNTS | {"ERROR", "PENDING_EXPIRATION", "PENDING_DISCONNECT", "USER_PERMISSION_REVOKED"}
_WITHOUT_EFFECT = {
    "TRANSACTIONS": ("RECURRING_TRANSACTIONS_UPDATE",),
    "ITEM": ("WEBHOOK_UPDATE_ACKNOWLEDGED",),
    "HOLDINGS": ("DEFAULT_UPDATE",),
    "INVESTMENTS_TRANSACTIONS": ("DEFAULT_UPDATE", "HISTORICAL_UPDATE"),
    "LIABILITIES": ("DEFAULT_UPDATE",),
}
"""Codes of webhooks that change nothing, by type."""
HINT_CHARS_MAX = 300
"""Longest field of a hint: a longer reason is cut, and the others stay."""
_HINT_FIELDS = ("reason", "disconnect_time", "consent_expiration_time", "account_id")


class Reaction(NamedTuple):
    """Effect of a webhook. `kind` is one of REACTIONS, a label of the metric `tartan_webhooks_read`."""

    kind: str
    mark: Mark | None = None
    hint: Hint | None = None


class LoggedWebhook(NamedTuple):
    """A webhook in the log. `prompt`: it arrived so soon after its signature that it is no repeat."""

    partition: int
    offset: int
    key: bytes
    prompt: bool
    webhook: Webhook


class Batch(NamedTuple):
    """Effects of webhooks that were read together: one mark an Item."""

    marks: list[Mark]
    hints: list[Hint]
    reactions: Counter[str]
    repeats: list[LoggedWebhook]


def collect(webhooks: Sequence[LoggedWebhook], new_keys: Collection[bytes]) -> Batch:
    """Collect the effects of webhooks read together; `new_keys` are the repeat keys that were not stored before."""
    unused = set(new_keys)
    marks: dict[str, Mark] = {}
    batch = Batch([], [], Counter(), [])
    for logged in webhooks:
        if logged.key not in unused and not logged.prompt:
            batch.repeats.append(logged)
            continue
        unused.discard(logged.key)  # the second of two in one batch is a repeat, too
        reaction = react(logged.webhook, partition=logged.partition, offset=logged.offset)
        batch.reactions[reaction.kind] += 1
        mark = reaction.mark
        if mark is not None:
            marks[mark.item_id] = _merge(marks[mark.item_id], mark) if mark.item_id in marks else mark
        if reaction.hint is not None:
            batch.hints.append(reaction.hint)
    batch.marks.extend(marks.values())
    return batch


def identify(webhook: Webhook, *, partition: int, offset: int) -> LoggedWebhook:
    """Compute the repeat key of a webhook: the hash of the signature's key id and time and of the body's hash.

    Two deliveries of one webhook have these in common; bodies alone repeat byte for byte. A JWT that does not parse,
    which no ingest accepts, is a key by itself.
    """
    try:
        parts = [part + "=" * (-len(part) % 4) for part in webhook.jwt.split(".")[:2]]
        header, claims = (msgspec.json.decode(base64.urlsafe_b64decode(part)) for part in parts)
        signed_at = int(claims["iat"])
        signature = f"{header['kid']}\0{signed_at}\0".encode()
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, binascii.Error, msgspec.DecodeError):
        signed_at, signature = 0, webhook.jwt.encode(errors="surrogatepass")
    key = hashlib.sha256(signature + webhook.body_sha256).digest()
    prompt = webhook.received_at - signed_at * SECOND_US < PROMPT_S * SECOND_US
    return LoggedWebhook(partition, offset, key, prompt, webhook)


def react(webhook: Webhook, *, partition: int, offset: int) -> Reaction:
    """Decide what a webhook changes; an unknown one changes nothing.

    It raises nothing, whatever the bytes: a signature proves the sender of a body, not that it is readable, and a
    record that raised here would be read again after every restart, with all webhooks waiting behind it.
    """
    if webhook.body is None:
        return Reaction("nothing")  # of type LINK: ingest keeps no body that carries tokens
    try:
        body = msgspec.json.decode(webhook.body)
        received_at = from_micros(webhook.received_at)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError):
        return Reaction("unreadable")
    if not isinstance(body, dict):
        return Reaction("unreadable")
    kind, code, item_id = body.get("webhook_type"), body.get("webhook_code"), body.get("item_id")
    if not (isinstance(kind, str) and isinstance(code, str) and _is_storable(item_id)):
        return Reaction("unknown")
    mark = Mark(item_id, Cause("webhook", partition, offset, webhook.received_at), received_at, stale=webhook.stale)
    if kind == "TRANSACTIONS" and code == "SYNC_UPDATES_AVAILABLE":
        return Reaction("marked", mark)
    if kind == "TRANSACTIONS" and code in _LEGACY:
        return Reaction("legacy", mark._replace(unread_only=True))
    if kind == "ITEM" and code in _HINTS:
        # A stale webhook only marks: the state that it reports would be taken for a new one.
        hint = None if webhook.stale else Hint(item_id, partition, offset, code, _hint_fields(body), received_at)
        return Reaction("hinted", mark._replace(accounts=code in _OF_ACCOUNTS), hint)
    return Reaction("nothing" if code in _WITHOUT_EFFECT.get(kind, ()) else "unknown")


def _merge(before: Mark, after: Mark) -> Mark:
    """Merge two marks of one Item: the later one's cause, and everything that either asks for."""
    return after._replace(
        accounts=before.accounts or after.accounts,
        unread_only=before.unread_only and after.unread_only,
        stale=before.stale and after.stale,
    )


def _hint_fields(body: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a body that a hint needs. Not every ITEM webhook has an `error` (PLAID.md 1.13, trap 17)."""
    fields = {name: body.get(name) for name in _HINT_FIELDS}
    error = body.get("error")
    if isinstance(error, dict):
        fields |= {name: error.get(name) for name in ("error_code", "error_code_reason")}
    return {name: value[:HINT_CHARS_MAX] for name, value in fields.items() if _is_storable(value)}


def _is_storable(value: Any) -> TypeGuard[str]:
    """Return whether Postgres stores a value as text: no NUL (22021, in jsonb 22P05), no lone surrogate."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
