"""What Postgres keeps of the log, as of one moment: positions, heads, checkpoints. Shell."""

from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

import asyncpg

from projections.verify.chains import Standing
from runtime.kafka.reader import Position
from runtime.scheduler.leases import FOLLOWER
from schemas.topics import CHANGESETS, WEBHOOKS, Topic

PROJECTIONS = "projections"
TOPIC_OF = {PROJECTIONS: CHANGESETS, FOLLOWER: CHANGESETS, "mark_due": WEBHOOKS}
"""What each reader with positions in Postgres reads."""


class Kept(NamedTuple):
    """Shape: `positions` by reader and partition; `heads` and `items` by Item, as the follower and the projections
    have them; `checkpoints` by partition. `held`: topics and partitions that are being filled again. `registered`:
    of each registry that was asked, its ids to catalogue numbers. `waiting`: Items of which records are withheld.
    `erased`: users without key.
    """

    at: datetime
    positions: Mapping[str, Mapping[int, Position]]
    heads: Mapping[str, Standing]
    items: Mapping[str, Standing]
    checkpoints: Mapping[int, int]
    held: frozenset[tuple[str, int]]
    registered: tuple[Mapping[int, int], ...]
    waiting: frozenset[str]
    erased: frozenset[int]

    def ends(self, reader: str) -> dict[int, int]:
        """A reader's positions alone."""
        return {number: at.next for number, at in self.positions.get(reader, {}).items()}


async def load(connection: asyncpg.Connection) -> Kept:
    """Read all of it; within a transaction of one snapshot it is of one moment."""
    positions: dict[str, dict[int, Position]] = {}
    for row in await connection.fetch(_POSITIONS, PROJECTIONS, list(TOPIC_OF)):
        found = Position(row["position"], row["last_checksum"])
        positions.setdefault(row["reader"], {})[row["partition"]] = found
    return Kept(
        await connection.fetchval("SELECT clock_timestamp()"),
        positions,
        {row["item_id"]: _standing(row) for row in await connection.fetch(_HEADS)},
        {row["item_id"]: _standing(row) for row in await connection.fetch(_ITEMS)},
        {row["partition"]: row["published"] for row in await connection.fetch(_CHECKPOINTS)},
        frozenset((row["topic"], row["partition"]) for row in await connection.fetch(_HELD)),
        await _registered(connection),
        frozenset(row["item_id"] for row in await connection.fetch(_WAITING)),
        frozenset(row["user_number"] for row in await connection.fetch(_ERASED)),
    )


async def _registered(connection: asyncpg.Connection) -> tuple[Mapping[int, int], ...]:
    """Two registries call different schemas by one id: what a topic has from before a move is read as it was sent."""
    registries: dict[str, dict[int, int]] = {}
    for row in await connection.fetch(_REGISTERED):
        registries.setdefault(row["registry"], {})[row["id"]] = row["schema"]
    return tuple(registries.values())


def topics_read() -> tuple[Topic, ...]:
    """The topics that have readers with positions in Postgres."""
    return tuple(dict.fromkeys(TOPIC_OF.values()))


def _standing(row: asyncpg.Record) -> Standing:
    return Standing(row["head"], row["head_offset"], row["user_number"], row["partition"], row["unlinked"])


_POSITIONS = """
SELECT $1::text AS reader, partition, position, last_checksum FROM positions
 UNION ALL SELECT reader, partition, position, last_checksum FROM tartan.positions WHERE reader = ANY($2)"""

_HEADS = "SELECT item_id, head, head_offset, user_number, partition, unlinked FROM tartan.heads"

_ITEMS = "SELECT item_id, head, head_offset, user_number, partition, unlinked FROM items WHERE head IS NOT NULL"

_CHECKPOINTS = "SELECT partition, published FROM tartan.published_checkpoints"

_HELD = "SELECT topic, partition FROM tartan.held_topics"

_REGISTERED = "SELECT registry, id, schema FROM tartan.registry_ids"

_WAITING = """
SELECT item_id FROM withheld UNION SELECT item_id FROM tartan.quarantines WHERE redrive_offset IS NULL"""

_ERASED = "SELECT user_number FROM tartan.user_keys WHERE state = 'destroyed'"
