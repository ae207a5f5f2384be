"""Stages as child processes, started, watched and restarted as an orchestrator does it."""

import asyncio
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import aiohttp

from runtime.crash_points import VARIABLE, CrashPoint
from sandbox.infra.machine import LOOPBACK, free_port
from sandbox.infra.processes import Child, Command, start, tail
from schemas.errors import Halt

STAGE_PORTS = range(12_000, 20_000)
"""Below the ephemeral ports, and apart from Kafka's and Postgres'."""
START_S_MAX = 60.0
STOP_S_MAX = 70.0
"""A stage gives itself 60 s to finish its transaction (runtime.lifecycle.STOP_S_MAX)."""
RESTART_S = 0.2
RESTARTS_MAX = 1_000
"""Restarts of one process; more crashes than this are a defect of the stage, not a test of resilience."""


class StageProcess:
    """Run one process of `tartan` and restart it whenever it ends, as systemd or Kubernetes would."""

    def __init__(
        self,
        name: str,
        *,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        ready_url: str | None = None,
    ) -> None:
        self.name = name
        port = free_port(STAGE_PORTS)
        self.metrics_url = f"http://{LOOPBACK}:{port}/metrics"
        self._ready_url = ready_url or f"http://{LOOPBACK}:{port}/readyz"
        self.restarts = 0
        self._arguments = arguments
        self._environment = {**os.environ, **environment, "TARTAN_INTERNAL_PORT": str(port)}
        self.log = folder / f"{name}.log"
        self._child: Child | None = None
        self._next_environment: dict[str, str] = {}
        """Settings of the next run alone."""
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """Process id of the current run."""
        assert self._child is not None, "the stage was never started"
        return self._child.pid

    def start(self) -> None:
        """Start the process and its supervisor; `ready` waits until it serves."""
        self._launch()
        self._supervisor = asyncio.create_task(self._supervise())

    async def ready(self, *, timeout_s: float = START_S_MAX) -> None:
        """Wait until the process reports that it is ready.

        Raises: Halt, with its last reasons and the end of its log, where it is not ready within the bound.
        """
        deadline = time.monotonic() + timeout_s
        reasons = "it does not answer"
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
            while time.monotonic() < deadline:
                try:
                    async with session.get(self._ready_url) as response:
                        if response.status == 200:
                            return
                        reasons = "; ".join((await response.json())["reasons"])
                except (aiohttp.ClientError, TimeoutError):
                    pass
                await asyncio.sleep(0.05)
        raise Halt(f"{self.name} is not ready after {timeout_s:g} s: {reasons}. The end of its log:\n{tail(self.log)}")

    def kill(self) -> None:
        """Send SIGKILL, as a power cut would; the supervisor starts the process again."""
        assert self._child is not None, "the stage was never started"
        self._child.kill()

    async def die_at(self, point: CrashPoint, *, times: int = 1) -> None:
        """Restart the process so that it kills itself at its `times`-th pass of `point`; later runs are whole."""
        await self.stop()
        self._next_environment = {VARIABLE: f"{point}:{times}"}
        self.start()
        await self.ready()

    async def stop(self) -> None:
        """Send SIGTERM and wait for a graceful end."""
        self._stop_supervisor()
        if self._child is not None:
            await self._child.stop(timeout_s=STOP_S_MAX)

    def _stop_supervisor(self) -> None:
        if self._supervisor is not None:
            self._supervisor.cancel()
            self._supervisor = None

    def _launch(self) -> None:
        command = [sys.executable, "-m", "cli", *self._arguments]
        environment, self._next_environment = self._environment | self._next_environment, {}
        self._child = start(Command(name=self.name, arguments=command, log=self.log, environment=environment))

    async def _supervise(self) -> None:
        while self.restarts < RESTARTS_MAX:
            while self._child is not None and self._child.running():
                await asyncio.sleep(0.05)
            await asyncio.sleep(RESTART_S)
            self.restarts += 1
            self._launch()
