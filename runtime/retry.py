"""Retries: exponential backoff, and work that is repeated until it succeeds."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from runtime import logs, metrics
from schemas.errors import Halt, Retry

BASE_S, CAP_S = 0.1, 5.0
GIVE_UP_S = 15 * 60.0
"""A database that is away for longer does not come back for this process: its supervisor restarts it."""

Result = TypeVar("Result")
_log = logs.logger(__name__)


class Backoff:
    """Exponential waits in seconds: `base_s` first, each later one twice as long, `cap_s` at most."""

    def __init__(self, base_s: float, cap_s: float) -> None:
        self._base_s, self._cap_s = base_s, cap_s
        self._next_s = base_s

    def next_s(self) -> float:
        """Return the next wait, in seconds, and double the one after it."""
        wait_s, self._next_s = self._next_s, min(2 * self._next_s, self._cap_s)
        return wait_s

    async def wait(self) -> None:
        """Sleep for the next wait."""
        await asyncio.sleep(self.next_s())

    def reset(self) -> None:
        """Start again at `base_s`."""
        self._next_s = self._base_s


async def retry_until_done(work: Callable[[], Awaitable[Result]], *, action: str) -> Result:
    """Repeat idempotent work until it raises no Retry.

    Raises: Halt, where it did not succeed within GIVE_UP_S.
    """
    # The event loop's clock, so that a simulation's virtual time counts here too.
    now = asyncio.get_running_loop().time
    started_at, backoff = now(), Backoff(BASE_S, CAP_S)
    while True:
        try:
            return await work()
        except Retry as error:
            metrics.RETRIES.labels("streams", action).inc()
            if now() - started_at > GIVE_UP_S:
                raise Halt(f"{action} did not succeed for {GIVE_UP_S:g} s: {error}") from error
            wait_s = backoff.next_s()
            _log.warning("again", what=action, reason=str(error), wait_s=wait_s)
            await asyncio.sleep(wait_s)


class RepeatedCheck:
    """A check that runs every `every_s` until it is cancelled.

    No error ends it: each one is logged once, and is a reason for /readyz until a check succeeds.
    """

    def __init__(self, name: str, check: Callable[[], Awaitable[object]], *, every_s: float) -> None:
        self._name, self._check, self._every_s = name, check, every_s
        self.reasons = [f"{name}: not checked yet"]

    async def run(self) -> None:
        """Repeat the check for ever."""
        while True:
            try:
                await self._check()
                self.reasons = []
            except Exception as error:  # noqa: BLE001 - nobody awaits this task: its end would go unnoticed
                reasons = [f"{self._name}: {str(error) or type(error).__name__}"]
                if reasons != self.reasons:
                    _log.warning("check failed", check=self._name, error_type=type(error).__name__)
                self.reasons = reasons
            await asyncio.sleep(self._every_s)
