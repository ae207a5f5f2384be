"""Claim Items in memory by the rules of scheduler.leases: lanes, ages, fair queue and Plaid's quota."""

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
"""Share of a token that compensates for times in whole microseconds."""


class Candidate(NamedTuple):
    """A ready Item and its turn among those of its tenant and lane."""

    row: Row
    turn: float


def claim(
    tables: Tables, *, slots: int, lease_s: float, holder: str, fair_queue: FairQueueState, limit: Limit | None = None
) -> Claims:
    """Lease at most `slots` ready Items by lane, age and the tenants' turns, within the quota."""
    now = tables.clock()
    available = math.inf if limit is None else _available(tables, now, claim_pace(limit))
    if limit is not None and available < 1 and not tables.unlinking:
        return Claims(more_in_s=(1 - available) * claim_pace(limit).interval_s)
    candidates, delayed, oldest = _candidates(tables, now, slots, fair_queue, limit)
    claims_max = slots if available == math.inf or available < 1 else min(slots, int(available))
    claims: list[Claimed] = []
    spent = 0
    for row in _ordered(candidates, now, fair_queue, oldest)[: slots * SLACK]:
        if len(claims) == claims_max:
            break
        if not row.unlink_requested:
            if available < 1:
                continue
            spent += limit is not None
        claims.append(tables.lease(row, lease_s=lease_s, holder=holder))
        if limit is not None and not row.unlink_requested:
            _take_token(tables, row.item_id, now, item_pace(limit))
            _take_token(tables, CLIENT, now, claim_pace(limit))
    if limit is not None and available - spent < 1:
        return Claims(claims, more_in_s=(1 - (available - spent)) * claim_pace(limit).interval_s)
    return Claims(claims, more_in_s=0.0 if delayed else None)


def _candidates(
    tables: Tables, now: datetime, slots: int, fair_queue: FairQueueState, limit: Limit | None
) -> tuple[list[Candidate], int, dict[int, datetime]]:
    """Return the first ready Items of each tenant and lane, the number of delayed ones, and the age of each lane."""
    ahead = {(tenant, lane): turns for tenant, lane, turns in zip(*fair_queue[:3], strict=True)}
    weights = dict(zip(fair_queue.weighted, fair_queue.weights, strict=True))
    candidates: list[Candidate] = []
    delayed = 0
    fronts = list(tables.queue.first(now, slots * SLACK, tables.is_claimable))
    tenants = Counter(lane for (_, lane), _ in fronts)
    oldest: dict[int, datetime] = {}
    for (tenant, lane), rows in fronts:
        rank = 0
        oldest[lane] = min(oldest.get(lane, now), rows[0].ready_at or now)
        for row in rows[: max(slots, slots * SLACK // tenants[lane])]:
            until = _delayed_until(tables, row, now, limit)
            if until is not None:
                delayed += 1
                row.not_before = until
                tables.queue.put(row)
                continue
            candidates.append(Candidate(row, ahead.get((tenant, lane), 0.0) + rank / weights.get(tenant, 1.0)))
            rank += 1
    return candidates, delayed, oldest


def _delayed_until(tables: Tables, row: Row, now: datetime, limit: Limit | None) -> datetime | None:
    if row.unlink_requested:
        return None
    if tables.is_quarantined(row.item_id):
        return now + timedelta(seconds=QUARANTINED_LOOK_S)
    if limit is None:
        return None
    free_at = tables.buckets.get((SYNC, row.item_id), now) - timedelta(seconds=item_pace(limit).burst_s)
    return free_at if free_at > now else None


def _ordered(
    candidates: Sequence[Candidate], now: datetime, fair_queue: FairQueueState, oldest: Mapping[int, datetime]
) -> list[Row]:
    """Order by turns: lanes that waited rise, then lanes take turns, and within them tenants."""
    by_lane: dict[int, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        by_lane[candidate.row.lane].append(candidate)
    ordered: list[tuple[float, float, int, int, Row]] = []
    for lane, members in by_lane.items():
        effective = max(0, lane - math.floor((now - oldest[lane]).total_seconds() / AGE_S))
        members.sort(key=lambda member: (member.turn, member.row.ready_at, member.row.item_id))
        for rank, member in enumerate(members):
            turn = fair_queue.lanes_ahead[lane] + rank / fair_queue.lane_weights[lane]
            ordered.append((effective, turn, lane, rank, member.row))
    ordered.sort(key=lambda entry: entry[:4])
    return [row for *_, row in ordered]


def _available(tables: Tables, now: datetime, pace: Pace) -> float:
    tat = max(tables.buckets.get((SYNC, CLIENT), now), now)
    return (pace.burst_s - (tat - now).total_seconds()) / pace.interval_s + 1 + ROUNDING


def _take_token(tables: Tables, item_id: str, now: datetime, pace: Pace) -> None:
    tat = max(tables.buckets.get((SYNC, item_id), now), now)
    tables.buckets[SYNC, item_id] = tat + timedelta(seconds=pace.interval_s)
