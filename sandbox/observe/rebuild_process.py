"""`tartan rebuild` as a process of its own, as operators run it."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from runtime.crash_points import VARIABLE, CrashPoint
from sandbox.infra.processes import Command, start, tail
from schemas.errors import Halt

RUN_S_MAX = 1_800.0
END_S_MAX = 10.0
POLL_S = 0.02


class RebuildProcess:
    """Run the command once with these arguments; its log holds the output of this run alone."""

    def __init__(
        self, *arguments: str, environment: Mapping[str, str], folder: Path, dies_at: CrashPoint | None = None
    ) -> None:
        self._command = " ".join(["tartan rebuild", *arguments])
        self.log = folder / f"rebuild-{time.monotonic_ns()}.log"
        crash = {} if dies_at is None else {VARIABLE: f"{dies_at}:1"}
        self.child = start(
            Command(
                name="rebuild",
                arguments=[sys.executable, "-m", "cli", "rebuild", *arguments, "--json"],
                log=self.log,
                environment={**os.environ, **environment, **crash},
            )
        )

    def running(self) -> bool:
        """Return True while the command runs."""
        return self.child.running()

    def has_logged(self, text: str) -> bool:
        """Return True if the log contains this text."""
        return text in self.log.read_text()

    async def kill(self) -> None:
        """Send SIGKILL to the command alone: its workers must end by themselves.

        Raises: Halt, where one of them does not.
        """
        workers = psutil.Process(self.child.pid).children(recursive=True) if self.running() else []
        with suppress(ProcessLookupError):
            os.kill(self.child.pid, signal.SIGKILL)
        await self.child.ended(timeout_s=END_S_MAX)
        _, alive = await asyncio.to_thread(psutil.wait_procs, workers, timeout=END_S_MAX)
        if alive:
            raise Halt(f"{len(alive)} workers still run {END_S_MAX:g} s after their rebuild was killed")

    async def until(self, condition: Callable[[], bool]) -> bool:
        """Wait until a condition holds; return False where the command ended before."""
        deadline = time.monotonic() + RUN_S_MAX
        while not condition():
            if not self.running():
                return False
            if time.monotonic() > deadline:
                raise Halt(f"`{self._command}` is not done after {RUN_S_MAX:g} s")
            await asyncio.sleep(POLL_S)
        return True

    async def ended(self) -> int:
        """Wait for the end and return the exit code; negative is the signal that killed it."""
        return await self.child.ended(timeout_s=RUN_S_MAX)

    async def result(self) -> Any:
        """Wait for the end and return the printed result.

        Raises: Halt, with the end of the log, where the command failed.
        """
        code = await self.ended()
        if code:
            raise Halt(f"`{self._command}` ended with {code}:\n{tail(self.log)}")
        return json.loads(self.log.read_text().splitlines()[-1])
