"""Does the faults of a run to a world, all at once and each at its time."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from runtime.crash_points import CrashPoint
from sandbox.chaos.crashing_stage import SMALL_RECORDS, CrashingStage
from sandbox.chaos.proxied_stack import ProxiedStack, append_timeout_s, sleep_of_a_zombie_s
from sandbox.chaos.proxy import Matching
from sandbox.chaos.schedule import Chain, Fault, Kind, Run
from sandbox.infra.clients import Bank
from schemas.errors import Halt

POINT_S_MAX = 25.0
"""A process that does not come by its point for so long dies where it is: a rare point must not hold the run up."""
LARGE_EVERY_S = 2.0
LARGE_CHANGES = 600
"""More than a page of 500, so that a pass has something between its pages, and far more than 8 KiB."""
AWAY_S = 1.5
HELD_BACK_S = 4.0
"""Beyond every timeout of SHORT_S and below the clients' own, whose answer to a silent neighbour is to wait."""
TARGET_S_MAX = 30.0
"""How long a fault waits for what it can be done to."""
STORM_S = 3.0
LOOK_S = 0.5

_NEEDS_LARGE = frozenset({CrashPoint.FETCH_BETWEEN_PAGES, CrashPoint.FETCH_AFTER_PART})
_UNANSWERED: dict[str, Matching] = {
    "postgres": lambda chunk: chunk.startswith(b"Q") and b"COMMIT" in chunk[:16],
    # Source: Kafka protocol, request header: size in 4 bytes, then the api key in 2; 0 is Produce.
    "kafka": lambda chunk: chunk[4:6] == b"\0\0",
    "plaid": lambda chunk: b"/transactions/sync" in chunk[:128],
    "webhooks": lambda chunk: chunk.startswith(b"POST "),
}


class Injector:
    """Counts what it has done in `faults`; what could not be done is not counted."""

    def __init__(self, world: ProxiedStack, bank: Bank) -> None:
        self._world = world
        self._bank = bank
        self._began = time.monotonic()
        self.journal: list[str] = []
        """What happened when, in seconds since the run began: a failure's first clue."""
        self.faults: Counter[str] = Counter()
        self.kills = 0
        settings = world.stage_settings()
        self._zombie_s = sleep_of_a_zombie_s(settings)
        self._append_s = append_timeout_s(settings)
        self._one_at_a_time = {"kafka": asyncio.Lock(), "postgres": asyncio.Lock()}

    async def inject(self, run: Run) -> None:
        """Do all of a run, and leave the world with every server and process running.

        Raises: Halt, where a server does not start again.
        """
        rng = random.Random(run.seed)
        extras = SMALL_RECORDS if run.small_records else {}
        for victim in self._world.victims:
            victim.extras = extras
        async with asyncio.TaskGroup() as group:
            for chain in run.chains:
                group.create_task(self._chain(chain))
            for fault in run.faults:
                group.create_task(self._fault(fault, random.Random(rng.getrandbits(32))))
        for victim in self._world.victims:
            if victim.exits:
                self.say(f"{victim.name} ended by itself with codes {victim.exits}")
                victim.exits.clear()

    def say(self, what: str) -> None:
        """Note what happens now."""
        self.journal.append(f"{time.monotonic() - self._began:7.2f}  {what}")

    async def _chain(self, chain: Chain) -> None:
        """Kill a process, and let it die at each of its points."""
        victim = self._world.victim(chain.slot)
        await asyncio.sleep(chain.at_s)
        async with victim.asleep:
            victim.deaths.extend(chain.deaths)
            if chain.stop is not None:
                victim.deaths.append(chain.stop)
            self._kill(victim)
        for _ in chain.deaths:
            await self._die(victim)
        if chain.stop is not None:
            await self._stop(victim, chain.stop.point)

    async def _die(self, victim: CrashingStage) -> None:
        """Wait until the process has died of one more of its plans, or kill it when that takes too long."""
        died, large_at = len(victim.died_at), 0.0
        while len(victim.died_at) == died:
            now, point = time.monotonic(), victim.doomed_to
            if point is not None and now - victim.started_at > POINT_S_MAX:
                async with victim.asleep:
                    self._kill(victim)
                return
            if now > large_at:
                large_at = now + LARGE_EVERY_S
                await self._feed(point)
            victim.changed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(victim.changed.wait(), LOOK_S)
        self.kills += 1
        self.faults[f"kill.{victim.died_at[died]}"] += 1
        self.say(f"{victim.name} died at {victim.died_at[died]}")

    async def _stop(self, victim: CrashingStage, point: CrashPoint) -> None:
        """Wait until the process has stopped itself at a point, and wake it up when all it held is over."""
        deadline, large_at = time.monotonic() + POINT_S_MAX, 0.0
        while not (victim.stops_at is point and victim.stopped()):
            now = time.monotonic()
            if now > deadline:
                self._kill(victim)  # it must not stop when nobody looks
                return
            if now > large_at:
                large_at = now + LARGE_EVERY_S
                await self._feed(point)
            await asyncio.sleep(LOOK_S)
        async with victim.asleep:
            self.say(f"{victim.name} stopped at {point}")
            await asyncio.sleep(self._zombie_s)
            victim.stops_at = None
            victim.wake()
        self.faults[f"zombie.{point}"] += 1

    async def _feed(self, point: CrashPoint | None) -> None:
        """Let the bank do what leads by a point that its ordinary life does not."""
        if point in _NEEDS_LARGE:
            await self._bank.step(changes=LARGE_CHANGES)

    def _kill(self, victim: CrashingStage) -> None:
        victim.kill()
        self.kills += 1
        self.faults[f"kill.{victim.stage}"] += 1
        self.say(f"{victim.name} was killed")

    async def _fault(self, fault: Fault, rng: random.Random) -> None:
        await asyncio.sleep(fault.at_s)
        name = f"{fault.kind}.{fault.target}" if fault.target else str(fault.kind)
        self.say(f"{name} begins")
        done = await self._do(fault, rng)
        self.say(f"{name} {'is over' if done else 'was not to be'}")
        if done:
            self.faults[name] += 1

    async def _do(self, fault: Fault, rng: random.Random) -> bool:
        match fault.kind:
            case Kind.KILL_GATEWAY:
                async with self._world.victim("gateway").asleep:
                    self._world.victim("gateway").kill()
                self.kills += 1
                return True
            case Kind.KILL_KAFKA:
                return await self._kafka_away(AWAY_S)
            case Kind.KAFKA_AWAY:
                return await self._kafka_away(self._append_s + AWAY_S)
            case Kind.KILL_POSTGRES | Kind.RESTART_POSTGRES:
                return await self._postgres_away(killed=fault.kind is Kind.KILL_POSTGRES)
            case Kind.ZOMBIE:
                return await self._zombie(fault.target)
            case Kind.UNANSWERED:
                return await self._unanswered(fault.target)
            case Kind.CUT:
                return await self._cut(fault.target, rng)
            case Kind.STALL:
                return await self._held_back(fault.target, cut=False)
            case Kind.BLACK_HOLE:
                return await self._held_back(fault.target, cut=True)
            case Kind.STORM:
                return await self._storm(fault.target, rng)

    async def _kafka_away(self, away_s: float) -> bool:
        kafka = self._world.cluster.kafka
        assert kafka is not None
        async with self._one_at_a_time["kafka"]:
            kafka.kill()
            self.kills += 1
            await asyncio.sleep(away_s)
            await kafka.start()
        return True

    async def _postgres_away(self, *, killed: bool) -> bool:
        postgres = self._world.cluster.postgres
        assert postgres is not None
        async with self._one_at_a_time["postgres"]:
            if killed:
                postgres.kill()
                self.kills += 1
            else:
                await postgres.stop()
            await asyncio.sleep(AWAY_S)
            await postgres.start()
        return True

    async def _zombie(self, name: str) -> bool:
        """Stop a process for longer than its leases, transactions and session live, and wake it up."""
        victim = self._world.victim(name)
        async with victim.asleep:
            if not await _until(victim.at_work):
                return False
            victim.pause()
            try:
                await asyncio.sleep(self._zombie_s)
            finally:
                victim.wake()
        return True

    async def _unanswered(self, neighbour: str) -> bool:
        proxy = self._world.proxies[neighbour]
        trap = proxy.set_trap(_UNANSWERED[neighbour])
        try:
            async with asyncio.timeout(TARGET_S_MAX):
                await trap.sprung.wait()
        except TimeoutError:
            return False
        finally:
            proxy.withdraw(trap)
        return True

    async def _cut(self, neighbour: str, rng: random.Random) -> bool:
        """Cut about half of the connections; where there are none, as soon as there are."""
        return await _until(lambda: self._world.proxies[neighbour].cut(chooses=rng) > 0)

    async def _held_back(self, neighbour: str, *, cut: bool) -> bool:
        proxy = self._world.proxies[neighbour]
        proxy.stall()
        try:
            await asyncio.sleep(HELD_BACK_S)
            if cut:
                proxy.cut()
        finally:
            proxy.resume()
        return True

    async def _storm(self, stage: str, rng: random.Random) -> bool:
        """Let an instance join and leave again, once gracefully and once without a word, as a bad deploy would."""
        for number, gracefully in enumerate(rng.sample([True, False], 2), start=3):
            joined = self._world.join(stage, number=number)
            try:
                with suppress(Halt):  # a server is away just now; it has come and goes all the same
                    await joined.ready(timeout_s=STORM_S * 5)
                await asyncio.sleep(STORM_S)
            finally:
                del self._world.stages[joined.name]
                if gracefully:
                    await joined.retire()
                else:
                    joined.vanish()
        return True


async def _until(condition: Callable[[], bool]) -> bool:
    """Wait for a condition; False where it does not come to hold."""
    deadline = time.monotonic() + TARGET_S_MAX
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(LOOK_S)
    return True


@asynccontextmanager
async def living(bank: Bank, *, rate_per_s: float) -> AsyncIterator[None]:
    """A bank that lives, with faults of its own, for a block; afterwards it rests, and every webhook comes."""
    await bank.rates(
        webhooks_lost=0.03, webhooks_repeated=0.05, webhooks_delayed=0.05, sync_mutation=0.1, sync_failure=0.02
    )
    await bank.live(rate_per_s)
    try:
        yield
    finally:
        await bank.live(0)
        await bank.rates(webhooks_lost=0, webhooks_repeated=0, webhooks_delayed=0, sync_mutation=0, sync_failure=0)
