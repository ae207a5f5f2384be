"""Schema ids before each published event: from a schema registry where there is one, else the catalogue's numbers.

The ids are asked for at start and stored in Postgres, so an outage of the registry stops no publisher that had them
once, a restarted one included. Events are never published under a guessed id.
"""

from collections.abc import Mapping

import asyncpg

from runtime import logs, metrics
from runtime.kafka.registry_client import Registry
from runtime.postgres.errors import POSTGRES_ERRORS
from runtime.retry import Backoff
from runtime.settings import Settings
from schemas.contract import subjects
from schemas.encoding import catalogue
from schemas.errors import Halt, Retry

RETRY_S_MIN, RETRY_S_MAX = 0.5, 15.0
"""Backoff while the ids are unknown: events wait meanwhile, and a registry restarts within a minute."""

_log = logs.logger(__name__)


class NotRegistered(Retry):
    """The registry answers and lacks a schema."""


class SchemaIds:
    """The schema ids of one installation."""

    def __init__(self, settings: Settings, pool: asyncpg.Pool | asyncpg.Connection) -> None:
        self._settings = settings
        self._pool = pool
        self._trouble: str | None = None

    def troubles(self) -> list[str]:
        """Return why nothing can be published; empty where it can."""
        return [] if self._trouble is None else [self._trouble]

    async def prefixes(self) -> Mapping[int, bytes]:
        """Return the bytes before an event by catalogue number, as soon as all ids are known; wait without end."""
        backoff = Backoff(RETRY_S_MIN, RETRY_S_MAX)
        while True:
            try:
                prefixes = subjects.wire_prefixes(await self.ids())
            except (Retry, Halt) as error:
                if self._trouble is None:
                    _log.warning("schema ids are not known", reason=str(error))
                self._trouble = str(error)
                metrics.RETRIES.labels("projections", "schema_ids").inc()
                await backoff.wait()
            else:
                self._trouble = None
                return prefixes

    async def ids(self) -> dict[int, int]:
        """Return the id of each catalogue number: from the registry, or as stored where it does not answer.

        Raises: NotRegistered; Retry, Halt, where it does not answer and not all ids are stored.
        """
        if not self._settings.schema_registry_url:
            return subjects.own_ids()
        stored = await self._load()
        try:
            ids = await _ask(self._settings)
        except NotRegistered:
            raise
        except (Retry, Halt) as error:
            if stored.keys() < subjects.own_ids().keys():
                raise
            _log.warning("schema ids as they were", reason=str(error))
            return stored
        if changed := [catalogue.FILES[schema] for schema, number in stored.items() if ids[schema] != number]:
            _log.warning("the registry numbers schemas anew", schemas=changed)
        await self._store(ids)
        return ids

    async def _load(self) -> dict[int, int]:
        names = [version.subject for version in subjects.versions(self._settings.topic_prefix)]
        try:
            rows = await self._pool.fetch(_LOAD, self._settings.schema_registry_url, names)
        except POSTGRES_ERRORS as error:
            raise Retry(f"no schema ids from Postgres: {type(error).__name__}") from error
        known = subjects.own_ids()
        return {row["schema"]: row["id"] for row in rows if row["schema"] in known}

    async def _store(self, ids: Mapping[int, int]) -> None:
        versions = [version for version in subjects.versions(self._settings.topic_prefix) if version.schema in ids]
        names, schemas = [version.subject for version in versions], [version.schema for version in versions]
        numbers = [ids[schema] for schema in schemas]
        try:
            await self._pool.execute(_STORE, self._settings.schema_registry_url, names, schemas, numbers)
        except POSTGRES_ERRORS as error:
            raise Retry(f"schema ids not stored: {type(error).__name__}") from error


async def _ask(settings: Settings) -> dict[int, int]:
    """Return the ids in the registry. Raises: NotRegistered, naming the schema; Retry; Halt."""
    ids: dict[int, int] = {}
    async with Registry(settings) as registry:
        for version in subjects.versions(settings.topic_prefix):
            registered = await registry.find(version.subject, catalogue.schema_text(version.schema))
            if registered is None:
                raise NotRegistered(
                    f"the schema registry has no {catalogue.FILES[version.schema]} under {version.subject}: "
                    "run `tartan schemas register`"
                )
            ids[version.schema] = registered.id
    return ids


_LOAD = "SELECT schema, id FROM tartan.registry_ids WHERE registry = $1 AND subject = ANY($2)"

_STORE = """
INSERT INTO tartan.registry_ids (registry, subject, schema, id, asked_at)
SELECT $1, subject, schema, id, now() FROM unnest($2::text[], $3::int[], $4::int[]) AS given (subject, schema, id)
ON CONFLICT (registry, subject, schema) DO UPDATE SET id = excluded.id, asked_at = excluded.asked_at"""
