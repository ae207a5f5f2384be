"""Linking an Item: from Link's public token to a row that the streams stage finds, with nothing lost between."""

import asyncio
from http import HTTPStatus

import asyncpg

from gateway.handlers import item_control
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
"""How long a link waits for the bank's name; without it the first sync brings it."""

REGISTER_TRIES = 5
REGISTER_EVERY_S = 1.0
"""Between exchange and registration the token is ours alone: it is worth some seconds of a failover."""

CLOSE_S_MAX = 10.0
"""How long a stop waits for links under way, and once more for what is given back. With the server's own 10 s it is
half of the 60 s that a stop may take; shorter, and an Item that nobody knows of stays at Plaid."""

_log = logs.logger(__name__)


class Linking:
    """Exchanges public tokens and registers what they open. `close` it before the pool and the client of Plaid."""

    def __init__(self, settings: Settings, *, pool: asyncpg.Pool, plaid: Plaid, vault: Vault) -> None:
        self._settings = settings
        self._pool = pool
        self._plaid = plaid
        self._vault = vault
        self._under_way: set[asyncio.Task[Answer]] = set()

    async def link(self, call: Call) -> Answer:
        """Link an Item. It goes on where the request is cancelled: its public token cannot be used again."""
        task = asyncio.create_task(self._link(call))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Wait for links under way; those that take too long are cancelled, and give back what they exchanged."""
        for _ in range(2):
            if self._under_way:
                _, late = await asyncio.wait(self._under_way, timeout=CLOSE_S_MAX)
                for task in late:
                    task.cancel()

    async def _link(self, call: Call) -> Answer:
        async with connected(self._pool) as connection:
            # Asked first of all: a token exchanged while Postgres is away would be lost.
            await keys.find(connection, tenant=call.tenant, user_id=call.values["user_id"])
        exchanged = await self._plaid.exchange(call.values["public_token"])
        try:
            await self._register(call, exchanged)
        except Problem:  # it is another request's, and stays
            raise
        except BaseException as error:
            is_kept = await asyncio.shield(self._kept_or_given_back(call, exchanged))
            if isinstance(error, (*AWAY, Retry)) and not is_kept:
                raise Retry(f"the item could not be registered: {type(error).__name__}") from error
            if not isinstance(error, Exception) or not is_kept:
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
        name: str | None,
    ) -> None:
        conflict = Problem(HTTPStatus.CONFLICT, "item_linked", "this item was linked before")
        linked = await item_control.linked(connection, exchanged.item_id)
        if linked is not None:
            if self._is_ours(linked, call, exchanged):
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
                institution_name=name,
                partitions=self._settings.partitions,
            )
        except Quarantine as error:
            raise conflict from error

    def _is_ours(self, linked: item_control.Linked, call: Call, exchanged: Exchanged) -> bool:
        """Whether this very request made the row: a try whose COMMIT went through and whose answer was lost.

        The token says so and no clock: what this request exchanged, no other request has.
        """
        if (linked.tenant, linked.user_id) != (call.tenant, call.values["user_id"]) or linked.sealed_token is None:
            return False
        try:
            return self._vault.open_token(linked.sealed_token, item_id=exchanged.item_id) == exchanged.access_token
        except Halt:  # sealed with another key: not by this process
            return False

    async def _institution(self, access_token: str) -> tuple[str | None, str | None]:
        """The bank's id and name, if Plaid says them soon."""
        try:
            item = await asyncio.wait_for(self._plaid.item(access_token), NAME_S_MAX)
        except (TartanError, TimeoutError):
            return None, None
        return _without_nul(item.institution_id), _without_nul(item.institution_name)

    async def _kept_or_given_back(self, call: Call, exchanged: Exchanged) -> bool:
        """Whether the Item is registered after all, as the last try's answer may be what was lost."""
        try:
            async with connected(self._pool) as connection, connection.transaction():
                linked = await item_control.linked(connection, exchanged.item_id)
        except POSTGRES_ERRORS:
            linked = None  # an Item that shows its void token is better than one that is billed and never seen
        if linked is not None and self._is_ours(linked, call, exchanged):
            return True
        await self._give_back(exchanged)
        return False

    async def _give_back(self, exchanged: Exchanged) -> None:
        """Remove an Item that nobody would know of: Plaid bills it, and its user can link again."""
        try:
            await self._plaid.remove(exchanged.access_token)
        except (TartanError, RuntimeError) as error:  # RuntimeError: the client is closed
            _log.error("an item at Plaid is not ours", item_id=exchanged.item_id, reason=str(error))


def _without_nul(text: str | None) -> str | None:
    """Drop the one character that Postgres keeps in no text."""
    return text.replace("\0", "") if text else text
