"""The scheduler's ports, one side after the other: in memory and on a real Postgres."""

import asyncpg
import pytest

from tests.support.scheduler_sides import Side, memory, postgres


@pytest.fixture(params=["memory", "postgres"])
def side(request: pytest.FixtureRequest, pool: asyncpg.Pool) -> Side:
    """A side on which Plaid's quota is not counted."""
    return memory(metered=False) if request.param == "memory" else postgres(pool, metered=False)
