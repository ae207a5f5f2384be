"""Kafka and Postgres killed under load: everything waits, comes back by itself, and nothing is lost or doubled."""

import asyncio
import contextlib
from pathlib import Path

import pytest

from projections.verify import digests
from sandbox.infra.clients import Application, Bank
from sandbox.infra.stack import Stack, StackOptions
from sandbox.observe.observer import observing
from tests.support.acceptance_published import net_events, read_topics

QUIET_S_MAX = 180.0
AWAY_S = 3.0


@pytest.mark.timeout(600)
async def test_kafka_and_postgres_may_die_at_any_time(tmp_path: Path) -> None:
    options = StackOptions(
        folder=tmp_path,
        simulator=("--ready", "--rate-limits", "off", "--time-scale", "0.05"),
        environment={"TARTAN_PARTITIONS": "4", "TARTAN_LEASE_S": "3"},
    )
    async with contextlib.AsyncExitStack() as stack:
        world = await stack.enter_async_context(Stack(options))
        bank = await stack.enter_async_context(Bank(world.simulator_url))
        application = await stack.enter_async_context(Application(world.gateway_url, world.secrets.api_key))
        for user in ("ada", "bob"):
            [item] = await bank.make_items(user, transactions=120)
            await application.link(user, item["public_token"])
        await bank.live(10)
        # Plaid gives up on an endpoint that refuses nine of ten: it must have seen this one at work first.
        await asyncio.sleep(5)

        for server in (world.cluster.kafka, world.cluster.postgres):
            assert server is not None
            server.kill()
            await asyncio.sleep(AWAY_S)
            await server.start()
            await asyncio.sleep(AWAY_S)

        await bank.live(0)
        observer = await stack.enter_async_context(observing(world.settings()))
        await observer.until_quiet(bank, timeout_s=QUIET_S_MAX)
        async with observer.pool.acquire() as connection:
            assert await digests.state_digest(connection) == await bank.digest()
            assert await digests.ledger_problems(connection) == []
        assert await read_topics(observer) == await net_events(observer)
