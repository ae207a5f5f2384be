"""The process that swaps dies, or is stopped, at each of its steps: the live version goes on, whichever it is then."""

import asyncio
import os
import signal
import sys

import asyncpg
import pytest

from runtime.crash_points import STOP_VARIABLE, VARIABLE, CrashPoint
from tests.integration.projections.test_versions import Beside, beside, numbers, story, tables  # noqa: F401
from tests.support.projections_log import Log, added, transaction

END_S_MAX = 60.0
AFTER = {CrashPoint.SWAP_LOCKED: 2, CrashPoint.SWAP_BEFORE_COMMIT: 2, CrashPoint.SWAP_AFTER_COMMIT: 1}
"""The version that is live when `--back` has died at a point; version 2 was before."""


async def start(beside: Beside, variable: str, point: CrashPoint) -> asyncio.subprocess.Process:
    """Start `tartan rebuild --back`, which dies or stops at a point."""
    environment = {
        **os.environ,
        "TARTAN_POSTGRES_DSN": beside.live.settings.postgres_dsn.get_secret_value(),
        variable: point,
    }
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from cli import main as cli\ncli.main()",
        "rebuild",
        "--back",
        env=environment,
        stdout=asyncio.subprocess.DEVNULL,
    )


@pytest.fixture
async def swapped(beside: Beside) -> tuple[Beside, Log]:
    """A database in which version 2 is live and version 1 is kept, at the same place."""
    log = story()
    await beside.project(log.records)
    await beside.replayed(log.records)
    await beside.swap()
    beside.live.session.drop()
    return beside, log


@pytest.mark.parametrize("point", AFTER)
async def test_a_swap_that_dies_has_happened_or_has_not(
    swapped: tuple[Beside, Log], tables: asyncpg.Connection, point: CrashPoint
) -> None:
    database, log = swapped

    dying = await start(database, VARIABLE, point)

    assert await asyncio.wait_for(dying.wait(), END_S_MAX) == -signal.SIGKILL
    assert (await numbers(tables))["projection"] == AFTER[point]
    await asyncio.wait_for(database.project([log.sync("item", *added(transaction("c", "7")))]), END_S_MAX)
    assert await tables.fetchval("SELECT count(*) FROM reads.transactions") == 3


async def test_a_swap_that_is_put_to_sleep_lets_writers_go_on(
    swapped: tuple[Beside, Log], tables: asyncpg.Connection
) -> None:
    database, log = swapped
    sleeping = await start(database, STOP_VARIABLE, CrashPoint.SWAP_LOCKED)
    try:
        async with asyncio.timeout(END_S_MAX):
            while not await tables.fetchval(_HELD):
                await asyncio.sleep(0.02)

        await asyncio.wait_for(database.project([log.sync("item", *added(transaction("c", "7")))]), END_S_MAX)

        assert await numbers(tables) == {"projection": 2, "projection_old": 1}
    finally:
        sleeping.kill()
        await sleeping.wait()


_HELD = """
SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'projection.positions'::regclass AND mode = 'ExclusiveLock'
   AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))"""
