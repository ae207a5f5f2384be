"""An event loop whose time is virtual, and processes on it that can be stopped, woken and killed at any await.

Nothing waits: when nothing is ready, time jumps to the next timer. Work for an executor is done at once, so that a
thread cannot change the order. While a real answer is awaited (Postgres), time stands still.
"""

import asyncio
import contextvars
import heapq
import math
import selectors
from asyncio import events
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

ANSWER_S_MAX = 60.0
"""Seconds of the machine's time that a real answer may take; beyond, a run that hangs says so."""

Result = TypeVar("Result")


class Stuck(Exception):
    """Nothing is ready, and nothing is due: whoever still waits, waits for ever."""


class Process:
    """A group of tasks that live and die together, like a process of the operating system.

    What its tasks do while it is frozen waits, timers too, and goes on when it is woken. A dead one stays frozen.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.frozen = False
        self.dead = False
        self.woken_at = -math.inf
        self.tasks: list[asyncio.Task[Any]] = []
        self.on_gone: list[Callable[[], None]] = []
        self._quarantined: list[events.Handle] = []

    def start(self, work: Coroutine[Any, Any, Any], *, name: str) -> "asyncio.Task[Any]":
        """Start a task of this process."""
        context = contextvars.copy_context()
        context.run(PROCESS.set, self)
        task = asyncio.get_running_loop().create_task(work, name=f"{self.name} {name}", context=context)
        self.tasks.append(task)
        return task

    def freeze(self) -> None:
        """Stop it, as SIGSTOP does."""
        self.frozen = True

    def wake(self) -> None:
        """Let it go on, as SIGCONT does."""
        if self.dead:
            return
        self.frozen = False
        self.woken_at = asyncio.get_running_loop().time()
        self._release()

    def kill(self) -> None:
        """End it, as SIGKILL does: not one line of its cleaning up is run."""
        self.frozen = self.dead = True
        for told in self.on_gone:
            told()

    def quarantine(self, handle: events.Handle) -> None:
        """Keep for later what its tasks would do now."""
        self._quarantined.append(handle)

    async def bury(self) -> None:
        """Take down what is left of it after a run, so that nothing is pending when the loop closes."""
        self.dead, self.frozen = True, False
        self._release()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def _release(self) -> None:
        quarantined, self._quarantined = self._quarantined, []
        loop: Any = asyncio.get_running_loop()
        loop._ready.extend(quarantined)


PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class _Jumping(selectors.BaseSelector):
    """A selector that never waits: it moves the loop's time on instead."""

    def __init__(self) -> None:
        self._real = selectors.DefaultSelector()
        self.now = 0.0
        self.outstanding = 0
        self.is_real = False

    def select(self, timeout: float | None = None) -> Any:
        if self.outstanding:
            # A real answer is on its way, so virtual time stands still. It is looked for only where nothing else is
            # left to do, so that its place among the others does not depend on the machine.
            if timeout == 0:
                return []
            ready = self._real.select(ANSWER_S_MAX)
            if not ready:
                raise Stuck(f"no real answer within {ANSWER_S_MAX:g} s")
            return ready
        ready = self._real.select(0) if self.is_real else []
        if ready or timeout == 0:
            return ready
        if timeout is None:
            raise Stuck("nothing is ready and nothing is due")
        self.now += timeout
        return ready

    def register(self, fileobj: Any, events: int, data: Any = None) -> Any:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> Any:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> Any:
        return self._real.modify(fileobj, events, data)

    def get_map(self) -> Any:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()


class _Handle(events.Handle):
    """A callback that belongs to the process in whose context it was made."""

    def _run(self) -> None:
        if _is_quarantined(self):
            return
        super()._run()


class _TimerHandle(events.TimerHandle):
    def _run(self) -> None:
        if _is_quarantined(self):
            return
        super()._run()


def _is_quarantined(handle: Any) -> bool:
    process: Process | None = handle._context.get(PROCESS)
    if process is None or not process.frozen:
        return False
    process.quarantine(handle)
    return True


class VirtualLoop(asyncio.SelectorEventLoop):
    """See the module. Units: `time()` in seconds since the loop was made."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        """The virtual time."""
        return self._jumping.now

    def call_soon(  # type: ignore[override]
        self, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> events.Handle:
        """As asyncio's own, with a handle that knows its process."""
        handle = _Handle(callback, args, self, context)
        loop: Any = self
        loop._ready.append(handle)
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> events.TimerHandle:
        """As asyncio's own, with a handle that knows its process."""
        timer = _TimerHandle(when, callback, args, self, context)
        loop: Any = self
        events_heap: list[Any] = loop._scheduled
        _push(events_heap, timer)
        return timer

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> Any:
        """Do it now: a thread that runs beside the loop would be chance."""
        done: asyncio.Future[Any] = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - whatever it raises is the caller's
            done.set_exception(error)
        return done

    async def real(self, work: Awaitable[Result]) -> Result:
        """Await an answer of the real world; virtual time stands still until it is there."""
        self._jumping.is_real = True
        self._jumping.outstanding += 1
        try:
            return await work
        finally:
            self._jumping.outstanding -= 1


def _push(heap: list[Any], timer: Any) -> None:
    heapq.heappush(heap, timer)
    timer._scheduled = True


def run(work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """Run a coroutine to its end in virtual time."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(work())
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
