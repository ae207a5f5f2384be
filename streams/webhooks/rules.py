"""What a webhook asks for: a mark, a hint, or nothing. Core.

A webhook carries no id, no time and no data: it says "this Item may have changed". Source: PLAID.md 1.5, 1.7.
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
is sent again sooner costs a pass that finds nothing."""
REACTIONS = ("marked", "hinted", "legacy", "nothing", "unknown", "unreadable")

_LEGACY = frozenset({"INITIAL_UPDATE", "HISTORICAL_UPDATE", "DEFAULT_UPDATE", "TRANSACTIONS_REMOVED"})
_HINTS = frozenset(
    {
        "ERROR",
        "LOGIN_REPAIRED",
        "PENDING_EXPIRATION",
        "PENDING_DISCONNECT",
        "USER_PERMISSION_REVOKED",
        "USER_ACCOUNT_REVOKED",
        "NEW_ACCOUNTS_AVAILABLE",
    }
)
_OF_ACCOUNTS = frozenset({"USER_ACCOUNT_REVOKED", "NEW_ACCOUNTS_AVAILABLE", "LOGIN_REPAIRED"})
_KNOWN_WITHOUT_EFFECT = frozenset(
    {
        ("TRANSACTIONS", "RECURRING_TRANSACTIONS_UPDATE"),
        ("ITEM", "WEBHOOK_UPDATE_ACKNOWLEDGED"),
        ("HOLDINGS", "DEFAULT_UPDATE"),
        ("INVESTMENTS_TRANSACTIONS", "DEFAULT_UPDATE"),
        ("INVESTMENTS_TRANSACTIONS", "HISTORICAL_UPDATE"),
        ("LIABILITIES", "DEFAULT_UPDATE"),
    }
)
_HINT_FIELDS = ("reason", "disconnect_time", "consent_expiration_time", "account_id")


class Seen(NamedTuple):
    """What a webhook asks for. `reaction` is one of REACTIONS, for counting."""

    reaction: str
    mark: Mark | None = None
    hint: Hint | None = None


class Found(NamedTuple):
    """A webhook as it stands in the log. `prompt`: it came so soon after its signing that it is no repeat."""

    partition: int
    offset: int
    key: bytes
    prompt: bool
    webhook: Webhook


class Batch(NamedTuple):
    """What webhooks that were read together ask for: one mark an Item."""

    marks: list[Mark]
    hints: list[Hint]
    reactions: Counter[str]
    repeats: list[Found]


def gather(found: Sequence[Found], fresh: Collection[bytes]) -> Batch:
    """Decide about webhooks read together; `fresh` are the repeat keys that were not known before."""
    left = set(fresh)
    marks: dict[str, Mark] = {}
    batch = Batch([], [], Counter(), [])
    for one in found:
        if one.key not in left and not one.prompt:
            batch.repeats.append(one)
            continue
        left.discard(one.key)  # the second of two in one batch is a repeat, too
        seen = react(one.webhook, partition=one.partition, offset=one.offset)
        batch.reactions[seen.reaction] += 1
        if seen.mark is not None:
            marks[seen.mark.item_id] = _joined(marks.get(seen.mark.item_id), seen.mark)
        if seen.hint is not None:
            batch.hints.append(seen.hint)
    batch.marks.extend(marks.values())
    return batch


def identified(webhook: Webhook, *, partition: int, offset: int) -> Found:
    """A webhook of the log with what tells its repeats.

    What two deliveries of one webhook have in common is the signature's key id, time and hash; bodies alone repeat
    themselves byte for byte. A JWT that cannot be read, which no ingest lets in, is a key by itself.
    """
    try:
        header, claims = (_json_part(part) for part in webhook.jwt.split(".")[:2])
        signed_at = int(claims["iat"])
        said = f"{header['kid']}\0{signed_at}\0".encode()
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, binascii.Error, msgspec.DecodeError):
        signed_at, said = 0, webhook.jwt.encode(errors="surrogatepass")
    key = hashlib.sha256(said + webhook.body_sha256).digest()
    prompt = webhook.received_at - signed_at * SECOND_US < PROMPT_S * SECOND_US
    return Found(partition, offset, key, prompt, webhook)


def react(webhook: Webhook, *, partition: int, offset: int) -> Seen:
    """Decide what a webhook asks for; an unknown one asks for nothing.

    Nothing is raised, whatever the bytes: a signature says who sent a body, not that it can be read, and a record
    that raised here would be read again after every restart, with all webhooks waiting behind it.
    """
    if webhook.body is None:
        return Seen("nothing")  # of type LINK: ingest keeps no body that carries tokens
    try:
        body = msgspec.json.decode(webhook.body)
        received_at = from_micros(webhook.received_at)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError):
        return Seen("unreadable")
    if not isinstance(body, dict):
        return Seen("unreadable")
    kind, code, item_id = body.get("webhook_type"), body.get("webhook_code"), body.get("item_id")
    if not (isinstance(kind, str) and isinstance(code, str) and _is_keepable(item_id)):
        return Seen("unknown")
    mark = Mark(item_id, Cause("webhook", partition, offset, webhook.received_at), received_at, stale=webhook.stale)
    if kind == "TRANSACTIONS" and code == "SYNC_UPDATES_AVAILABLE":
        return Seen("marked", mark)
    if kind == "TRANSACTIONS" and code in _LEGACY:
        return Seen("legacy", mark._replace(unread_only=True))
    if kind == "ITEM" and code in _HINTS:
        # A webhook of unknown age says only "look": its word about a state would be taken for new.
        hint = None if webhook.stale else Hint(item_id, partition, offset, code, _fields(body), received_at)
        return Seen("hinted", mark._replace(accounts=code in _OF_ACCOUNTS), hint)
    return Seen("nothing" if (kind, code) in _KNOWN_WITHOUT_EFFECT else "unknown")


def _joined(before: Mark | None, after: Mark) -> Mark:
    """One mark for two webhooks of an Item read at once: the later one's cause, and all that either asked for."""
    if before is None:
        return after
    return after._replace(
        accounts=before.accounts or after.accounts,
        unread_only=before.unread_only and after.unread_only,
        stale=before.stale and after.stale,
    )


def _fields(body: dict[str, Any]) -> dict[str, Any]:
    """The few fields of a body that a hint needs. Not every ITEM webhook has an `error` (PLAID.md 1.13, trap 17)."""
    fields = {name: body[name] for name in _HINT_FIELDS if _is_keepable(body.get(name))}
    error = body.get("error")
    if isinstance(error, dict):
        found = {name: error.get(name) for name in ("error_code", "error_code_reason")}
        fields |= {name: value for name, value in found.items() if _is_keepable(value)}
    return fields


def _is_keepable(value: Any) -> TypeGuard[str]:
    """Whether Postgres can hold it as text: not NUL (22021, in jsonb 22P05), and UTF-8 has no lone surrogate."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _json_part(text: str) -> Any:
    return msgspec.json.decode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
