"""Plaid's quotas and the banks' breakers in memory, by the rules of scheduler.quotas and scheduler.breakers."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

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
from sandbox.simulation.memory.rows import Row
from sandbox.simulation.memory.store import Database
from sandbox.simulation.memory.tables import Tables
from schemas.errors import Retry
from streams.limits.postgres_limits import WAIT_S_MAX

LOOK_S_MIN = 0.05
"""Shortest wait between two looks at a bucket."""


@dataclass(slots=True)
class Breaker:
    """A row of `breakers`."""

    failures: int = 0
    trips: int = 0
    open_until: datetime | None = None
    changed_at: datetime | None = None


class Quotas:
    """The buckets and breakers that all workers share; each method is one statement or transaction."""

    def __init__(self, tables: Tables, limits: Mapping[str, Limit], *, failures_max: int) -> None:
        self._tables = tables
        self.limits = limits
        self._failures_max = failures_max
        self._breakers: dict[str, Breaker] = {}

    def take(self, endpoint: str, item_id: str) -> float:
        """Take a token of the Item's bucket and one of the client's, or none. Gives 0, or the seconds to wait."""
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
        longest = max(one.wait_s for one in taken.values())
        if longest > 0:
            return longest
        for name, one in taken.items():
            buckets[name] = now + timedelta(seconds=one.tat_s)
        return 0.0

    def exceeded(self, endpoint: str, item_id: str, error_code: str) -> None:
        """Plaid answered 429 although we had a token: empty the buckets that it may speak of."""
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
        """Whether an answer of this bank that is no outage has to be told."""
        breaker = self._breakers.get(institution_id or "")
        return breaker is not None and (breaker.failures > 0 or breaker.open_until is not None)

    def failed(self, institution_id: str) -> None:
        """Count an outage answer of a bank; as many in a row as are set make its Items wait."""
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
        """A bank was reached: its breaker closes and its Items go on. Gives whether any waited."""
        breaker = self._breakers.pop(institution_id, None)
        if breaker is None or not breaker.trips:
            return False
        now = self._tables.clock()
        at = now + timedelta(seconds=SPREAD_S * self._tables.rng.random())
        for row in self._items(institution_id):
            error = row.last_error or {}
            failed = error.get("code") in OUTAGE_CODES
            waits = row.not_before is not None and row.not_before > now + timedelta(seconds=SPREAD_S)
            later = row.due_at is not None and row.due_at > now + timedelta(seconds=SPREAD_S) and failed
            if error.get("detail") == "RATE_LIMIT_EXCEEDED" or not (waits or later):
                continue
            row.not_before = None if row.due_at is None else at
            if failed and row.due_at is not None:
                row.due_at = min(row.due_at, at)
            self._tables.queue.put(row)
        return True

    def probe(self) -> int:
        """Of each bank whose time is over, let one Item try. Gives how many."""
        now, chosen = self._tables.clock(), 0
        for institution_id in sorted(self._breakers):
            breaker = self._breakers[institution_id]
            if breaker.open_until is None or breaker.open_until > now:
                continue
            breaker.open_until, breaker.changed_at = now + timedelta(seconds=PROBE_S), now
            fit = [row for row in self._items(institution_id) if self._may_try(row, now)]
            if fit:
                row = min(fit, key=_untried_first)
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


class MemoryLimits:
    """The port Limits: one process's way to the quotas."""

    def __init__(self, quotas: Quotas, database: Database, wire: Connection) -> None:
        self._quotas = quotas
        self._database = database
        self._wire = wire

    async def take(self, endpoint: str, item_id: str) -> None:
        """Wait until the Item's bucket and the client's both give a token. Raises: Retry."""
        now = asyncio.get_running_loop().time
        began = now()
        while True:
            wait = await self._look(endpoint, item_id)
            if not wait:
                return
            wait = max(wait, LOOK_S_MIN)
            if now() - began + wait > WAIT_S_MAX:
                raise Retry(f"the quota of {endpoint} has nothing for {wait:.0f} s", wait_s=wait)
            await asyncio.sleep(wait)

    async def _look(self, endpoint: str, item_id: str) -> float:
        return await self._wire.call(lambda: self._database.do(lambda: self._quotas.take(endpoint, item_id)))

    async def exceeded(self, endpoint: str, item_id: str, *, error_code: str) -> None:
        """Plaid counted otherwise and answered 429. Raises: Retry."""
        await self._wire.call(lambda: self._database.do(lambda: self._quotas.exceeded(endpoint, item_id, error_code)))

    async def institution_failed(self, institution_id: str, *, error_code: str) -> None:
        """A bank answered with an outage. Raises: Retry."""
        await self._wire.call(lambda: self._database.do(lambda: self._quotas.failed(institution_id)))

    async def institution_answered(self, institution_id: str) -> None:
        """A bank answered otherwise: its Items go on. Raises: Retry."""
        await self._wire.call(lambda: self._database.do(lambda: self._quotas.answered(institution_id)))

    async def probe(self) -> int:
        """Let one Item of each bank whose time is over try. Raises: Retry."""
        return await self._wire.call(lambda: self._database.do(self._quotas.probe))
