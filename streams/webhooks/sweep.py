"""Check each Item in turn for missed webhooks, and make those due that missed one. Shell.

Several processes may sweep: a check is claimed by writing `swept_at`, and all share one bucket of the client's quota.
A process that dies between the claim and the answer leaves its Items to the next round: a missed webhook is then made
up for, only not counted.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import asyncpg
import msgspec
import prometheus_client

from runtime import logs, plaid_limits
from runtime.incidents import incidents
from runtime.plaid.client import PlaidRefused
from runtime.plaid.item_models import ItemAnswer, parse_time
from runtime.scheduler import enqueue, quotas
from runtime.settings import Settings
from schemas.errors import Quarantine, Retry
from streams.ports import Limits, PlaidApi
from streams.storage.session import session
from streams.sync import plaid_errors
from streams.sync.plaid_errors import ErrorClass
from streams.webhooks import missed
from streams.webhooks.missed import Finding, Loss, SweptItem

BUCKET = "item/get of the sweep"
"""Name of the sweep's own bucket in `buckets`: the share that all processes have together."""
FACT = "webhook_loss"
"""Name of the counts in `facts`."""
SUBJECT = "client"
"""Subject of the incident: all webhooks go to one address."""
RESWEEP_S = 300.0
"""Shortest time between two checks of an Item: with few Items, a webhook is missed for this and the grace at most."""
TICK_S = 1.0
BURST_S = 2.0
"""Checks of two ticks may be made at once, so that a late tick loses none."""
IDLE_S = 5.0
"""Wait where no Item is to be checked."""
FIRST_S = missed.GRACE_S
"""Wait after the start: webhooks that came while no process ran are read first, or they would count as missed."""
ITEMS_AT_ONCE_MAX = 50
"""Checks of one round. Their answers are written together, so these many are lost where the process dies."""
REQUESTS_AT_ONCE_MAX = 3
"""Of the client's spare threads (runtime.plaid.client.THREADS_SPARE): sync runs have their own."""
OFF_S = 3600.0

WEBHOOKS = prometheus_client.Counter(
    "tartan_sweep_webhooks", "Webhooks that Plaid reports as sent, by their arrival", ["outcome"]
)
CHECKS = prometheus_client.Counter("tartan_sweep_looks", "Items that the sweep checked, by Plaid's answer", ["answer"])
MARKED = prometheus_client.Counter("tartan_sweep_marked", "Items that the sweep made due", ["reason"])
LOSS = prometheus_client.Gauge("tartan_sweep_loss_ratio", "Share of the webhooks of the last hour that did not come")

_log = logs.logger(__name__)


OpenToken = Callable[..., str]
"""Open a sealed access token of `item_id`; runtime.users.vault.Vault.open_token is one. Raises: Halt."""

IsRead = Callable[[], Awaitable[bool]]
"""Check that webhooks in the log are read; streams.webhooks.consumer_lag.CaughtUp is one. Raises: Retry."""


class Timing(NamedTuple):
    """Waits of a sweep. Units: seconds."""

    grace_s: float = missed.GRACE_S
    resweep_s: float = RESWEEP_S
    first_s: float = FIRST_S
    tick_s: float = TICK_S
    idle_s: float = IDLE_S


class Round(NamedTuple):
    """Counts of one round. `limited`: Plaid's quota or ours ended it."""

    checked: int = 0
    sent: int = 0
    missed: int = 0
    marked: int = 0
    limited: bool = False


class _Check(NamedTuple):
    """A checked Item. `answer` None: Plaid refused the request."""

    item: SweptItem
    answer: ItemAnswer | None
    finding: Finding


async def always() -> bool:
    """Return that webhooks are read as they come."""
    return True


async def run(
    pool: asyncpg.Pool,
    bank: PlaidApi,
    open_token: OpenToken,
    limits: Limits,
    settings: Settings,
    on_marked: Callable[[], None],
    *,
    is_read: IsRead = always,
    timing: Timing = Timing(),  # noqa: B008 - a constant
) -> None:
    """Sweep for ever, within TARTAN_SWEEP_SHARE of the client's quota; never where that is 0. Raises: Halt.

    No Item is checked while webhooks wait to be read: each of them would count as missed.
    """
    sweep = Sweep(pool, bank, open_token, limits, settings, timing)
    await asyncio.sleep(timing.first_s)
    while True:
        if not settings.sweep_share:
            await asyncio.sleep(OFF_S)
            continue
        try:
            counts = await sweep.round() if await is_read() else Round()
        except Retry as error:
            _log.warning("sweep waits", reason=str(error))
            await asyncio.sleep(timing.idle_s)
            continue
        if counts.marked:
            on_marked()
        await asyncio.sleep(timing.tick_s if counts.checked and not counts.limited else timing.idle_s)


class Sweep:
    """Sweep over Items, in rounds."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        bank: PlaidApi,
        open_token: OpenToken,
        limits: Limits,
        settings: Settings,
        timing: Timing,
    ) -> None:
        self._pool, self._bank, self._open_token, self._limits = pool, bank, open_token, limits
        self._timing = timing
        # Where no quota is set, Plaid's own for production: the sweep must not send requests without bounds.
        limit = settings.limits().get(plaid_limits.ITEM, plaid_limits.PLANS["production"][plaid_limits.ITEM])
        self._pace = quotas.client_share(limit, settings.sweep_share, burst_s=BURST_S) if settings.sweep_share else None
        self._requests = asyncio.Semaphore(REQUESTS_AT_ONCE_MAX)
        self._limited = False

    async def round(self) -> Round:
        """Claim Items, ask Plaid about each of them, and write the findings.

        Raises: Retry, where Postgres is away; Halt.
        """
        self._limited = False
        checks = [check for check in await asyncio.gather(*map(self._check, await self._claim())) if check is not None]
        counts = await self._write(checks) if checks else Round()
        return counts._replace(limited=self._limited)

    async def _claim(self) -> list[SweptItem]:
        """Claim the next Items, as many as the sweep has tokens for; no other process checks them in this round."""
        if self._pace is None:
            return []
        async with session(self._pool) as connection, connection.transaction():
            tokens = await quotas.take_some(connection, BUCKET, ITEMS_AT_ONCE_MAX, self._pace)
            rows = await connection.fetch(_CLAIM, tokens, self._timing.resweep_s) if tokens else []
        return [SweptItem(**row) for row in rows]

    async def _check(self, item: SweptItem) -> _Check | None:
        """Ask Plaid about one Item; None where there is no answer about it now."""
        token = self._open_token(item.sealed_token, item_id=item.item_id)
        async with self._requests:
            if self._limited:
                return None
            try:
                await self._limits.take(plaid_limits.ITEM, item.item_id)
                answer = await self._bank.item(token)
            except PlaidRefused as refusal:
                return await self._check_refused(item, refusal)
            except (Retry, Quarantine) as error:
                CHECKS.labels("none").inc()
                _log.warning("Item not checked", item_id=item.item_id, reason=str(error))
                return None
        CHECKS.labels("given").inc()
        return _Check(item, answer, missed.check(item, answer, grace_s=self._timing.grace_s))

    async def _check_refused(self, item: SweptItem, refusal: PlaidRefused) -> _Check | None:
        CHECKS.labels("refused").inc()
        error_class = plaid_errors.classify(refusal.error_type, refusal.error_code)
        if error_class is ErrorClass.RATE_LIMIT:
            self._limited = True  # the other Items of this round wait for another one
            try:
                await self._limits.exceeded(plaid_limits.ITEM, item.item_id, error_code=refusal.error_code)
            except Retry as error:
                _log.warning("rate limit not recorded", item_id=item.item_id, reason=str(error))
        if error_class not in plaid_errors.BROKEN or item.stopped is not None:
            _log.warning("Item not checked", item_id=item.item_id, code=refusal.error_code)
            return None
        return _Check(item, None, Finding(reason=missed.ERROR))  # a sync run finds the state

    async def _write(self, checks: Sequence[_Check]) -> Round:
        """Write the findings in one transaction. Locks: sync_state by the Items' ids, facts, incidents."""
        sent = sum(check.finding.sent for check in checks)
        lost = sum(check.finding.missed for check in checks)
        marked = [check.item.item_id for check in checks if check.finding.reason is not None]
        answered = [(check.item.item_id, check.answer) for check in checks if check.answer is not None]
        updated = [parse_time(answer.last_successful_update) for _, answer in answered]
        async with session(self._pool) as connection, connection.transaction():
            await connection.execute(_ANSWERED, [item_id for item_id, _ in answered], updated)
            if marked:
                await enqueue.mark_sweep(connection, marked)
            loss = await _add_to_loss(connection, sent=sent, lost=lost)
        WEBHOOKS.labels("received").inc(sent - lost)
        WEBHOOKS.labels("missed").inc(lost)
        LOSS.set(missed.loss_ratio(loss))
        for reason, items in Counter(check.finding.reason for check in checks if check.finding.reason).items():
            MARKED.labels(reason).inc(items)
        for check in checks:
            if check.finding.missed:
                _log.warning("webhook missed", item_id=check.item.item_id)
        return Round(len(checks), sent, lost, len(marked))


async def _add_to_loss(connection: asyncpg.Connection, *, sent: int, lost: int) -> Loss:
    """Add to the counts of all processes, and open or close the incident."""
    await connection.execute("INSERT INTO tartan.facts (name, value) VALUES ($1, 'null') ON CONFLICT DO NOTHING", FACT)
    row = await connection.fetchrow(
        "SELECT value, tartan.clock() AS at FROM tartan.facts WHERE name = $1 FOR UPDATE", FACT
    )
    assert row is not None
    before = msgspec.json.decode(row["value"], type=Loss | None)
    loss = missed.add_counts(before, row["at"], sent=sent, missed=lost)
    if loss != before:
        value = msgspec.json.encode(loss).decode()
        await connection.execute("UPDATE tartan.facts SET value = $2::text::jsonb WHERE name = $1", FACT, value)
    if not missed.is_alarming(loss):
        await incidents.close(connection, incidents.WEBHOOKS_MISSED, SUBJECT)
    elif lost:
        detail = f"{missed.loss_ratio(loss):.1%} of the last hour's webhooks that Plaid names"
        await incidents.report(connection, incidents.WEBHOOKS_MISSED, SUBJECT, detail)
    return loss


# First the Items that were never checked, then those checked longest ago; two reads, each of the index sync_state_sweep
# in its order. An Item whose user has to act is checked too: the webhook of the repair may be lost. A row that another
# process claims at the same moment is skipped, or does not match any more once it is free.
_SWEEPABLE = """(s.stopped IS NULL OR s.stopped = 'login_required') AND NOT s.unlink_requested"""
_CLAIM = f"""
    WITH candidates AS (
        (SELECT item_id FROM tartan.sync_state s WHERE s.swept_at IS NULL AND {_SWEEPABLE} LIMIT $1)
        UNION ALL
        (SELECT item_id FROM tartan.sync_state s
         WHERE s.swept_at < tartan.clock() - make_interval(secs => $2) AND {_SWEEPABLE}
         ORDER BY s.swept_at LIMIT $1)
        LIMIT $1
    ), claimed AS (
        SELECT s.item_id, s.swept_at AS swept_before, k.sealed_token, h.cursor IS NOT NULL AS has_history
        FROM candidates JOIN tartan.sync_state s USING (item_id) JOIN tartan.credentials k USING (item_id)
        LEFT JOIN tartan.heads h USING (item_id)
        WHERE k.sealed_token IS NOT NULL AND {_SWEEPABLE}
          AND (s.swept_at IS NULL OR s.swept_at < tartan.clock() - make_interval(secs => $2))
        FOR UPDATE OF s SKIP LOCKED
    )
    UPDATE tartan.sync_state s SET swept_at = tartan.clock()
    FROM claimed WHERE s.item_id = claimed.item_id
    RETURNING s.item_id, claimed.sealed_token, tartan.clock() AS at, claimed.swept_before, s.created_at,
        s.last_webhook_at, s.last_attempt_at, s.due_at, s.stopped,
        coalesce(claimed.has_history, false) AS has_history"""

_ANSWERED = """
    WITH answered AS (
        SELECT * FROM unnest($1::text[], $2::timestamptz[]) AS a (item_id, updated_at)
    ), locked AS (
        SELECT item_id FROM tartan.sync_state WHERE item_id = ANY($1) ORDER BY item_id FOR UPDATE
    )
    UPDATE tartan.sync_state s
    SET bank_observed_at = tartan.clock(), bank_updated_at = greatest(s.bank_updated_at, a.updated_at)
    FROM answered a JOIN locked USING (item_id) WHERE s.item_id = a.item_id"""
