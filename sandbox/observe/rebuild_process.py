"""`tartan rebuild` as operators run it: a process of its own."""

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
from sandbox.infra.processes import Child, Command, start, tail
from schemas.errors import Halt

RUN_S_MAX = 1_800.0
END_S_MAX = 10.0
LOOK_S = 0.02


class RebuildProcess:
    """One run of the command with these arguments. Its log holds what it said, and nothing of earlier runs."""

    def __init__(
        self, *arguments: str, environment: Mapping[str, str], folder: Path, dies_at: CrashPoint | None = None
    ) -> None:
        self._arguments = ("rebuild", *arguments)
        self.log = folder / f"rebuild-{time.monotonic_ns()}.log"
        dies = {} if dies_at is None else {VARIABLE: f"{dies_at}:1"}
        self._child: Child = start(
            Command(
                name="rebuild",
                arguments=[sys.executable, "-m", "cli", *self._arguments, "--json"],
                log=self.log,
                environment={**os.environ, **environment, **dies},
            )
        )

    def running(self) -> bool:
        """Whether it has not ended."""
        return self._child.running()

    def said(self, words: str) -> bool:
        """Whether it has said this."""
        return words in self.log.read_text()

    async def kill(self) -> None:
        """kill -9 of the command alone: its workers have to find out by themselves.

        Raises: Halt, where one of them does not.
        """
        workers = psutil.Process(self._child.pid).children(recursive=True) if self.running() else []
        with suppress(ProcessLookupError):
            os.kill(self._child.pid, signal.SIGKILL)
        await self._child.ended(timeout_s=END_S_MAX)
        _, alive = await asyncio.to_thread(psutil.wait_procs, workers, timeout=END_S_MAX)
        if alive:
            raise Halt(f"{len(alive)} workers live on {END_S_MAX:g} s after their rebuild was killed")

    async def until(self, condition: Callable[[], bool]) -> bool:
        """Wait until something is true; False where the command ended before."""
        deadline = time.monotonic() + RUN_S_MAX
        while not condition():
            if not self.running():
                return False
            if time.monotonic() > deadline:
                raise Halt(f"`tartan {' '.join(self._arguments)}` is not done after {RUN_S_MAX:g} s")
            await asyncio.sleep(LOOK_S)
        return True

    async def ended(self) -> int:
        """Wait for its end and give its code; negative is the signal that killed it."""
        return await self._child.ended(timeout_s=RUN_S_MAX)

    async def result(self) -> Any:
        """What it told at its end. Raises: Halt, with what it said, where it failed."""
        code = await self.ended()
        if code:
            raise Halt(f"`tartan {' '.join(self._arguments)}` ended with {code}:\n{tail(self.log)}")
        return json.loads(self.log.read_text().splitlines()[-1])
