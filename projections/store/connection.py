"""Keep the projector's own connection: opened and prepared once, replaced when it breaks."""

import asyncpg

from projections.store import writer
from projections.store.gate_state import VersionMismatch
from projections.store.tables import SCHEMA
from runtime.postgres.errors import POSTGRES_ERRORS
from runtime.postgres.pool import CONNECT_TIMEOUT_S, NO_ROLE, no_role, server_settings
from runtime.settings import Settings
from schemas.errors import Halt, Retry

CLOSE_S = 5.0


class Session:
    """One prepared connection to the tables of `schema`. A pool would reset it after each batch, with a round trip.

    `durable` False: a crash of Postgres may lose the last commits, tables and positions together.
    """

    def __init__(self, settings: Settings, *, schema: str = SCHEMA, durable: bool = True) -> None:
        self._settings = settings
        self._schema = schema
        self._durable = durable
        self._connection: asyncpg.Connection | None = None

    async def connection(self) -> asyncpg.Connection:
        """Return the connection, prepared for `writer.write`.

        Raises: Retry, where Postgres is away; VersionMismatch, where the schema has no tables; Halt, where the login
        user may not switch to the projector's role.
        """
        if self._connection is not None and self._connection.is_closed():
            self.drop()
        if self._connection is None:
            try:
                self._connection = await self._connect()
                await writer.prepare(self._connection)
            except NO_ROLE as error:
                self.drop()
                raise Halt(no_role(self._settings.projector_role, error)) from error
            except asyncpg.UndefinedTableError as error:
                self.drop()
                raise VersionMismatch(f"there are no tables in the schema {self._schema}") from error
            except POSTGRES_ERRORS as error:
                self.drop()
                raise Retry(f"no Postgres: {type(error).__name__}") from error
        return self._connection

    def drop(self) -> None:
        """Abort the connection without waiting for the server."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    async def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close(timeout=CLOSE_S)

    async def _connect(self) -> asyncpg.Connection:
        settings = self._settings
        return await asyncpg.connect(
            settings.postgres_dsn.get_secret_value(),
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=settings.statement_timeout_s + 5.0,
            # Plans do not depend on the arrays' content, so one generic plan serves all executions.
            server_settings={
                # Only this schema: if it is dropped, no table of another one is used instead.
                **server_settings(settings, "projections", role=settings.projector_role, search_path=self._schema),
                **({} if self._durable else {"synchronous_commit": "off"}),
                "plan_cache_mode": "force_generic_plan",
            },
        )
