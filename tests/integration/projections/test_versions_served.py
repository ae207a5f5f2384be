"""Versions swapped there and back while processes write, publish and read: nobody notices."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from aiohttp import ClientSession
from pydantic import SecretStr

from gateway.app import Gateway, serving
from gateway.live.hub import Hub
from projections.rebuild import swap
from projections.rebuild.load import Version, open_loader
from projections.rebuild.rebuild import Options, rebuild
from projections.store.tables import OLD, SCHEMA
from projections.verify import digests
from runtime.kafka.clients import Appender
from runtime.plaid.client import Plaid
from runtime.postgres.pool import borrowed, open_pool, snapshot
from schemas.topics import PUBLIC, PUSH
from tests.integration.projections.test_crash import processes, run  # noqa: F401
from tests.integration.projections.test_publisher_kills import Life, pool, stored  # noqa: F401
from tests.integration.projections.test_stage import World, world  # noqa: F401
from tests.support.deduplicating_reader import DeduplicatingReader

READS = ("/v1/users/u{user}/accounts", "/v1/users/u{user}/transactions?limit=50", "/v1/users/u{user}/items")
READ_EVERY_S = 0.02
WRITE_EVERY_S = 0.05


@asynccontextmanager
async def going_on(work: Any) -> AsyncIterator[None]:
    """Work that goes on for ever beside a block, and has not failed at its end."""
    task = asyncio.create_task(work)
    try:
        yield
        assert not task.done() or task.result() is None
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Quiet:
    """Shows nothing of a rebuild."""

    def message(self, sentence: str) -> None:
        pass

    def progress(self, done: int, total: int, transactions: int) -> None:
        pass


class Readers:
    """Reads through the gateway, and the same views beside it; what was ever wrong stays."""

    def __init__(self, url: str, pool: asyncpg.Pool) -> None:
        self.wrong: list[str] = []
        self.answers = 0
        self._url = url
        self._pool = pool
        self._seen = 0

    async def ask(self) -> None:
        """Ask the gateway, again and again."""
        chance = random.Random(2)
        async with ClientSession(headers={"Authorization": "Bearer key-t"}) as session:
            while True:
                path = chance.choice(READS).format(user=chance.randint(1, 3))
                async with session.get(self._url + path) as answer:
                    if answer.status != 200:
                        self.wrong.append(f"{path}: {answer.status} {await answer.text()}")
                self.answers += 1
                await asyncio.sleep(READ_EVERY_S)

    async def look(self) -> None:
        """Look at what one snapshot shows: it never goes back, and all of it is of one version."""
        while True:
            async with borrowed(self._pool) as connection, snapshot(connection):
                at = int(await connection.fetchval("SELECT sum(position) FROM reads.positions"))
                accepted = await connection.fetchval("SELECT count(*) FROM reads.changesets")
                rows = await connection.fetchval("SELECT count(*) FROM reads.transactions WHERE removed_at IS NULL")
                said = await connection.fetchval("SELECT sum(net) FROM (SELECT version AS net FROM reads.transactions)")
                if accepted != at or at < self._seen or not rows or said < rows:
                    self.wrong.append(f"position {at} after {self._seen}, {accepted} changesets, {rows} rows")
                self._seen = at
            await asyncio.sleep(READ_EVERY_S)


async def write(world: World, life: Life) -> None:
    while True:
        life.go_on(2)
        await world.append(life.log)
        await asyncio.sleep(WRITE_EVERY_S)


@asynccontextmanager
async def gateway(world: World) -> AsyncIterator[str]:
    settings = world.settings.model_copy(
        update={
            "port": 0,
            "api_keys": SecretStr("t:key-t"),
            "stream_secret": SecretStr("s" * 32),
            "cron_secret": SecretStr("said-to-the-cron-alone"),
            "plaid_client_id": "client",
            "plaid_secret": SecretStr("secret"),
            "instance_id": "gateway",
        }
    )
    opened, plaid, appender = await open_pool(settings, stage="test"), Plaid(settings), Appender(settings, client="g")
    try:
        async with serving(Gateway(settings, pool=opened, plaid=plaid, hub=Hub(), appender=appender), settings) as port:
            yield f"http://127.0.0.1:{port}"
    finally:
        await plaid.close()
        await opened.close()


async def digest(dsn: str, schema: str) -> str:
    connection = await asyncpg.connect(dsn, server_settings={"search_path": schema})
    try:
        return await digests.full_digest(connection)
    finally:
        await connection.close()


@pytest.mark.timeout(110)
async def test_nobody_notices_that_versions_are_swapped(
    world: World, pool: asyncpg.Pool, database: str, processes: list[asyncio.subprocess.Process]
) -> None:
    life = Life(random.Random(1))
    life.go_on(20)
    await world.append(life.log)
    processes.append(await run(world, None))
    await world.until_projected(life.count)
    told: list[str] = []
    async with (
        DeduplicatingReader(world.settings, (*PUBLIC, PUSH)) as reader,
        gateway(world) as url,
        asyncpg.create_pool(database, min_size=1, max_size=2) as looking,
    ):
        readers = Readers(url, looking)
        async with going_on(readers.ask()), going_on(readers.look()):
            async with going_on(write(world, life)):
                result = await rebuild(world.settings, Options(processes=1, swaps=False), Quiet())
                async with open_loader(world.settings, Version(result.version, {}), lambda _: None) as loader:
                    await swap.swap(world.settings, catch_up=loader.load, differs=False, tell=told.append)
                for _ in range(3):
                    await swap.swap_back(world.settings, tell=told.append)
            await world.until_projected(life.count)
            async with asyncio.timeout(30):
                while await digest(database, OLD) != await digest(database, SCHEMA):
                    await asyncio.sleep(0.1)

        assert readers.wrong == []
        assert readers.answers > 50
        assert await world.tables.fetchval("SELECT number FROM version") == 1
        await reader.drain()
        assert reader.records == await stored(pool)
