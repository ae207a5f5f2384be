"""Syncs that somebody asks for: begun, waited for, looked up again; and the history of an Item's passes."""

import math
from collections.abc import Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Any, NamedTuple

import asyncpg

from gateway.handlers import item_control
from gateway.handlers.item_control import Owned
from gateway.handlers.syncs.sync_counts import Applied, Counts, is_accepted
from gateway.handlers.syncs.sync_requests import SyncRequest, SyncRequests
from gateway.http import cursors
from gateway.http.database import connected, snapshot
from gateway.http.idempotency import Answer
from gateway.http.poll import Waiting
from gateway.http.problems import Problem, not_found
from gateway.http.requests import Call, ok
from projections.read import queries
from runtime.scheduler import enqueue, queue, quotas, runs
from runtime.scheduler.runs import FinishedRun
from runtime.scheduler.stop_reasons import QUARANTINED, remedy
from runtime.settings import Settings

LIMIT_DEFAULT = 50
ATTEMPTS_MAX = 100
"""Passes after a request that are looked at: an Item has one in 15 minutes, and at worst one a second that fails."""

FAILED, STOPPED, NOT_READY, APPENDED = "failed", "stopped", "not_ready", "appended"


class Found(NamedTuple):
    """What became of a request so far. `over`: nothing more is to be waited for; `complete`: all of it is shown.

    `refreshed_at`: when Plaid was told to read the bank for it, once that was done.
    """

    status: str
    over: bool = False
    complete: bool = False
    attempts: Sequence[FinishedRun] = ()
    error: dict[str, Any] | None = None
    refreshed_at: datetime | None = None


class Syncs:
    """Handlers about passes over Items."""

    def __init__(self, settings: Settings, *, pool: asyncpg.Pool, waiting: Waiting) -> None:
        self._pool = pool
        self._waiting = waiting
        self._requests = SyncRequests(settings)
        self._counts = Counts()
        self._refreshes = settings.limits().get(quotas.REFRESH)

    async def sync_item(self, call: Call) -> Answer:
        """Make an Item due now, and wait until readers see what came of it where the client does."""
        refresh: bool = call.values["refresh"] or False
        async with connected(self._pool) as connection:
            item = await _item(connection, call)
            _refuse_quarantined(item)
            if refresh:
                await self._check_refreshes(connection, item)
            request = await _asked(connection, item, by=call.tenant, refresh=refresh)
        found = Found("accepted")

        async def is_over() -> bool:
            nonlocal found
            found = await self._look(call, request)
            return found.over

        await self._waiting.until(is_over, wait_s=call.values["wait"])
        status = HTTPStatus.OK if found.over else HTTPStatus.ACCEPTED
        return Answer(status, await self._told(call, request, found))

    async def get_sync(self, call: Call) -> Answer:
        """What came of a sync that was asked for."""
        async with connected(self._pool) as connection:
            await _item(connection, call)  # another tenant's Item and a wrong id look the same
        request = self._requests.read(call.values["item_id"], call.values["request_id"])
        return ok(await self._told(call, request, await self._look(call, request)))

    async def list_syncs(self, call: Call) -> Answer:
        """The passes over an Item, newest first."""
        item_id, limit, cursor = call.values["item_id"], call.values["limit"] or LIMIT_DEFAULT, call.values["cursor"]
        before = runs.NEWEST if cursor is None else cursors.read_number(cursor, item_id)
        async with snapshot(self._pool) as connection:
            item = await _item(connection, call)
            rows = await runs.latest(connection, item_id, before=before, limit=limit + 1)
            applied = [await self._applied(connection, item, row) for row in rows[:limit]]
        passes = [_pass(item, row, found) for row, found in zip(rows, applied, strict=False)]
        following = cursors.write_number(rows[limit - 1].run, item_id) if len(rows) > limit else None
        return ok({"syncs": passes, "next_cursor": following})

    async def _check_refreshes(self, connection: asyncpg.Connection, item: Owned) -> None:
        """Look whether Plaid's quota lets a refresh through now; the pass that sends it takes the token.

        Raises: Problem 429.
        """
        if self._refreshes is None:
            return
        wait_s = await queue.next_token_in_s(connection, quotas.REFRESH, item.item_id, self._refreshes)
        if wait_s > 0:
            again_s = math.ceil(wait_s)
            detail = f"Plaid can be told to ask this bank again in {again_s} s; a sync without refresh is possible now"
            headers = {"Retry-After": str(again_s)}
            raise Problem(HTTPStatus.TOO_MANY_REQUESTS, "refresh_limit", detail, headers=headers)

    async def _look(self, call: Call, request: SyncRequest) -> Found:
        """What became of a request so far."""
        async with snapshot(self._pool) as connection:
            item = await _item(connection, call)
            rows = await runs.since(
                connection, request.item_id, after=request.after, generation=request.generation, limit=ATTEMPTS_MAX
            )
            counting = [row for row in rows if await self._counts_for(connection, item, row)]
            shown_up_to = await queries.position(connection, item.partition)
        found = _found(request, item, counting, shown_up_to)
        if item.stopped == QUARANTINED and not found.over:
            return Found(FAILED, over=True, error={"code": "SET_ASIDE"})
        return found

    async def _counts_for(self, connection: asyncpg.Connection, item: Owned, row: FinishedRun) -> bool:
        """Whether a pass is one to wait for: what a worker without its lease appended is skipped by every reader."""
        offset = row.changeset_offset
        if offset is None or await queries.position(connection, item.partition) <= offset:
            return True
        return await is_accepted(connection, item.partition, offset)

    async def _applied(self, connection: asyncpg.Connection, item: Owned, row: FinishedRun) -> Applied | None:
        if row.changeset_offset is None:
            return Applied(0, 0, 0, 0)
        return await self._counts.of(connection, item.partition, row.changeset_offset)

    async def _told(self, call: Call, request: SyncRequest, found: Found) -> dict[str, Any]:
        async with connected(self._pool) as connection:
            item = await _item(connection, call)
            shown = await queries.applied(connection, request.item_id)
            applied = [await self._applied(connection, item, row) for row in found.attempts]
        known = [one for one in applied if one is not None]
        sums = Applied(*map(sum, zip(*known, strict=True))) if known and len(known) == len(applied) else None
        return {
            "request_id": self._requests.write(request),
            "item_id": request.item_id,
            "status": found.status,
            "complete": found.complete,
            "changed": any(row.outcome == APPENDED for row in found.attempts) if found.attempts else None,
            "added": sums and sums.added,
            "modified": sums and sums.modified,
            "removed": sums and sums.removed,
            "no_op": sums and sums.no_op,
            "error": found.error,
            "stopped": item.stopped,
            "remedy": remedy(item.stopped),
            "last_synced_at": item.last_synced_at,
            "last_sync_at": shown.last_sync_at if shown else None,
            "bank_updated_at": _bank_updated_at(item, found),
            "bank_asked": _is_bank_asked(request, item),
        }


def _found(request: SyncRequest, item: Owned, made: Sequence[FinishedRun], shown_up_to: int) -> Found:
    """Judge a request by the passes after it. A pass that failed is the answer only while no later one did not."""
    passed = [row for row in made if row.outcome != FAILED]
    if not passed:
        last = made[-1] if made else None
        return Found("accepted") if last is None else Found(FAILED, over=True, error=last.error or {})
    first = passed[0]
    if first.outcome == STOPPED:
        return Found(STOPPED, over=True, attempts=[first], error={"code": item.stopped or STOPPED})
    if request.refresh:
        first = _after_the_bank(request, item, passed) or first
    until = [row for row in passed if row.run <= first.run]
    # The head may be of a pass before this one, and not shown yet.
    needed = max(*(row.changeset_offset or -1 for row in until), item.head_offset or -1, -1)
    if shown_up_to <= needed:
        return Found("accepted")
    if first.outcome == NOT_READY:
        return Found(NOT_READY, over=not request.refresh, attempts=until)
    complete = not request.refresh or _after_the_bank(request, item, passed) is not None
    # A pass that did well and has an error was not allowed to have the bank asked: nothing more will come.
    refused = None if complete or _is_bank_asked(request, item) else first.error
    return Found(
        "applied",
        over=complete or refused is not None,
        complete=complete,
        attempts=until,
        error=refused,
        refreshed_at=item.refreshed_at if complete and request.refresh else None,
    )


def _after_the_bank(request: SyncRequest, item: Owned, passed: Sequence[FinishedRun]) -> FinishedRun | None:
    """The first pass that began after Plaid had read the bank for this request.

    That it has is known from its own time of the last success, or from the webhook that it sends then.
    """
    if not _is_bank_asked(request, item):
        return None
    assert item.refreshed_at is not None
    times = [at for at in (item.bank_updated_at, item.last_webhook_at) if at is not None and at > item.refreshed_at]
    return next((row for row in passed if times and row.started_at >= min(times)), None)


def _is_bank_asked(request: SyncRequest, item: Owned) -> bool:
    return request.refresh and item.refreshed_at is not None and item.refreshed_at >= request.asked_at


def _bank_updated_at(item: Owned, found: Found) -> datetime | None:
    """When Plaid last read the bank, as far as known.

    That it has for a refresh is often known from the webhook alone, which tells no time: it was not before Plaid was
    told to. Plaid's own time is asked for with the next `/item/get`.
    """
    known = [item.bank_updated_at, found.refreshed_at]
    return max((at for at in known if at is not None), default=None)


async def _item(connection: asyncpg.Connection, call: Call) -> Owned:
    item = await item_control.item(connection, call.tenant, call.values["item_id"])
    if item is None:
        raise not_found("item")
    return item


def _refuse_quarantined(item: Owned) -> None:
    if item.stopped == QUARANTINED:
        more = {"remedy": remedy(QUARANTINED), "since": item.quarantined_at}
        raise Problem(
            HTTPStatus.CONFLICT, "item_quarantined", "the item is set aside, and nothing of it is lost", more=more
        )


async def _asked(connection: asyncpg.Connection, item: Owned, *, by: str, refresh: bool) -> SyncRequest:
    """Mark the Item.

    Raises: Problem 409, where it is unlinked.
    """
    [row] = await connection.fetch(_BEFORE, item.item_id)
    generation = await enqueue.mark_manual(connection, item.item_id, by=by, refresh=refresh)
    if generation is None:
        raise Problem(HTTPStatus.CONFLICT, "item_unlinked", "the item is unlinked: link it again")
    return SyncRequest(item.item_id, generation, row["last"], refresh, row["now"])


def _pass(item: Owned, row: FinishedRun, applied: Applied | None) -> dict[str, Any]:
    """A pass in the answer's words."""
    counts = None if applied is None else applied._asdict()
    no_op = None if counts is None else counts.pop("no_op")
    place = None if row.changeset_offset is None else {"partition": item.partition, "offset": row.changeset_offset}
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
        "changeset": place,
    }


# The last attempt before the mark and Postgres' time: what comes after both concerns the request.
_BEFORE = """
    SELECT tartan.clock() AS now,
        coalesce((SELECT max(run) FROM tartan.sync_runs WHERE item_id = $1), 0) AS last"""
