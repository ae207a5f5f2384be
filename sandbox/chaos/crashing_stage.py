"""A stage's process that dies by plan: at a moment, or at a named point of its next run."""

import asyncio
import os
import signal
import time
from collections import deque
from contextlib import suppress

import psutil

from runtime import crash_points
from runtime.crash_points import VARIABLE, CrashPoint
from runtime.retry import Backoff
from sandbox.chaos.schedule import Death
from sandbox.infra.stages import RESTART_S, StageProcess

LOOK_S = 0.02
START_S = 3.0
"""A start takes three to five seconds of a core."""
RESTART_S_MAX = 3.0
STOP_VARIABLE = crash_points.STOP_VARIABLE
"""Makes a process stop itself at a point."""
SMALL_RECORDS = {"TARTAN_RECORD_BYTES_MAX": "8192"}
"""The least that a record may hold: some thirty transactions, so that updates of the bank's busy moments are parts."""


class CrashingStage(StageProcess):
    """Restarted whenever it ends; each start takes the next planned death with it."""

    deaths: deque[Death]
    """What the next starts die of; one that finds none is whole."""
    extras: dict[str, str]
    """Settings of the next starts alone."""

    @property
    def stage(self) -> str:
        """The stage that it is an instance of."""
        return self.name.partition("-")[0]

    def prepare(self) -> None:
        """Begin without plans; before the first start."""
        self.deaths, self.extras = deque(), {}
        self.died_at: list[CrashPoint] = []
        self.exits: list[int] = []
        """Codes with which it ended although nobody killed it."""
        self.doomed_to: CrashPoint | None = None
        self.stops_at: CrashPoint | None = None
        self.started_at = 0.0
        self.changed = asyncio.Event()
        self.asleep = asyncio.Lock()
        """Held while it is stopped: a zombie that is killed wakes up as nobody."""
        self._killed = False

    def kill(self) -> None:
        """SIGKILL now, also where it is stopped."""
        self._killed, self.doomed_to = True, None
        super().kill()

    def at_work(self) -> bool:
        """Whether it runs, and long enough to have something to lose."""
        running = self._child is not None and self._child.running()
        return running and time.monotonic() - self.started_at > START_S

    def stopped(self) -> bool:
        """Whether it has stopped itself at its point."""
        with suppress(psutil.NoSuchProcess):
            return self.stops_at is not None and psutil.Process(self.pid).status() == psutil.STATUS_STOPPED
        return False

    def pause(self) -> None:
        """SIGSTOP: it is there and does nothing, while its leases and sessions end."""
        os.kill(self.pid, signal.SIGSTOP)

    def wake(self) -> None:
        """SIGCONT: it goes on in the middle of whatever it did."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)

    async def retire(self) -> None:
        """End gracefully, and stay away."""
        self.deaths.clear()
        self.wake()
        await self.stop()

    def vanish(self) -> None:
        """End by SIGKILL, and stay away."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            self._supervisor = None
        if self._child is not None:
            self._child.kill()

    def _launch(self) -> None:
        self._killed = False
        death = self.deaths.popleft() if self.deaths else None
        self.doomed_to = None if death is None or death.stops else death.point
        self.stops_at = None if death is None or not death.stops else death.point
        self._once = dict(self.extras)
        if death is not None:
            self._once[STOP_VARIABLE if death.stops and STOP_VARIABLE else VARIABLE] = f"{death.point}:{death.times}"
            if death.point is CrashPoint.FETCH_AFTER_PART:
                self._once |= SMALL_RECORDS
        self.started_at = time.monotonic()
        super()._launch()

    async def _supervise(self) -> None:
        backoff = Backoff(RESTART_S, RESTART_S_MAX)
        while True:
            assert self._child is not None
            while self._child.running():
                await asyncio.sleep(LOOK_S)
            failed = not self._killed and not self._died_as_planned(self._child.code)
            self.changed.set()
            # As orchestrators do: what fails at each start, say because Kafka is away, must not take all the time.
            if not failed:
                backoff.reset()
            await backoff.wait()
            self.restarts += 1
            self._launch()

    def _died_as_planned(self, code: int) -> bool:
        point, self.doomed_to = self.doomed_to, None
        if code == -signal.SIGKILL and point is not None:
            self.died_at.append(point)
            return True
        self.exits.append(code)
        if point is not None:
            # It ended before it came by its point: the next start takes the point.
            self.deaths.appendleft(Death(point=point, times=1))
        return False
