"""The passes that were made over an Item, as `sync_attempts` keeps them: for clients, operators and whoever waits."""

from datetime import datetime
from typing import Any

import asyncpg
import msgspec
from msgspec import Struct

NEWEST = 2**63 - 1
"""Above every attempt's number."""


class Attempt(Struct, frozen=True):
    """A pass over an Item. `attempt`: its number, rising over all Items; counts are of what was fetched."""

    attempt: int
    started_at: datetime
    duration_s: float
    cause: str
    outcome: str
    pages: int
    added: int
    modified: int
    removed: int
    error: dict[str, Any] | None
    changeset_offset: int | None


async def latest(connection: asyncpg.Connection, item_id: str, *, before: int = NEWEST, limit: int) -> list[Attempt]:
    """The passes over an Item below a number, newest first."""
    return [_attempt(row) for row in await connection.fetch(_LATEST, item_id, before, limit)]


async def since(
    connection: asyncpg.Connection, item_id: str, *, after: int, generation: int, limit: int
) -> list[Attempt]:
    """The passes above a number that began at this generation of the Item or later, oldest first."""
    return [_attempt(row) for row in await connection.fetch(_SINCE, item_id, after, generation, limit)]


def _attempt(row: asyncpg.Record) -> Attempt:
    error = None if row["error"] is None else msgspec.json.decode(row["error"], type=dict[str, Any])
    return Attempt(**{**row, "error": error})


_COLUMNS = """
    SELECT attempt, started_at, duration_s, cause, outcome, pages, added, modified, removed, error, changeset_offset
    FROM tartan.sync_attempts"""

_LATEST = f"{_COLUMNS} WHERE item_id = $1 AND attempt < $2 ORDER BY attempt DESC LIMIT $3"

_SINCE = f"{_COLUMNS} WHERE item_id = $1 AND attempt > $2 AND generation >= $3 ORDER BY attempt LIMIT $4"
