"""Kill `tartan rebuild` and the projectors beside it, again and again, until a rebuild completes."""

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
from sandbox.observe.rebuild_process import POLL_S, RebuildProcess
from schemas.errors import Halt

REBUILD = "rebuild"
ATTEMPTS_MAX = 3
"""Rebuilds that may end before the moment of their kill: a short log is replayed within one poll."""


class Moment(StrEnum):
    """Moment of a kill: in the load, in a phase after it, or at a crash point of the swap."""

    LOAD = "load"
    INDEXES = "indexes"
    COMPARISON = "comparison"
    SWAP_LOCKED = CrashPoint.SWAP_LOCKED
    SWAP_BEFORE_COMMIT = CrashPoint.SWAP_BEFORE_COMMIT
    SWAP_AFTER_COMMIT = CrashPoint.SWAP_AFTER_COMMIT
    SWAP = "swap"


POINTS = {moment: CrashPoint(moment) for moment in Moment if moment.startswith("swap.")}
LOAD_LOGGED = "the next version"
PHASE_LOGGED = {Moment.INDEXES: "indexes", Moment.COMPARISON: "comparison", Moment.SWAP: "swap"}
"""Text in the rebuild's log at the begin of a phase."""


class Kill(NamedTuple):
    """Kill of a process at a moment; in the load, as soon as `share` of the log is replayed."""

    moment: Moment
    share: float = 0.0
    target: str = REBUILD

    def __str__(self) -> str:
        moment = f"{self.moment} at {self.share:.0%}" if self.moment is Moment.LOAD else str(self.moment)
        return f"{self.target}: {moment}"


_FIRST = (
    Kill(Moment.LOAD),
    Kill(Moment.SWAP_BEFORE_COMMIT),
    Kill(Moment.LOAD, target=PROJECTIONS),
    Kill(Moment.SWAP, target=PROJECTIONS),
    Kill(Moment.SWAP_LOCKED),
    Kill(Moment.COMPARISON),
    Kill(Moment.SWAP_AFTER_COMMIT),
    Kill(Moment.INDEXES),
)
"""Kills of every plan, the most important first."""


def plan_kills(*, seed: int, kills: int) -> list[Kill]:
    """Return so many kills in the order of one rebuild; those beyond the first ones are in its load."""
    rng = random.Random(seed)
    targets = (REBUILD, REBUILD, PROJECTIONS)
    chosen = [*_FIRST[:kills], *(Kill(Moment.LOAD, target=rng.choice(targets)) for _ in range(kills - len(_FIRST)))]
    placed = [kill._replace(share=rng.uniform(0.05, 0.9)) if kill.moment is Moment.LOAD else kill for kill in chosen]
    order = list(Moment)
    return sorted(placed, key=lambda kill: (order.index(kill.moment), kill.share))


class Killer:
    """Run rebuilds of a stack and kill them by plan; `done` counts the kills by target and moment."""

    def __init__(self, stack: Stack, connection: asyncpg.Connection, note: Callable[[str], None]) -> None:
        self._stack = stack
        self._connection = connection
        self._note = note
        self._process: RebuildProcess | None = None
        self.done: Counter[str] = Counter()

    async def run(self, *arguments: str) -> Any:
        """Run the command to its end and return its result.

        Raises: Halt, where it fails.
        """
        self._note(" ".join(["tartan rebuild", *arguments]))
        return await self._start(*arguments).result()

    async def rebuild(self, plan: Sequence[Kill]) -> Any:
        """Do the kills, and return the result of the rebuild that was not killed; each resumes the one before it.

        Raises: Halt, where a rebuild fails without a kill, or a moment does not come.
        """
        try:
            for kill in plan:
                await self._kill(kill)
            if self._process is not None:
                return await self._process.result()
        finally:
            if self._process is not None:
                await self._process.kill()
        return await self.run()

    async def _kill(self, kill: Kill) -> None:
        for _ in range(ATTEMPTS_MAX):
            killed = await self._attempt(kill)
            if killed:
                self.done[f"{kill.target}.{kill.moment}"] += 1
                self._note(f"killed {kill}")
            if not killed or kill.moment is Moment.SWAP_AFTER_COMMIT:
                # Its version is live already: the next rebuild starts anew.
                await self.run("--drop-old")
            if killed:
                return
        raise Halt(f"none of {ATTEMPTS_MAX} rebuilds reached {kill}")

    async def _attempt(self, kill: Kill) -> bool:
        """Kill at the moment; return False where the rebuild ended before it."""
        point = POINTS.get(kill.moment)
        if self._process is not None and point is not None:
            await self._process.kill()
            self._process = None
        process = self._process = self._process or self._start(dies_at=point)
        if point is not None:
            reached = await process.ended() == -signal.SIGKILL
        else:
            reached = await self._reach(process, kill)
        if reached and kill.target == PROJECTIONS:
            self._stack.stages[PROJECTIONS].kill()
            return True
        self._process = None
        if reached:
            await process.kill()
        else:
            await process.result()
        return reached

    async def _reach(self, process: RebuildProcess, kill: Kill) -> bool:
        if kill.moment is not Moment.LOAD:
            return await process.until(lambda: process.has_logged(PHASE_LOGGED[kill.moment]))
        while process.running():
            if process.has_logged(LOAD_LOGGED) and await self._replayed_share() >= kill.share:
                return True
            await asyncio.sleep(POLL_S)
        return False

    async def _replayed_share(self) -> float:
        try:
            return float(await self._connection.fetchval(_SHARE))
        except asyncpg.UndefinedTableError:
            return 0.0  # not created yet, or swapped: then the rebuild ends

    def _start(self, *arguments: str, dies_at: CrashPoint | None = None) -> RebuildProcess:
        return RebuildProcess(
            *arguments, environment=self._stack.environment(), folder=self._stack.folder, dies_at=dies_at
        )


_SHARE = f"""
SELECT coalesce((SELECT sum(position) FROM {NEXT}.positions)
              / nullif((SELECT sum(position) FROM {SCHEMA}.positions), 0), 0)"""
