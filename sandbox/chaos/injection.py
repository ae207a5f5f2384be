"""Inject the faults of a run into a stack, concurrently and each at its time."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from runtime.crash_points import CrashPoint
from sandbox.chaos.crashing_stage import SMALL_RECORDS, CrashingStage
from sandbox.chaos.proxied_stack import ProxiedStack
from sandbox.chaos.proxy import Matching
from sandbox.chaos.schedule import Chain, Fault, Kind, Run
from sandbox.infra.clients import Bank
from schemas.errors import Halt

POINT_S_MAX = 25.0
"""A process that does not reach its crash point within this time is killed: a rare point must not delay the run."""
LARGE_INTERVAL_S = 2.0
LARGE_CHANGES = 600
"""More than a page of 500, so that a sync run has a second page, and far more than 8 KiB."""
AWAY_S = 1.5
STALL_S = 4.0
"""Beyond every timeout of SHORT_S and below the clients' own, which only wait for a silent neighbour."""
TARGET_S_MAX = 30.0
"""Longest wait of a fault for its target."""
STORM_S = 3.0
POLL_S = 0.5

_NEEDS_LARGE = frozenset({CrashPoint.FETCH_BETWEEN_PAGES, CrashPoint.FETCH_AFTER_PART})
_UNANSWERED: dict[str, Matching] = {
    "postgres": lambda chunk: chunk.startswith(b"Q") and b"COMMIT" in chunk[:16],
    # Source: Kafka protocol, request header: size in 4 bytes, then the api key in 2; 0 is Produce.
    "kafka": lambda chunk: chunk[4:6] == b"\0\0",
    "plaid": lambda chunk: b"/transactions/sync" in chunk[:128],
    "webhooks": lambda chunk: chunk.startswith(b"POST "),
}


class Injector:
    """Inject faults and count them in `faults`; a fault that found no target is not counted."""

    def __init__(self, stack: ProxiedStack, bank: Bank) -> None:
        self._stack = stack
        self._bank = bank
        self._started = time.monotonic()
        self.journal: list[str] = []
        """Events with their time in seconds since the run began, for the analysis of a failure."""
        self.faults: Counter[str] = Counter()
        self.kills = 0
        settings = stack.stage_settings()
        # Longer than the leases, transactions and session of the process.
        self._zombie_s = max(settings.lease_s, settings.transaction_timeout_s, settings.session_timeout_s) + 1.5
        self._append_timeout_s = settings.append_timeout_s
        self._server_locks = {"kafka": asyncio.Lock(), "postgres": asyncio.Lock()}

    async def inject(self, run: Run) -> None:
        """Inject all faults of a run, and leave the stack with every server and process running.

        Raises: Halt, where a server does not start again.
        """
        rng = random.Random(run.seed)
        for stage in self._stack.crashing_stages:
            stage.extras = SMALL_RECORDS if run.small_records else {}
        async with asyncio.TaskGroup() as group:
            for chain in run.chains:
                group.create_task(self._run_chain(chain))
            for fault in run.faults:
                group.create_task(self._run_fault(fault, random.Random(rng.getrandbits(32))))
        for stage in self._stack.crashing_stages:
            if stage.exits:
                self.note(f"{stage.name} ended by itself with codes {stage.exits}")
                stage.exits.clear()

    def note(self, event: str) -> None:
        """Append an event to the journal."""
        self.journal.append(f"{time.monotonic() - self._started:7.2f}  {event}")

    async def _run_chain(self, chain: Chain) -> None:
        """Kill a process, and let it die at each of its crash points."""
        stage = self._stack.crashing_stage(chain.slot)
        await asyncio.sleep(chain.at_s)
        async with stage.asleep:
            stage.deaths.extend(chain.deaths)
            if chain.stop is not None:
                stage.deaths.append(chain.stop)
            self._kill(stage)
        for _ in chain.deaths:
            await self._await_death(stage)
        if chain.stop is not None:
            await self._await_stop(stage, chain.stop.point)

    async def _await_death(self, stage: CrashingStage) -> None:
        """Wait until the process has died at its next crash point, or kill it at the bound."""
        died, large_at = len(stage.died_at), 0.0
        while len(stage.died_at) == died:
            point = stage.crash_point
            if point is not None and time.monotonic() - stage.started_at > POINT_S_MAX:
                async with stage.asleep:
                    self._kill(stage)
                return
            large_at = await self._lead_to(point, large_at)
            stage.changed.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(stage.changed.wait(), POLL_S)
        self.kills += 1
        self.faults[f"kill.{stage.died_at[died]}"] += 1
        self.note(f"{stage.name} died at {stage.died_at[died]}")

    async def _await_stop(self, stage: CrashingStage, point: CrashPoint) -> None:
        """Wait until the process has stopped itself at a point, and resume it when its leases are over."""
        deadline, large_at = time.monotonic() + POINT_S_MAX, 0.0
        while not (stage.stop_point is point and stage.stopped()):
            if time.monotonic() > deadline:
                self._kill(stage)  # it must not stop later, when nothing would resume it
                return
            large_at = await self._lead_to(point, large_at)
            await asyncio.sleep(POLL_S)
        async with stage.asleep:
            self.note(f"{stage.name} stopped at {point}")
            await asyncio.sleep(self._zombie_s)
            stage.stop_point = None
            stage.resume()
        self.faults[f"zombie.{point}"] += 1

    async def _lead_to(self, point: CrashPoint | None, large_at: float) -> float:
        """Make a large update if `large_at` is over and the point needs one; return the time of the next."""
        if time.monotonic() <= large_at:
            return large_at
        if point in _NEEDS_LARGE:
            await self._bank.step(changes=LARGE_CHANGES)
        return time.monotonic() + LARGE_INTERVAL_S

    def _kill(self, stage: CrashingStage) -> None:
        stage.kill()
        self.kills += 1
        self.faults[f"kill.{stage.stage}"] += 1
        self.note(f"{stage.name} was killed")

    async def _run_fault(self, fault: Fault, rng: random.Random) -> None:
        await asyncio.sleep(fault.at_s)
        name = f"{fault.kind}.{fault.target}" if fault.target else str(fault.kind)
        self.note(f"{name} begins")
        injected = await self._inject_fault(fault, rng)
        self.note(f"{name} {'is over' if injected else 'found no target'}")
        if injected:
            self.faults[name] += 1

    async def _inject_fault(self, fault: Fault, rng: random.Random) -> bool:
        """Inject a fault and wait for its end; return False where it found no target."""
        match fault.kind:
            case Kind.KILL_GATEWAY:
                gateway = self._stack.crashing_stage("gateway")
                async with gateway.asleep:
                    gateway.kill()
                self.kills += 1
            case Kind.KILL_KAFKA:
                await self._restart_server("kafka", AWAY_S)
            case Kind.KAFKA_AWAY:
                await self._restart_server("kafka", self._append_timeout_s + AWAY_S)
            case Kind.KILL_POSTGRES | Kind.RESTART_POSTGRES:
                await self._restart_server("postgres", AWAY_S, kill=fault.kind is Kind.KILL_POSTGRES)
            case Kind.ZOMBIE:
                return await self._pause(fault.target)
            case Kind.UNANSWERED:
                return await self._withhold_answer(fault.target)
            case Kind.CUT:
                # About half of the connections; where there are none, as soon as there are.
                return await _until(lambda: self._stack.proxies[fault.target].cut(rng=rng) > 0)
            case Kind.STALL | Kind.BLACK_HOLE:
                proxy = self._stack.proxies[fault.target]
                proxy.stall()
                try:
                    await asyncio.sleep(STALL_S)
                    if fault.kind is Kind.BLACK_HOLE:
                        proxy.cut()
                finally:
                    proxy.resume()
            case Kind.STORM:
                await self._rebalance(fault.target, rng)
        return True

    async def _restart_server(self, name: str, away_s: float, *, kill: bool = True) -> None:
        server = self._stack.cluster.servers[name]
        async with self._server_locks[name]:
            if kill:
                server.kill()
                self.kills += 1
            else:
                await server.stop()
            await asyncio.sleep(away_s)
            await server.start()

    async def _pause(self, name: str) -> bool:
        """Stop a process for longer than its leases, transactions and session, and resume it."""
        stage = self._stack.crashing_stage(name)
        async with stage.asleep:
            if not await _until(stage.at_work):
                return False
            stage.pause()
            try:
                await asyncio.sleep(self._zombie_s)
            finally:
                stage.resume()
        return True

    async def _withhold_answer(self, neighbour: str) -> bool:
        proxy = self._stack.proxies[neighbour]
        trap = proxy.set_trap(_UNANSWERED[neighbour])
        try:
            async with asyncio.timeout(TARGET_S_MAX):
                await trap.sprung.wait()
        except TimeoutError:
            return False
        finally:
            proxy.withdraw(trap)
        return True

    async def _rebalance(self, stage: str, rng: random.Random) -> None:
        """Let an instance join and leave again, once gracefully and once by SIGKILL, as in a bad deploy."""
        for number, gracefully in enumerate(rng.sample([True, False], 2), start=3):
            joined = self._stack.join(stage, number=number)
            try:
                with suppress(Halt):  # it joins and leaves also where a server is away just now
                    await joined.ready(timeout_s=STORM_S * 5)
                await asyncio.sleep(STORM_S)
            finally:
                del self._stack.stages[joined.name]
                if gracefully:
                    await joined.retire()
                else:
                    joined.vanish()


async def _until(condition: Callable[[], bool]) -> bool:
    """Wait for a condition; return False where it does not hold within TARGET_S_MAX."""
    deadline = time.monotonic() + TARGET_S_MAX
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(POLL_S)
    return True


@asynccontextmanager
async def active_bank(bank: Bank, *, rate_per_s: float) -> AsyncIterator[None]:
    """Make updates at the bank, with faults of its own, for a block; afterwards it rests and delivers every webhook."""
    shares = {
        "webhooks_lost": 0.03,
        "webhooks_repeated": 0.05,
        "webhooks_delayed": 0.05,
        "sync_mutation": 0.1,
        "sync_failure": 0.02,
    }
    await bank.rates(**shares)
    await bank.live(rate_per_s)
    try:
        yield
    finally:
        await bank.live(0)
        await bank.rates(**dict.fromkeys(shares, 0))
