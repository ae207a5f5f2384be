"""Fixtures of the integration tests of runtime."""

from collections.abc import AsyncIterator

import asyncpg
import pytest


@pytest.fixture
async def connection(database: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to a database that has Tartan's tables."""
    opened = await asyncpg.connect(database)
    yield opened
    await opened.close()
