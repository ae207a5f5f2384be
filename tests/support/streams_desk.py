"""The scheduler's tables in a test: one connection whose clock the test sets, and one worker's turns."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg

from runtime.kafka.clients import partition_of
from runtime.plaid_limits import Limit
from runtime.postgres.clock import set_clock
from runtime.scheduler import enqueue, leases
from runtime.scheduler.types import Claimed, Claims, Mark, Released
from runtime.users.vault import Vault
from schemas.log.records import Cause
from schemas.topics import user_key
from streams.schedule.fair_queue import FairQueue

VAULT = Vault(bytes(32))
BEGIN = datetime(2026, 1, 2, tzinfo=UTC)
PARTITIONS = 12
USER = 4711


class Desk:
    """A worker at its tables. Units: `at` and all waits in seconds of the tables' clock."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection
        self.now = BEGIN
        self.turns = FairQueue({})

    def weigh(self, weights: Mapping[str, float]) -> None:
        """Begin anew with these weights of tenants."""
        self.turns = FairQueue(weights)

    async def wait(self, seconds: float) -> None:
        """Move the clock on."""
        self.now += timedelta(seconds=seconds)
        await set_clock(self.connection, self.now)

    async def register(self, item_id: str, *, tenant: str = "t", user: int = USER) -> int:
        """Register an Item, as the gateway does."""
        return await enqueue.register_item(
            self.connection,
            VAULT,
            item_id=item_id,
            tenant=tenant,
            user_number=user,
            access_token=f"access-{item_id}",
            institution_id="ins_1",
            institution_name="Bank",
            partitions=PARTITIONS,
        )

    async def lay(self, item_id: str, *, lane: int, tenant: str = "t", ready_in: float = 0.0) -> None:
        """Register an Item and make it ready in a lane at a time from now."""
        await self.register(item_id, tenant=tenant)
        await self.connection.execute(
            "UPDATE tartan.sync_state SET lane = $2, due_at = $3 WHERE item_id = $1",
            item_id,
            lane,
            self.now + timedelta(seconds=ready_in),
        )

    async def claim(self, slots: int = 10, *, limit: Limit | None = None, **options: Any) -> Claims:
        """Claim what is ready, in turns."""
        given = {"lease_s": 60.0, "holder": "1"} | options
        claims = await leases.claim(self.connection, slots=slots, fair_queue=self.turns.state(), limit=limit, **given)
        self.turns.advance(claims)
        return claims

    async def claimed(self, slots: int = 10, **options: Any) -> list[str]:
        """The Items of a claim."""
        return [claimed.item_id for claimed in await self.claim(slots, **options)]

    async def release(self, claimed: Claimed, **result: Any) -> bool:
        """Give an Item back."""
        return await leases.release(
            self.connection, claimed, Released(**({"outcome": "unchanged", "done": True} | result))
        )

    async def mark(self, item_id: str = "item", **fields: Any) -> int:
        """Mark an Item as a webhook does."""
        received_at = fields.pop("received_at", self.now)
        mark = Mark(item_id, Cause("webhook", 1, 2, 3), received_at, **fields)
        return await enqueue.mark_webhooks(self.connection, [mark])

    async def row(self, item_id: str = "item") -> asyncpg.Record:
        """The Item's row."""
        [item_row] = await self.connection.fetch("SELECT * FROM tartan.sync_state WHERE item_id = $1", item_id)
        return item_row

    async def ready_in(self, item_id: str = "item") -> float | None:
        """Seconds until an Item can be claimed."""
        ready_at = (await self.row(item_id))["ready_at"]
        return None if ready_at is None else float((ready_at - self.now).total_seconds())

    async def follow(self, position: int, *, user: int = USER) -> None:
        """Say how far follow_heads has come in the user's partition."""
        await self.connection.execute(
            "INSERT INTO tartan.positions (reader, partition, position) VALUES ('follow_heads', $1, $2) "
            "ON CONFLICT (reader, partition) DO UPDATE SET position = excluded.position",
            partition_of(user_key(user), PARTITIONS),
            position,
        )
