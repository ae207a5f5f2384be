"""The sweep for missed webhooks: each Item is asked about in its turn, and what was missed is synced. Shell.

Several processes may sweep: a look is claimed by writing `swept_at`, and all share one bucket of the client's quota.
A process that dies between the claim and the answer leaves its Items to the next turn: what was missed is then found,
only not counted.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

import asyncpg
import msgspec
import prometheus_client

from runtime import logs, plaid_limits
from runtime.incidents import incidents
from runtime.plaid.client import PlaidRefused
from runtime.plaid.models import ItemAnswer
from runtime.scheduler import enqueue, quotas
from runtime.settings import Settings
from schemas.errors import Quarantine, Retry
from streams.ports import Bank, Limits
from streams.storage.session import session
from streams.sync import plaid_errors
from streams.sync.plaid_errors import Action
from streams.webhooks import missed
from streams.webhooks.missed import Finding, Loss, Swept

BUCKET = "item/get of the sweep"
"""Name of the sweep's own bucket in `buckets`: the share that all processes have together."""
FACT = "webhook_loss"
"""Name in `facts` of what was counted."""
SUBJECT = "client"
"""Of the incident: all webhooks go to one address."""
RESWEEP_S = 300.0
"""An Item is looked at no more often: a webhook is missed at most this and the grace late where Items are few."""
TICK_S = 1.0
BURST_S = 2.0
"""Looks of two ticks may be made at once, so that a late tick loses nothing."""
IDLE_S = 5.0
"""Wait where no Item's turn has come."""
FIRST_S = missed.GRACE_S
"""Wait after the start: webhooks that came while no process ran are read first, or they would count as missed."""
ITEMS_AT_ONCE_MAX = 50
"""Looks of one turn. Their answers are written together, so these many are lost where the process dies."""
REQUESTS_AT_ONCE_MAX = 3
"""Of the client's spare threads (runtime.plaid.client.THREADS_SPARE): passes have theirs."""
OFF_S = 3600.0

WEBHOOKS = prometheus_client.Counter(
    "tartan_sweep_webhooks", "Webhooks that Plaid says it sent, by what became of them", ["outcome"]
)
LOOKS = prometheus_client.Counter("tartan_sweep_looks", "Items that the sweep asked about, by the answer", ["answer"])
MARKED = prometheus_client.Counter("tartan_sweep_marked", "Items that the sweep made due", ["reason"])
LOSS = prometheus_client.Gauge("tartan_sweep_loss_ratio", "Share of the webhooks of the last hour that did not come")

_log = logs.logger(__name__)


class OpenToken(Protocol):
    """Opens an access token; runtime.users.vault.Vault.open_token is one."""

    def __call__(self, sealed: bytes, *, item_id: str) -> str:
        """Raises: Halt, where it does not open."""


IsRead = Callable[[], Awaitable[bool]]
"""Whether webhooks that came a while ago are read; streams.webhooks.consumer_lag.CaughtUp is one. Raises: Retry."""


class Timing(NamedTuple):
    """How patient a sweep is. Units: seconds."""

    grace_s: float = missed.GRACE_S
    resweep_s: float = RESWEEP_S
    first_s: float = FIRST_S
    tick_s: float = TICK_S
    idle_s: float = IDLE_S


class Turn(NamedTuple):
    """What one turn did. `limited`: Plaid's quota or ours ended it."""

    looked: int = 0
    sent: int = 0
    missed: int = 0
    marked: int = 0
    limited: bool = False


class _Look(NamedTuple):
    """An Item with what Plaid said of it: an answer, or that it is gone."""

    swept: Swept
    answer: ItemAnswer | None
    finding: Finding


async def always() -> bool:
    """Webhooks are read as they come."""
    return True


async def run(
    pool: asyncpg.Pool,
    bank: Bank,
    open_token: OpenToken,
    limits: Limits,
    settings: Settings,
    on_marked: Callable[[], None],
    *,
    is_read: IsRead = always,
    timing: Timing = Timing(),  # noqa: B008 - a constant
) -> None:
    """Sweep for ever, within TARTAN_SWEEP_SHARE of the client's quota; never where that is 0. Raises: Halt.

    Nothing is looked at while webhooks wait to be read: each of them would count as missed.
    """
    sweep = Sweep(pool, bank, open_token, limits, settings, timing=timing)
    await asyncio.sleep(timing.first_s)
    while True:
        if not settings.sweep_share:
            await asyncio.sleep(OFF_S)
            continue
        try:
            turn = await sweep.turn() if await is_read() else Turn()
        except Retry as error:
            _log.warning("sweep waits", reason=str(error))
            await asyncio.sleep(timing.idle_s)
            continue
        if turn.marked:
            on_marked()
        await asyncio.sleep(timing.tick_s if turn.looked and not turn.limited else timing.idle_s)


class Sweep:
    """Takes turns of looking at Items."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        bank: Bank,
        open_token: OpenToken,
        limits: Limits,
        settings: Settings,
        *,
        timing: Timing,
    ) -> None:
        self._pool = pool
        self._bank = bank
        self._open_token = open_token
        self._limits = limits
        self._timing = timing
        # Where no quota is set, Plaid's own for production: the sweep is no reason to ask without bounds.
        limit = settings.limits().get(plaid_limits.ITEM, plaid_limits.PLANS["production"][plaid_limits.ITEM])
        self._pace = quotas.client_share(limit, settings.sweep_share, burst_s=BURST_S) if settings.sweep_share else None
        self._requests = asyncio.Semaphore(REQUESTS_AT_ONCE_MAX)
        self._limited = False

    async def turn(self) -> Turn:
        """Look at the Items whose turn it is. Raises: Retry, where Postgres is away; Halt."""
        swept = await self._claimed()
        if not swept:
            return Turn()
        self._limited = False
        looks = [look for look in await asyncio.gather(*map(self._look, swept)) if look is not None]
        if not looks:
            return Turn(limited=self._limited)
        return (await self._record(looks))._replace(limited=self._limited)

    async def _claimed(self) -> list[Swept]:
        """Items whose turn it is, as many as the sweep has tokens for; they are nobody else's from here on."""
        if self._pace is None:
            return []
        async with session(self._pool) as connection, connection.transaction():
            tokens = await quotas.take_some(connection, BUCKET, ITEMS_AT_ONCE_MAX, self._pace)
            rows = await connection.fetch(_CLAIM, tokens, self._timing.resweep_s) if tokens else []
        return [Swept(**row) for row in rows]

    async def _look(self, swept: Swept) -> _Look | None:
        """Ask about one Item; None where there is no answer about it now."""
        token = self._open_token(swept.sealed_token, item_id=swept.item_id)
        async with self._requests:
            if self._limited:
                return None
            try:
                await self._limits.take(plaid_limits.ITEM, swept.item_id)
                answer = await self._bank.item(token)
            except PlaidRefused as refusal:
                return await self._refused(swept, refusal)
            except (Retry, Quarantine) as error:
                LOOKS.labels("none").inc()
                _log.warning("not looked at", item_id=swept.item_id, reason=str(error))
                return None
        LOOKS.labels("given").inc()
        return _Look(swept, answer, missed.judge(swept, answer, grace_s=self._timing.grace_s))

    async def _refused(self, swept: Swept, refusal: PlaidRefused) -> _Look | None:
        LOOKS.labels("refused").inc()
        action = plaid_errors.action(refusal.error_type, refusal.error_code)
        if action is Action.LIMITED:
            self._limited = True  # the others of this turn wait for the next one
            try:
                await self._limits.exceeded(plaid_limits.ITEM, swept.item_id, error_code=refusal.error_code)
            except Retry as error:
                _log.warning("limits not told", item_id=swept.item_id, reason=str(error))
        if action not in (Action.USER, Action.GONE) or swept.stopped is not None:
            _log.warning("not looked at", item_id=swept.item_id, code=refusal.error_code)
            return None
        return _Look(swept, None, Finding(reason=missed.ERROR))  # a pass finds out what it is

    async def _record(self, looks: Sequence[_Look]) -> Turn:
        """Write what was found, in one transaction. Locks: sync_state by the Items' ids, facts, incidents."""
        sent = sum(look.finding.sent for look in looks)
        lost = sum(look.finding.missed for look in looks)
        marked = [look.swept.item_id for look in looks if look.finding.reason is not None]
        async with session(self._pool) as connection, connection.transaction():
            answered = [(look.swept.item_id, look.answer) for look in looks if look.answer is not None]
            updates = [plaid_errors.bank_updated_at(answer) for _, answer in answered]
            await connection.execute(_ANSWERED, [item_id for item_id, _ in answered], updates)
            if marked:
                await enqueue.mark_sweep(connection, marked)
            loss = await _count(connection, sent=sent, lost=lost)
        self._tell(looks, sent=sent, lost=lost, loss=loss)
        return Turn(len(looks), sent, lost, len(marked))

    def _tell(self, looks: Sequence[_Look], *, sent: int, lost: int, loss: Loss) -> None:
        WEBHOOKS.labels("received").inc(sent - lost)
        WEBHOOKS.labels("missed").inc(lost)
        LOSS.set(missed.share(loss))
        for reason, items in Counter(look.finding.reason for look in looks if look.finding.reason).items():
            MARKED.labels(reason).inc(items)
        for look in looks:
            if look.finding.missed:
                _log.warning("webhook missed", item_id=look.swept.item_id)


async def _count(connection: asyncpg.Connection, *, sent: int, lost: int) -> Loss:
    """Add to what all processes counted; the incident opens or closes with it."""
    await connection.execute(_FIRST_LOSS, FACT)
    row = await connection.fetchrow(_LOSS, FACT)
    assert row is not None
    before = msgspec.json.decode(row["value"], type=Loss | None)
    loss = missed.counted(before, row["at"], sent=sent, missed=lost)
    if loss != before:
        await connection.execute(_PUT_LOSS, FACT, msgspec.json.encode(loss).decode())
    if not missed.is_alarming(loss):
        await incidents.close(connection, incidents.WEBHOOKS_MISSED, SUBJECT)
    elif lost:
        detail = f"{missed.share(loss):.1%} of the last hour's webhooks that Plaid names"
        await incidents.report(connection, incidents.WEBHOOKS_MISSED, SUBJECT, detail)
    return loss


# First those that no sweep has seen, then the longest unseen; two reads, each of the index sync_state_sweep in its
# order. A user who has to act is asked about too: the webhook of the repair may be lost. What another process claims
# at the same moment is passed over, or no longer of this turn once its row is free.
_TURN = """(s.stopped IS NULL OR s.stopped = 'login_required') AND NOT s.unlink_requested"""
_CLAIM = f"""
    WITH candidates AS (
        (SELECT item_id FROM tartan.sync_state s WHERE s.swept_at IS NULL AND {_TURN} LIMIT $1)
        UNION ALL
        (SELECT item_id FROM tartan.sync_state s
         WHERE s.swept_at < tartan.clock() - make_interval(secs => $2) AND {_TURN}
         ORDER BY s.swept_at LIMIT $1)
        LIMIT $1
    ), turn AS (
        SELECT s.item_id, s.swept_at AS swept_before, k.sealed_token, h.cursor IS NOT NULL AS has_history
        FROM candidates JOIN tartan.sync_state s USING (item_id) JOIN tartan.credentials k USING (item_id)
        LEFT JOIN tartan.heads h USING (item_id)
        WHERE k.sealed_token IS NOT NULL AND {_TURN}
          AND (s.swept_at IS NULL OR s.swept_at < tartan.clock() - make_interval(secs => $2))
        FOR UPDATE OF s SKIP LOCKED
    )
    UPDATE tartan.sync_state s SET swept_at = tartan.clock()
    FROM turn WHERE s.item_id = turn.item_id
    RETURNING s.item_id, turn.sealed_token, tartan.clock() AS at, turn.swept_before, s.created_at, s.last_webhook_at,
        s.last_attempt_at, s.due_at, s.stopped, coalesce(turn.has_history, false) AS has_history"""

_ANSWERED = """
    WITH answered AS (
        SELECT * FROM unnest($1::text[], $2::timestamptz[]) AS a (item_id, updated_at)
    ), locked AS (
        SELECT item_id FROM tartan.sync_state WHERE item_id = ANY($1) ORDER BY item_id FOR UPDATE
    )
    UPDATE tartan.sync_state s
    SET bank_observed_at = tartan.clock(), bank_updated_at = greatest(s.bank_updated_at, a.updated_at)
    FROM answered a JOIN locked USING (item_id) WHERE s.item_id = a.item_id"""

_FIRST_LOSS = "INSERT INTO tartan.facts (name, value) VALUES ($1, 'null') ON CONFLICT DO NOTHING"

_LOSS = "SELECT value, tartan.clock() AS at FROM tartan.facts WHERE name = $1 FOR UPDATE"

_PUT_LOSS = "UPDATE tartan.facts SET value = $2::text::jsonb WHERE name = $1"
