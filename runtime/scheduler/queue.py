"""Queue status for operators and tenants: states of Items, failures, breakers, incidents, health of the schedule.

One Item is in exactly one state.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import asyncpg
import msgspec

from runtime import plaid_limits
from runtime.incidents import incidents
from runtime.incidents.incidents import Incident
from runtime.plaid.models import OUTAGE_CODES
from runtime.plaid_limits import Limit
from runtime.scheduler import quotas
from runtime.scheduler.leases import FOLLOWER
from runtime.scheduler.queue_status import (
    BankCounts,
    ClientBucket,
    FailedRun,
    ItemCounts,
    LaneCounts,
    OpenBreaker,
    OpenIncident,
    QueuedItem,
    QueueState,
    QueueStatus,
    ScheduleHealth,
    WithheldRemovals,
)
from runtime.scheduler.types import CURSOR_LOST, Lane
from runtime.settings import Settings

LISTED_MAX = 50
"""Items listed in each state, failures and incidents: enough for a person, and an answer stays below 100 kB."""
FAILURES_SEEN_MAX = 10_000
"""Failures of the installation that are searched for a tenant's last ones: one index scan of about 10 ms."""
TOLERANCE_SHARE, TOLERANCE_S_MIN = 0.1, 60.0
"""Lateness behind the schedule's interval that is still in time: a tick spreads its marks over 30 s at most."""
ROUNDING = 1e-3
"""Postgres stores times in microseconds; a token takes at least 27 ms."""
TICK = "schedule_tick"
"""Name of the fact with the time of the schedule's last tick and the number of Items that it marked."""
WEBHOOK_LOSS = "webhook_loss"
"""Name of the fact with the sweep's counts of webhooks that were sent and that arrived."""


async def status(connection: asyncpg.Connection, settings: Settings, *, tenant: str | None = None) -> QueueStatus:
    """Return the status of the queue: of one tenant, or (None) of the whole installation.

    Call it in a snapshot (repeatable read), so that its parts agree.
    """
    sums = _summed(await connection.fetch(_COUNTS, tenant))
    whole = tenant is None
    return QueueStatus(
        at=await connection.fetchval(_CLOCK),
        items=sum(msgspec.structs.astuple(sums.states)),
        **sums._asdict(),
        listed=[_listed(row) for row in await connection.fetch(_LISTED, tenant, LISTED_MAX)],
        failures=[FailedRun(**row) for row in await connection.fetch(_FAILURES, tenant, FAILURES_SEEN_MAX, LISTED_MAX)],
        breakers=[OpenBreaker(**row) for row in await connection.fetch(_BREAKERS, tenant)],
        incidents=[
            _incident(incident)
            for incident in await incidents.open_incidents(connection, tenant=tenant, limit=LISTED_MAX)
        ],
        removals_withheld=[WithheldRemovals(**row) for row in await connection.fetch(_REMOVALS, tenant, LISTED_MAX)],
        schedule=await health(connection, settings, tenant=tenant),
        buckets=await buckets(connection, settings.limits()) if whole else [],
        webhook_loss=await _fact(connection, WEBHOOK_LOSS) if whole else None,
    )


async def health(connection: asyncpg.Connection, settings: Settings, *, tenant: str | None = None) -> ScheduleHealth:
    """Return the health of the schedule: whether it ticks, and whether its Items are synced in time."""
    interval_s = settings.schedule_interval_s
    tolerance_s = max(interval_s * TOLERANCE_SHARE, TOLERANCE_S_MIN)
    [row] = await connection.fetch(_SEEN_LATELY, tenant, interval_s + tolerance_s, int(Lane.SCHEDULE))
    sync = settings.limits().get(plaid_limits.SYNC)
    short = sync is not None and not (await _bucket(connection, plaid_limits.SYNC, sync)).left
    tick = await connection.fetchrow(_TICK, TICK)
    status = ScheduleHealth(
        healthy=True,
        reasons=[],
        interval_s=interval_s,
        tolerance_s=tolerance_s,
        last_tick_at=tick["at"] if tick else None,
        last_tick_age_s=tick["age_s"] if tick else None,
        last_tick_marked=tick["marked"] if tick else None,
        overdue=row["overdue"],
        oldest_unseen_s=row["oldest_unseen_s"],
        backlog=row["backlog"],
        quota_short=short,
    )
    status.reasons = list(_reasons(status))
    status.healthy = not status.reasons
    return status


async def ticked(connection: asyncpg.Connection, marked: int) -> None:
    """Record a tick of the schedule and the number of Items that it marked."""
    await connection.execute(_TICKED, TICK, marked)


async def buckets(connection: asyncpg.Connection, limits: dict[str, Limit]) -> list[ClientBucket]:
    """Return the client's rate-limit buckets, endpoint by endpoint."""
    return [await _bucket(connection, endpoint, limit) for endpoint, limit in sorted(limits.items())]


async def next_token_in_s(connection: asyncpg.Connection, endpoint: str, item_id: str, limit: Limit) -> float:
    """Return the seconds until this Item may use an endpoint, by its own bucket and the client's; take no token."""
    paces = {item_id: quotas.item_pace(limit), quotas.CLIENT: quotas.client_pace(limit)}
    waits = [
        float(await connection.fetchval(_AHEAD, endpoint, bucket)) - pace.burst_s for bucket, pace in paces.items()
    ]
    return max(0.0, *waits)


class _Sums(NamedTuple):
    states: ItemCounts
    delayed_by: dict[str, int]
    stopped_by: dict[str, int]
    lanes: list[LaneCounts]
    banks: list[BankCounts]


def _summed(rows: Iterable[asyncpg.Record]) -> _Sums:
    """Add up groups of Items of one state, reason, lane and bank."""
    states = ItemCounts()
    reasons: dict[QueueState, dict[str, int]] = {QueueState.DELAYED: {}, QueueState.STOPPED: {}}
    lanes = {lane: LaneCounts(lane.name.lower()) for lane in Lane}
    banks: dict[str | None, BankCounts] = {}
    for row in rows:
        state, count = QueueState(row["state"]), row["items"]
        _add(states, state, count)
        if state is QueueState.IDLE:
            continue
        bank = banks.setdefault(row["institution_id"], BankCounts(row["institution_id"], row["institution_name"]))
        _add(bank, state, count, row["wait_s"])
        if state in (QueueState.READY, QueueState.RUNNING, QueueState.DELAYED):
            _add(lanes[Lane(row["lane"])], state, count, row["wait_s"])
        if state in reasons:
            reasons[state][row["why"]] = reasons[state].get(row["why"], 0) + count
    busiest = sorted(banks.values(), key=lambda bank: (-bank.ready - bank.delayed - bank.running, -bank.stopped))
    return _Sums(
        states, reasons[QueueState.DELAYED], reasons[QueueState.STOPPED], list(lanes.values()), busiest[:LISTED_MAX]
    )


def _add(to: ItemCounts | LaneCounts | BankCounts, state: QueueState, count: int, wait_s: float | None = None) -> None:
    setattr(to, state.value, getattr(to, state.value) + count)
    if wait_s is not None and not isinstance(to, ItemCounts):
        to.oldest_wait_s = max(to.oldest_wait_s or 0.0, wait_s)


def _listed(row: asyncpg.Record) -> QueuedItem:
    return msgspec.convert({**row, "lane": Lane(row["lane"]).name.lower()}, QueuedItem)


def _incident(incident: Incident) -> OpenIncident:
    kind = incidents.KINDS.get(incident.kind)
    fields = {name: getattr(incident, name) for name in OpenIncident.__struct_fields__ if name != "remedy"}
    return OpenIncident(**fields, remedy=kind.remedy if kind else None)


def _reasons(status: ScheduleHealth) -> Iterable[str]:
    late_s = status.interval_s + status.tolerance_s
    if status.last_tick_age_s is None:
        yield "the schedule has never ticked: does a process `tartan streams` run, or a cron that posts here?"
    elif status.last_tick_age_s > late_s:
        yield f"the last tick is {status.last_tick_age_s:.0f} s ago, more than {late_s:.0f} s"
    if status.overdue:
        why = "Plaid's quota is used up" if status.quota_short else "do workers run, and keep up?"
        yield f"Items that were not asked about for more than {late_s:.0f} s: {status.overdue}; {why}"


async def _bucket(connection: asyncpg.Connection, endpoint: str, limit: Limit) -> ClientBucket:
    pace = quotas.client_pace(limit)
    ahead_s = float(await connection.fetchval(_AHEAD, endpoint, quotas.CLIENT))
    burst = round(pace.burst_s / pace.interval_s) + 1
    # One request more may go as long as the bucket is at most its burst ahead (GCRA).
    left = max(0, int((pace.burst_s - ahead_s) / pace.interval_s + ROUNDING) + 1) if ahead_s <= pace.burst_s else 0
    return ClientBucket(endpoint, limit.client, min(left, burst), burst, max(0.0, ahead_s - pace.burst_s))


async def _fact(connection: asyncpg.Connection, name: str) -> dict[str, Any] | None:
    value = await connection.fetchval(_FACT, name)
    # The sweep inserts a null first, to have a row to lock.
    return None if value is None else msgspec.json.decode(value, type=dict[str, Any] | None)


_CLOCK = "SELECT tartan.clock()"

# Each Item's state, in the order of the claim's conditions: an ended lease counts as none, and a quarantined Item is
# claimed for an unlink only. The reason of a delay follows from its column: the follower's position, not_before
# (Plaid's limits and banks), and the counters of failures.
_ITEMS = f"""
    WITH moment AS MATERIALIZED (SELECT tartan.clock() AS now),
    quarantined AS (
        SELECT item_id, min(quarantined_at) AS quarantined_at,
            (array_agg(reason ORDER BY quarantined_at DESC))[1] AS reason
        FROM tartan.quarantines WHERE redrive_offset IS NULL GROUP BY item_id
    ), seen AS (
        SELECT s.*, k.quarantined_at, k.reason, m.now,
            CASE WHEN s.lease_token IS NOT NULL AND s.lease_until > m.now THEN 'running'
                 WHEN (k.item_id IS NOT NULL OR s.stopped = 'quarantined') AND NOT s.unlink_requested THEN 'quarantined'
                 WHEN s.due_at IS NULL AND s.stopped IS NOT NULL THEN 'stopped'
                 WHEN s.due_at IS NULL THEN 'idle'
                 WHEN s.ready_at > m.now OR s.wait_offset >= coalesce(p.position, 0) THEN 'delayed'
                 ELSE 'ready' END AS state,
            CASE WHEN s.ready_at <= m.now AND s.wait_offset >= coalesce(p.position, 0) THEN 'follower'
                 WHEN s.not_before > m.now AND (b.institution_id IS NOT NULL
                     OR s.last_error->>'code' IN {OUTAGE_CODES}) THEN 'bank'
                 WHEN s.not_before > m.now AND s.last_error->>'code' = '{CURSOR_LOST}' THEN 'retry'
                 WHEN s.not_before > m.now THEN 'rate_limit'
                 WHEN s.not_ready > 0 THEN 'history_not_ready'
                 WHEN s.attempts > 0 THEN 'retry'
                 ELSE 'schedule' END AS delay
        FROM moment m CROSS JOIN tartan.sync_state s
        LEFT JOIN quarantined k ON k.item_id = s.item_id
        LEFT JOIN tartan.positions p ON p.reader = '{FOLLOWER}' AND p.partition = s.partition
        LEFT JOIN tartan.breakers b ON b.institution_id = s.institution_id AND b.open_until IS NOT NULL
        WHERE s.stopped IS DISTINCT FROM 'unlinked' AND ($1::text IS NULL OR s.tenant = $1)
    )"""

# One scan of all Items, as the two below: together about a second for 100,000. The sums are made of the groups.
_COUNTS = f"""{_ITEMS}, groups AS (
        SELECT state, CASE state WHEN 'delayed' THEN delay WHEN 'stopped' THEN stopped END AS why, lane,
            institution_id, count(*) AS items, min(item_id) AS one,
            max(CASE WHEN state = 'ready' THEN extract(epoch FROM now - ready_at) END)::float8 AS wait_s
        FROM seen GROUP BY 1, 2, 3, 4
    )
    SELECT g.state, g.why, g.lane, g.institution_id, c.institution_name, g.items, g.wait_s
    FROM groups g LEFT JOIN tartan.credentials c ON c.item_id = g.one"""

# The oldest of each state; of delayed Items the next, of stopped ones the latest.
_LISTED = f"""{_ITEMS}, listed AS (
        SELECT item_id, tenant, state, lane, cause->>'kind' AS cause, attempts, institution_id,
            CASE state WHEN 'delayed' THEN delay WHEN 'stopped' THEN stopped WHEN 'quarantined' THEN reason END AS why,
            last_error->>'code' AS code, last_error->>'detail' AS detail,
            CASE state WHEN 'ready' THEN ready_at WHEN 'running' THEN last_attempt_at
                WHEN 'quarantined' THEN coalesce(quarantined_at, last_attempt_at)
                ELSE coalesce(last_attempt_at, created_at) END AS since,
            CASE state WHEN 'delayed' THEN ready_at END AS until
        FROM seen WHERE state <> 'idle'
    ), numbered AS (
        SELECT *, row_number() OVER (PARTITION BY state ORDER BY CASE WHEN state = 'stopped'
            THEN -extract(epoch FROM since) ELSE extract(epoch FROM coalesce(until, since)) END, item_id) AS number
        FROM listed
    )
    SELECT item_id, tenant, state, lane, why, code, detail, attempts, cause, institution_id, since, until
    FROM numbered WHERE number <= $2 ORDER BY state, number"""

_FAILURES = """
    SELECT a.item_id, s.tenant, a.started_at + make_interval(secs => a.duration_s) AS at, a.cause,
        a.error->>'code' AS code, a.error->>'detail' AS detail, s.attempts
    FROM (SELECT * FROM tartan.sync_runs WHERE outcome = 'failed' ORDER BY run DESC LIMIT $2) a
    JOIN tartan.sync_state s USING (item_id)
    WHERE $1::text IS NULL OR s.tenant = $1
    ORDER BY a.run DESC LIMIT $3"""

_BREAKERS = """
    SELECT institution_id, open_until, trips, last_code AS code FROM tartan.breakers b
    WHERE open_until IS NOT NULL AND ($1::text IS NULL
        OR EXISTS (SELECT FROM tartan.sync_state s WHERE s.institution_id = b.institution_id AND s.tenant = $1))
    ORDER BY open_until, institution_id"""

_REMOVALS = """
    SELECT r.item_id, s.tenant, r.missing_rows AS transactions, encode(r.missing_changeset_id, 'hex') AS changeset
    FROM reads.items r JOIN tartan.sync_state s USING (item_id)
    WHERE r.missing_rows > 0 AND ($1::text IS NULL OR s.tenant = $1) ORDER BY r.known_at DESC LIMIT $2"""

# A delayed Item (a bank, a limit, a retry) is not overdue, and neither is a running one.
_SEEN_LATELY = f"""{_ITEMS}, free AS (
        SELECT state, lane, extract(epoch FROM now - greatest(last_synced_at, last_attempt_at, created_at))::float8
            AS unseen_s
        FROM seen WHERE state IN ('ready', 'idle') AND stopped IS NULL
    )
    SELECT count(*) FILTER (WHERE unseen_s > $2) AS overdue, max(unseen_s) AS oldest_unseen_s,
        count(*) FILTER (WHERE state = 'ready' AND lane = $3) AS backlog
    FROM free"""

_TICK = """
    SELECT (value->>'at')::timestamptz AS at, (value->>'marked')::int AS marked,
        extract(epoch FROM tartan.clock() - (value->>'at')::timestamptz)::float8 AS age_s
    FROM tartan.facts WHERE name = $1"""

_TICKED = """
    INSERT INTO tartan.facts (name, value) VALUES ($1, jsonb_build_object('at', tartan.clock(), 'marked', $2::int))
    ON CONFLICT (name) DO UPDATE SET value = excluded.value"""

# GCRA: how far a bucket's tat lies ahead; a bucket without a row is full.
_AHEAD = """
    SELECT coalesce((SELECT greatest(extract(epoch FROM tat - tartan.clock()), 0)
        FROM tartan.rate_limit_buckets WHERE endpoint = $1 AND item_id = $2), 0)::float8"""

_FACT = "SELECT value FROM tartan.facts WHERE name = $1"
