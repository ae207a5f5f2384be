"""What lies between a process and the servers it asks: time, and the places where faults strike."""

import asyncio
import contextvars
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine
from enum import Enum
from typing import Any, NamedTuple, TypeVar

from sandbox.simulation.engine.loop import Process

LATENCY_S_MAX = 0.02
"""A server nearby; what takes longer is a fault."""

Result = TypeVar("Result")


class Blow(Enum):
    """What happens to a process at its next call."""

    KILL = "crash"
    FREEZE = "sigstop"


class Armed(NamedTuple):
    """A blow that waits for its process to make a call. `answered`: it falls after the server did what was asked."""

    blow: Blow
    answered: bool


class ProcessFaults:
    """Blows by process name, and what of all faults really happened."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.on_blow: Callable[[Process, Blow], None] = lambda process, blow: None
        self._armed: dict[str, list[Armed]] = defaultdict(list)

    def arm(self, name: str, armed: Armed) -> None:
        """Let a blow fall at the next call that the process makes."""
        self._armed[name].append(armed)

    def disarm(self) -> None:
        """Take back all that has not fallen."""
        self._armed.clear()

    def strike(self, process: Process, *, answered: bool) -> None:
        """Let fall what is armed for this moment of a call."""
        waiting = self._armed.get(process.name)
        if not waiting or waiting[0].answered is not answered or process.frozen:
            return
        armed = waiting.pop(0)
        self.counts[armed.blow.value] += 1
        if armed.blow is Blow.KILL:
            process.kill()
        else:
            process.freeze()
        self.on_blow(process, armed.blow)


class Connection:
    """One process's way to the servers."""

    def __init__(self, process: Process, rng: random.Random, hazards: ProcessFaults) -> None:
        self.process = process
        self._rng = rng
        self._hazards = hazards

    async def call(self, effect: Callable[[], Result], *, out_s: float | None = None, back_s: float = 0.0) -> Result:
        """Have a server do something, and await its answer.

        What was sent is done, whatever becomes of the process meanwhile; only the answer finds nobody then.
        `out_s`: how long the request travels, by default a little. `back_s`: how long the answer takes beyond that.
        """
        self._hazards.strike(self.process, answered=False)
        await asyncio.sleep(0)  # here it stands, where it was stopped or killed
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Result] = loop.create_future()
        out_s = self._rng.random() * LATENCY_S_MAX if out_s is None else out_s
        back_s += self._rng.random() * LATENCY_S_MAX

        def arrived() -> None:
            try:
                result = effect()
            except Exception as error:  # noqa: BLE001 - the caller's, like the result
                self._hazards.strike(self.process, answered=True)
                loop.call_later(back_s, _fail, answer, error, context=_NOBODY)
            else:
                self._hazards.strike(self.process, answered=True)
                loop.call_later(back_s, _answer, answer, result, context=_NOBODY)

        loop.call_later(out_s, arrived, context=_NOBODY)
        return await answer

    async def ask(
        self, effect: Callable[[], Coroutine[Any, Any, Result]], *, out_s: float | None = None, back_s: float = 0.0
    ) -> Result:
        """The same with a server that itself awaits something."""
        self._hazards.strike(self.process, answered=False)
        await asyncio.sleep(0)  # here it stands, where it was stopped or killed
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Result] = loop.create_future()
        out_s = self._rng.random() * LATENCY_S_MAX if out_s is None else out_s
        back_s += self._rng.random() * LATENCY_S_MAX
        serve(loop, self._serve(effect, answer, out_s, back_s))
        return await answer

    async def _serve(
        self,
        effect: Callable[[], Coroutine[Any, Any, Result]],
        answer: "asyncio.Future[Result]",
        out_s: float,
        back_s: float,
    ) -> None:
        if out_s:
            await asyncio.sleep(out_s)
        result: Result | None = None
        failure: BaseException | None = None
        try:
            result = await effect()
        except Exception as error:  # noqa: BLE001 - the caller's, like the result
            failure = error
        self._hazards.strike(self.process, answered=True)
        await asyncio.sleep(back_s)
        if failure is not None:
            _fail(answer, failure)
        else:
            _answer(answer, result)


def _answer(answer: "asyncio.Future[Any]", result: Any) -> None:
    if not answer.done():
        answer.set_result(result)


def _fail(answer: "asyncio.Future[Any]", error: BaseException) -> None:
    if not answer.done():
        answer.set_exception(error)
        answer.exception()  # seen, also where nobody lives to see it


_NOBODY = contextvars.Context()
"""The context of servers, which belong to no process."""

_serving: set["asyncio.Task[None]"] = set()


def serve(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> None:
    """Run something outside of any process: servers go on when their clients do not."""
    task = loop.create_task(work, context=_NOBODY.copy())
    _serving.add(task)
    task.add_done_callback(_serving.discard)
