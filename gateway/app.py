"""Gateway: serve REST, live streams, the schema registry and the page, and wire their parts.

Steps of a REST request, in order:

1. `http.problems.problems` turns every refusal and failure of the steps below into a problem document.
2. The router finds the row of `routes.ROUTES`; `Gateway` bound it to the handler method named like its operation.
3. `http.requests.guard` identifies the tenant (`http.auth`), takes a request of its rate limit (`http.rate_limit`) and
   reads all parameters (`http.parameters`).
4. The handler reads one snapshot of the tables, or appends a command to the log and polls until readers see it.
5. `http.requests.guard` encodes the answer as JSON and counts it.

Steps of a live message: `live.kafka_feed` reads it from the topic `push`, `live.hub` queues it for each subscriber of
its user, `live.websocket` sends it.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import asyncpg
from aiohttp import web

from gateway.handlers import schema_registry
from gateway.handlers.balances.balance_client import CALLS_MAX, BalanceClient
from gateway.handlers.balances.balances import Balances
from gateway.handlers.command_log import CommandLog
from gateway.handlers.edits import Edits
from gateway.handlers.history import History
from gateway.handlers.items import Items
from gateway.handlers.queue import Queue
from gateway.handlers.reads import Reads
from gateway.handlers.reconciliations import Reconciliations
from gateway.handlers.reviews import Reviews
from gateway.handlers.statements import Statements
from gateway.handlers.syncs.syncs import Syncs
from gateway.http.auth import CronSecret, StreamTokens, Tenants
from gateway.http.openapi import document
from gateway.http.poll import Poller
from gateway.http.problems import Runner, problems
from gateway.http.rate_limit import RequestBuckets
from gateway.http.requests import guard
from gateway.http.route import Route
from gateway.live import page
from gateway.live.epoch import POLL_S, EpochWatch
from gateway.live.hub import GOING_AWAY, Hub, StreamEnd
from gateway.live.kafka_feed import KafkaFeed
from gateway.live.websocket import WebSocketStreams
from gateway.routes import ROUTES
from runtime import logs
from runtime.kafka.clients import Appender
from runtime.lifecycle import Running
from runtime.plaid.client import THREADS_SPARE, Plaid
from runtime.postgres.errors import AWAY
from runtime.postgres.pool import open_pool
from runtime.retry import RepeatedCheck
from runtime.settings import Settings
from runtime.users.commands import CommandWriter
from runtime.users.vault import Vault
from schemas.errors import Retry

BODY_BYTES_MAX = 128 * 1024
"""The largest body is an edit of all fields, about 75 KB where each character takes four bytes."""
APPEND_S_MAX = 10.0
"""Longest wait of an answer for Kafka: a broker's restart takes 4 to 12 s, and the client's key makes a retry safe."""
DRAIN_S = 10.0
PROBE_S = 5.0

_log = logs.logger(__name__)


class Gateway:
    """The handlers and the web application that routes to them."""

    def __init__(self, settings: Settings, *, pool: asyncpg.Pool, plaid: Plaid, hub: Hub, appender: Appender) -> None:
        self._settings = settings
        self._tenants = Tenants(settings.tenants())
        self._cron = CronSecret(settings)
        self._buckets = RequestBuckets()
        self._hub = hub
        tokens, poller, vault = StreamTokens(settings), Poller(), Vault(settings.master_key())
        commands = CommandLog(CommandWriter(settings, appender, vault), pool=pool, poller=poller)
        client = BalanceClient(settings, pool=pool, plaid=plaid, vault=vault)
        self._items = Items(settings, pool=pool, plaid=plaid, vault=vault, poller=poller)
        self._balances = Balances(settings, pool=pool, client=client, commands=commands, poller=poller)
        self._handlers = (
            self._items,
            self._balances,
            Syncs(settings, pool=pool, poller=poller),
            Reads(settings, pool=pool, tokens=tokens),
            Queue(settings, pool=pool),
            Reconciliations(settings, pool=pool),
            Edits(commands, pool=pool),
            Reviews(commands, pool=pool),
            History(pool=pool),
            Statements(pool=pool),
        )
        self._streams = WebSocketStreams(pool=pool, hub=hub, tokens=tokens, partitions=settings.partitions)

    def app(self) -> web.Application:
        """Build the application: one route for each row of the table, the page, and the schema registry."""
        app = web.Application(middlewares=[problems], client_max_size=BODY_BYTES_MAX)
        for route in ROUTES:
            app.router.add_route(route.method, route.path, self._responder(route))
        app.add_routes(page.routes())
        app.add_routes(schema_registry.routes(self._settings))
        app.on_shutdown.append(self._end_streams)
        app.on_cleanup.append(self._finish_requests)
        return app

    def _responder(self, route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        if route.operation == "stream":
            return self._streams.handle
        if route.operation == "openapi":
            return _openapi
        [handler] = [
            getattr(handlers, route.operation) for handlers in self._handlers if hasattr(handlers, route.operation)
        ]
        identify = self._cron.identify if route.guard == "cron" else self._tenants.identify
        return guard(route, handler, identify=identify, buckets=self._buckets)

    async def _end_streams(self, _: web.Application) -> None:
        self._hub.close(StreamEnd(GOING_AWAY, "the server stops: connect again"))

    async def _finish_requests(self, _: web.Application) -> None:
        # A link's token and a paid balance come once: wait for both before the client of Plaid is closed.
        await asyncio.gather(self._items.close(), self._balances.close())


@asynccontextmanager
async def stage(settings: Settings) -> AsyncIterator[Running]:
    """Run the stage: serve REST, live streams and the page."""
    async with AsyncExitStack() as stack:
        try:
            pool = await open_pool(settings, stage="gateway")
        except AWAY as error:
            raise Retry(f"no Postgres: {type(error).__name__}") from error
        stack.push_async_callback(pool.close)
        # A bank takes up to 30 s for its balances: these calls leave the links' threads alone.
        plaid = Plaid(settings, threads=settings.fetch_concurrency + THREADS_SPARE + CALLS_MAX)
        stack.push_async_callback(plaid.close)
        # It connects with its first append: reads are served while Kafka is away, which the feed reports in /readyz.
        appender = Appender(settings, client="gateway", timeout_s=APPEND_S_MAX)
        stack.push_async_callback(appender.stop)
        hub = Hub()
        feed, epoch = KafkaFeed(settings, hub), EpochWatch(pool, hub)
        checks = (
            RepeatedCheck("Postgres", partial(pool.fetchval, "SELECT 1", timeout=PROBE_S), every_s=PROBE_S),
            RepeatedCheck("epoch", epoch.check, every_s=POLL_S),
        )
        gateway = Gateway(settings, pool=pool, plaid=plaid, hub=hub, appender=appender)
        feeding = await stack.enter_async_context(_background(feed.run()))
        for check in checks:
            await stack.enter_async_context(_background(check.run()))
        await stack.enter_async_context(serving(gateway, settings))
        yield Running("gateway", lambda: [*checks[0].reasons, *checks[1].reasons, *feed.not_ready()], feeding)


@asynccontextmanager
async def serving(gateway: Gateway, settings: Settings) -> AsyncIterator[int]:
    """Listen on the public port and yield it; on exit end the streams and finish the answers under way."""
    runner = Runner(
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


@asynccontextmanager
async def _background(work: Coroutine[Any, Any, None]) -> AsyncIterator["asyncio.Task[None]"]:
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _openapi(_: web.Request) -> web.StreamResponse:
    return web.json_response(document(ROUTES))
