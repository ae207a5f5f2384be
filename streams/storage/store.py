"""Postgres behind this stage's ports: the scheduler for passes. Shell.

Postgres's errors are translated in streams.storage.session and nowhere else: all of them are Retry, except what our own
mistakes cause.
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
from streams.schedule.fair_queue import FairQueue
from streams.storage.session import session


class TooManyQuarantined(Halt):
    """More Items would be set aside than a deploy in order has: it stops before the topic is in the bin."""


class PostgresStore:
    """The scheduler, for passes over Items."""

    def __init__(self, pool: asyncpg.Pool, keyring: Keyring, vault: Vault, settings: Settings) -> None:
        self._pool = pool
        self._keyring = keyring
        self._vault = vault
        self._lease_s = settings.lease_s
        self._holder = settings.instance_id
        self._dead_letters_max = settings.dead_letters_max
        self._dead_letters_window_s = settings.dead_letters_window_s
        self._limit = settings.limits().get(plaid_limits.SYNC)
        self._turns = FairQueue(settings.weights())

    async def claim(self, slots: int) -> Claims:
        """Lease what is ready, as the turns of lanes and tenants and Plaid's quota allow."""
        async with session(self._pool) as connection:
            claims = await leases.claim(
                connection,
                slots=slots,
                lease_s=self._lease_s,
                holder=self._holder,
                fair_queue=self._turns.standing(),
                limit=self._limit,
            )
        self._turns.served(claims)
        return claims

    async def inherit(self) -> int:
        """End the leases that a dead process with this instance id left. Gives how many."""
        async with session(self._pool) as connection:
            return await leases.expire_all(connection, holder=self._holder)

    async def renew(self, claimed: Claimed) -> bool:
        """Prolong a lease; False where it was lost."""
        async with session(self._pool) as connection:
            return await leases.renew(connection, claimed, lease_s=self._lease_s)

    async def release(self, claimed: Claimed, result: Released) -> bool:
        """Give an Item back; False where the lease was lost."""
        async with session(self._pool) as connection:
            if result.outcome != "failed" and result.stopped is None and not claimed.attempts:
                return await leases.release(connection, claimed, result)
            # Together: an incident that a crash left untold would wait for the next failure, which may be hours away.
            async with connection.transaction():
                held = await leases.release(connection, claimed, result)
                if held:  # who lost the lease knows nothing of the Item any more
                    await run_incidents.record(connection, claimed, result)
            return held

    async def release_untouched(self, claimed: Claimed, *, wait_offset: int) -> None:
        """Give an Item back untouched, to wait for the follower."""
        async with session(self._pool) as connection:
            await leases.release_untouched(connection, claimed, wait_offset=wait_offset)

    async def expire(self, claimed: Claimed) -> None:
        """End a lease as if time had."""
        async with session(self._pool) as connection:
            await leases.expire(connection, claimed)

    async def finish_unlink(self, claimed: Claimed) -> None:
        """Delete token and schedule."""
        async with session(self._pool) as connection:
            await leases.finish_unlink(connection, claimed)

    async def quarantine(self, claimed: Claimed, reason: str) -> None:
        """Set an Item aside until it is redriven, with a dead letter; not one whose lease was lost.

        The incident opens here: after a crash before the release no pass would come to say it.
        Raises: Halt, where too many are.
        """
        async with session(self._pool) as connection:
            try:
                async with connection.transaction():
                    await self._quarantine(connection, claimed, reason)
            except TooManyQuarantined as error:
                await incidents.report(connection, incidents.DEAD_LETTERS, QUARANTINED_BY, str(error))
                raise

    async def _quarantine(self, connection: asyncpg.Connection, claimed: Claimed, reason: str) -> None:
        if not await leases.quarantine(connection, claimed, reason=reason):
            return
        letter = NewDeadLetter(QUARANTINED_BY, CHANGESETS.name, claimed.partition, None, claimed.item_id, reason)
        await dead_letters.write(connection, [letter])
        await incidents.report(connection, incidents.ITEM_QUARANTINED, claimed.item_id, reason)
        quarantined = await dead_letters.count_quarantined(connection, QUARANTINED_BY, self._dead_letters_window_s)
        if quarantined > self._dead_letters_max:
            quarantined_too_many = (
                f"{quarantined} Items would be quarantined within {self._dead_letters_window_s:.0f} s"
            )
            raise TooManyQuarantined(
                f"{quarantined_too_many}, at most {self._dead_letters_max} may be: is this deploy broken?"
            )

    async def keys(self, user: int) -> UserKeys | None:
        """A user's keys; None where they were destroyed. Raises: Quarantine, where there never were any."""
        async with session(self._pool) as connection:
            found = (await self._keyring.of(connection, [user])).get(user)
        if found is None:
            raise Quarantine(f"user {user} has no key")
        return None if isinstance(found, Destroyed) else found

    def token(self, claimed: Claimed) -> str | None:
        """The Item's access token; None where there is none. Raises: Halt, where it does not open."""
        if claimed.sealed_token is None:
            return None
        return self._vault.open_token(claimed.sealed_token, item_id=claimed.item_id)

    async def count_gone(self) -> tuple[int, int]:
        """How many Items Plaid called gone within the hour, of how many."""
        async with session(self._pool) as connection:
            return await leases.count_gone(connection)
