"""Claiming as many Items as there are free slots, and no more. Shell."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from runtime import logs
from runtime.scheduler.types import Claimed
from schemas.errors import Retry
from streams import metrics
from streams.ports import Store

AWAY_WAIT_S = 1.0
TOKENS_WAIT_S_MIN, TOKENS_WAIT_S_MAX = 0.1, 1.0
"""Shortest and longest sleep while the client's quota is used up. A token comes each 24 ms of 2,500 a minute: to ask
for each by itself would be 40 claims a second and worker, and 0.1 s of them fit into any bucket's burst. The longest
bounds how late an Item to be unlinked is found, which needs no token."""
REMARKED_S = 5.0
"""After an Item was marked during its pass, it may wait for the follower to read the pass's append: so long each
commit of the follower is a reason to look."""

Send = Callable[[Claimed], Awaitable[object]]
"""Hands an Item to the agent fetch_deltas."""

_log = logs.logger(__name__)


class _Held(NamedTuple):
    """An Item in a slot. `marks`: how many there had been when its claim was asked for."""

    claimed: Claimed
    marks: int
    asked_at: float


class Dispatcher:
    """Keeps the slots of fetch_deltas filled with what is due.

    `wake` it when something became due, so that a webhook waits for no poll; what other processes made due and what
    becomes due by time is found within `poll_s`. It looks only where it may find something: an Item that was given
    back is a reason if others waited for its slot, or if something was marked during its pass.
    """

    def __init__(self, store: Store, send: Send, *, slots: int, poll_s: float) -> None:
        self._store = store
        self._send = send
        self._slots = slots
        self._poll_s = poll_s
        self._held: dict[bytes, _Held] = {}
        self._marks = 0
        self._more = False
        self._claiming = False
        self._remarked_at = -REMARKED_S
        self._wake = asyncio.Event()
        self._stop = asyncio.Event()
        self.away: str | None = None

    @property
    def stopping(self) -> bool:
        """Whether nothing is claimed any more."""
        return self._stop.is_set()

    def wake(self) -> None:
        """Something became due: look at once."""
        self._marks += 1
        self._wake.set()

    def wake_for_new_heads(self) -> None:
        """The follower has read on: look at once, if an Item may have waited for it."""
        if _now() - self._remarked_at < REMARKED_S:
            self._wake.set()

    async def run(self) -> None:
        """Claim until stopped."""
        while not self.stopping:
            self._wake.clear()
            try:
                wait_s = await self._filled()
                self.away = None
            except Retry as error:
                self.away = str(error)
                wait_s = None
                await _waited(self._stop, AWAY_WAIT_S)
            if wait_s is None:
                continue
            # While there is no token, nothing that is marked can be claimed: only time is worth waiting for.
            await (_waited(self._stop, wait_s) if wait_s else _waited(self._wake, self._poll_s))

    def claimed_at(self, claimed: Claimed) -> float:
        """When this Item's claim was asked for, on the loop's clock: its lease ends no earlier than counted from it."""
        return self._held[claimed.lease].asked_at

    def done(self, claimed: Claimed) -> None:
        """Free an Item's slot."""
        held = self._held.pop(claimed.lease, None)
        metrics.IN_FLIGHT.set(len(self._held))
        remarked = held is not None and held.marks != self._marks
        if remarked:
            self._remarked_at = _now()
        if remarked or self._more:
            self._wake.set()

    async def drain(self, *, timeout_s: float) -> None:
        """Claim no more, wait for what is under way, and end the leases of what does not end in time."""
        self._stop.set()
        self._wake.set()
        ends = _now() + timeout_s
        # A claim whose answer is on its way holds leases that nobody knows of yet.
        while (self._held or self._claiming) and _now() < ends:
            await asyncio.sleep(0.02)
        for held in list(self._held.values()):
            _log.warning("given up at stop", item_id=held.claimed.item_id)
            try:
                await self._store.expire(held.claimed)
            except Retry:
                return  # Postgres is away: the leases end by themselves

    async def _filled(self) -> float | None:
        """Claim once. Gives how long only time helps; 0 to wait for a wake or the poll, None to look again at once.

        Raises: Retry.
        """
        free = self._slots - len(self._held)
        if not free:
            self._more = True
            return 0.0
        marks, asked_at = self._marks, _now()
        self._claiming = True
        try:
            claims = await self._store.claim(free)
            for claimed in claims:
                self._held[claimed.lease] = _Held(claimed, marks, asked_at)
        finally:
            self._claiming = False
        metrics.IN_FLIGHT.set(len(self._held))
        for claimed in claims:
            await self._send(claimed)
        self._more = len(claims) == free
        if self._more or claims.more_in_s == 0:
            return None
        return 0.0 if claims.more_in_s is None else min(max(claims.more_in_s, TOKENS_WAIT_S_MIN), TOKENS_WAIT_S_MAX)


async def _waited(event: asyncio.Event, timeout_s: float) -> None:
    """Wait for an event, or until the time is over."""
    try:
        await asyncio.wait_for(event.wait(), timeout_s)
    except TimeoutError:
        return


def _now() -> float:
    return asyncio.get_running_loop().time()
