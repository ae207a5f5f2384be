"""A day of virtual time at twice the demand that the quota allows: what each Item and each tenant gets.

The claim, the turns, the quota and Plaid's own counters are those of every simulation; a pass is one page without
news. Items and quotas are scaled together, so a hundredth of each shows what the whole does.
"""

import heapq
import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from runtime.plaid_limits import SYNC, Limit
from runtime.scheduler.types import Lane, Released
from sandbox.simulation.engine.installation import START, Counting, keys_of
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
PASS_S_MAX = 0.4
POLL_S = 0.25
TICK_S = 30.0
WEBHOOK_SHARE = 0.1
"""Share of the quota that webhooks ask for; the schedule asks for the rest, and as much again."""
TOLD_SHARE = 0.1
"""Share of Items that webhooks speak of; the others have the schedule alone, and depend on its fairness."""
SMALL_EVERY_S = 600.0
"""How often the small tenant's one Item is told of news by webhook."""
SPREAD_MAX, SMALL_P99_S_MAX = 0.1, 5.0


@dataclass
class Day:
    """What a day came to.

    Units: `waits` of the small tenant in seconds; `passes` by Item of the big one that no webhook speaks of, `told` of
    the others.
    """

    hours: float
    refused: int = 0
    passes: Counter[str] = field(default_factory=Counter)
    told: Counter[str] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)
    asked: int = 0
    quota: float = 0.0

    def spread(self) -> float:
        """How far the passes of an Item lie from their mean, at most."""
        mean = sum(self.passes.values()) / len(self.passes)
        return max(abs(count - mean) for count in self.passes.values()) / mean

    def small_p99_s(self) -> float:
        """The 99th percentile of the small tenant's waits, nearest rank."""
        ordered = sorted(self.waits)
        return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]

    def problems(self) -> list[str]:
        """What was promised and not kept."""
        found = []
        if self.refused:
            found.append(f"{self.refused} requests were over Plaid's limits")
        if self.spread() > SPREAD_MAX:
            found.append(f"an Item's passes lie {self.spread():.1%} from the mean")
        if self.small_p99_s() > SMALL_P99_S_MAX:
            found.append(f"the small tenant waited {self.small_p99_s():.1f} s")
        return found

    def shown(self) -> dict[str, object]:
        """As JSON."""
        return {
            "hours": self.hours,
            "items": len(self.passes) + len(self.told),
            "passes": sum(self.passes.values()) + sum(self.told.values()),
            "passes_an_item": [min(self.passes.values()), max(self.passes.values())],
            "spread": round(self.spread(), 4),
            "quota_used": round(self.asked / self.quota, 4),
            "refused": self.refused,
            "small_tenant_p99_s": round(self.small_p99_s(), 3),
            "problems": self.problems(),
        }


class _Clock:
    def __init__(self) -> None:
        self.at = START

    def now(self) -> datetime:
        return self.at


def simulate_day(*, items: int = 1_000, hours: float = 24.0, seed: int = 1) -> Day:
    """Let a day pass. Units: `items` of the big tenant, with the client's quota in proportion."""
    return _Course(items, hours, random.Random(seed)).run()


class _Course:
    """The day's events in the order of their time."""

    def __init__(self, items: int, hours: float, rng: random.Random) -> None:
        self._rng = rng
        self._clock = _Clock()
        self._tables = Tables(self._clock.now, random.Random(rng.random()))
        client = CLIENT_FULL * items // ITEMS_FULL
        self._limit = Limit(ITEM_LIMIT, client)
        self._plaid = Counting({f"/{SYNC}": PlaidLimit(ITEM_LIMIT, client, "TRANSACTIONS_SYNC_LIMIT")})
        self._turns = [FairQueue({}) for _ in range(WORKERS)]
        self._busy = [0] * WORKERS
        self._ends = START + timedelta(hours=hours)
        # Twice as many Items are due in an interval as the quota lets through.
        self._interval_s = items / client * 60.0 / 2
        self._webhook_every_s = 60.0 / (client * WEBHOOK_SHARE)
        self._marked_at: dict[str, datetime] = {}
        self._day = Day(hours, quota=client * 60.0 * hours)
        self._names = [f"item-{number}" for number in range(items)]
        self._agenda: list[tuple[datetime, int, str, Any]] = []
        self._numbers = 0
        self._told = self._names[:: int(1 / TOLD_SHARE)]
        for name in self._names:
            self._register(name, "big")
        self._day.told = Counter(dict.fromkeys(self._told, 0))
        self._day.passes = Counter(dict.fromkeys(self._names, 0))
        for name in self._told:
            del self._day.passes[name]
        self._register("small", "small")

    def run(self) -> Day:
        """Let it pass."""
        for number in range(WORKERS):
            self._at(number * POLL_S / WORKERS, "claim", number)
        for name, wait_s in (("tick", TICK_S), ("webhook", self._webhook_every_s), ("small", SMALL_EVERY_S)):
            self._at(wait_s, name, None)
        happen = {
            "claim": self._claim,
            "tick": self._tick,
            "webhook": self._webhook,
            "small": self._small,
            "end": self._end,
        }
        while self._agenda[0][0] < self._ends:
            self._clock.at, _, what, about = heapq.heappop(self._agenda)
            happen[what](about)
        return self._day

    def _at(self, wait_s: float, what: str, about: Any) -> None:
        self._numbers += 1
        heapq.heappush(self._agenda, (self._clock.at + timedelta(seconds=wait_s), self._numbers, what, about))

    def _register(self, item_id: str, tenant: str) -> None:
        credential = Credential(tenant, 1, None, None, item_id)
        self._tables.register(item_id, credential, partition=0, keys=keys_of(1))

    def _claim(self, number: Any) -> None:
        free = SLOTS - self._busy[number]
        wait_s = POLL_S
        if free:
            turns = self._turns[number]
            claims = claiming.claim(
                self._tables, slots=free, lease_s=30.0, holder=str(number), standing=turns.state(), limit=self._limit
            )
            turns.advance(claims)
            for claimed in claims:
                self._ask(number, claimed.item_id)
                self._busy[number] += 1
                self._at(self._rng.random() * PASS_S_MAX, "end", (number, claimed))
            if claims.more_in_s:
                wait_s = min(max(claims.more_in_s, 0.1), 1.0)
        self._at(wait_s, "claim", number)

    def _ask(self, number: int, item_id: str) -> None:
        self._day.asked += 1
        try:
            self._plaid.count(f"/{SYNC}", item_id, self._clock.at)
        except PlaidFailure:
            self._day.refused += 1
        marked_at = self._marked_at.pop(item_id, None)
        if item_id == "small":
            if marked_at is not None:
                self._day.waits.append((self._clock.at - marked_at).total_seconds())
        elif item_id in self._day.told:
            self._day.told[item_id] += 1
        else:
            self._day.passes[item_id] += 1

    def _end(self, about: Any) -> None:
        number, claimed = about
        self._busy[number] -= 1
        self._tables.release(claimed, Released(outcome="unchanged", done=True, synced=True))
        self._tables.attempts.clear()

    def _tick(self, _: Any) -> None:
        self._tables.mark_scheduled(interval_s=self._interval_s, recheck_s=86_400.0, spread_s=TICK_S)
        self._at(TICK_S, "tick", None)

    def _webhook(self, _: Any) -> None:
        self._tables.mark_one(self._rng.choice(self._told), Lane.WEBHOOK, Cause("webhook"))
        self._at(self._rng.expovariate(1.0) * self._webhook_every_s, "webhook", None)

    def _small(self, _: Any) -> None:
        self._marked_at["small"] = self._clock.at
        self._tables.mark_one("small", Lane.WEBHOOK, Cause("webhook"))
        self._at(SMALL_EVERY_S * (0.5 + self._rng.random()), "small", None)
