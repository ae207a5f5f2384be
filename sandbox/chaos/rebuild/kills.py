"""Kills `tartan rebuild` and the projectors beside it, again and again, until a rebuild is done all the same."""

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

import asyncpg

from projections.store.tables import NEXT, SCHEMA
from runtime.crash_points import CrashPoint
from sandbox.infra.stack import PROJECTIONS, Stack
from sandbox.observe.rebuild_process import LOOK_S, RebuildProcess
from schemas.errors import Halt

REBUILD = "rebuild"
TRIES_MAX = 3
"""Rebuilds that end before their moment comes: a short log is replayed within a look."""


class Moment(StrEnum):
    """When something is killed: in the load, in a phase behind it, or at a point of the swap."""

    LOAD = "load"
    INDEXES = "indexes"
    COMPARISON = "comparison"
    SWAP_LOCKED = CrashPoint.SWAP_LOCKED
    SWAP_BEFORE_COMMIT = CrashPoint.SWAP_BEFORE_COMMIT
    SWAP_AFTER_COMMIT = CrashPoint.SWAP_AFTER_COMMIT
    SWAP = "swap"


POINTS = {moment: CrashPoint(moment) for moment in Moment if moment.startswith("swap.")}
BEGUN = "the next version"
SAID = {Moment.INDEXES: "indexes", Moment.COMPARISON: "comparison", Moment.SWAP: "swap"}
"""What a rebuild says as it begins a phase."""


class Kill(NamedTuple):
    """What is killed when. `share` of the log is replayed by then, where it is killed in the load."""

    moment: Moment
    share: float = 0.0
    victim: str = REBUILD

    def __str__(self) -> str:
        where = f"{self.moment} at {self.share:.0%}" if self.moment is Moment.LOAD else str(self.moment)
        return f"{self.victim}: {where}"


_FIRST = (
    Kill(Moment.LOAD),
    Kill(Moment.SWAP_BEFORE_COMMIT),
    Kill(Moment.LOAD, victim=PROJECTIONS),
    Kill(Moment.SWAP, victim=PROJECTIONS),
    Kill(Moment.SWAP_LOCKED),
    Kill(Moment.COMPARISON),
    Kill(Moment.SWAP_AFTER_COMMIT),
    Kill(Moment.INDEXES),
)
"""What must be among the kills, the most telling first."""


def planned(*, seed: int, kills: int) -> list[Kill]:
    """So many kills in the order in which one rebuild comes by them; those beyond the first are in its load."""
    rng = random.Random(seed)
    victims = (REBUILD, REBUILD, PROJECTIONS)
    chosen = [*_FIRST[:kills], *(Kill(Moment.LOAD, victim=rng.choice(victims)) for _ in range(kills - len(_FIRST)))]
    placed = [kill._replace(share=rng.uniform(0.05, 0.9)) if kill.moment is Moment.LOAD else kill for kill in chosen]
    order = list(Moment)
    return sorted(placed, key=lambda kill: (order.index(kill.moment), kill.share))


class Killer:
    """Runs rebuilds of a world and does the kills of a plan to them. `done` counts what was killed where."""

    def __init__(self, world: Stack, connection: asyncpg.Connection, say: Callable[[str], None]) -> None:
        self._world = world
        self._connection = connection
        self._say = say
        self._running: RebuildProcess | None = None
        self.done: Counter[str] = Counter()

    async def run(self, *arguments: str) -> Any:
        """Run the command to its end, and give what it told. Raises: Halt, where it fails."""
        self._say(f"tartan rebuild {' '.join(arguments)}".rstrip())
        return await self._begun(*arguments).result()

    async def rebuilt(self, plan: Sequence[Kill]) -> Any:
        """Do the kills, and give what the rebuild told that was let be: each goes on where the one before it was.

        Raises: Halt, where one fails of which nothing was killed, or a moment does not come.
        """
        try:
            for kill in plan:
                await self._killed(kill)
            if self._running is not None:
                return await self._running.result()
        finally:
            if self._running is not None:
                await self._running.kill()
        return await self.run()

    async def _killed(self, kill: Kill) -> None:
        for _ in range(TRIES_MAX):
            is_killed = await self._tried(kill)
            if is_killed:
                self.done[f"{kill.victim}.{kill.moment}"] += 1
                self._say(f"killed {kill}")
            if not is_killed or kill.moment is Moment.SWAP_AFTER_COMMIT:
                # What it made is live: the next one begins anew.
                await self.run("--drop-old")
            if is_killed:
                return
        raise Halt(f"no rebuild of {TRIES_MAX} came by {kill}")

    async def _tried(self, kill: Kill) -> bool:
        """Kill at the moment. False: the rebuild came to its end before."""
        point = POINTS.get(kill.moment)
        if self._running is not None and point is not None:
            await self._running.kill()
            self._running = None
        running = self._running = self._running or self._begun(dies_at=point)
        if point is not None:
            has_come = await running.ended() == -signal.SIGKILL
        else:
            has_come = await self._come(running, kill)
        if has_come and kill.victim == PROJECTIONS:
            self._world.stages[PROJECTIONS].kill()
            return True
        self._running = None
        if has_come:
            await running.kill()
        else:
            await running.result()
        return has_come

    async def _come(self, running: RebuildProcess, kill: Kill) -> bool:
        if kill.moment is not Moment.LOAD:
            return await running.until(lambda: running.said(SAID[kill.moment]))
        while running.running():
            if running.said(BEGUN) and await self._share() >= kill.share:
                return True
            await asyncio.sleep(LOOK_S)
        return False

    async def _share(self) -> float:
        """How much of what the live version has is replayed."""
        try:
            return float(await self._connection.fetchval(_SHARE))
        except asyncpg.UndefinedTableError:
            return 0.0  # not made yet, or swapped: then the rebuild ends

    def _begun(self, *arguments: str, dies_at: CrashPoint | None = None) -> RebuildProcess:
        return RebuildProcess(
            *arguments, environment=self._world.environment(), folder=self._world.folder, dies_at=dies_at
        )


_SHARE = f"""
SELECT coalesce((SELECT sum(position) FROM {NEXT}.positions)
              / nullif((SELECT sum(position) FROM {SCHEMA}.positions), 0), 0)"""
