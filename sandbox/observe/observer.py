"""Looking at a running Tartan from outside: is it quiet, how late was it, what did it do."""

import asyncio
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import asyncpg

from projections.store.tables import SCHEMA
from runtime.kafka.clients import LogEnds
from runtime.postgres.pool import open_pool
from runtime.settings import Settings
from sandbox.infra.clients import Bank
from schemas.errors import Halt
from schemas.topics import CHANGESETS, WEBHOOKS, Topic, full_name

QUIET_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds. None where nothing was measured."""

    count: int
    p50: float | None
    p99: float | None

    def shown(self) -> dict[str, float | int | None]:
        """As JSON."""
        return {"count": self.count, "p50": self.p50, "p99": self.p99}


def latency(values_ms: Iterable[float]) -> Latency:
    """The median and the 99th percentile, nearest rank."""
    ordered = sorted(values_ms)
    if not ordered:
        return Latency(0, None, None)

    def rank(share: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)

    return Latency(len(ordered), rank(0.5), rank(0.99))


class Observer:
    """Reads the tables and the log's ends of a running world."""

    def __init__(self, settings: Settings, pool: asyncpg.Pool, ends: LogEnds) -> None:
        self.settings = settings
        self.pool = pool
        self._ends = ends

    async def waiting(self, bank: Bank | None = None) -> list[str]:
        """What is still under way, in words; empty where all is quiet."""
        reasons = []
        if bank is not None and not await bank.quiet():
            reasons.append("webhooks are on their way")
        reasons += await self._behind("mark_due", WEBHOOKS, _POSITIONS)
        dirty = await self.pool.fetchval(_DIRTY)
        if dirty:
            reasons.append(f"{dirty} Items are due")
        reasons += await self._behind("follow_heads", CHANGESETS, _POSITIONS)
        reasons += await self._behind("project", CHANGESETS, _PROJECTED)
        unpublished = await self.pool.fetchval(_UNPUBLISHED)
        if unpublished:
            reasons.append(f"{unpublished} changesets are not published")
        return reasons

    async def until_quiet(self, bank: Bank | None = None, *, timeout_s: float) -> None:
        """Wait until nothing is under way, twice in a row: what is between two readings is seen by the second.

        Raises: Halt, with what is still under way, at the bound.
        """
        deadline = time.monotonic() + timeout_s
        quiet = 0
        while quiet < 2:
            reasons = await self.waiting(bank)
            quiet = 0 if reasons else quiet + 1
            if reasons and time.monotonic() > deadline:
                raise Halt(f"not quiet after {timeout_s:g} s: {'; '.join(reasons)}")
            await asyncio.sleep(QUIET_POLL_S)

    async def counts(self) -> dict[str, int]:
        """How much there is of everything."""
        row = await self.pool.fetchrow(_COUNTS)
        assert row is not None
        return {name: int(value or 0) for name, value in row.items()}

    async def webhook_to_row(self, deliveries: list[dict[str, Any]], *, since: float = 0.0) -> Latency:
        """From the simulator's sending of a webhook to the commit of the rows that it caused.

        A pass names the latest webhook it knew; the time runs from that one's sending.
        """
        caused = await self.pool.fetch(_CAUSED)
        sent = SentTimes(deliveries)
        spans = ((row["committed"], sent.before(row["item_id"], row["received"])) for row in caused)
        return latency((committed - at) * 1000 for committed, at in spans if at is not None and at >= since)

    async def webhook_to_push(
        self, deliveries: list[dict[str, Any]], arrived: Mapping[tuple[int, int], float], *, since: float = 0.0
    ) -> Latency:
        """From the simulator's sending of a webhook to the arrival of its first message at a WebSocket.

        `arrived` is (partition, source offset) of a changeset to that moment, in seconds since 1970.
        """
        caused = await self.pool.fetch(_CAUSED)
        sent = SentTimes(deliveries)
        spans = (
            (arrived.get((row["partition"], row["source_offset"])), sent.before(row["item_id"], row["received"]))
            for row in caused
        )
        return latency(
            (arrival - at) * 1000 for arrival, at in spans if arrival is not None and at is not None and at >= since
        )

    async def _behind(self, reader: str, topic: Topic, query: str) -> list[str]:
        ends = await self._ends.ends(full_name(topic, self.settings.topic_prefix), range(self.settings.partitions))
        rows = await self.pool.fetch(query, *([reader] if "$1" in query else []))
        at = {row["partition"]: row["position"] for row in rows}
        late = sum(max(0, end.end - at.get(number, 0)) for number, end in ends.items())
        return [f"{reader} has {late} records of {topic.name} before it"] if late else []


@asynccontextmanager
async def observing(settings: Settings) -> AsyncIterator[Observer]:
    """Look at a running world for a block."""
    pool = await open_pool(settings, stage="observer")
    ends = LogEnds(settings)
    try:
        await ends.start()
        yield Observer(settings, pool, ends)
    finally:
        await ends.stop()
        await pool.close()


class SentTimes:
    """When the simulator sent which Item's webhooks."""

    def __init__(self, deliveries: list[dict[str, Any]]) -> None:
        self._of: dict[str, list[float]] = defaultdict(list)
        for delivery in deliveries:
            if delivery["status"] == HTTPStatus.OK:
                self._of[delivery["item_id"]].append(delivery["sent_at"])
        for times in self._of.values():
            times.sort()

    def before(self, item_id: str, received: float) -> float | None:
        """The sending that arrived at `received`: the last one of the Item before it."""
        times = self._of.get(item_id, [])
        place = bisect_right(times, received)
        return times[place - 1] if place else None


_POSITIONS = "SELECT partition, position FROM tartan.positions WHERE reader = $1"
_PROJECTED = "SELECT partition, position FROM reads.positions"
_DIRTY = """SELECT count(*) FROM tartan.sync_state
            WHERE stopped IS NULL AND (lease_token IS NOT NULL OR generation > done_generation)"""
_UNPUBLISHED = """SELECT count(*) FROM reads.changesets c LEFT JOIN tartan.published_checkpoints f USING (partition)
                  WHERE c.net_events > 0 AND c.source_offset >= coalesce(f.published, 0)"""
_COUNTS = """SELECT (SELECT sum(position) FROM tartan.positions WHERE reader = 'mark_due') AS webhooks,
                    (SELECT count(*) FROM reads.changesets) AS changesets,
                    (SELECT sum(net_events) FROM reads.changesets) AS events,
                    (SELECT count(*) FROM reads.transactions WHERE removed_at IS NULL) AS transactions,
                    (SELECT count(*) FROM reads.ledger_transfers) AS transfers,
                    (SELECT count(*) FROM reads.items WHERE NOT unlinked) AS items"""
# track_commit_timestamp is on in the sandbox: this is when Postgres committed, not when anybody looked.
_CAUSED = f"""SELECT partition, source_offset, item_id,
                     extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8 AS committed,
                     (cause->>'webhook_received_at')::float8 / 1000000 AS received
              FROM {SCHEMA}.changesets
              WHERE cause->>'kind' = 'webhook' AND cause->>'webhook_received_at' IS NOT NULL"""
