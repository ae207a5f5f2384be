"""Simulate a database server: its availability, lost answers and locks."""

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from sandbox.simulation.engine.kafka import WakeUp
from sandbox.simulation.engine.network import ProcessFaults
from sandbox.simulation.memory.tables import Tables
from schemas.errors import Retry

LOCK_S_MAX = 10.0
"""Longest wait for a lock, as TARTAN_LOCK_TIMEOUT_S."""

Result = TypeVar("Result")


class Database:
    """A server of tables with its faults and locks."""

    def __init__(self, tables: Tables, rng: random.Random, faults: ProcessFaults) -> None:
        self.tables = tables
        self.away_until = 0.0
        self.lost_answers_share = 0.0
        self._rng = rng
        self._faults = faults
        self._locks: dict[tuple[str, int], object] = {}
        self._unlocked = WakeUp()

    def execute(self, effect: Callable[[], Result]) -> Result:
        """Run a statement. Raises: Retry, where the database is away or the answer is lost."""
        self.check_available()
        result = effect()
        self.check_answer()
        return result

    def check_available(self) -> None:
        """Raise Retry while the database is away."""
        if asyncio.get_running_loop().time() < self.away_until:
            raise Retry("the database is away")

    def check_answer(self) -> None:
        """Raise Retry where the answer of a statement is lost."""
        if self.lost_answers_share and self._rng.random() < self.lost_answers_share:
            self._faults.counts["store_answer_lost"] += 1
            raise Retry("the statement's answer is lost")

    async def lock(self, keys: Sequence[tuple[str, int]], owner: object) -> None:
        """Take locks together. Raises: Retry, after LOCK_S_MAX."""
        self.check_available()
        try:
            async with asyncio.timeout(LOCK_S_MAX):
                while any(self._locks.get(key, owner) is not owner for key in keys):
                    await self._unlocked.wait()
        except TimeoutError:
            raise Retry("a lock was not given in time") from None
        self._locks.update(dict.fromkeys(keys, owner))

    def unlock(self, owner: object) -> None:
        """Release all locks of an owner."""
        for key in [key for key, holder in self._locks.items() if holder is owner]:
            del self._locks[key]
        self._unlocked.notify()
