"""Claiming as many Items as there are free slots, and no more. Shell."""

import asyncio
from collections.abc import Awaitable, Callable

from runtime import logs
from runtime.dues import Claimed
from schemas.errors import Retry
from streams import metrics
from streams.ports import Store

AWAY_WAIT_S = 1.0

Send = Callable[[Claimed], Awaitable[object]]
"""Hands an Item to the agent fetch_deltas."""

_log = logs.logger(__name__)


class Claimer:
    """Keeps the slots of fetch_deltas filled with what is due.

    `wake` it when something became due, so that a webhook waits for no poll; what other processes made due and what
    becomes due by time is found within `poll_s`.
    """

    def __init__(self, store: Store, send: Send, *, slots: int, poll_s: float) -> None:
        self._store = store
        self._send = send
        self._slots = slots
        self._poll_s = poll_s
        self._held: dict[bytes, Claimed] = {}
        self._wake = asyncio.Event()
        self.stopping = False
        self.away: str | None = None

    def wake(self) -> None:
        """Look at once whether something is due."""
        self._wake.set()

    async def run(self) -> None:
        """Claim until stopped."""
        while not self.stopping:
            self._wake.clear()
            if not await self._filled():
                continue
            try:
                await asyncio.wait_for(self._wake.wait(), self._poll_s)
            except TimeoutError:
                continue

    def done(self, claimed: Claimed) -> None:
        """Free an Item's slot."""
        self._held.pop(claimed.lease, None)
        metrics.IN_FLIGHT.set(len(self._held))
        self.wake()

    async def drain(self, *, timeout_s: float) -> None:
        """Claim no more, wait for what is under way, and end the leases of what does not end in time."""
        self.stopping = True
        self.wake()
        ends = asyncio.get_running_loop().time() + timeout_s
        while self._held and asyncio.get_running_loop().time() < ends:
            await asyncio.sleep(0.02)
        for claimed in list(self._held.values()):
            _log.warning("given up at stop", item_id=claimed.item_id)
            try:
                await self._store.expire(claimed)
            except Retry:
                return  # Postgres is away: the leases end by themselves

    async def _filled(self) -> bool:
        """Claim once; True where there is nothing to do before the next wake or poll."""
        free = self._slots - len(self._held)
        if not free:
            return True
        try:
            claims = await self._store.claim(free)
            self.away = None
        except Retry as error:
            self.away = str(error)
            await asyncio.sleep(AWAY_WAIT_S)
            return False
        for claimed in claims:
            self._held[claimed.lease] = claimed
            await self._send(claimed)
        metrics.IN_FLIGHT.set(len(self._held))
        return len(claims) < free
