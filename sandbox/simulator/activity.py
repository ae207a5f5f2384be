"""Lets the world live: what is due in its agenda, and what happens at the bank by itself. Shell."""

import asyncio

from sandbox.simulator.simulated_plaid import SimulatedPlaid
from sandbox.simulator.webhooks.sender import sleep_until

TICK_S = 0.02
"""Shortest pause between two steps of the living bank; a higher rate makes several steps at a tick."""

RATE_MAX = 5_000.0
"""Steps a second beyond which a bank would do nothing but step."""


class Pulse:
    """The agenda's clockwork and the living bank's rate."""

    def __init__(self, world: SimulatedPlaid, wake: asyncio.Event) -> None:
        self._world = world
        self._wake = wake
        self._changed = asyncio.Event()
        self.rate_per_s = 0.0
        self.changes = 1

    def live(self, *, rate_per_s: float, changes: int) -> None:
        """Let the bank do so many steps a second, each of at least so many changes; 0 stops it."""
        if not 0 <= rate_per_s <= RATE_MAX or changes < 1:
            raise ValueError(f"rate_per_s must be from 0 to {RATE_MAX:g} and changes at least 1")
        self.rate_per_s, self.changes = rate_per_s, changes
        self._changed.set()

    async def run_agenda(self) -> None:
        """Run what is due, and sleep until the next task."""
        while True:
            self._world.tasks.run_due()
            self._wake.clear()
            await sleep_until(self._world.tasks.next_due_at(), self._world, self._wake)

    async def run_activity(self) -> None:
        """Step at the rate that was asked for; steps that a tick owes are made together."""
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            if not self.rate_per_s:
                await self._changed.wait()
                continue
            began, made, rate = loop.time(), 0, self.rate_per_s
            while not self._changed.is_set():
                owed = int((loop.time() - began) * rate) - made
                for _ in range(min(owed, int(rate * TICK_S) + 1)):
                    self._world.step(changes=self.changes)
                made += owed
                await self._pause(max(TICK_S, 1 / rate))

    async def _pause(self, wait_s: float) -> None:
        try:
            async with asyncio.timeout(wait_s):
                await self._changed.wait()
        except TimeoutError:
            return
