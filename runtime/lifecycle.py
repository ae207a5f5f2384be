"""A process: start, health, metrics, graceful stop on SIGTERM, exit on what it cannot survive."""

import asyncio
import gc
import signal
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass

import uvloop
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from runtime import logs
from runtime.settings import Settings
from schemas.errors import TartanError

GC_THRESHOLD = 50_000
"""Objects between collections after start: with what was loaded frozen, this is worth 5 % (SPEED.md)."""
STOP_S_MAX = 60.0
"""A stop waits for the transaction under way; longer than this and the process ends all the same."""

_log = logs.logger(__name__)


@dataclass(frozen=True, slots=True)
class Running:
    """A stage at work.

    `not_ready` gives the reasons why it is not ready; `ended` ends, with the error, when the stage fails.
    """

    name: str
    not_ready: Callable[[], list[str]]
    ended: Awaitable[object]


Stage = Callable[[Settings], AbstractAsyncContextManager[Running]]


def run(stages: dict[str, Stage], settings: Settings) -> int:
    """Run stages in this process until SIGTERM, SIGINT or the failure of one. Gives the exit code."""
    name = "+".join(stages)
    logs.configure(settings, name)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_main(stages, settings))


async def _main(stages: dict[str, Stage], settings: Settings) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    running: list[Running] = []
    try:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(health_server(settings, running, expected=len(stages)))
            for stage in stages.values():
                running.append(await stack.enter_async_context(stage(settings)))  # noqa: PERF401 - /readyz reads it
            gc.collect()
            gc.freeze()
            gc.set_threshold(GC_THRESHOLD)
            _log.info("ready", stages=list(stages))
            failed = await _until(stop, running)
            _log.info("stopping")
            stop_by = loop.call_later(STOP_S_MAX, _give_up)
        stop_by.cancel()
    except TartanError as error:
        _log.error("stopped", kind=type(error).__name__, reason=str(error))
        return 1
    return 1 if failed else 0


async def _until(stop: asyncio.Event, running: list[Running]) -> bool:
    """Wait for the stop signal or the first stage that ends by itself; True where one did."""
    asked = asyncio.create_task(stop.wait())
    stages = {asyncio.ensure_future(stage.ended): stage.name for stage in running}
    done, _ = await asyncio.wait({asked, *stages}, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    failed = [task for task in done if task in stages]
    for task in failed:
        error = None if task.cancelled() else task.exception()
        _log.error("stage failed", stage=stages[task], kind=type(error).__name__, reason=str(error))
    return bool(failed)


def _give_up() -> None:
    _log.error("stop took too long", seconds=STOP_S_MAX)
    signal.raise_signal(signal.SIGKILL)


class health_server(AbstractAsyncContextManager[None]):  # noqa: N801 - used as a function
    """/healthz, /readyz and /metrics on the internal port."""

    def __init__(self, settings: Settings, running: list[Running], *, expected: int) -> None:
        self._settings, self._running, self._expected = settings, running, expected
        app = web.Application()
        app.add_routes([web.get("/healthz", _healthz), web.get("/readyz", self._readyz), web.get("/metrics", _metrics)])
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False)

    async def __aenter__(self) -> None:
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._settings.internal_host, self._settings.internal_port, reuse_port=False)
        await site.start()

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _readyz(self, _: web.Request) -> web.Response:
        reasons = [f"{stage.name}: {reason}" for stage in self._running for reason in stage.not_ready()]
        if len(self._running) < self._expected:
            reasons.append("starting")
        return web.json_response({"ready": not reasons, "reasons": reasons}, status=503 if reasons else 200)


async def _healthz(_: web.Request) -> web.Response:
    return web.json_response({"healthy": True})


async def _metrics(_: web.Request) -> web.Response:
    return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})
