"""Queue delayed tasks in the order in which they are due."""

import datetime as dt
import heapq
from collections.abc import Callable

from sandbox.simulator.clock import Clock

TASKS_MAX = 100_000
"""Tasks waiting at once; the simulator adds two for a new Item and one for a refresh."""


class TaskQueue:
    """Hold tasks until their time. Units: delays in Plaid's seconds, multiplied by `time_scale`.

    `on_wake` is called when a task was added.
    """

    def __init__(self, clock: Clock, *, time_scale: float, on_wake: Callable[[], None]) -> None:
        self._clock = clock
        self._time_scale = time_scale
        self._on_wake = on_wake
        self._tasks: list[tuple[dt.datetime, int, Callable[[], None]]] = []
        self._added = 0

    def add(self, delay_s: float, task: Callable[[], None]) -> None:
        """Schedule a task; tasks due at the same time run in the order in which they were added."""
        assert len(self._tasks) < TASKS_MAX
        due_at = self._clock.now() + dt.timedelta(seconds=delay_s * self._time_scale)
        self._added += 1
        heapq.heappush(self._tasks, (due_at, self._added, task))
        self._on_wake()

    def next_due_at(self) -> dt.datetime | None:
        """Return the time of the next task."""
        return self._tasks[0][0] if self._tasks else None

    def run_due(self) -> None:
        """Run the tasks that are due now."""
        while self._tasks and self._tasks[0][0] <= self._clock.now():
            heapq.heappop(self._tasks)[2]()
