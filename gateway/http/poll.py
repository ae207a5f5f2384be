"""Polling: let requests wait for a condition in the tables, bounded in time and in number."""

import asyncio
import time
from collections.abc import Awaitable, Callable

BASE_S, CAP_S = 0.02, 0.5
"""Shortest and longest wait between two polls; each is half as long again as the one before."""
WAITERS_MAX = 200
"""Requests that wait at once. At two polls a second each that is 400 times some queries of 0.1 ms."""


class Poller:
    """Polls conditions for the requests of one process."""

    def __init__(self) -> None:
        self._waiters = 0

    async def until(self, condition: Callable[[], Awaitable[bool]], *, wait_s: float | None) -> bool:
        """Poll until the condition holds; False where it does not in time, or where too many requests wait already."""
        if not wait_s or self._waiters >= WAITERS_MAX:
            return False
        self._waiters += 1
        ends_at, backoff_s = time.monotonic() + wait_s, BASE_S
        try:
            while not await condition():
                left_s = ends_at - time.monotonic()
                if left_s <= 0:
                    return False
                await asyncio.sleep(min(backoff_s, left_s))
                backoff_s = min(backoff_s * 1.5, CAP_S)
            return True
        finally:
            self._waiters -= 1
