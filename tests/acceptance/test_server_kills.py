"""Kafka and Postgres killed under load: everything waits, comes back by itself, and nothing is lost or doubled."""

import asyncio
from pathlib import Path

import pytest

from projections.verify import digests
from sandbox.infra.stack import Stack, StackOptions
from sandbox.observe.observer import open_session
from tests.support.acceptance_published import assert_published

QUIET_S_MAX = 180.0
AWAY_S = 3.0


@pytest.mark.timeout(600)
async def test_kafka_and_postgres_may_die_at_any_time(tmp_path: Path) -> None:
    options = StackOptions(
        folder=tmp_path,
        simulator=("--ready", "--rate-limits", "off", "--time-scale", "0.05"),
        environment={"TARTAN_PARTITIONS": "4", "TARTAN_LEASE_S": "3"},
    )
    async with Stack(options) as stack:
        async with open_session(stack) as session:
            bank, application = session.bank, session.application
            for user in ("ada", "bob"):
                [item] = await bank.make_items(user, transactions=120)
                await application.link(user, item["public_token"])
            await bank.live(10)
            # Plaid gives up on an endpoint that refuses nine of ten: it must have seen this one at work first.
            await asyncio.sleep(5)

            for server in stack.cluster.servers.values():
                server.kill()
                await asyncio.sleep(AWAY_S)
                await server.start()
                await asyncio.sleep(AWAY_S)

            await bank.live(0)
        async with open_session(stack) as session:
            observer, bank = session.observer, session.bank
            await observer.until_quiet(bank, timeout_s=QUIET_S_MAX)
            async with observer.pool.acquire() as connection:
                assert await digests.state_digest(connection) == await bank.digest()
                assert await digests.ledger_problems(connection) == []
            await assert_published(observer)
