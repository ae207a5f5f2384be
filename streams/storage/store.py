"""Implement the port Store with the scheduler's tables. Shell.

Postgres's errors are translated in streams.storage.session: all of them are Retry, except those of our own mistakes.
"""

import asyncpg

from runtime import plaid_limits
from runtime.incidents import dead_letters, incidents
from runtime.incidents.dead_letters import NewDeadLetter
from runtime.scheduler import leases, run_incidents
from runtime.scheduler.leases import QUARANTINED_BY
from runtime.scheduler.types import Claimed, Claims, Released
from runtime.settings import Settings
from runtime.users.keys import Destroyed, Keyring
from runtime.users.vault import Vault
from schemas.errors import Halt, Quarantine
from schemas.log.changesets import UserKeys
from schemas.topics import CHANGESETS
from streams.ports import ClaimOrder
from streams.storage.session import session


class TooManyQuarantined(Halt):
    """Too many Items were quarantined within the window; stop before a bad release drains the topic."""


class PostgresStore:
    """The scheduler's tables, for sync runs."""

    def __init__(
        self, pool: asyncpg.Pool, keyring: Keyring, vault: Vault, settings: Settings, order: ClaimOrder
    ) -> None:
        self._pool = pool
        self._keyring = keyring
        self._vault = vault
        self._settings = settings
        self._order = order
        self._limit = settings.limits().get(plaid_limits.SYNC)

    async def claim(self, slots: int) -> Claims:
        """Lease Items that are ready, in fair order and as Plaid's quota allows."""
        async with session(self._pool) as connection:
            claims = await leases.claim(
                connection,
                slots=slots,
                lease_s=self._settings.lease_s,
                holder=self._settings.instance_id,
                fair_queue=self._order.state(),
                limit=self._limit,
            )
        self._order.advance(claims)
        return claims

    async def expire_inherited(self) -> int:
        """End the leases that a dead process with this instance id left, and return their number."""
        async with session(self._pool) as connection:
            return await leases.expire_all(connection, holder=self._settings.instance_id)

    async def renew(self, claimed: Claimed) -> bool:
        """Prolong a lease; False where it was lost."""
        async with session(self._pool) as connection:
            return await leases.renew(connection, claimed, lease_s=self._settings.lease_s)

    async def release(self, claimed: Claimed, result: Released) -> bool:
        """Give an Item back; False where the lease was lost."""
        async with session(self._pool) as connection:
            if result.outcome != "failed" and result.stopped is None and not claimed.attempts:
                return await leases.release(connection, claimed, result)
            # One transaction: after a crash between the two, the incident would be missing until the next failure,
            # which may be hours later.
            async with connection.transaction():
                is_released = await leases.release(connection, claimed, result)
                if is_released:
                    await run_incidents.record(connection, claimed, result)
            return is_released

    async def release_untouched(self, claimed: Claimed, *, wait_offset: int) -> None:
        """Give an Item back unchanged, to wait until follow_heads has read an offset."""
        async with session(self._pool) as connection:
            await leases.release_untouched(connection, claimed, wait_offset=wait_offset)

    async def expire(self, claimed: Claimed) -> None:
        """End a lease as if its time were over."""
        async with session(self._pool) as connection:
            await leases.expire(connection, claimed)

    async def finish_unlink(self, claimed: Claimed) -> None:
        """Delete token and schedule."""
        async with session(self._pool) as connection:
            await leases.finish_unlink(connection, claimed)

    async def quarantine(self, claimed: Claimed, reason: str) -> None:
        """Quarantine an Item until it is redriven, with a dead letter; an Item whose lease was lost is left alone.

        The incident opens here: after a crash before the release no sync run would open it.
        Raises: TooManyQuarantined.
        """
        async with session(self._pool) as connection:
            try:
                async with connection.transaction():
                    if await leases.quarantine(connection, claimed, reason=reason):
                        await self._write_dead_letter(connection, claimed, reason)
            except TooManyQuarantined as error:
                await incidents.report(connection, incidents.DEAD_LETTERS, QUARANTINED_BY, str(error))
                raise

    async def _write_dead_letter(self, connection: asyncpg.Connection, claimed: Claimed, reason: str) -> None:
        letter = NewDeadLetter(QUARANTINED_BY, CHANGESETS.name, claimed.partition, None, claimed.item_id, reason)
        await dead_letters.write(connection, [letter])
        await incidents.report(connection, incidents.ITEM_QUARANTINED, claimed.item_id, reason)
        items_max, window_s = self._settings.dead_letters_max, self._settings.dead_letters_window_s
        items = await dead_letters.count_quarantined(connection, QUARANTINED_BY, window_s)
        if items > items_max:
            raise TooManyQuarantined(
                f"{items} Items would be quarantined within {window_s:.0f} s, at most {items_max} may be: "
                "is this deploy broken?"
            )

    async def keys(self, user: int) -> UserKeys | None:
        """Return a user's keys; None where they were destroyed. Raises: Quarantine, where there never were any."""
        async with session(self._pool) as connection:
            keys = (await self._keyring.of(connection, [user])).get(user)
        if keys is None:
            raise Quarantine(f"user {user} has no key")
        return None if isinstance(keys, Destroyed) else keys

    def token(self, claimed: Claimed) -> str | None:
        """Return the Item's access token; None where there is none. Raises: Halt, where it does not open."""
        if claimed.sealed_token is None:
            return None
        return self._vault.open_token(claimed.sealed_token, item_id=claimed.item_id)

    async def count_gone(self) -> tuple[int, int]:
        """Return the number of Items that Plaid called gone within the hour, and the number of all Items."""
        async with session(self._pool) as connection:
            return await leases.count_gone(connection)
