"""Serve a simulated Plaid over HTTP."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from aiohttp import web

from sandbox.simulator.activity import Activity
from sandbox.simulator.api.dispatcher import Answer, answer
from sandbox.simulator.clock import Clock
from sandbox.simulator.control.control_api import ControlApi, refusals
from sandbox.simulator.options import Options
from sandbox.simulator.simulated_plaid import SimulatedPlaid
from sandbox.simulator.webhooks.sender import HttpTransport, Sender

HANG_S = 120.0
"""Duration of a request that must run into its client's timeout; then the connection is cut."""

SHUTDOWN_S = 1.0
"""Longest wait for open connections when the server stops."""

BODY_BYTES_MAX = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Running:
    """A running server: its address, its simulated Plaid, and its tasks, which end only by a programming error."""

    url: str
    plaid: SimulatedPlaid
    tasks: tuple[asyncio.Task[None], ...]


def build(plaid: SimulatedPlaid, activity: Activity) -> web.Application:
    """Build the application: Plaid's endpoints and the control API."""

    async def handle(request: web.Request) -> web.StreamResponse:
        answered = answer(plaid, request.path, request.headers, await request.read())
        if late_s := plaid.options.latency_s + answered.delay_s:
            await asyncio.sleep(late_s)
        if answered.is_broken:
            return await _break_connection(request, answered)
        return web.Response(body=answered.body, status=answered.status, headers={"Content-Type": answered.content_type})

    app = web.Application(client_max_size=BODY_BYTES_MAX)
    control = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[refusals])
    control.add_routes(ControlApi(plaid, activity).routes())
    app.add_subapp("/simulator", control)
    app.router.add_post("/{path:.*}", handle)
    return app


@asynccontextmanager
async def running(options: Options, clock: Clock | None = None) -> AsyncIterator[Running]:
    """Run a simulated Plaid in this event loop for the length of a block."""
    plaid = SimulatedPlaid(options, clock)
    sender_wake, tasks_wake = asyncio.Event(), asyncio.Event()

    def wake_all() -> None:
        sender_wake.set()
        tasks_wake.set()

    plaid.on_wake = wake_all
    activity = Activity(plaid, tasks_wake)
    runner = web.AppRunner(build(plaid, activity), access_log=None, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    await web.TCPSite(runner, options.host, options.port).start()
    port = runner.addresses[0][1]
    connector = aiohttp.TCPConnector(limit=options.deliveries_in_flight_max)
    async with aiohttp.ClientSession(connector=connector) as session:
        sender = Sender(plaid, HttpTransport(session, options.delivery_timeout_s), sender_wake)
        work = (sender.run(), activity.run_tasks(), activity.run_steps())
        tasks = tuple(asyncio.create_task(coroutine) for coroutine in work)
        try:
            yield Running(f"http://{options.host}:{port}", plaid, tasks)
        finally:
            await runner.cleanup()
            for task in tasks:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, Exception):
                    raise result


async def serve(options: Options) -> None:
    """Run a simulated Plaid until this task is cancelled; its address is the first line printed."""
    async with running(options) as simulator:
        print(f"simulated Plaid at {simulator.url}, seed {options.seed}", flush=True)
        await asyncio.wait(simulator.tasks, return_when=asyncio.FIRST_COMPLETED)


async def _break_connection(request: web.Request, answered: Answer) -> web.StreamResponse:
    transport = request.transport
    if answered.connection_fault == "TIMEOUT":
        await asyncio.sleep(HANG_S)
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.content_length = len(answered.body)
    if answered.connection_fault == "TRUNCATED":
        await response.prepare(request)
        await response.write(answered.body[: len(answered.body) // 2])
    if transport is not None:
        transport.abort()
    return response
