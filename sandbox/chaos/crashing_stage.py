"""A stage's process that crashes by plan: at a moment, or at a crash point of its next run."""

import asyncio
import os
import signal
import time
from collections import deque
from contextlib import suppress
from typing import Any

import psutil

from runtime.crash_points import STOP_VARIABLE, VARIABLE, CrashPoint
from runtime.retry import Backoff
from sandbox.chaos.schedule import Death
from sandbox.infra.stages import RESTART_S, StageProcess

POLL_S = 0.02
START_S = 3.0
"""A start takes three to five seconds of a core."""
RESTART_S_MAX = 3.0
SMALL_RECORDS = {"TARTAN_RECORD_BYTES_MAX": "8192"}
"""The least that a record may hold: some thirty transactions, so that larger updates of the bank are cut in chunks."""


class CrashingStage(StageProcess):
    """Run a stage's process and restart it whenever it ends; each start takes the next planned death."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name, **options)
        self.stage = name.partition("-")[0]
        self.deaths: deque[Death] = deque()
        """Plans of the next starts; a start without one does not crash."""
        self.extras: dict[str, str] = {}
        """Settings of the next starts."""
        self.died_at: list[CrashPoint] = []
        self.exits: list[int] = []
        """Exit codes of unplanned ends."""
        self.crash_point: CrashPoint | None = None
        self.stop_point: CrashPoint | None = None
        self.started_at = 0.0
        self.changed = asyncio.Event()
        self.asleep = asyncio.Lock()
        """Locked while the process is stopped: SIGCONT after a kill would go to another process."""
        self._killed = False

    def kill(self) -> None:
        """Send SIGKILL, which also ends a stopped process."""
        self._killed, self.crash_point = True, None
        super().kill()

    def at_work(self) -> bool:
        """Return True if the process has run long enough to have work in progress."""
        running = self._child is not None and self._child.running()
        return running and time.monotonic() - self.started_at > START_S

    def stopped(self) -> bool:
        """Return True if the process has stopped itself at its stop point."""
        with suppress(psutil.NoSuchProcess):
            return self.stop_point is not None and psutil.Process(self.pid).status() == psutil.STATUS_STOPPED
        return False

    def pause(self) -> None:
        """Send SIGSTOP: the process exists and does nothing, while its leases and sessions end."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Send SIGCONT: the process goes on in the middle of its work."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)

    async def retire(self) -> None:
        """Stop gracefully, without a restart."""
        self.deaths.clear()
        self.resume()
        await self.stop()

    def vanish(self) -> None:
        """Send SIGKILL, without a restart."""
        self._stop_supervisor()
        if self._child is not None:
            self._child.kill()

    def _launch(self) -> None:
        self._killed = False
        death = self.deaths.popleft() if self.deaths else None
        self.crash_point = None if death is None or death.stops else death.point
        self.stop_point = None if death is None or not death.stops else death.point
        self._next_environment = dict(self.extras)
        if death is not None:
            self._next_environment[STOP_VARIABLE if death.stops else VARIABLE] = f"{death.point}:{death.times}"
            if death.point is CrashPoint.FETCH_AFTER_PART:
                self._next_environment |= SMALL_RECORDS
        self.started_at = time.monotonic()
        super()._launch()

    async def _supervise(self) -> None:
        backoff = Backoff(RESTART_S, RESTART_S_MAX)
        while True:
            assert self._child is not None
            while self._child.running():
                await asyncio.sleep(POLL_S)
            failed = not self._killed and not self._died_as_planned(self._child.code)
            self.changed.set()
            # As orchestrators do: a process that fails at each start, say because Kafka is away, must not take all
            # the CPU time.
            if not failed:
                backoff.reset()
            await backoff.wait()
            self.restarts += 1
            self._launch()

    def _died_as_planned(self, code: int) -> bool:
        point, self.crash_point = self.crash_point, None
        if code == -signal.SIGKILL and point is not None:
            self.died_at.append(point)
            return True
        self.exits.append(code)
        if point is not None:
            # It ended before it reached its crash point: the next start takes the point.
            self.deaths.appendleft(Death(point=point, times=1))
        return False
