"""The scheduler's ports, one side after the other: in memory and on a real Postgres."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from tests.support.scheduler_sides import Side, memory, postgres


@pytest.fixture
async def pool(database: str) -> AsyncIterator[asyncpg.Pool]:
    async with asyncpg.create_pool(database, min_size=1, max_size=3) as opened:
        yield opened


@pytest.fixture(params=["memory", "postgres"])
def side(request: pytest.FixtureRequest, pool: asyncpg.Pool) -> Side:
    """A side on which Plaid's quota is not counted."""
    return memory(metered=False) if request.param == "memory" else postgres(pool, metered=False)
