"""Table of topics: key, retention and schemas of each. Pure."""

from dataclasses import dataclass

from schemas.encoding import catalogue

DAY_MS = 24 * 60 * 60 * 1000
PARTITIONS_DEFAULT = 12
"""Partitions of each topic, where `TARTAN_PARTITIONS` is not set."""
MESSAGE_BYTES_MAX = 16 * 1024 * 1024
"""`max.message.bytes` of `changesets`: four times RECORD_BYTES_MAX, room for a later limit."""


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic. `retention_ms` None: no deletion; `schemas`: catalogue numbers of its values."""

    name: str
    key: str
    retention_ms: int | None
    schemas: tuple[int, ...] = ()
    event_types: tuple[str, ...] = ()
    message_bytes_max: int = 1024 * 1024


WEBHOOKS = Topic("webhooks", "item_id, or none", None, (catalogue.WEBHOOK,))
"""One webhook as it was received. Writer: ingest."""
CHANGESETS = Topic(
    "changesets", "user number", None, (catalogue.HEAD, catalogue.EVENTS), message_bytes_max=MESSAGE_BYTES_MAX
)
"""One atomic update: clear head, sealed events. Writers: streams, gateway."""
TRANSACTIONS = Topic(
    "transactions",
    "own transaction id",
    30 * DAY_MS,
    (catalogue.TRANSACTION_EVENT_1, catalogue.TRANSACTION_EVENT),
    ("transaction.added", "transaction.modified", "transaction.removed"),
)
"""One event. Writer of this and the topics below: projections."""
BALANCES = Topic("balances", "account id", 30 * DAY_MS, (catalogue.BALANCE_EVENT,), ("balance.updated",))
ITEMS = Topic(
    "items", "item id", 30 * DAY_MS, (catalogue.ITEM_EVENT,), ("item.linked", "item.unlinked", "item.state_changed")
)
PUSH = Topic("push", "user number", DAY_MS)
"""One user's message, JSON."""
DEAD_LETTERS = Topic(
    "dead-letters", "original key", 30 * DAY_MS, (catalogue.DEAD_LETTER,), message_bytes_max=MESSAGE_BYTES_MAX
)
"""A sealed original with reason, place and time. Writer: any stage."""

TOPICS = (WEBHOOKS, CHANGESETS, TRANSACTIONS, BALANCES, ITEMS, PUSH, DEAD_LETTERS)
PUBLIC = (TRANSACTIONS, BALANCES, ITEMS)

HEADER_POSITION = "tartan-position"
"""Header of each published record: source offset and index in its changeset, "offset.index" in ASCII decimals."""


def full_name(topic: Topic, prefix: str) -> str:
    """Return the topic's name in the cluster, for example `tartan.changesets`."""
    return f"{prefix}{topic.name}"


def user_key(user: int) -> bytes:
    """Return a record's key for a user: the number in ASCII decimals, so that every client can partition by it."""
    return str(user).encode()
