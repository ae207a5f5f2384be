"""Read users' keys and the names that their application uses for them, for the gate."""

from collections.abc import Collection

import asyncpg

from projections.gate.check import Owners
from runtime.users.keys import CACHED_USERS_MAX, Destroyed, Keyring


class OwnerCache:
    """Caches keys and names while the process lives: the number of a user is never reused."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring
        self._names: dict[int, tuple[str, str]] = {}

    async def load(self, connection: asyncpg.Connection, users: Collection[int]) -> Owners:
        """Return keys and names of users; one without a row is in neither.

        Raises: Halt, where a key does not unwrap.
        """
        keys = await self._keyring.of(connection, users)
        missing = [user for user in users if user not in self._names]
        if missing:
            if len(self._names) + len(missing) > CACHED_USERS_MAX:
                self._names.clear()
            for row in await connection.fetch(_NAMES, missing):
                self._names[row["user_number"]] = (row["tenant"], row["user_id"])
        names = {user: self._names[user] for user in users if user in self._names}
        return Owners({user: None if isinstance(key, Destroyed) else key for user, key in keys.items()}, names)


_NAMES = "SELECT user_number, tenant, user_id FROM tartan.users WHERE user_number = ANY($1::bigint[])"
