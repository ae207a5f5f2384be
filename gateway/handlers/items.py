"""Items: link and unlink Items for an application's back end."""

from http import HTTPStatus

import asyncpg

from gateway.handlers.linking import Linking
from gateway.handlers.ownership import item_of
from gateway.http.database import connected
from gateway.http.idempotency import Answer, IdempotentAnswers
from gateway.http.poll import Poller
from gateway.http.requests import Call, ok
from projections.read import queries
from runtime.plaid.client import Plaid
from runtime.scheduler import enqueue
from runtime.settings import Settings
from runtime.users.vault import Vault


class Items:
    """Handlers that link and unlink."""

    def __init__(self, settings: Settings, *, pool: asyncpg.Pool, plaid: Plaid, vault: Vault, poller: Poller) -> None:
        self._pool = pool
        self._plaid = plaid
        self._linking = Linking(settings, pool=pool, plaid=plaid, vault=vault)
        self._answers = IdempotentAnswers[Answer]()
        self._poller = poller

    async def close(self) -> None:
        """Wait for links under way, before the pool and the client of Plaid are closed."""
        await self._linking.close()

    async def create_link_token(self, call: Call) -> Answer:
        """Request a token from Plaid that opens Link."""
        token = await self._plaid.link_token(call.values["user_id"])
        return ok({"link_token": token.link_token, "expiration": token.expiration})

    async def link_item(self, call: Call) -> Answer:
        """Exchange Link's public token, once a key."""
        key = call.values["Idempotency-Key"]
        return await self._answers.once(
            tenant=call.tenant, key=key, body=call.body, action=lambda: self._linking.link(call)
        )

    async def unlink_item(self, call: Call) -> Answer:
        """Request an Item's removal, and wait until it is unlinked."""
        async with connected(self._pool) as connection:
            item = await item_of(connection, call)
            requested = await enqueue.request_unlink(connection, item.item_id, by=call.tenant)
        # None: it is unlinked already, and a second request is no mistake.
        is_done = requested is None or await self._poller.until(
            lambda: self._is_unlinked(call), wait_s=call.values["wait"]
        )
        status = HTTPStatus.OK if is_done else HTTPStatus.ACCEPTED
        return Answer(status, {"item_id": item.item_id, "status": "unlinked" if is_done else "unlinking"})

    async def _is_unlinked(self, call: Call) -> bool:
        async with connected(self._pool) as connection:
            item = await item_of(connection, call)
            if item.unlinked_at is None:
                return False
            return item.head_offset is None or await queries.position(connection, item.partition) > item.head_offset
