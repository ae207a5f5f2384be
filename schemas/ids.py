"""Identifiers: their types, and how own ids are derived.

Own ids are derived from what the log says, never random and never from a sequence, so a replay gives them again.
"""

import hashlib
import hmac
from typing import NewType

ItemId = NewType("ItemId", str)
AccountId = NewType("AccountId", str)
TransactionId = NewType("TransactionId", str)
"""Plaid's id of a transaction; a posted transaction has another one than its pending one."""
OwnId = NewType("OwnId", bytes)
"""Tartan's id of a transaction, 16 bytes: it outlives pending to posted."""
UserNumber = NewType("UserNumber", int)
"""Random 63-bit number that stands for a user in topics; it dies with the user."""
ChangesetId = NewType("ChangesetId", bytes)
"""16 bytes; chained: an HMAC of the content, free: from the user and the idempotency key."""

OWN_ID_BYTES = 16
CHANGESET_ID_BYTES = 16

_OWN = hashlib.blake2b(digest_size=OWN_ID_BYTES, person=b"tartan.own")
_LEDGER = hashlib.blake2b(digest_size=OWN_ID_BYTES, person=b"tartan.ledger")
_REVIEW = hashlib.blake2b(digest_size=OWN_ID_BYTES, person=b"tartan.review")
_EVENT = hashlib.blake2b(digest_size=OWN_ID_BYTES, person=b"tartan.event")


def own_id(first_plaid_id: str, *, salt: bytes = b"") -> OwnId:
    """Derive the own id of a transaction from the first Plaid id of its chain.

    `salt` tells apart a second chain that starts with an id that another chain already used.
    """
    digest = _OWN.copy()
    digest.update(first_plaid_id.encode())
    digest.update(salt)
    return OwnId(digest.digest())


def ledger_account_id(user: int, kind: str, reference: str, currency: str) -> bytes:
    """Derive the id of a ledger account, 16 bytes, from what it stands for."""
    digest = _LEDGER.copy()
    digest.update(f"{user}\0{kind}\0{reference}\0{currency}".encode())
    return digest.digest()


def opening_id(user: int, item_id: str, account_id: str) -> OwnId:
    """Derive the own id under which the transfers of an account's opening balance stand."""
    return OwnId(ledger_account_id(user, "opening", f"{item_id}\0{account_id}", ""))


def review_id(changeset: bytes, own: bytes) -> bytes:
    """Derive the id of a review, 16 bytes, from the changeset that opens it and the transaction that it holds."""
    digest = _REVIEW.copy()
    digest.update(changeset)
    digest.update(own)
    return digest.digest()


def event_id(changeset: bytes, event_type: str, entity: bytes) -> str:
    """Derive an event's id from changeset, type and entity (never from content alone), as 32 hex digits."""
    digest = _EVENT.copy()
    digest.update(changeset)
    digest.update(event_type.encode())
    digest.update(entity)
    return digest.hexdigest()


def chained_id(key: bytes, *parts: bytes) -> ChangesetId:
    """HMAC-SHA-256 under a key of the user's, cut to 16 bytes, over length-prefixed parts.

    The parts are parent, cursors and events: the same content later in the chain has another parent,
    so another id; without the key an id says nothing about the content.
    """
    digest = hmac.new(key, digestmod=hashlib.sha256)
    for part in parts:
        digest.update(len(part).to_bytes(4, "big"))
        digest.update(part)
    return ChangesetId(digest.digest()[:CHANGESET_ID_BYTES])


def free_id(user: int, idempotency_key: str) -> ChangesetId:
    """The id of a free record: the same user and idempotency key give the same id."""
    digest = hashlib.blake2b(
        f"{user}\0{idempotency_key}".encode(), digest_size=CHANGESET_ID_BYTES, person=b"tartan.free"
    )
    return ChangesetId(digest.digest())
