"""Identifiers: all of them are derived from the log's content, so a replay gives the same ids again. Pure."""

import hashlib
import hmac
from typing import NewType

UserNumber = NewType("UserNumber", int)
"""Random 63-bit number that represents a user in topics; it is deleted with the user."""
ChangesetId = NewType("ChangesetId", bytes)
"""16 bytes; chained: an HMAC of the content, free: from the user and the idempotency key."""

ID_BYTES = 16

_OWN, _LEDGER, _REVIEW, _EVENT, _FREE = (
    hashlib.blake2b(digest_size=ID_BYTES, person=f"tartan.{kind}".encode())
    for kind in ("own", "ledger", "review", "event", "free")
)


def own_id(first_plaid_id: str, *, salt: bytes = b"") -> bytes:
    """Derive Tartan's id of a transaction, 16 bytes, from the first Plaid id of its chain; it survives posting.

    `salt` separates a second chain that starts with an id that another chain already used.
    """
    return _derived(_OWN, first_plaid_id.encode(), salt)


def ledger_account_id(user: int, kind: str, reference: str, currency: str) -> bytes:
    """Derive the id of a ledger account, 16 bytes, from its user, kind, reference and currency."""
    return _derived(_LEDGER, f"{user}\0{kind}\0{reference}\0{currency}".encode())


def opening_id(user: int, item_id: str, account_id: str) -> bytes:
    """Derive the own id of the transfers of an account's opening balance."""
    return ledger_account_id(user, "opening", f"{item_id}\0{account_id}", "")


def review_id(changeset: bytes, own: bytes) -> bytes:
    """Derive the id of a review, 16 bytes, from the changeset that opens it and the transaction that it withholds."""
    return _derived(_REVIEW, changeset, own)


def event_id(changeset: bytes, event_type: str, entity: bytes) -> str:
    """Derive an event's id from changeset, type and entity (never from content alone), as 32 hex digits."""
    return _derived(_EVENT, changeset, event_type.encode(), entity).hex()


def free_id(user: int, idempotency_key: str) -> ChangesetId:
    """Derive the id of a free record: the same user and idempotency key give the same id."""
    return ChangesetId(_derived(_FREE, f"{user}\0{idempotency_key}".encode()))


def chained_id(key: bytes, *parts: bytes) -> ChangesetId:
    """Derive the id of a chained record: HMAC-SHA-256 under a user's key over length-prefixed parts, cut to 16 bytes.

    The parts are parent, cursors and events: the same content later in the chain has another parent, so another id.
    Without the key an id reveals nothing about the content.
    """
    digest = hmac.new(key, digestmod=hashlib.sha256)
    for part in parts:
        digest.update(len(part).to_bytes(4, "big"))
        digest.update(part)
    return ChangesetId(digest.digest()[:ID_BYTES])


def _derived(template: "hashlib.blake2b", *parts: bytes) -> bytes:
    digest = template.copy()  # half the time of a new hash with its personalization
    for part in parts:
        digest.update(part)
    return digest.digest()
