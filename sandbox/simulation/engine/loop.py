"""Run an event loop in virtual time, and processes on it that can be frozen, woken and killed at any await.

Nothing waits: when no callback is ready, time jumps to the next timer. Work for an executor runs at once, so that a
thread cannot change the order. While a real answer (of Postgres) is awaited, time stops.
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
"""Seconds of real time that a real answer may take; beyond, the run fails."""

Result = TypeVar("Result")


class Stuck(Exception):
    """Nothing is ready and nothing is due, so a waiting task would wait for ever."""


class Process:
    """A group of tasks that live and die together, like a process of the operating system.

    Callbacks of a frozen process, timers too, are deferred until it is woken. A dead one stays frozen.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.frozen = False
        self.dead = False
        self.woken_at = -math.inf
        self.tasks: list[asyncio.Task[Any]] = []
        self.on_kill: list[Callable[[], None]] = []
        self._deferred: list[events.Handle] = []

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
        """Continue it, as SIGCONT does."""
        if not self.dead:
            self.frozen = False
            self.woken_at = asyncio.get_running_loop().time()
            self._run_deferred()

    def kill(self) -> None:
        """End it, as SIGKILL does: none of its cleanup runs."""
        self.frozen = self.dead = True
        for callback in self.on_kill:
            callback()

    def defer_if_frozen(self, handle: events.Handle) -> bool:
        """Defer a callback while the process is frozen; return whether it was deferred."""
        if self.frozen:
            self._deferred.append(handle)
        return self.frozen

    async def dispose(self) -> None:
        """Cancel the remaining tasks after a run, so that nothing is pending when the loop closes."""
        self.dead, self.frozen = True, False
        self._run_deferred()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def _run_deferred(self) -> None:
        deferred, self._deferred = self._deferred, []
        loop: Any = asyncio.get_running_loop()
        loop._ready.extend(deferred)


PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class _VirtualSelector(selectors.DefaultSelector):
    """Move the loop's time instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.outstanding = 0
        self.is_real = False

    def select(self, timeout: float | None = None) -> Any:
        if self.outstanding:
            # A real answer is outstanding, so virtual time stops. It is awaited only when nothing else is ready, so
            # that its order among the other callbacks does not depend on the machine.
            if timeout == 0:
                return []
            ready = super().select(ANSWER_S_MAX)
            if not ready:
                raise Stuck(f"no real answer within {ANSWER_S_MAX:g} s")
            return ready
        ready = super().select(0) if self.is_real else []
        if ready or timeout == 0:
            return ready
        if timeout is None:
            raise Stuck("nothing is ready and nothing is due")
        self.now += timeout
        return ready


class _ProcessHandle(events.Handle):
    """A callback of the process in whose context it was created."""

    def _run(self) -> None:
        if not _is_deferred(self):
            super()._run()


class _ProcessTimer(events.TimerHandle):
    def _run(self) -> None:
        if not _is_deferred(self):
            super()._run()


def _is_deferred(handle: Any) -> bool:
    process: Process | None = handle._context.get(PROCESS)
    return process is not None and process.defer_if_frozen(handle)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time. Units: `time()` in seconds since the loop was created."""

    def __init__(self) -> None:
        self._virtual = _VirtualSelector()
        super().__init__(self._virtual)

    def time(self) -> float:
        """Return the virtual time."""
        return self._virtual.now

    def call_soon(  # type: ignore[override]
        self, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> events.Handle:
        """Schedule a callback as asyncio does, with a handle of its process."""
        handle = _ProcessHandle(callback, args, self, context)
        loop: Any = self
        loop._ready.append(handle)
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> events.TimerHandle:
        """Schedule a timer as asyncio does, with a handle of its process."""
        timer: Any = _ProcessTimer(when, callback, args, self, context)
        loop: Any = self
        heapq.heappush(loop._scheduled, timer)
        timer._scheduled = True
        return timer  # type: ignore[no-any-return]

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> Any:
        """Run the function at once: a thread beside the loop would not be deterministic."""
        done: asyncio.Future[Any] = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - the caller gets it from the future
            done.set_exception(error)
        return done

    async def real(self, work: Awaitable[Result]) -> Result:
        """Await a real answer; virtual time stops until it arrives."""
        self._virtual.is_real = True
        self._virtual.outstanding += 1
        try:
            return await work
        finally:
            self._virtual.outstanding -= 1


def run(work: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """Run a coroutine to its end in virtual time."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(work())
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
