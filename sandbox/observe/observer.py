"""Measure a running stack from outside: pending work, latencies, counts."""

import asyncio
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NamedTuple

import asyncpg

from projections.store.tables import SCHEMA
from projections.verify import digests
from runtime.kafka.clients import LogEnds
from runtime.postgres.pool import borrowed, open_pool
from runtime.settings import Settings
from sandbox.infra.clients import Application, Bank
from sandbox.infra.stack import Stack
from schemas.errors import Halt
from schemas.topics import CHANGESETS, WEBHOOKS, Topic, full_name

QUIET_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles in milliseconds, nearest rank; None where nothing was measured."""

    count: int
    p50: float | None
    p99: float | None


class Observer:
    """Read the tables and the log ends of a running stack."""

    def __init__(self, settings: Settings, pool: asyncpg.Pool, ends: LogEnds) -> None:
        self.settings = settings
        self.pool = pool
        self._ends = ends

    async def pending(self, bank: Bank | None = None) -> list[str]:
        """Return a description of all work that is not done; empty where all is quiet."""
        reasons = []
        if bank is not None and not await bank.quiet():
            reasons.append("webhooks are on their way")
        reasons += await self._lag("mark_due", WEBHOOKS, _POSITIONS, "mark_due")
        if due := await self.pool.fetchval(_DUE):
            reasons.append(f"{due} Items are due")
        reasons += await self._lag("follow_heads", CHANGESETS, _POSITIONS, "follow_heads")
        reasons += await self._lag("project", CHANGESETS, _PROJECTED)
        if unpublished := await self.pool.fetchval(_UNPUBLISHED):
            reasons.append(f"{unpublished} changesets are not published")
        return reasons

    async def until_quiet(self, bank: Bank | None = None, *, timeout_s: float) -> None:
        """Wait until nothing is pending, twice in a row: the second reading finds what moved during the first.

        Raises: Halt, with the pending work, at the bound.
        """
        deadline = time.monotonic() + timeout_s
        quiet = 0
        while quiet < 2:
            reasons = await self.pending(bank)
            quiet = 0 if reasons else quiet + 1
            if reasons and time.monotonic() > deadline:
                raise Halt(f"not quiet after {timeout_s:g} s: {'; '.join(reasons)}")
            await asyncio.sleep(QUIET_POLL_S)

    async def counts(self) -> dict[str, int]:
        """Return the numbers of webhooks, changesets, events, transactions, transfers and Items."""
        row = await self.pool.fetchrow(_COUNTS)
        assert row is not None
        return {name: int(value or 0) for name, value in row.items()}

    async def equals_truth(self, bank: Bank) -> bool:
        """Return True if the tables equal the bank's truth."""
        async with borrowed(self.pool) as connection:
            return await digests.state_digest(connection) == await bank.digest()

    async def webhook_to_row(self, deliveries: list[dict[str, Any]], *, since: float = 0.0) -> Latency:
        """Measure from the simulator's sending of a webhook to the commit of the rows that it caused.

        A changeset names the latest webhook before its sync run; the time runs from the sending of that one.
        """
        changesets = await self.pool.fetch(_CAUSED)
        committed = {(row["partition"], row["source_offset"]): row["committed"] for row in changesets}
        return _latency(changesets, deliveries, committed, since)

    async def webhook_to_push(
        self, deliveries: list[dict[str, Any]], arrived_at: Mapping[tuple[int, int], float], *, since: float = 0.0
    ) -> Latency:
        """Measure from the simulator's sending of a webhook to the arrival of its first message at a WebSocket.

        `arrived_at` maps (partition, source offset) of a changeset to seconds since 1970.
        """
        return _latency(await self.pool.fetch(_CAUSED), deliveries, arrived_at, since)

    async def _lag(self, reader: str, topic: Topic, query: str, *arguments: str) -> list[str]:
        ends = await self._ends.ends(full_name(topic, self.settings.topic_prefix), range(self.settings.partitions))
        positions = {row["partition"]: row["position"] for row in await self.pool.fetch(query, *arguments)}
        lag = sum(max(0, end.end - positions.get(partition, 0)) for partition, end in ends.items())
        return [f"{reader} lags {lag} records behind {topic.name}"] if lag else []


@asynccontextmanager
async def observing(settings: Settings) -> AsyncIterator[Observer]:
    """Open an observer's connections for a block."""
    pool = await open_pool(settings, stage="observer")
    ends = LogEnds(settings)
    try:
        await ends.start()
        yield Observer(settings, pool, ends)
    finally:
        await ends.stop()
        await pool.close()


class Session(NamedTuple):
    """Clients of a running stack."""

    observer: Observer
    bank: Bank
    application: Application


@asynccontextmanager
async def open_session(stack: Stack) -> AsyncIterator[Session]:
    """Open an observer, the bank's control API and the gateway's API for a block."""
    async with (
        observing(stack.settings()) as observer,
        Bank(stack.simulator_url) as bank,
        stack.application() as application,
    ):
        yield Session(observer, bank, application)


def _latency(
    changesets: Iterable[asyncpg.Record],
    deliveries: list[dict[str, Any]],
    ended_at: Mapping[tuple[int, int], float],
    since: float,
) -> Latency:
    """Return the times from the webhooks sent after `since` to the ends of the changesets that they caused."""
    sent_at: dict[str, list[float]] = defaultdict(list)
    for delivery in deliveries:
        if delivery["status"] == HTTPStatus.OK:
            sent_at[delivery["item_id"]].append(delivery["sent_at"])
    for times in sent_at.values():
        times.sort()
    values_ms = []
    for row in changesets:
        times = sent_at.get(row["item_id"], [])
        # The webhook that was received then is the last one of the Item sent before.
        index = bisect_right(times, row["received"])
        end = ended_at.get((row["partition"], row["source_offset"]))
        if index and end is not None and times[index - 1] >= since:
            values_ms.append((end - times[index - 1]) * 1000)
    if not values_ms:
        return Latency(0, None, None)
    values_ms.sort()
    p50, p99 = (round(values_ms[int(share * len(values_ms))], 2) for share in (0.5, 0.99))
    return Latency(len(values_ms), p50, p99)


_POSITIONS = "SELECT partition, position FROM tartan.positions WHERE reader = $1"
_PROJECTED = "SELECT partition, position FROM reads.positions"
_DUE = """SELECT count(*) FROM tartan.sync_state
          WHERE stopped IS NULL AND (lease_token IS NOT NULL OR generation > done_generation)"""
_UNPUBLISHED = """SELECT count(*) FROM reads.changesets c LEFT JOIN tartan.published_checkpoints f USING (partition)
                  WHERE c.net_events > 0 AND c.source_offset >= coalesce(f.published, 0)"""
_COUNTS = """SELECT (SELECT sum(position) FROM tartan.positions WHERE reader = 'mark_due') AS webhooks,
                    (SELECT count(*) FROM reads.changesets) AS changesets,
                    (SELECT sum(net_events) FROM reads.changesets) AS events,
                    (SELECT count(*) FROM reads.transactions WHERE removed_at IS NULL) AS transactions,
                    (SELECT count(*) FROM reads.ledger_transfers) AS transfers,
                    (SELECT count(*) FROM reads.items WHERE NOT unlinked) AS items"""
# track_commit_timestamp is on in the sandbox, so this is the time of the commit, not of the first read.
_CAUSED = f"""SELECT partition, source_offset, item_id,
                     extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8 AS committed,
                     (cause->>'webhook_received_at')::float8 / 1000000 AS received
              FROM {SCHEMA}.changesets
              WHERE cause->>'kind' = 'webhook' AND cause->>'webhook_received_at' IS NOT NULL"""
