"""Keep Plaid's quotas and the banks' breakers in memory, by the rules of scheduler.quotas and scheduler.breakers."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from runtime.plaid.models import OUTAGE_CODES
from runtime.plaid_limits import SYNC, Limit
from runtime.scheduler.breakers import PROBE_S, PROBING_S, SPREAD_S, wait_s
from runtime.scheduler.quotas import (
    CLIENT,
    CLIENT_STEP_S,
    MINUTE_S,
    PAGES,
    client_pace,
    item_pace,
    pages_pace,
    take_token,
)
from sandbox.simulation.engine.network import Connection
from sandbox.simulation.memory.database import Database
from sandbox.simulation.memory.rows import Row
from sandbox.simulation.memory.tables import Tables
from schemas.errors import Retry
from streams.limits.postgres_limits import WAIT_S_MAX

RETRY_S_MIN = 0.05
"""Shortest wait between two tries at a bucket."""

Result = TypeVar("Result")


@dataclass(slots=True)
class Breaker:
    """A row of `breakers`."""

    failures: int = 0
    trips: int = 0
    open_until: datetime | None = None
    changed_at: datetime | None = None


class Quotas:
    """The buckets and breakers of all workers; each method is one statement or transaction."""

    def __init__(self, tables: Tables, limits: Mapping[str, Limit], *, failures_max: int) -> None:
        self._tables = tables
        self.limits = limits
        self._failures_max = failures_max
        self._breakers: dict[str, Breaker] = {}

    def take(self, endpoint: str, item_id: str) -> float:
        """Take a token of the Item's bucket and one of the client's, or none; return 0 or the seconds to wait."""
        limit = self.limits.get(endpoint)
        if limit is None:
            return 0.0
        now, buckets = self._tables.clock(), self._tables.buckets
        paces = {(endpoint, item_id): item_pace(limit), (endpoint, CLIENT): client_pace(limit)}
        if endpoint == SYNC:  # a page that no claim has paid for
            paces[PAGES, CLIENT] = pages_pace(limit)
        taken = {
            name: take_token((buckets.get(name, now) - now).total_seconds(), 0.0, pace) for name, pace in paces.items()
        }
        if (PAGES, CLIENT) in taken and taken[PAGES, CLIENT].wait_s > 0:
            return pages_pace(limit).interval_s
        longest = max(token.wait_s for token in taken.values())
        if longest > 0:
            return longest
        for name, token in taken.items():
            buckets[name] = now + timedelta(seconds=token.tat_s)
        return 0.0

    def exceeded(self, endpoint: str, item_id: str, error_code: str) -> None:
        """Empty the buckets that a 429 of Plaid may concern."""
        limit = self.limits.get(endpoint)
        if limit is None:
            return
        now, buckets = self._tables.clock(), self._tables.buckets
        closed = now + timedelta(seconds=MINUTE_S + item_pace(limit).burst_s)
        buckets[endpoint, item_id] = max(buckets.get((endpoint, item_id), now), closed)
        if error_code != "INSTITUTION_RATE_LIMIT":
            before = max(buckets.get((endpoint, CLIENT), now), now)
            most = now + timedelta(seconds=MINUTE_S + client_pace(limit).burst_s)
            buckets[endpoint, CLIENT] = max(before, min(before + timedelta(seconds=CLIENT_STEP_S), most))

    def is_failing(self, institution_id: str | None) -> bool:
        """Return whether the breaker must learn of a good answer of this bank."""
        breaker = self._breakers.get(institution_id or "")
        return breaker is not None and (breaker.failures > 0 or breaker.open_until is not None)

    def failed(self, institution_id: str) -> None:
        """Count an outage of a bank; `failures_max` in a row open its breaker."""
        now = self._tables.clock()
        breaker = self._breakers.setdefault(institution_id, Breaker(changed_at=now))
        breaker.failures += 1
        was_open = breaker.open_until
        trying = timedelta(seconds=PROBE_S) + (breaker.changed_at or now)
        opens = was_open <= max(now, trying) if was_open else breaker.failures >= self._failures_max
        if opens:
            breaker.trips += 1
            breaker.open_until, breaker.changed_at = now + timedelta(seconds=wait_s(breaker.trips)), now
        if breaker.open_until is not None:
            until = breaker.open_until + timedelta(seconds=PROBING_S)
            for row in self._items(institution_id):
                if row.unlink_requested:
                    continue
                row.not_before = until if row.not_before is None else max(row.not_before, until)
                self._tables.queue.put(row)

    def answered(self, institution_id: str) -> bool:
        """Close a bank's breaker after a good answer; return whether it was open."""
        breaker = self._breakers.pop(institution_id, None)
        if breaker is None or not breaker.trips:
            return False
        now = self._tables.clock()
        retry_at = now + timedelta(seconds=SPREAD_S * self._tables.rng.random())
        for row in self._items(institution_id):
            error = row.last_error or {}
            failed = error.get("code") in OUTAGE_CODES
            waits = row.not_before is not None and row.not_before > now + timedelta(seconds=SPREAD_S)
            later = row.due_at is not None and row.due_at > now + timedelta(seconds=SPREAD_S) and failed
            if error.get("detail") == "RATE_LIMIT_EXCEEDED" or not (waits or later):
                continue
            row.not_before = None if row.due_at is None else retry_at
            if failed and row.due_at is not None:
                row.due_at = min(row.due_at, retry_at)
            self._tables.queue.put(row)
        return True

    def probe(self) -> int:
        """Release one Item of each bank whose breaker's time is over; return their number."""
        now, chosen = self._tables.clock(), 0
        for institution_id in sorted(self._breakers):
            breaker = self._breakers[institution_id]
            if breaker.open_until is None or breaker.open_until > now:
                continue
            breaker.open_until, breaker.changed_at = now + timedelta(seconds=PROBE_S), now
            candidates = [row for row in self._items(institution_id) if self._may_try(row, now)]
            if candidates:
                row = min(candidates, key=_untried_first)
                row.not_before, row.due_at = None, min(row.due_at or now, now)
                self._tables.queue.put(row)
                chosen += 1
        return chosen

    def _may_try(self, row: Row, now: datetime) -> bool:
        if row.lease_token is not None or row.due_at is None:
            return False
        waits = row.due_at <= now or (row.last_error or {}).get("code") in OUTAGE_CODES
        return waits and (row.unlink_requested or not self._tables.is_quarantined(row.item_id))

    def _items(self, institution_id: str) -> list[Row]:
        return [
            row
            for row in self._tables.rows.values()
            if row.institution_id == institution_id and row.stopped != "unlinked"
        ]


def _untried_first(row: Row) -> tuple[bool, datetime, str]:
    return (row.last_attempt_at is not None, row.last_attempt_at or row.created_at, row.item_id)


class LimitsClient(ABC):
    """The port Limits of one process: wait for tokens in virtual time."""

    @abstractmethod
    async def _try_take(self, endpoint: str, item_id: str) -> float: ...

    async def take(self, endpoint: str, item_id: str) -> None:
        """Wait until the Item's bucket and the client's both give a token. Raises: Retry."""
        now = asyncio.get_running_loop().time
        started_at = now()
        while True:
            wait_s = await self._try_take(endpoint, item_id)
            if not wait_s:
                return
            wait_s = max(wait_s, RETRY_S_MIN)
            if now() - started_at + wait_s > WAIT_S_MAX:
                raise Retry(f"the quota of {endpoint} has nothing for {wait_s:.0f} s", wait_s=wait_s)
            await asyncio.sleep(wait_s)


class MemoryLimits(LimitsClient):
    """The port Limits over the quotas in memory."""

    def __init__(self, quotas: Quotas, database: Database, connection: Connection) -> None:
        self._quotas = quotas
        self._database = database
        self._connection = connection

    async def exceeded(self, endpoint: str, item_id: str, *, error_code: str) -> None:
        """Empty the buckets that a 429 of Plaid may concern. Raises: Retry."""
        await self._execute(lambda: self._quotas.exceeded(endpoint, item_id, error_code))

    async def institution_failed(self, institution_id: str, *, error_code: str) -> None:
        """Count an outage of a bank. Raises: Retry."""
        await self._execute(lambda: self._quotas.failed(institution_id))

    async def institution_answered(self, institution_id: str) -> None:
        """Close a bank's breaker after a good answer. Raises: Retry."""
        await self._execute(lambda: self._quotas.answered(institution_id))

    async def probe(self) -> int:
        """Release one Item of each bank whose breaker's time is over. Raises: Retry."""
        return await self._execute(self._quotas.probe)

    async def _try_take(self, endpoint: str, item_id: str) -> float:
        return await self._execute(lambda: self._quotas.take(endpoint, item_id))

    async def _execute(self, effect: Callable[[], Result]) -> Result:
        return await self._connection.call(lambda: self._database.execute(effect))
