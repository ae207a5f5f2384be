"""Simulate a day at twice the demand that the quota allows, and measure the share of each Item and tenant.

The claim, the fair queue, the quota and Plaid's own limiter are those of every simulation; a sync run is one page
without changes. Items and quotas are scaled together, so a hundredth of each behaves as the whole.
"""

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from runtime.plaid_limits import SYNC, Limit
from runtime.scheduler.types import Claimed, Lane, Released
from sandbox.simulation.engine.installation import START, CountingRateLimiter, keys_of
from sandbox.simulation.memory import claiming
from sandbox.simulation.memory.rows import Credential
from sandbox.simulation.memory.tables import Tables
from sandbox.simulator.api.limits import Limit as PlaidLimit
from sandbox.simulator.api.plaid_errors import PlaidFailure
from schemas.log.records import Cause
from streams.schedule.fair_queue import FairQueue

ITEMS_FULL, CLIENT_FULL, ITEM_LIMIT = 100_000, 2_500, 50
"""Plaid's quotas in production (PLAID.md 1.8), and as many Items as ask for twice what it allows."""
WORKERS, SLOTS = 3, 8
RUN_S_MAX = 0.4
POLL_S = 0.25
TICK_S = 30.0
WEBHOOK_SHARE = 0.1
"""Share of the quota that webhooks use; the schedule requests the rest, and as much again."""
NOTIFIED_SHARE = 0.1
"""Share of Items with webhooks; the others have only the schedule, and depend on its fairness."""
SMALL_EVERY_S = 600.0
"""Interval of the webhooks of the small tenant's one Item."""
SPREAD_MAX, SMALL_P99_S_MAX = 0.1, 5.0


@dataclass
class Day:
    """The result of a day.

    Units: `waits` of the small tenant in seconds; `passes`: sync runs by Item of the big tenant without webhooks,
    `notified`: of its Items with webhooks.
    """

    hours: float
    refused: int = 0
    passes: Counter[str] = field(default_factory=Counter)
    notified: Counter[str] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)
    asked: int = 0
    quota: float = 0.0

    def spread(self) -> float:
        """Return the largest deviation of an Item's sync runs from their mean, as a share of it."""
        mean = sum(self.passes.values()) / len(self.passes)
        return max(abs(count - mean) for count in self.passes.values()) / mean

    def small_p99_s(self) -> float:
        """Return the 99th percentile of the small tenant's waits, nearest rank."""
        ordered = sorted(self.waits)
        return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]

    def problems(self) -> list[str]:
        """Return the broken promises."""
        problems = []
        if self.refused:
            problems.append(f"{self.refused} requests were over Plaid's limits")
        if self.spread() > SPREAD_MAX:
            problems.append(f"an Item's passes lie {self.spread():.1%} from the mean")
        if self.small_p99_s() > SMALL_P99_S_MAX:
            problems.append(f"the small tenant waited {self.small_p99_s():.1f} s")
        return problems

    def as_json(self) -> dict[str, object]:
        """Return the values of the report."""
        return {
            "hours": self.hours,
            "items": len(self.passes) + len(self.notified),
            "passes": sum(self.passes.values()) + sum(self.notified.values()),
            "passes_an_item": [min(self.passes.values()), max(self.passes.values())],
            "spread": round(self.spread(), 4),
            "quota_used": round(self.asked / self.quota, 4),
            "refused": self.refused,
            "small_tenant_p99_s": round(self.small_p99_s(), 3),
            "problems": self.problems(),
        }


def simulate_day(*, items: int = 1_000, hours: float = 24.0, seed: int = 1) -> Day:
    """Simulate a day. Units: `items` of the big tenant; the client's quota is in proportion."""
    return _DaySimulation(items, hours, random.Random(seed)).run()


class _DaySimulation:
    """The day's events in the order of their time."""

    def __init__(self, items: int, hours: float, rng: random.Random) -> None:
        self._rng = rng
        self._now = START
        self._tables = Tables(lambda: self._now, random.Random(rng.random()))
        client = CLIENT_FULL * items // ITEMS_FULL
        self._limit = Limit(ITEM_LIMIT, client)
        self._plaid = CountingRateLimiter({f"/{SYNC}": PlaidLimit(ITEM_LIMIT, client, "TRANSACTIONS_SYNC_LIMIT")})
        self._fair_queues = [FairQueue({}) for _ in range(WORKERS)]
        self._busy = [0] * WORKERS
        self._ends = START + timedelta(hours=hours)
        # Twice as many Items are due in an interval as the quota lets through.
        self._interval_s = items / client * 60.0 / 2
        self._webhook_every_s = 60.0 / (client * WEBHOOK_SHARE)
        self._marked_at: dict[str, datetime] = {}
        self._day = Day(hours, quota=client * 60.0 * hours)
        self._names = [f"item-{number}" for number in range(items)]
        self._events: list[tuple[datetime, int, Callable[[Any], None], Any]] = []
        self._scheduled = 0
        self._notified = self._names[:: int(1 / NOTIFIED_SHARE)]
        for name in self._names:
            self._register(name, "big")
        self._day.notified = Counter(dict.fromkeys(self._notified, 0))
        self._day.passes = Counter(dict.fromkeys(self._names, 0))
        for name in self._notified:
            del self._day.passes[name]
        self._register("small", "small")

    def run(self) -> Day:
        """Run all events of the day."""
        for number in range(WORKERS):
            self._schedule(number * POLL_S / WORKERS, self._claim, number)
        self._schedule(TICK_S, self._tick)
        self._schedule(self._webhook_every_s, self._notify_big)
        self._schedule(SMALL_EVERY_S, self._notify_small)
        while self._events[0][0] < self._ends:
            self._now, _, event, argument = heapq.heappop(self._events)
            event(argument)
        return self._day

    def _schedule(self, wait_s: float, event: Callable[[Any], None], argument: Any = None) -> None:
        self._scheduled += 1
        heapq.heappush(self._events, (self._now + timedelta(seconds=wait_s), self._scheduled, event, argument))

    def _register(self, item_id: str, tenant: str) -> None:
        credential = Credential(tenant, 1, None, None, item_id)
        self._tables.register(item_id, credential, partition=0, keys=keys_of(1))

    def _claim(self, number: int) -> None:
        free = SLOTS - self._busy[number]
        wait_s = POLL_S
        if free:
            fair_queue = self._fair_queues[number]
            claims = claiming.claim(
                self._tables,
                slots=free,
                lease_s=30.0,
                holder=str(number),
                fair_queue=fair_queue.state(),
                limit=self._limit,
            )
            fair_queue.advance(claims)
            for claimed in claims:
                self._count_request(claimed.item_id)
                self._busy[number] += 1
                self._schedule(self._rng.random() * RUN_S_MAX, self._release, (number, claimed))
            if claims.more_in_s:
                wait_s = min(max(claims.more_in_s, 0.1), 1.0)
        self._schedule(wait_s, self._claim, number)

    def _count_request(self, item_id: str) -> None:
        self._day.asked += 1
        try:
            self._plaid.count(f"/{SYNC}", item_id, self._now)
        except PlaidFailure:
            self._day.refused += 1
        marked_at = self._marked_at.pop(item_id, None)
        if item_id == "small":
            if marked_at is not None:
                self._day.waits.append((self._now - marked_at).total_seconds())
        elif item_id in self._day.notified:
            self._day.notified[item_id] += 1
        else:
            self._day.passes[item_id] += 1

    def _release(self, argument: tuple[int, Claimed]) -> None:
        number, claimed = argument
        self._busy[number] -= 1
        self._tables.release(claimed, Released(outcome="unchanged", done=True, synced=True))
        self._tables.runs.clear()

    def _tick(self, _: None) -> None:
        self._tables.mark_scheduled(interval_s=self._interval_s, recheck_s=86_400.0, spread_s=TICK_S)
        self._schedule(TICK_S, self._tick)

    def _notify_big(self, _: None) -> None:
        self._tables.mark_item(self._rng.choice(self._notified), Lane.WEBHOOK, Cause("webhook"))
        self._schedule(self._rng.expovariate(1.0) * self._webhook_every_s, self._notify_big)

    def _notify_small(self, _: None) -> None:
        self._marked_at["small"] = self._now
        self._tables.mark_item("small", Lane.WEBHOOK, Cause("webhook"))
        self._schedule(SMALL_EVERY_S * (0.5 + self._rng.random()), self._notify_small)
