"""Simulate the way from a process to the servers: latency, and faults of the process at its calls."""

import asyncio
import contextvars
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine
from enum import Enum
from typing import Any, NamedTuple, TypeVar

from sandbox.simulation.engine.loop import Process

LATENCY_S_MAX = 0.02
"""Latency of a server nearby; a longer one is a fault."""

Result = TypeVar("Result")


class ProcessFault(Enum):
    """A fault of a process at its next call."""

    KILL = "crash"
    FREEZE = "sigstop"


class PlannedFault(NamedTuple):
    """A fault at the next call of its process. `answered`: after the server has processed the request."""

    fault: ProcessFault
    answered: bool


class ProcessFaults:
    """Hold planned faults by process name, and count the faults of all kinds that happened."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.on_fault: Callable[[Process, ProcessFault], None] = lambda process, fault: None
        self._planned: dict[str, list[PlannedFault]] = defaultdict(list)

    def plan(self, name: str, planned: PlannedFault) -> None:
        """Plan a fault at the next call of a process."""
        self._planned[name].append(planned)

    def clear(self) -> None:
        """Remove all planned faults."""
        self._planned.clear()

    def inject(self, process: Process, *, answered: bool) -> None:
        """Apply the fault that is planned for this moment of a call."""
        planned = self._planned.get(process.name)
        if not planned or planned[0].answered is not answered or process.frozen:
            return
        fault = planned.pop(0).fault
        self.counts[fault.value] += 1
        if fault is ProcessFault.KILL:
            process.kill()
        else:
            process.freeze()
        self.on_fault(process, fault)


class Connection:
    """One process's connection to the servers.

    A request that was sent is processed, whatever happens to its process; only the answer may find no receiver.
    """

    def __init__(self, process: Process, rng: random.Random, faults: ProcessFaults) -> None:
        self.process = process
        self._rng = rng
        self._faults = faults

    async def call(self, effect: Callable[[], Result]) -> Result:
        """Request a synchronous effect of a server and await its answer."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Result] = await self._start()
        request_s, answer_s = self._rng.random() * LATENCY_S_MAX, self._rng.random() * LATENCY_S_MAX

        def serve() -> None:
            result: Result | None = None
            failure: Exception | None = None
            try:
                result = effect()
            except Exception as error:  # noqa: BLE001 - the caller's, like the result
                failure = error
            self._faults.inject(self.process, answered=True)
            loop.call_later(answer_s, _answer, answer, result, failure, context=_NO_PROCESS)

        loop.call_later(request_s, serve, context=_NO_PROCESS)
        return await answer

    async def call_async(
        self, effect: Callable[[], Coroutine[Any, Any, Result]], *, request_s: float | None = None
    ) -> Result:
        """Request an effect that itself awaits. `request_s`: latency of the request, by default a random one."""
        answer: asyncio.Future[Result] = await self._start()
        request_s = self._rng.random() * LATENCY_S_MAX if request_s is None else request_s
        answer_s = self._rng.random() * LATENCY_S_MAX

        async def serve() -> None:
            if request_s:
                await asyncio.sleep(request_s)
            result: Result | None = None
            failure: Exception | None = None
            try:
                result = await effect()
            except Exception as error:  # noqa: BLE001 - the caller's, like the result
                failure = error
            self._faults.inject(self.process, answered=True)
            await asyncio.sleep(answer_s)
            _answer(answer, result, failure)

        run_server_task(serve())
        return await answer

    async def _start(self) -> "asyncio.Future[Any]":
        self._faults.inject(self.process, answered=False)
        await asyncio.sleep(0)  # a process that was frozen or killed stops here
        return asyncio.get_running_loop().create_future()


def _answer(answer: "asyncio.Future[Any]", result: Any, failure: Exception | None) -> None:
    if answer.done():
        return
    if failure is None:
        answer.set_result(result)
    else:
        answer.set_exception(failure)
        answer.exception()  # mark it as retrieved, also where no receiver lives


_NO_PROCESS = contextvars.Context()
"""The context of servers, which belong to no process."""

_server_tasks: set["asyncio.Task[None]"] = set()


def run_server_task(work: Coroutine[Any, Any, None]) -> None:
    """Run a task outside of any process: servers go on when their clients do not."""
    task = asyncio.get_running_loop().create_task(work, context=_NO_PROCESS.copy())
    _server_tasks.add(task)
    task.add_done_callback(_server_tasks.discard)
