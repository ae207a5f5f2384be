"""The composition root of `tartan gateway`."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg
from aiohttp import web

from gateway.handlers import schema_registry
from gateway.handlers.balances.balance_client import CALLS_MAX, Banks
from gateway.handlers.balances.balances import Balances
from gateway.handlers.command_log import Sayings
from gateway.handlers.edits import Edits
from gateway.handlers.history import History
from gateway.handlers.items import Items
from gateway.handlers.queue import Operating
from gateway.handlers.reads import Reads
from gateway.handlers.reconciliations import Reconciling
from gateway.handlers.reviews import Reviews
from gateway.handlers.statements import Statements
from gateway.handlers.syncs.syncs import Syncs
from gateway.http.auth import CronSecret, StreamTokens, Tenants
from gateway.http.openapi import document
from gateway.http.poll import Waiting
from gateway.http.problems import problems
from gateway.http.rate_limit import Buckets
from gateway.http.requests import guarded
from gateway.live import page
from gateway.live.epoch import Epoch
from gateway.live.hub import GOING_AWAY, Ending, Hub
from gateway.live.kafka_feed import PushReader
from gateway.live.websocket import Streams
from gateway.routes import ROUTES, Route
from runtime import logs
from runtime.kafka.clients import Appender
from runtime.lifecycle import Running
from runtime.plaid.client import THREADS_SPARE, Plaid
from runtime.postgres.errors import AWAY
from runtime.postgres.pool import open_pool
from runtime.settings import Settings
from runtime.users.commands import CommandWriter
from runtime.users.vault import Vault
from schemas.errors import Retry

BODY_BYTES_MAX = 128 * 1024
"""The largest body here is an edit of all fields, about 75 KB where each character takes four bytes."""
APPEND_S_MAX = 10.0
"""How long an answer waits for Kafka: a broker's restart takes 4 to 12 s, and the client's key makes a retry safe."""

DRAIN_S = 10.0
PROBE_S = 5.0

_log = logs.logger(__name__)


class Gateway:
    """Everything that answers, and the application that it answers through."""

    def __init__(self, settings: Settings, *, pool: asyncpg.Pool, plaid: Plaid, hub: Hub, appender: Appender) -> None:
        self._settings = settings
        self._tenants = Tenants(settings.tenants())
        self._buckets = Buckets()
        self._hub = hub
        tokens = StreamTokens(settings)
        waiting, vault = Waiting(), Vault(settings.master_key())
        self._sayings = Sayings(CommandWriter(settings, appender, vault), pool=pool, waiting=waiting)
        self._cron = CronSecret(settings)
        self._items = Items(settings, pool=pool, plaid=plaid, vault=vault, waiting=waiting)
        banks = Banks(settings, pool=pool, plaid=plaid, vault=vault)
        self._balances = Balances(settings, pool=pool, banks=banks, sayings=self._sayings, waiting=waiting)
        self._handlers = (
            self._items,
            self._balances,
            Syncs(settings, pool=pool, waiting=waiting),
            Reads(settings, pool=pool, tokens=tokens),
            Operating(settings, pool=pool),
            Reconciling(settings, pool=pool),
            Edits(self._sayings, pool=pool),
            Reviews(self._sayings, pool=pool),
            History(pool=pool),
            Statements(pool=pool),
        )
        self._streams = Streams(pool=pool, hub=hub, tokens=tokens, partitions=settings.partitions)

    def app(self) -> web.Application:
        """The application: one route for each row of the table, the page, and the schemas."""
        app = web.Application(middlewares=[problems], client_max_size=BODY_BYTES_MAX)
        for route in ROUTES:
            app.router.add_route(route.method, route.path, self._answering(route))
        app.add_routes(page.routes())
        app.add_routes(schema_registry.routes(self._settings))
        app.on_shutdown.append(self._say_goodbye)
        app.on_cleanup.append(self._finish_requests)
        return app

    def _answering(self, route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """The handler of a route: the method that is named like its operation, behind key, rate and values."""
        if route.operation == "stream":
            return self._streams.handle
        if route.operation == "openapi":
            return _openapi
        [handle] = [
            getattr(handlers, route.operation) for handlers in self._handlers if hasattr(handlers, route.operation)
        ]
        identify = self._cron.check if route.guard == "cron" else self._tenants.of
        return guarded(route, handle, identify=identify, buckets=self._buckets)

    async def _say_goodbye(self, _: web.Application) -> None:
        self._hub.close(Ending(GOING_AWAY, "the server stops: connect again"))

    async def _finish_requests(self, _: web.Application) -> None:
        """What was asked of Plaid is worth waiting for: a link's token and a paid balance come once."""
        await asyncio.gather(self._items.close(), self._balances.close())


@asynccontextmanager
async def stage(settings: Settings) -> AsyncIterator[Running]:
    """Serve REST, streams and the page."""
    async with AsyncExitStack() as stack:
        pool = await _pool(settings)
        stack.push_async_callback(pool.close)
        # A bank takes up to 30 s to say its balances: those who ask one leave the links' threads alone.
        plaid = Plaid(settings, threads=settings.fetch_concurrency + THREADS_SPARE + CALLS_MAX)
        stack.push_async_callback(plaid.close)
        # It connects when something is said: reads are served while Kafka is away, and push says in /readyz that it is.
        appender = Appender(settings, client="gateway", timeout_s=APPEND_S_MAX)
        stack.push_async_callback(appender.stop)
        hub = Hub()
        push, database = PushReader(settings, hub), _Database(pool)
        gateway = Gateway(settings, pool=pool, plaid=plaid, hub=hub, appender=appender)
        reading = await stack.enter_async_context(_background(push.run()))
        await stack.enter_async_context(_background(database.watch()))
        await stack.enter_async_context(_background(Epoch(pool, hub).watch()))
        await stack.enter_async_context(serving(gateway, settings))
        yield Running("gateway", lambda: database.not_ready() + push.not_ready(), reading)


@asynccontextmanager
async def serving(gateway: Gateway, settings: Settings) -> AsyncIterator[int]:
    """Listen on the public port, and give the port; on the way out streams are closed and answers finished."""
    runner = web.AppRunner(
        gateway.app(), access_log=None, handle_signals=False, auto_decompress=False, shutdown_timeout=DRAIN_S
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, settings.host, settings.port).start()
        port = runner.addresses[0][1]
        _log.info("gateway", host=settings.host, port=port)
        yield port
    finally:
        await runner.cleanup()


async def _pool(settings: Settings) -> asyncpg.Pool:
    try:
        return await open_pool(settings, stage="gateway")
    except AWAY as error:
        raise Retry(f"no Postgres: {type(error).__name__}") from error


@asynccontextmanager
async def _background(work: Coroutine[Any, Any, None]) -> AsyncIterator["asyncio.Task[None]"]:
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


class _Database:
    """What /readyz says about Postgres."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._problem: str | None = "not asked yet"

    def not_ready(self) -> list[str]:
        """Why reads fail."""
        return [f"Postgres: {self._problem}"] if self._problem else []

    async def watch(self) -> None:
        """Ask Postgres, again and again."""
        while True:
            try:
                await self._pool.fetchval("SELECT 1", timeout=PROBE_S)
                self._problem = None
            except AWAY as error:
                self._problem = type(error).__name__
            await asyncio.sleep(PROBE_S)


async def _openapi(_: web.Request) -> web.StreamResponse:
    return web.json_response(document())
