"""Implement the port Limits with Postgres, and probe the banks whose breaker is open. Shell."""

import asyncio
import random
from collections.abc import Callable

import asyncpg
from prometheus_client import Counter

from runtime import logs, plaid_limits
from runtime.retry import Backoff
from runtime.scheduler import breakers, quotas
from runtime.settings import Settings
from schemas.errors import Retry
from streams.storage.session import session

WAIT_S_MAX = 90.0
"""Longest wait for a token within a sync run: a bucket's minute, its margin, and others who come first. Slot and lease
are in use meanwhile; an Item that needs longer is given back and claimed again."""
RECHECK_BASE_S, RECHECK_CAP_S = 0.05, 4.0
"""Added at most to a wait before the next check, doubling from the first to the second. A check locks the row of the
client's bucket: 256 that check every 2 s on average are 128 checks a second, of a millisecond each."""
PROBE_EVERY_S = 1.0
"""No bank waits longer than this beyond its five minutes."""
PURGE_EVERY = 60
"""Probes between two purges of buckets."""

WAITED = Counter("tartan_quota_waited_seconds", "Time that requests waited for a token", ["endpoint"])
EXCEEDED = Counter("tartan_quota_exceeded", "Rate limits of Plaid's that were answered all the same", ["endpoint"])
OUTAGES = Counter("tartan_institution_outages", "Outage answers, by whether the bank's Items wait now", ["breaker"])
PROBES = Counter("tartan_institution_probes", "Items that were released to probe their bank")

_log = logs.logger(__name__)


class PostgresLimits:
    """Plaid's quotas and the banks' breakers, shared by all workers."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        settings: Settings,
        *,
        on_ready: Callable[[], None] = lambda: None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._pool = pool
        self._limits = settings.limits()
        self._failures_max = settings.institution_failures_max
        self._on_ready = on_ready
        self._jitter = jitter

    async def take(self, endpoint: str, item_id: str) -> None:
        """Wait until the Item's bucket and the client's both give a token.

        Raises: Retry, where that takes longer than WAIT_S_MAX, or Postgres is away.
        """
        if endpoint not in self._limits:
            return
        now = asyncio.get_running_loop().time
        started_at, backoff = now(), Backoff(RECHECK_BASE_S, RECHECK_CAP_S)
        while True:
            async with session(self._pool) as connection:
                if endpoint == plaid_limits.SYNC:  # the claim has paid for the first page
                    wait_s = await quotas.take_page(connection, item_id, self._limits)
                else:
                    wait_s = await quotas.take(connection, endpoint, item_id, self._limits)
            waited_s = now() - started_at
            if not wait_s:
                WAITED.labels(endpoint).inc(waited_s)
                return
            if waited_s + wait_s > WAIT_S_MAX:
                raise Retry(f"the quota of {endpoint} has nothing for {wait_s:.0f} s", wait_s=wait_s)
            # Stretched at random, so that those who wait for one token do not all come back for it at once.
            await asyncio.sleep(wait_s + backoff.next_s() * self._jitter())

    async def exceeded(self, endpoint: str, item_id: str, *, error_code: str) -> None:
        """Move the buckets that a 429 of Plaid's may be about: Plaid counted otherwise. Raises: Retry."""
        EXCEEDED.labels(endpoint).inc()
        _log.warning("quota exceeded", endpoint=endpoint, item_id=item_id, code=error_code)
        async with session(self._pool) as connection:
            await quotas.record_exceeded(connection, endpoint, item_id, error_code, self._limits)

    async def institution_failed(self, institution_id: str, *, error_code: str) -> None:
        """Count an outage of a bank; where a set number follow each other, all its Items wait. Raises: Retry."""
        async with session(self._pool) as connection:
            is_open = await breakers.failed(connection, institution_id, error_code, self._failures_max)
        OUTAGES.labels("open" if is_open else "closed").inc()
        _log.warning("bank failed", institution_id=institution_id, code=error_code, waits=is_open)

    async def institution_answered(self, institution_id: str) -> None:
        """End the outage of a bank: its Items go on. Raises: Retry."""
        async with session(self._pool) as connection:
            was_open = await breakers.answered(connection, institution_id)
        if was_open:
            _log.info("bank is back", institution_id=institution_id)
            self._on_ready()


async def run_probes(pool: asyncpg.Pool, settings: Settings, on_ready: Callable[[], None]) -> None:
    """Release one Item of each bank whose wait is over, for ever, and delete full buckets now and then.

    Several workers may run it: each probe is claimed by one of them.
    """
    rounds = 0
    while True:
        await asyncio.sleep(PROBE_EVERY_S)
        rounds += 1
        try:
            async with session(pool) as connection:
                ready = await breakers.probe(connection)
                if rounds % PURGE_EVERY == 0:
                    await quotas.purge(connection)
                    await breakers.forget(connection)
        except Retry as error:
            _log.warning("no probes", instance=settings.instance_id, reason=str(error))
            continue
        if ready:
            PROBES.inc(ready)
            on_ready()
