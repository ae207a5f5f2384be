"""kill -9 of each process at each step of the way: nothing is lost, nothing is doubled."""

import asyncio
import time

import pytest

from projections.verify import digests
from runtime.crash_points import CrashPoint
from sandbox.infra.stack import INGEST, PROJECTIONS, STREAMS
from tests.acceptance.conftest import Running
from tests.support.acceptance_published import assert_published

STAGE_OF = {
    "ingest": INGEST,
    "mark_due": STREAMS,
    "fetch_deltas": STREAMS,
    "follow_heads": STREAMS,
    "project": PROJECTIONS,
    "publish": PROJECTIONS,
}
POINTS = [point for point in CrashPoint if point.partition(".")[0] in STAGE_OF]
"""Those of a swap are of an operator's command (test_rebuild.py)."""
CRASH_S_MAX = 60.0
QUIET_S_MAX = 120.0
LARGE = (CrashPoint.FETCH_BETWEEN_PAGES, CrashPoint.FETCH_AFTER_PART)
"""Points that only an update of more than a page of 500 changes comes by, or of more than a record."""


@pytest.fixture
def further_settings() -> dict[str, str]:
    return {"TARTAN_RECORD_BYTES_MAX": "8192"}


@pytest.mark.timeout(900)
async def test_a_kill_at_each_step_loses_and_doubles_nothing(running: Running) -> None:
    for user in ("ada", "bob", "cleo"):
        [item] = await running.bank.make_items(user, transactions=120)
        await running.application.link(user, item["public_token"])
    await running.observer.until_quiet(running.bank, timeout_s=QUIET_S_MAX)

    # Plaid gives up on an endpoint that refuses nine of ten: it must have seen this one at work before it is killed.
    await running.bank.step(count=100)
    await running.observer.until_quiet(running.bank, timeout_s=QUIET_S_MAX)

    for point in POINTS:
        await die_at(running, point)

        await assert_true(running, after=point)
    await assert_published(running.observer)


async def die_at(running: Running, point: CrashPoint) -> None:
    stage = running.stack.stages[STAGE_OF[point.partition(".")[0]]]
    restarts = stage.restarts
    await stage.die_at(point, times=2)
    deadline = time.monotonic() + CRASH_S_MAX
    while stage.restarts == restarts:
        assert time.monotonic() < deadline, f"nothing came by {point}"
        large = point in LARGE
        await running.bank.step(changes=600 if large else 5)
        await asyncio.sleep(2.0 if large else 0.5)
    await stage.ready()


async def assert_true(running: Running, *, after: CrashPoint) -> None:
    await running.observer.until_quiet(running.bank, timeout_s=QUIET_S_MAX)
    async with running.observer.pool.acquire() as connection:
        assert await digests.state_digest(connection) == await running.bank.digest(), f"after a kill at {after}"
        assert await digests.ledger_problems(connection) == [], f"after a kill at {after}"
