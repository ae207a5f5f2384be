"""Claim due Items, as many as there are free slots, and send them to the agent fetch_deltas. Shell."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NamedTuple

from runtime import logs
from runtime.scheduler.types import Claimed
from schemas.errors import Retry
from streams import metrics
from streams.ports import Store

AWAY_WAIT_S = 1.0
TOKENS_WAIT_S_MIN, TOKENS_WAIT_S_MAX = 0.1, 1.0
"""Shortest and longest sleep while the client's quota is used up. A token comes each 24 ms of 2,500 a minute: one claim
for each would be 40 a second and worker, and the tokens of 0.1 s fit into any bucket's burst. The longest bounds how
late an Item to be unlinked is claimed, which needs no token."""
REMARKED_S = 5.0
"""An Item that was marked during its sync run may wait until follow_heads has read the run's append: for this time
each commit of follow_heads wakes the dispatcher."""

Send = Callable[[Claimed], Awaitable[object]]
"""Send an Item to the agent fetch_deltas."""

_log = logs.logger(__name__)


class _Slot(NamedTuple):
    """A slot in use. `marks`: number of marks when its claim was sent; `claimed_at`: the loop's time then."""

    claimed: Claimed
    marks: int
    claimed_at: float


class Dispatcher:
    """Dispatcher that keeps the slots of fetch_deltas filled with due Items.

    `wake` it when an Item became due, so that a webhook waits for no poll; Items that other processes made due, or
    that become due by time, are found within `poll_s`. It claims only where that may find an Item: a slot that became
    free is a reason if others waited for it, or if an Item was marked during the sync run.
    """

    def __init__(self, store: Store, send: Send, *, slots: int, poll_s: float) -> None:
        self._store = store
        self._send = send
        self._slots = slots
        self._poll_s = poll_s
        self._in_use: dict[bytes, _Slot] = {}
        self._marks = 0
        self._has_more = False
        self._claiming = False
        self._remarked_at = -REMARKED_S
        self._wake = asyncio.Event()
        self._stop = asyncio.Event()
        self.away: str | None = None
        """Why Postgres cannot be reached; None where it can."""

    def wake(self) -> None:
        """Claim at once, because an Item became due."""
        self._marks += 1
        self._wake.set()

    def wake_for_new_heads(self) -> None:
        """Claim at once after a commit of follow_heads, if an Item may have waited for it."""
        if _now() - self._remarked_at < REMARKED_S:
            self._wake.set()

    async def run(self) -> None:
        """Claim until stopped."""
        while not self._stop.is_set():
            self._wake.clear()
            try:
                wait_s = await self._claim()
                self.away = None
            except Retry as error:
                self.away = str(error)
                await _wait(self._stop, AWAY_WAIT_S)
                continue
            if wait_s:  # without a token no Item can be claimed, so a mark is no reason to wake
                await _wait(self._stop, wait_s)
            elif wait_s is not None:
                await _wait(self._wake, self._poll_s)

    def claimed_at(self, claimed: Claimed) -> float:
        """Return when the claim was sent, on the loop's clock: the lease ends no earlier than counted from it."""
        return self._in_use[claimed.lease].claimed_at

    def done(self, claimed: Claimed) -> None:
        """Free an Item's slot."""
        slot = self._in_use.pop(claimed.lease, None)
        metrics.IN_FLIGHT.set(len(self._in_use))
        remarked = slot is not None and slot.marks != self._marks
        if remarked:
            self._remarked_at = _now()
        if remarked or self._has_more:
            self._wake.set()

    async def drain(self, *, timeout_s: float) -> None:
        """Stop claiming, wait for the sync runs under way, and end the leases of those that do not end in time."""
        self._stop.set()
        self._wake.set()
        ends_at = _now() + timeout_s
        # A claim whose answer is on its way holds leases that have no slot yet.
        while (self._in_use or self._claiming) and _now() < ends_at:
            await asyncio.sleep(0.02)
        for slot in list(self._in_use.values()):
            _log.warning("sync run abandoned at stop", item_id=slot.claimed.item_id)
            try:
                await self._store.expire(slot.claimed)
            except Retry:
                return  # Postgres is away: the leases end by themselves

    async def _claim(self) -> float | None:
        """Claim once and send the Items.

        Return the seconds until the quota has a token; 0 to wait for a wake or the poll; None to claim again at once.
        Raises: Retry.
        """
        free = self._slots - len(self._in_use)
        if not free:
            self._has_more = True
            return 0.0
        marks, claimed_at = self._marks, _now()
        self._claiming = True
        try:
            claims = await self._store.claim(free)
            for claimed in claims:
                self._in_use[claimed.lease] = _Slot(claimed, marks, claimed_at)
        finally:
            self._claiming = False
        metrics.IN_FLIGHT.set(len(self._in_use))
        for claimed in claims:
            await self._send(claimed)
        self._has_more = len(claims) == free
        if self._has_more or claims.more_in_s == 0:
            return None
        return 0.0 if claims.more_in_s is None else min(max(claims.more_in_s, TOKENS_WAIT_S_MIN), TOKENS_WAIT_S_MAX)


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), timeout_s)


def _now() -> float:
    return asyncio.get_running_loop().time()
