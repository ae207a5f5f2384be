"""Linking and unlinking Items: what an application's back end asks to be done."""

from http import HTTPStatus

import asyncpg

from gateway.handlers import item_control
from gateway.handlers.item_control import Owned
from gateway.handlers.linking import Linking
from gateway.http.database import connected
from gateway.http.idempotency import Answer, Answers
from gateway.http.poll import Waiting
from gateway.http.problems import not_found
from gateway.http.requests import Call, ok
from projections.read import queries
from runtime.plaid.client import Plaid
from runtime.scheduler import enqueue
from runtime.settings import Settings
from runtime.users.vault import Vault


class Items:
    """Handlers that change something."""

    def __init__(self, settings: Settings, *, pool: asyncpg.Pool, plaid: Plaid, vault: Vault, waiting: Waiting) -> None:
        self._pool = pool
        self._plaid = plaid
        self._linking = Linking(settings, pool=pool, plaid=plaid, vault=vault)
        self._answers = Answers[Answer]()
        self._waiting = waiting

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
            asked = await enqueue.request_unlink(connection, item.item_id, by=call.tenant)
        # None: it is unlinked already, and asking twice is no mistake.
        done = asked is None or await self._waiting.until(lambda: self._is_unlinked(call), wait_s=call.values["wait"])
        status = HTTPStatus.OK if done else HTTPStatus.ACCEPTED
        return Answer(status, {"item_id": item.item_id, "status": "unlinked" if done else "unlinking"})

    async def _is_unlinked(self, call: Call) -> bool:
        async with connected(self._pool) as connection:
            item = await _item(connection, call)
            if item.unlinked_at is None:
                return False
            return item.head_offset is None or await queries.position(connection, item.partition) > item.head_offset


async def _item(connection: asyncpg.Connection, call: Call) -> Owned:
    item = await item_control.item(connection, call.tenant, call.values["item_id"])
    if item is None:
        raise not_found("item")
    return item
