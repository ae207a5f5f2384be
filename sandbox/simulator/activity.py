"""Run due tasks and create random bank activity at a configured rate."""

import asyncio

from sandbox.simulator.simulated_plaid import SimulatedPlaid
from sandbox.simulator.webhooks.sender import sleep_until, wait_for_event

TICK_S = 0.02
"""Shortest pause between two rounds of steps; a higher rate runs several steps in a round."""

RATE_MAX = 5_000.0
"""Steps a second beyond which the process would do nothing else."""


class Activity:
    """Run the task queue, and steps at `rate_per_s` of at least `changes` changes each."""

    def __init__(self, plaid: SimulatedPlaid, wake: asyncio.Event) -> None:
        self._plaid = plaid
        self._wake = wake
        self._rate_changed = asyncio.Event()
        self.rate_per_s = 0.0
        self.changes = 1

    def set_rate(self, *, rate_per_s: float, changes: int) -> None:
        """Set the steps a second and the changes of each step; a rate of 0 stops the activity."""
        if not 0 <= rate_per_s <= RATE_MAX or changes < 1:
            raise ValueError(f"rate_per_s must be from 0 to {RATE_MAX:g} and changes at least 1")
        self.rate_per_s, self.changes = rate_per_s, changes
        self._rate_changed.set()

    async def run_tasks(self) -> None:
        """Run due tasks and sleep until the next one, until cancelled."""
        while True:
            self._plaid.tasks.run_due()
            self._wake.clear()
            await sleep_until(self._plaid.tasks.next_due_at(), self._plaid, self._wake)

    async def run_steps(self) -> None:
        """Run steps at the configured rate, until cancelled; steps that are due in one tick run together."""
        loop = asyncio.get_running_loop()
        while True:
            self._rate_changed.clear()
            if not self.rate_per_s:
                await self._rate_changed.wait()
                continue
            started_at, done, rate = loop.time(), 0, self.rate_per_s
            while not self._rate_changed.is_set():
                due = int((loop.time() - started_at) * rate) - done
                for _ in range(min(due, int(rate * TICK_S) + 1)):
                    self._plaid.step(changes=self.changes)
                done += due
                await wait_for_event(self._rate_changed, max(TICK_S, 1 / rate))
