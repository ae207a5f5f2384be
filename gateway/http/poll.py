"""Requests that wait for something in the tables: bounded in time and in number."""

import asyncio
import time
from collections.abc import Awaitable, Callable

FIRST_POLL_S, POLL_S_MAX = 0.02, 0.5
"""Between two looks at the tables while a request waits; each wait is half as long again, up to the larger."""

WAITERS_MAX = 200
"""Requests that wait at once. At two looks a second each that is 400 times some queries of 0.1 ms."""


class Waiting:
    """Lets requests wait, each as long as its client wants to."""

    def __init__(self) -> None:
        self._waiting = 0

    async def until(self, condition: Callable[[], Awaitable[bool]], *, wait_s: float | None) -> bool:
        """Look until it holds; False where it does not in time, or where too many wait already."""
        if not wait_s or self._waiting >= WAITERS_MAX:
            return False
        self._waiting += 1
        try:
            return await _poll(condition, until=time.monotonic() + wait_s)
        finally:
            self._waiting -= 1


async def _poll(condition: Callable[[], Awaitable[bool]], *, until: float) -> bool:
    wait_s = FIRST_POLL_S
    while not await condition():
        left_s = until - time.monotonic()
        if left_s <= 0:
            return False
        await asyncio.sleep(min(wait_s, left_s))
        wait_s = min(wait_s * 1.5, POLL_S_MAX)
    return True
