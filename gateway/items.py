"""Linking, unlinking and syncing Items: what an application's back end asks to be done."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

import asyncpg

from gateway import control
from gateway.call import Call, ok
from gateway.control import Owned
from gateway.database import connected
from gateway.idempotency import Answer, Answers
from gateway.linking import Linking
from gateway.problems import Problem, not_found
from projections import queries
from runtime import sync_state
from runtime.dues import Attempt
from runtime.plaid import Plaid
from runtime.settings import Settings
from runtime.vault import Vault

FIRST_POLL_S, POLL_S_MAX = 0.02, 0.5
"""Between two looks at the tables while a request waits; each wait is half as long again, up to the larger."""

WAITERS_MAX = 200
"""Requests that wait at once. At two looks a second each that is 400 queries of 0.1 ms."""


class Items:
    """Handlers that change something."""

    def __init__(self, settings: Settings, *, pool: asyncpg.Pool, plaid: Plaid, vault: Vault) -> None:
        self._pool = pool
        self._plaid = plaid
        self._linking = Linking(settings, pool=pool, plaid=plaid, vault=vault)
        self._answers = Answers()
        self._waiting = 0

    async def close(self) -> None:
        """Wait for links under way, before the pool and the client of Plaid are closed."""
        await self._linking.close()

    async def create_link_token(self, call: Call) -> Answer:
        """Ask Plaid for a token that opens Link."""
        made = await self._plaid.link_token(call.values["user_id"])
        return ok({"link_token": made.link_token, "expiration": made.expiration})

    async def link_item(self, call: Call) -> Answer:
        """Exchange Link's token once, however often the client asks with the same key."""
        key = call.values["Idempotency-Key"]
        return await self._answers.once(
            tenant=call.tenant, key=key, body=call.body, act=lambda: self._linking.link(call)
        )

    async def unlink_item(self, call: Call) -> Answer:
        """Ask for an Item's end, and wait for it where the client does."""
        async with connected(self._pool) as connection:
            item = await _item(connection, call)
            asked = await sync_state.request_unlink(connection, item.item_id, by=call.tenant)
        # None: it is unlinked already, and asking twice is no mistake.
        done = asked is None or await self._until(call, lambda: self._is_unlinked(call))
        status = HTTPStatus.OK if done else HTTPStatus.ACCEPTED
        return Answer(status, {"item_id": item.item_id, "status": "unlinked" if done else "unlinking"})

    async def sync_item(self, call: Call) -> Answer:
        """Make an Item due now, and wait until readers see what came of it where the client does."""
        async with connected(self._pool) as connection:
            item = await _item(connection, call)
            generation = await sync_state.mark_manual(connection, item.item_id, by=call.tenant)
        if generation is None:
            raise Problem(HTTPStatus.CONFLICT, "item_unlinked", "the item is unlinked: link it again")
        outcome: dict[str, Any] = {}
        await self._until(call, lambda: self._outcome(call, generation, outcome))
        return await self._synced(call, outcome)

    async def _until(self, call: Call, condition: Callable[[], Awaitable[bool]]) -> bool:
        """Look until it holds, as long as the client wants to wait; False where it does not by then."""
        wait_s: float = call.values["wait"] or 0.0
        if not wait_s or self._waiting >= WAITERS_MAX:
            return False
        self._waiting += 1
        try:
            return await _poll(condition, until=time.monotonic() + wait_s)
        finally:
            self._waiting -= 1

    async def _is_unlinked(self, call: Call) -> bool:
        async with connected(self._pool) as connection:
            item = await _item(connection, call)
            if item.unlinked_at is None:
                return False
            return item.head_offset is None or await queries.position(connection, item.partition) > item.head_offset

    async def _outcome(self, call: Call, generation: int, outcome: dict[str, Any]) -> bool:
        """Whether the pass is over and what it appended can be read; what came of it goes into `outcome`."""
        item_id = call.values["item_id"]
        async with connected(self._pool) as connection:
            attempt = await sync_state.attempt_since(connection, item_id, generation)
            if attempt is None:
                return False
            item = await _item(connection, call)
            # The head may be of a pass before this one, and not shown yet.
            needed = max(attempt.changeset_offset or -1, item.head_offset or -1)
            if await queries.position(connection, item.partition) <= needed:
                return False
            shown = await queries.applied(connection, item_id)
        is_shown = needed < 0 or (shown is not None and (shown.head_offset or -1) >= needed)
        outcome.update(_told(attempt, is_shown=is_shown))
        return True

    async def _synced(self, call: Call, outcome: dict[str, Any]) -> Answer:
        item_id = call.values["item_id"]
        async with connected(self._pool) as connection:
            item = await _item(connection, call)
            shown = await queries.applied(connection, item_id)
        nothing = {"status": "accepted", "changed": None, "added": None, "modified": None, "removed": None,
                   "error": None}  # fmt: skip
        document = {
            "request_id": secrets.token_hex(8), "item_id": item_id, **nothing, **outcome,
            "last_asked_at": item.last_asked_at, "last_sync_at": shown.last_sync_at if shown else None,
            "bank_asked": False,
        }  # fmt: skip
        return Answer(HTTPStatus.OK if outcome else HTTPStatus.ACCEPTED, document)


async def _item(connection: asyncpg.Connection, call: Call) -> Owned:
    item = await control.item(connection, call.tenant, call.values["item_id"])
    if item is None:
        raise not_found("item")
    return item


async def _poll(condition: Callable[[], Awaitable[bool]], *, until: float) -> bool:
    wait_s = FIRST_POLL_S
    while not await condition():
        left_s = until - time.monotonic()
        if left_s <= 0:
            return False
        await asyncio.sleep(min(wait_s, left_s))
        wait_s = min(wait_s * 1.5, POLL_S_MAX)
    return True


def _told(attempt: Attempt, *, is_shown: bool) -> dict[str, Any]:
    """A pass in the answer's words."""
    if attempt.outcome == "failed":
        return {"status": "failed", "error": attempt.error or {}}
    if not is_shown:  # its record was read and not folded: the Item is parked
        return {"status": "failed", "error": {"code": "SET_ASIDE"}}
    if attempt.outcome == "not_ready":
        return {"status": "not_ready", "changed": False}
    counts = {"added": attempt.added, "modified": attempt.modified, "removed": attempt.removed}
    return {"status": "applied", "changed": attempt.outcome == "appended", **counts}
