"""Linking: exchange Link's public token and register the Item, so that no exchanged token is lost.

Steps: check Postgres; exchange the token; register the Item, with retries; where that fails, give the Item back.
"""

import asyncio
from http import HTTPStatus

import asyncpg

from gateway.handlers.ownership import Link, lock_link
from gateway.http.database import connected
from gateway.http.idempotency import Answer
from gateway.http.problems import Problem
from gateway.http.requests import Call
from runtime import logs
from runtime.plaid.client import Exchanged, Plaid
from runtime.postgres.errors import AWAY, POSTGRES_ERRORS
from runtime.scheduler import enqueue
from runtime.settings import Settings
from runtime.users import keys
from runtime.users.vault import Vault
from schemas.errors import Halt, Quarantine, Retry, TartanError

NAME_S_MAX = 5.0
"""Longest wait of a link for the bank's name; without it the first sync brings it."""
REGISTER_TRIES = 5
REGISTER_EVERY_S = 1.0
"""Between exchange and registration only this process has the token: it is worth some seconds of a failover."""
CLOSE_S_MAX = 10.0
"""Longest wait of a stop for links under way, and once more for Items that are given back. With the server's own 10 s
it is half of the 60 s that a stop may take; a shorter wait leaves unregistered Items at Plaid."""

_log = logs.logger(__name__)


class Linking:
    """Links Items. `close` it before the pool and the client of Plaid."""

    def __init__(self, settings: Settings, *, pool: asyncpg.Pool, plaid: Plaid, vault: Vault) -> None:
        self._settings = settings
        self._pool = pool
        self._plaid = plaid
        self._vault = vault
        self._tasks: set[asyncio.Task[Answer]] = set()

    async def link(self, call: Call) -> Answer:
        """Link an Item. It continues where the request is cancelled: its public token cannot be used again."""
        task = asyncio.create_task(self._link(call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Wait for links under way; those that take too long are cancelled, and give their Items back."""
        for _ in range(2):
            if self._tasks:
                _, late = await asyncio.wait(self._tasks, timeout=CLOSE_S_MAX)
                for task in late:
                    task.cancel()

    async def _link(self, call: Call) -> Answer:
        async with connected(self._pool) as connection:
            # A query before the exchange: a token exchanged while Postgres is away would be lost.
            await keys.find(connection, tenant=call.tenant, user_id=call.values["user_id"])
        exchanged = await self._plaid.exchange(call.values["public_token"])
        try:
            await self._register(call, exchanged)
        except Problem:  # the Item belongs to another request, and stays
            raise
        except BaseException as error:
            is_registered = await asyncio.shield(self._check_or_give_back(call, exchanged))
            if isinstance(error, (*AWAY, Retry)) and not is_registered:
                raise Retry(f"the item could not be registered: {type(error).__name__}") from error
            if not isinstance(error, Exception) or not is_registered:
                raise
        return Answer(HTTPStatus.CREATED, {"item_id": exchanged.item_id, "status": "linking"})

    async def _register(self, call: Call, exchanged: Exchanged) -> None:
        institution_id, name = await self._institution(exchanged.access_token)
        for left in reversed(range(REGISTER_TRIES)):
            try:
                async with connected(self._pool) as connection, connection.transaction():
                    await self._insert(connection, call, exchanged, institution_id, name)
                    return
            except AWAY:
                if not left:
                    raise
                await asyncio.sleep(REGISTER_EVERY_S)

    async def _insert(
        self,
        connection: asyncpg.Connection,
        call: Call,
        exchanged: Exchanged,
        institution_id: str | None,
        institution_name: str | None,
    ) -> None:
        conflict = Problem(HTTPStatus.CONFLICT, "item_linked", "this item was linked before")
        link = await lock_link(connection, exchanged.item_id)
        if link is not None:
            if self._is_of(link, call, exchanged):
                return
            raise conflict
        user_id = call.values["user_id"]
        user = await keys.find_or_create(connection, self._vault, tenant=call.tenant, user_id=user_id)
        try:
            await enqueue.register_item(
                connection,
                self._vault,
                item_id=exchanged.item_id,
                tenant=call.tenant,
                user_number=user.number,
                access_token=exchanged.access_token,
                institution_id=institution_id,
                institution_name=institution_name,
                partitions=self._settings.partitions,
            )
        except Quarantine as error:
            raise conflict from error

    def _is_of(self, link: Link, call: Call, exchanged: Exchanged) -> bool:
        """Return whether this very request inserted the row, by a try whose COMMIT lost its answer.

        The token proves it and no clock does: no other request has the token that this one exchanged.
        """
        if (link.tenant, link.user_id) != (call.tenant, call.values["user_id"]) or link.sealed_token is None:
            return False
        try:
            return self._vault.open_token(link.sealed_token, item_id=exchanged.item_id) == exchanged.access_token
        except Halt:  # sealed with another key: not by this process
            return False

    async def _institution(self, access_token: str) -> tuple[str | None, str | None]:
        """Return the bank's id and name; None where Plaid does not answer soon."""
        try:
            item = await asyncio.wait_for(self._plaid.item(access_token), NAME_S_MAX)
        except (TartanError, TimeoutError):
            return None, None
        return _without_nul(item.institution_id), _without_nul(item.institution_name)

    async def _check_or_give_back(self, call: Call, exchanged: Exchanged) -> bool:
        """Return whether the Item is registered after all; else remove it at Plaid, which would bill it.

        The last try may have lost only the answer of its COMMIT.
        """
        try:
            async with connected(self._pool) as connection, connection.transaction():
                link = await lock_link(connection, exchanged.item_id)
        except POSTGRES_ERRORS:
            link = None  # an Item that shows its void token is better than one that is billed and never seen
        if link is not None and self._is_of(link, call, exchanged):
            return True
        try:
            await self._plaid.remove(exchanged.access_token)
        except (TartanError, RuntimeError) as error:  # RuntimeError: the client is closed
            _log.error("an item at Plaid is not ours", item_id=exchanged.item_id, reason=str(error))
        return False


def _without_nul(text: str | None) -> str | None:
    # Postgres stores no NUL character in a text.
    return text.replace("\0", "") if text else text
