"""The scheduler's clock: Postgres' own, so that all workers share one; a simulation sets it to its virtual time.

Every statement about due times, leases, quotas and breakers asks `tartan.clock()` instead of now().
"""

from datetime import datetime

import asyncpg

CLOCK_FUNCTION = """
CREATE OR REPLACE FUNCTION tartan.clock() RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE
RETURN coalesce(nullif(current_setting('tartan.now', true), '')::timestamptz, now())"""


async def set_clock(connection: asyncpg.Connection, at: datetime) -> None:
    """Make `tartan.clock()` tell this time on a connection, until it is set again. For simulations only."""
    await connection.execute("SELECT set_config('tartan.now', $1, false)", at.isoformat())
