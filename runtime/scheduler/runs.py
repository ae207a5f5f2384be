"""Finished sync runs of an Item, read from `sync_runs`."""

from datetime import datetime
from typing import Any

import asyncpg
import msgspec
from msgspec import Struct

NEWEST = 2**63 - 1
"""A number above that of every run."""


class FinishedRun(Struct, frozen=True):
    """A finished sync run. `run`: its number, rising over all Items. Counts are of fetched transactions."""

    run: int
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


async def latest(
    connection: asyncpg.Connection, item_id: str, *, before: int = NEWEST, limit: int
) -> list[FinishedRun]:
    """Return the runs of an Item below a number, newest first."""
    return [_run(row) for row in await connection.fetch(_LATEST, item_id, before, limit)]


async def since(
    connection: asyncpg.Connection, item_id: str, *, after: int, generation: int, limit: int
) -> list[FinishedRun]:
    """Return the runs above a number that began at this generation of the Item or later, oldest first."""
    return [_run(row) for row in await connection.fetch(_SINCE, item_id, after, generation, limit)]


def _run(row: asyncpg.Record) -> FinishedRun:
    error = None if row["error"] is None else msgspec.json.decode(row["error"], type=dict[str, Any])
    return FinishedRun(**{**row, "error": error})


_COLUMNS = """
    SELECT run, started_at, duration_s, cause, outcome, pages, added, modified, removed, error, changeset_offset
    FROM tartan.sync_runs"""

_LATEST = f"{_COLUMNS} WHERE item_id = $1 AND run < $2 ORDER BY run DESC LIMIT $3"

_SINCE = f"{_COLUMNS} WHERE item_id = $1 AND run > $2 AND generation >= $3 ORDER BY run LIMIT $4"
