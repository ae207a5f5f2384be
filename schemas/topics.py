"""Table of topics: content, key, retention and writer of each. Pure."""

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
    value: str
    retention_ms: int | None
    written_by: str
    schemas: tuple[int, ...] = ()
    event_types: tuple[str, ...] = ()
    message_bytes_max: int = 1024 * 1024


WEBHOOKS = Topic("webhooks", "item_id, or none", "one webhook as it came in", None, "ingest", (catalogue.WEBHOOK,))
CHANGESETS = Topic(
    "changesets",
    "user number",
    "one atomic update: clear head, sealed events",
    None,
    "streams, gateway",
    (catalogue.HEAD, catalogue.EVENTS),
    message_bytes_max=MESSAGE_BYTES_MAX,
)
TRANSACTIONS = Topic(
    "transactions",
    "own transaction id",
    "one event",
    30 * DAY_MS,
    "projections",
    (catalogue.TRANSACTION_EVENT_1, catalogue.TRANSACTION_EVENT),
    ("transaction.added", "transaction.modified", "transaction.removed"),
)
BALANCES = Topic(
    "balances", "account id", "one event", 30 * DAY_MS, "projections", (catalogue.BALANCE_EVENT,), ("balance.updated",)
)
ITEMS = Topic(
    "items",
    "item id",
    "one event",
    30 * DAY_MS,
    "projections",
    (catalogue.ITEM_EVENT,),
    ("item.linked", "item.unlinked", "item.state_changed"),
)
PUSH = Topic("push", "user number", "one user's message, JSON", DAY_MS, "projections")
DEAD_LETTERS = Topic(
    "dead-letters",
    "original key",
    "sealed original and why, where, when",
    30 * DAY_MS,
    "any stage",
    (catalogue.DEAD_LETTER,),
    message_bytes_max=MESSAGE_BYTES_MAX,
)

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
