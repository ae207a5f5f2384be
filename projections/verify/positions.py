"""Stored positions: load from Postgres, at one moment, all that the log is compared with. Shell."""

from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

import asyncpg

from projections.verify.chains import ChainHead
from runtime.kafka.reader import Position
from runtime.scheduler.leases import FOLLOWER
from schemas.topics import CHANGESETS, WEBHOOKS, Topic

PROJECTIONS = "projections"
TOPIC_OF: Mapping[str, Topic] = {PROJECTIONS: CHANGESETS, FOLLOWER: CHANGESETS, "mark_due": WEBHOOKS}
"""Topic of each reader with positions in Postgres."""


class Stored(NamedTuple):
    """State that Postgres has of the log.

    Shape: `positions` by reader and partition; `heads` (the follower's) and `items` (the projections') by Item;
    `checkpoints` by partition. `held`: topics and partitions that are being filled again. `registered`: the ids of each
    registry that was asked, to catalogue numbers. `quarantined`: Items with withheld records. `erased`: users without
    key.
    """

    loaded_at: datetime
    positions: Mapping[str, Mapping[int, Position]]
    heads: Mapping[str, ChainHead]
    items: Mapping[str, ChainHead]
    checkpoints: Mapping[int, int]
    held: frozenset[tuple[str, int]]
    registered: tuple[Mapping[int, int], ...]
    quarantined: frozenset[str]
    erased: frozenset[int]

    def offsets(self, reader: str) -> dict[int, int]:
        """Return a reader's positions as offsets, by partition."""
        return {number: position.next for number, position in self.positions.get(reader, {}).items()}


async def load(connection: asyncpg.Connection) -> Stored:
    """Read the stored state; call it in a transaction of one snapshot."""
    positions: dict[str, dict[int, Position]] = {}
    for row in await connection.fetch(_POSITIONS, PROJECTIONS, list(TOPIC_OF)):
        positions.setdefault(row["reader"], {})[row["partition"]] = Position(row["position"], row["last_checksum"])
    # Two registries use one id for different schemas: records from before a move are decoded as they were sent.
    registries: dict[str, dict[int, int]] = {}
    for row in await connection.fetch("SELECT registry, id, schema FROM tartan.registry_ids"):
        registries.setdefault(row["registry"], {})[row["id"]] = row["schema"]
    checkpoints = await connection.fetch("SELECT partition, published FROM tartan.published_checkpoints")
    return Stored(
        await connection.fetchval("SELECT clock_timestamp()"),
        positions,
        {row["item_id"]: ChainHead(*row[1:]) for row in await connection.fetch(_HEADS.format(table="tartan.heads"))},
        {row["item_id"]: ChainHead(*row[1:]) for row in await connection.fetch(_HEADS.format(table="items"))},
        {row["partition"]: row["published"] for row in checkpoints},
        frozenset(map(tuple, await connection.fetch("SELECT topic, partition FROM tartan.held_topics"))),
        tuple(registries.values()),
        frozenset(row["item_id"] for row in await connection.fetch(_QUARANTINED)),
        frozenset(row["user_number"] for row in await connection.fetch(_ERASED)),
    )


_POSITIONS = """
SELECT $1::text AS reader, partition, position, last_checksum FROM positions
 UNION ALL SELECT reader, partition, position, last_checksum FROM tartan.positions WHERE reader = ANY($2)"""

_HEADS = "SELECT item_id, head, head_offset, user_number, partition, unlinked FROM {table} WHERE head IS NOT NULL"

_QUARANTINED = """
SELECT item_id FROM withheld UNION SELECT item_id FROM tartan.quarantines WHERE redrive_offset IS NULL"""

_ERASED = "SELECT user_number FROM tartan.user_keys WHERE state = 'destroyed'"
