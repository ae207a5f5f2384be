"""The claim in memory: whose turn it is, and whether the quota pays for it, by the rules of scheduler.leases."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from runtime.plaid_limits import SYNC, Limit
from runtime.scheduler.leases import AGE_S, QUARANTINED_LOOK_S, SLACK
from runtime.scheduler.quotas import CLIENT, Pace, claim_pace, item_pace
from runtime.scheduler.types import Claimed, Claims, FairQueueState
from sandbox.simulation.memory.rows import Row
from sandbox.simulation.memory.tables import Tables

ROUNDING = 0.000001
"""A millionth of a token makes up for moments that are kept in microseconds."""


class Found(NamedTuple):
    """A ready Item and its turn among those of its tenant and lane."""

    row: Row
    turn: float


def claim(
    tables: Tables, *, slots: int, lease_s: float, holder: str, standing: FairQueueState, limit: Limit | None = None
) -> Claims:
    """Lease Items that are ready, at most `slots`, by lane, age and the tenants' turns, as the quota pays for them."""
    now = tables.clock()
    available = math.inf if limit is None else _available(tables, now, claim_pace(limit))
    if limit is not None and available < 1 and not tables.unlinking:
        return Claims(more_in_s=(1 - available) * claim_pace(limit).interval_s)
    found, held, oldest = _looked(tables, now, slots, standing, limit)
    left = slots if available == math.inf or available < 1 else min(slots, int(available))
    claims: list[Claimed] = []
    spent = 0
    for row in _placed(found, now, standing, oldest)[: slots * SLACK]:
        if len(claims) == left:
            break
        if not row.unlink_requested:
            if available < 1:
                continue
            spent += limit is not None
        claims.append(tables.lease(row, lease_s=lease_s, holder=holder))
        if limit is not None and not row.unlink_requested:
            _pay(tables, row.item_id, now, item_pace(limit))
            _pay(tables, CLIENT, now, claim_pace(limit))
    if limit is not None and available - spent < 1:
        return Claims(claims, more_in_s=(1 - (available - spent)) * claim_pace(limit).interval_s)
    return Claims(claims, more_in_s=0.0 if held else None)


def _looked(
    tables: Tables, now: datetime, slots: int, standing: FairQueueState, limit: Limit | None
) -> tuple[list[Found], int, dict[int, datetime]]:
    """The first ready Items of each tenant and lane; how many were held back instead; how old each lane is."""
    ahead = {(tenant, lane): turns for tenant, lane, turns in zip(*standing[:3], strict=True)}
    weights = dict(zip(standing.weighted, standing.weights, strict=True))
    found: list[Found] = []
    held = 0
    fronts = list(tables.queue.first(now, slots * SLACK, tables.is_claimable))
    tenants = Counter(lane for (_, lane), _ in fronts)
    oldest: dict[int, datetime] = {}
    for (tenant, lane), rows in fronts:
        places = 0
        oldest[lane] = min(oldest.get(lane, now), rows[0].ready_at or now)
        for row in rows[: max(slots, slots * SLACK // tenants[lane])]:
            until = _held_until(tables, row, now, limit)
            if until is not None:
                held += 1
                row.not_before = until
                tables.queue.put(row)
                continue
            found.append(Found(row, ahead.get((tenant, lane), 0.0) + places / weights.get(tenant, 1.0)))
            places += 1
    return found, held, oldest


def _held_until(tables: Tables, row: Row, now: datetime, limit: Limit | None) -> datetime | None:
    if row.unlink_requested:
        return None
    if tables.is_quarantined(row.item_id):
        return now + timedelta(seconds=QUARANTINED_LOOK_S)
    if limit is None:
        return None
    free_at = tables.buckets.get((SYNC, row.item_id), now) - timedelta(seconds=item_pace(limit).burst_s)
    return free_at if free_at > now else None


def _placed(
    found: Sequence[Found], now: datetime, standing: FairQueueState, oldest: Mapping[int, datetime]
) -> list[Row]:
    """In the order of their turns: lanes that waited rise, then lanes take turns, and within them tenants."""
    by_lane: dict[int, list[Found]] = defaultdict(list)
    for one in found:
        by_lane[one.row.lane].append(one)
    placed: list[tuple[float, float, int, int, Row]] = []
    for lane, ones in by_lane.items():
        effective = max(0, lane - math.floor((now - oldest[lane]).total_seconds() / AGE_S))
        ones.sort(key=lambda one: (one.turn, one.row.ready_at, one.row.item_id))
        for place, one in enumerate(ones):
            turn = standing.lanes_ahead[lane] + place / standing.lane_weights[lane]
            placed.append((effective, turn, lane, place, one.row))
    placed.sort(key=lambda entry: entry[:4])
    return [row for *_, row in placed]


def _available(tables: Tables, now: datetime, pace: Pace) -> float:
    tat = max(tables.buckets.get((SYNC, CLIENT), now), now)
    return (pace.burst_s - (tat - now).total_seconds()) / pace.interval_s + 1 + ROUNDING


def _pay(tables: Tables, item_id: str, now: datetime, pace: Pace) -> None:
    tat = max(tables.buckets.get((SYNC, item_id), now), now)
    tables.buckets[SYNC, item_id] = tat + timedelta(seconds=pace.interval_s)
