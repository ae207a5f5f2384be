"""The HTTP server of a simulated Plaid. Shell."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from aiohttp import web

from sandbox.simulator.activity import Pulse
from sandbox.simulator.api.dispatcher import Answer, answer
from sandbox.simulator.clock import Clock
from sandbox.simulator.control.control_api import Control, refusals
from sandbox.simulator.options import Options
from sandbox.simulator.simulated_plaid import SimulatedPlaid
from sandbox.simulator.webhooks.sender import HttpTransport, Sender

HANG_S = 120.0
"""How long a request hangs that is to run into its client's timeout; then the connection is cut."""

SHUTDOWN_S = 1.0
"""Patience with open connections when the server stops; a simulator owes its clients nothing."""

BODY_BYTES_MAX = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Running:
    """A server that runs: where it is, the world behind it, and its tasks, which end only by a mistake."""

    url: str
    plaid: SimulatedPlaid
    pulse: Pulse
    tasks: tuple[asyncio.Task[None], ...]


def build(world: SimulatedPlaid, pulse: Pulse) -> web.Application:
    """Build the application: Plaid's endpoints and the control API over one world."""

    async def plaid(request: web.Request) -> web.StreamResponse:
        answered = answer(world, request.path, request.headers, await request.read())
        if late_s := world.options.latency_s + answered.delay_s:
            await asyncio.sleep(late_s)
        if answered.breaks:
            return await _break(request, answered)
        return web.Response(body=answered.body, status=answered.status, headers={"Content-Type": answered.content_type})

    app = web.Application(client_max_size=BODY_BYTES_MAX)
    control = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[refusals])
    control.add_routes(Control(world, pulse).routes())
    app.add_subapp("/simulator", control)
    app.router.add_post("/{path:.*}", plaid)
    return app


@asynccontextmanager
async def running(options: Options, clock: Clock | None = None) -> AsyncIterator[Running]:
    """Run a simulated Plaid in this event loop for the length of a block."""
    world = SimulatedPlaid(options, clock)
    wakes = (asyncio.Event(), asyncio.Event())

    def wake_all() -> None:
        for wake in wakes:
            wake.set()

    world.on_wake = wake_all
    pulse = Pulse(world, wakes[1])
    runner = web.AppRunner(build(world, pulse), access_log=None, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    site = web.TCPSite(runner, options.host, options.port)
    await site.start()
    connector = aiohttp.TCPConnector(limit=options.deliveries_in_flight_max)
    async with aiohttp.ClientSession(connector=connector) as session:
        sender = Sender(world, HttpTransport(session, options.delivery_timeout_s), wakes[0])
        works = (sender.run(), pulse.run_agenda(), pulse.run_activity())
        tasks = tuple(asyncio.create_task(work) for work in works)
        try:
            yield Running(f"http://{options.host}:{_port(runner)}", world, pulse, tasks)
        finally:
            await runner.cleanup()
            await _end(tasks)


async def serve(options: Options) -> None:
    """Run a simulated Plaid until this task is cancelled; its address is the first line printed."""
    async with running(options) as simulator:
        print(f"simulated Plaid at {simulator.url}, seed {options.seed}", flush=True)
        await asyncio.wait(simulator.tasks, return_when=asyncio.FIRST_COMPLETED)


async def _break(request: web.Request, answered: Answer) -> web.StreamResponse:
    transport = request.transport
    if answered.wire == "TIMEOUT":
        await asyncio.sleep(HANG_S)
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.content_length = len(answered.body)
    if answered.wire == "TRUNCATED":
        await response.prepare(request)
        await response.write(answered.body[: len(answered.body) // 2])
    if transport is not None:
        transport.abort()
    return response


async def _end(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel tasks; what one of them died of is raised here and not lost."""
    for task in tasks:
        task.cancel()
    for end in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(end, Exception):
            raise end


def _port(runner: web.AppRunner) -> int:
    address = runner.addresses[0]
    return int(address[1])
