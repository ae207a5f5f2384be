"""One live process an instance id: two with one static membership throw each other out all the time (FAUST.md)."""

import asyncio
import time

import asyncpg

from runtime import logs
from runtime.postgres import CONNECT_TIMEOUT_S, server_settings
from runtime.settings import Settings
from schemas.errors import Halt

TAKE_S_MAX = 15.0
"""A process that was killed loses its lock when Postgres sees its connection end, at once on a healthy network."""
TRY_S = 0.25

_log = logs.logger(__name__)


class InstanceLock:
    """An advisory lock named after stage and instance id, on a connection of its own."""

    def __init__(self, settings: Settings, *, stage: str) -> None:
        self._settings = settings
        self._stage = stage
        self._connection: asyncpg.Connection | None = None
        self._lost = asyncio.Event()

    async def take(self) -> None:
        """Take the lock.

        Raises: Halt, where another process keeps it, or Postgres stays away, for TAKE_S_MAX.
        """
        name = f"{self._settings.topic_prefix}{self._stage}/{self._settings.instance_id}"
        give_up_at = time.monotonic() + TAKE_S_MAX
        while not await self._try(name):
            if time.monotonic() > give_up_at:
                raise Halt(f"another process has instance id {self._settings.instance_id} of {self._stage}")
            await asyncio.sleep(TRY_S)

    async def keep(self) -> None:
        """Take the lock again whenever its connection is lost, for ever. Raises: Halt, as take."""
        while True:
            await self._lost.wait()
            _log.warning("instance lock lost", stage=self._stage)
            await self.take()

    async def release(self) -> None:
        """Give the lock up."""
        connection, self._connection = self._connection, None
        if connection is not None and not connection.is_closed():
            await connection.close(timeout=TRY_S)

    async def _try(self, name: str) -> bool:
        try:
            if self._connection is None or self._connection.is_closed():
                self._connection = await self._connect()
            if not await self._connection.fetchval(_TAKE, name):
                return False
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            _log.warning("instance lock not taken", reason=type(error).__name__)
            return False
        self._lost.clear()
        return True

    async def _connect(self) -> asyncpg.Connection:
        connection = await asyncpg.connect(
            self._settings.postgres_dsn.get_secret_value(),
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=CONNECT_TIMEOUT_S,
            server_settings=server_settings(self._settings, f"{self._stage}-lock"),
        )
        connection.add_termination_listener(lambda _: self._lost.set())
        return connection


_TAKE = "SELECT pg_try_advisory_lock(hashtextextended($1, 0))"
