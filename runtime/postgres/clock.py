"""Clock of the scheduler: `tartan.clock()` is Postgres' now(), one for all workers, or a simulation's virtual time.

Statements about due times, leases, quotas and breakers use it instead of now().
"""

from datetime import datetime

import asyncpg

CLOCK_FUNCTION = """
CREATE OR REPLACE FUNCTION tartan.clock() RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE
RETURN coalesce(nullif(current_setting('tartan.now', true), '')::timestamptz, now())"""


async def set_clock(connection: asyncpg.Connection, now: datetime) -> None:
    """Set `tartan.clock()` of a connection to a time. For simulations only."""
    await connection.execute("SELECT set_config('tartan.now', $1, false)", now.isoformat())
