"""Lifecycle of a process: start, health, metrics, graceful stop on SIGTERM, exit on fatal errors."""

import asyncio
import faulthandler
import gc
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvloop
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from runtime import logs
from runtime.settings import Settings
from schemas.errors import Halt, TartanError

GC_THRESHOLD = 50_000
"""Objects between garbage collections after start; with the loaded objects frozen this saves 5 %."""
STOP_S_MAX = 60.0
"""Longest stop, which waits for the transaction under way; then the process exits with code 1 and logs the stacks of
its threads. A thread of C measures the time, so a blocked event loop does not prevent it."""

_log = logs.logger(__name__)


@dataclass(frozen=True, slots=True)
class Running:
    """A running stage. `not_ready` returns the reasons against readiness; `ended` ends with the stage's error."""

    name: str
    not_ready: Callable[[], list[str]]
    ended: Awaitable[object]


Stage = Callable[[Settings], AbstractAsyncContextManager[Running]]


def run(stages: dict[str, Stage], settings: Settings) -> int:
    """Run stages in this process until SIGTERM, SIGINT or the failure of one; return the exit code."""
    logs.configure(settings, "+".join(stages))
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_main(stages, settings))
    finally:
        faulthandler.cancel_dump_traceback_later()


@dataclass(slots=True)
class _Process:
    """The state of this process, for /readyz and the signals."""

    expected: int
    running: list[Running] = field(default_factory=list)
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    def not_ready(self) -> list[str]:
        reasons = [f"{stage.name}: {reason}" for stage in self.running for reason in stage.not_ready()]
        if self.stop.is_set():
            reasons.append("stopping")
        elif len(self.running) < self.expected:
            reasons.append("starting")
        return reasons


async def _main(stages: dict[str, Stage], settings: Settings) -> int:
    process = _Process(expected=len(stages))
    _stop_on_signals(process)
    try:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(_health_server(settings, process))
            for stage in stages.values():
                process.running.append(await stack.enter_async_context(stage(settings)))
            gc.collect()
            gc.freeze()
            gc.set_threshold(GC_THRESHOLD)
            _log.info("ready", stages=list(stages))
            failed = await _until_stopped(process)
    except asyncio.CancelledError:
        if not process.stop.is_set():
            raise
        return 0  # a signal came before all stages had started
    except Exception as error:  # noqa: BLE001 - the last place that can log the reason
        _log.error("stopped", **_log_fields(error))
        return 1
    return 1 if failed else 0


def _stop_on_signals(process: _Process) -> None:
    """Stop this task's process on SIGTERM and SIGINT, also while its stages wait for Kafka or Postgres at start."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None

    def stop() -> None:
        if process.stop.is_set():
            return
        process.stop.set()
        _stopping()
        if len(process.running) < process.expected:
            task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)


def _stopping() -> None:
    _log.info("stopping", seconds_max=STOP_S_MAX)
    faulthandler.dump_traceback_later(STOP_S_MAX, exit=True)


async def _until_stopped(process: _Process) -> bool:
    """Wait for the signal to stop or the first stage that ends by itself; True where one did."""
    signalled = asyncio.create_task(process.stop.wait())
    stages = {asyncio.ensure_future(stage.ended): stage.name for stage in process.running}
    done, _ = await asyncio.wait({signalled, *stages}, return_when=asyncio.FIRST_COMPLETED)
    signalled.cancel()
    failed = [task for task in done if task in stages]
    for task in failed:
        error = None if task.cancelled() else task.exception()
        _log.error("stage failed", failed=stages[task], **_log_fields(error))
    if failed:
        process.stop.set()
        _stopping()
    return bool(failed)


def _log_fields(error: BaseException | None) -> dict[str, Any]:
    """Return the log fields of an error: own and system errors need their text only, all others the trace."""
    if error is None:
        return {"reason": "it ended by itself"}
    plain = isinstance(error, TartanError | OSError) and str(error)
    return {"kind": type(error).__name__, "reason": str(error), "exc_info": None if plain else error}


@asynccontextmanager
async def _health_server(settings: Settings, process: _Process) -> AsyncIterator[None]:
    """Serve /healthz, /readyz and /metrics on the internal port. Raises: Halt, where the port cannot be used."""

    async def readyz(_: web.Request) -> web.Response:
        reasons = process.not_ready()
        return web.json_response({"ready": not reasons, "reasons": reasons}, status=503 if reasons else 200)

    app = web.Application()
    app.add_routes([web.get("/healthz", _healthz), web.get("/readyz", readyz), web.get("/metrics", _metrics)])
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    host, port = settings.internal_host, settings.internal_port
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port, reuse_port=False).start()
        except OSError as error:
            why = os.strerror(error.errno) if error.errno and error.errno > 0 else error  # below 0: an unknown host
            raise Halt(f"internal port {host}:{port} cannot be used ({why}): set TARTAN_INTERNAL_PORT") from error
        yield
    finally:
        await runner.cleanup()


async def _healthz(_: web.Request) -> web.Response:
    return web.json_response({"healthy": True})


async def _metrics(_: web.Request) -> web.Response:
    return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})
