"""Doing again what failed because the world is late, with a bound. Shell."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from runtime import logs, metrics
from schemas.errors import Halt, Retry

FIRST_WAIT_S = 0.1
WAIT_S_MAX = 5.0
GIVE_UP_S = 15 * 60.0
"""A database that is away longer is not coming back for this process: restarted, it says why it is not ready."""

Result = TypeVar("Result")
_log = logs.logger(__name__)


async def insist(work: Callable[[], Awaitable[Result]], *, what: str) -> Result:
    """Do work that can be repeated, until it succeeds.

    Raises: Halt, where it did not within GIVE_UP_S.
    """
    # The loop's own time, so that a simulated one passes here, too.
    now = asyncio.get_running_loop().time
    began, wait_s = now(), FIRST_WAIT_S
    while True:
        try:
            return await work()
        except Retry as error:
            metrics.RETRIES.labels("streams", what).inc()
            if now() - began > GIVE_UP_S:
                raise Halt(f"{what} did not succeed for {GIVE_UP_S:g} s: {error}") from error
            _log.warning("again", what=what, reason=str(error), wait_s=wait_s)
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, WAIT_S_MAX)
