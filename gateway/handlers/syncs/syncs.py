"""Syncs: start a sync run, wait for it, return its result later, and list an Item's runs."""

import math
from http import HTTPStatus
from typing import Any

import asyncpg

from gateway.handlers.ownership import OwnedItem, item_of
from gateway.handlers.syncs.sync_counts import AppliedCounts, SyncCounts, is_accepted
from gateway.handlers.syncs.sync_outcome import (
    ACCEPTED,
    APPENDED,
    FAILED,
    SyncOutcome,
    bank_updated_at,
    is_bank_asked,
    judge,
)
from gateway.handlers.syncs.sync_requests import SyncRequest, SyncRequestIds
from gateway.http import cursors
from gateway.http.database import connected, snapshot
from gateway.http.idempotency import Answer
from gateway.http.poll import Poller
from gateway.http.problems import Problem
from gateway.http.requests import Call, ok
from projections.read import queries
from runtime import plaid_limits
from runtime.scheduler import enqueue, queue, runs
from runtime.scheduler.runs import FinishedRun
from runtime.scheduler.stop_reasons import QUARANTINED, remedy
from runtime.settings import Settings

LIMIT_DEFAULT = 50
RUNS_MAX = 100
"""Runs after a request that are read: an Item has one in 15 minutes, and at worst one a second that fails."""


class Syncs:
    """Handlers of sync runs."""

    def __init__(self, settings: Settings, *, pool: asyncpg.Pool, poller: Poller) -> None:
        self._pool = pool
        self._poller = poller
        self._ids = SyncRequestIds(settings)
        self._counts = SyncCounts()
        self._refresh_limit = settings.limits().get(plaid_limits.REFRESH)

    async def sync_item(self, call: Call) -> Answer:
        """Mark an Item due now, and wait until readers see the result where the client waits."""
        refresh: bool = call.values["refresh"] or False
        async with connected(self._pool) as connection:
            item = await item_of(connection, call)
            _check_not_quarantined(item)
            if refresh:
                await self._check_refresh_quota(connection, item)
            request = await _mark(connection, item, by=call.tenant, refresh=refresh)
        outcome = SyncOutcome(ACCEPTED)

        async def is_final() -> bool:
            nonlocal outcome
            outcome = await self._outcome(call, request)
            return outcome.is_final

        await self._poller.until(is_final, wait_s=call.values["wait"])
        status = HTTPStatus.OK if outcome.is_final else HTTPStatus.ACCEPTED
        return Answer(status, await self._document(call, request, outcome))

    async def get_sync(self, call: Call) -> Answer:
        """Return the result of a requested sync."""
        async with connected(self._pool) as connection:
            await item_of(connection, call)  # another tenant's Item and a wrong id get the same answer
        request = self._ids.read(call.values["item_id"], call.values["request_id"])
        return ok(await self._document(call, request, await self._outcome(call, request)))

    async def list_syncs(self, call: Call) -> Answer:
        """Return a page of an Item's sync runs, newest first."""
        item_id, limit, cursor = call.values["item_id"], call.values["limit"] or LIMIT_DEFAULT, call.values["cursor"]
        before = runs.NEWEST if cursor is None else cursors.read_number(cursor, item_id)
        async with snapshot(self._pool) as connection:
            item = await item_of(connection, call)
            rows = await runs.latest(connection, item_id, before=before, limit=limit + 1)
            documents = [_run_document(item, row, await self._applied(connection, item, row)) for row in rows[:limit]]
        next_cursor = cursors.write_number(rows[limit - 1].run, item_id) if len(rows) > limit else None
        return ok({"syncs": documents, "next_cursor": next_cursor})

    async def _check_refresh_quota(self, connection: asyncpg.Connection, item: OwnedItem) -> None:
        """Raise Problem 429 where Plaid's quota allows no refresh now; the sync run that sends it takes the token."""
        if self._refresh_limit is None:
            return
        wait_s = await queue.next_token_in_s(connection, plaid_limits.REFRESH, item.item_id, self._refresh_limit)
        if wait_s > 0:
            retry_s = math.ceil(wait_s)
            detail = f"Plaid can be told to ask this bank again in {retry_s} s; a sync without refresh is possible now"
            headers = {"Retry-After": str(retry_s)}
            raise Problem(HTTPStatus.TOO_MANY_REQUESTS, "refresh_limit", detail, headers=headers)

    async def _outcome(self, call: Call, request: SyncRequest) -> SyncOutcome:
        async with snapshot(self._pool) as connection:
            item = await item_of(connection, call)
            after, generation = request.after, request.generation
            rows = await runs.since(connection, request.item_id, after=after, generation=generation, limit=RUNS_MAX)
            counted = [row for row in rows if await self._is_counted(connection, item, row)]
            position = await queries.position(connection, item.partition)
        return judge(request, item, counted, position)

    async def _is_counted(self, connection: asyncpg.Connection, item: OwnedItem, row: FinishedRun) -> bool:
        """Return False for a run whose record readers skipped, since its worker had lost its lease."""
        offset = row.changeset_offset
        if offset is None or await queries.position(connection, item.partition) <= offset:
            return True
        return await is_accepted(connection, item.partition, offset)

    async def _applied(self, connection: asyncpg.Connection, item: OwnedItem, row: FinishedRun) -> AppliedCounts | None:
        if row.changeset_offset is None:
            return AppliedCounts(0, 0, 0, 0)
        return await self._counts.of(connection, item.partition, row.changeset_offset)

    async def _document(self, call: Call, request: SyncRequest, outcome: SyncOutcome) -> dict[str, Any]:
        async with connected(self._pool) as connection:
            item = await item_of(connection, call)
            shown = await queries.applied(connection, request.item_id)
            applied = [await self._applied(connection, item, row) for row in outcome.runs]
        known = [counts for counts in applied if counts is not None]
        sums = AppliedCounts(*map(sum, zip(*known, strict=True))) if known and len(known) == len(applied) else None
        return {
            "request_id": self._ids.write(request),
            "item_id": request.item_id,
            "status": outcome.status,
            "complete": outcome.complete,
            "changed": any(row.outcome == APPENDED for row in outcome.runs) if outcome.runs else None,
            **(sums._asdict() if sums else dict.fromkeys(AppliedCounts._fields)),
            "error": outcome.error,
            "stopped": item.stopped,
            "remedy": remedy(item.stopped),
            "last_synced_at": item.last_synced_at,
            "last_sync_at": shown.last_sync_at if shown else None,
            "bank_updated_at": bank_updated_at(item, outcome),
            "bank_asked": is_bank_asked(request, item),
        }


def _check_not_quarantined(item: OwnedItem) -> None:
    if item.stopped == QUARANTINED:
        more = {"remedy": remedy(QUARANTINED), "since": item.quarantined_at}
        detail = "the item is set aside, and nothing of it is lost"
        raise Problem(HTTPStatus.CONFLICT, "item_quarantined", detail, more=more)


async def _mark(connection: asyncpg.Connection, item: OwnedItem, *, by: str, refresh: bool) -> SyncRequest:
    """Mark the Item due.

    Raises: Problem 409, where it is unlinked.
    """
    [row] = await connection.fetch(_LAST_RUN, item.item_id)
    generation = await enqueue.mark_manual(connection, item.item_id, by=by, refresh=refresh)
    if generation is None:
        raise Problem(HTTPStatus.CONFLICT, "item_unlinked", "the item is unlinked: link it again")
    return SyncRequest(item.item_id, generation, row["last"], refresh, row["now"])


def _run_document(item: OwnedItem, row: FinishedRun, applied: AppliedCounts | None) -> dict[str, Any]:
    counts = None if applied is None else applied._asdict()
    no_op = None if counts is None else counts.pop("no_op")
    changeset = None if row.changeset_offset is None else {"partition": item.partition, "offset": row.changeset_offset}
    return {
        "started_at": row.started_at,
        "duration_s": row.duration_s,
        "cause": row.cause,
        "outcome": row.outcome,
        "success": row.outcome != FAILED,
        "pages": row.pages,
        "fetched": {"added": row.added, "modified": row.modified, "removed": row.removed},
        "applied": counts,
        "no_op": no_op,
        "error": row.error,
        "changeset": changeset,
    }


# The last run before the mark and Postgres' time: later runs concern the request.
_LAST_RUN = """
    SELECT tartan.clock() AS now,
        coalesce((SELECT max(run) FROM tartan.sync_runs WHERE item_id = $1), 0) AS last"""
