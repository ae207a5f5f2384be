"""The ids of schemas that go before each published event: a registry's where there is one, else our own numbers. Shell.

The ids are asked for once, at start, and kept in Postgres. So an outage of the registry stops no publisher that ever
had them, a restarted one included; and what no registry ever named is not published under a guessed id.
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
"""Between two questions while the ids are not known: events wait meanwhile, and a registry restarts within a minute."""

_log = logs.logger(__name__)


class NotRegistered(Retry):
    """The registry answers and lacks a schema."""


class SchemaIds:
    """What stands before each event of one installation."""

    def __init__(self, settings: Settings, pool: asyncpg.Pool | asyncpg.Connection) -> None:
        self._settings = settings
        self._pool = pool
        self._trouble: str | None = None

    def troubles(self) -> list[str]:
        """Why nothing can be published; empty where it can."""
        return [] if self._trouble is None else [self._trouble]

    async def prefixes(self) -> Mapping[int, bytes]:
        """Catalogue number to the bytes before an event, as soon as all are known: waits for ever."""
        backoff = Backoff(RETRY_S_MIN, RETRY_S_MAX)
        while True:
            try:
                found = subjects.wire_prefixes(await self.ids())
            except (Retry, Halt) as error:
                if self._trouble is None:
                    _log.warning("schema ids are not known", reason=str(error))
                self._trouble = str(error)
                metrics.RETRIES.labels("projections", "schema_ids").inc()
                await backoff.wait()
            else:
                self._trouble = None
                return found

    async def ids(self) -> dict[int, int]:
        """Catalogue number to id, asked now; where the registry cannot be asked, as it said before.

        Raises: NotRegistered; Retry, Halt, where it cannot be asked and never was.
        """
        if not self._settings.schema_registry_url:
            return subjects.own_ids()
        kept = await self._kept()
        try:
            found = await _asked(self._settings)
        except NotRegistered:
            raise
        except (Retry, Halt) as error:
            if kept.keys() < subjects.own_ids().keys():
                raise
            _log.warning("schema ids as they were", reason=str(error))
            return kept
        if changed := [catalogue.FILES[schema] for schema, number in kept.items() if found[schema] != number]:
            _log.warning("the registry numbers schemas anew", schemas=changed)
        await self._keep(found)
        return found

    async def _kept(self) -> dict[int, int]:
        names = [version.subject for version in subjects.versions(self._settings.topic_prefix)]
        try:
            rows = await self._pool.fetch(_KEPT, self._settings.schema_registry_url, names)
        except POSTGRES_ERRORS as error:
            raise Retry(f"no schema ids from Postgres: {type(error).__name__}") from error
        known = subjects.own_ids()
        return {row["schema"]: row["id"] for row in rows if row["schema"] in known}

    async def _keep(self, found: Mapping[int, int]) -> None:
        known = [version for version in subjects.versions(self._settings.topic_prefix) if version.schema in found]
        columns = [one.subject for one in known], [one.schema for one in known], [found[one.schema] for one in known]
        try:
            await self._pool.execute(_KEEP, self._settings.schema_registry_url, *columns)
        except POSTGRES_ERRORS as error:
            raise Retry(f"schema ids not stored: {type(error).__name__}") from error


async def _asked(settings: Settings) -> dict[int, int]:
    """The ids as the registry has them now. Raises: NotRegistered, naming the schema; Retry; Halt."""
    found: dict[int, int] = {}
    async with Registry(settings) as registry:
        for version in subjects.versions(settings.topic_prefix):
            registered = await registry.find(version.subject, catalogue.schema_text(version.schema))
            if registered is None:
                raise NotRegistered(
                    f"the schema registry has no {catalogue.FILES[version.schema]} under {version.subject}: "
                    "run `tartan schemas register`"
                )
            found[version.schema] = registered.id
    return found


_KEPT = "SELECT schema, id FROM tartan.registry_ids WHERE registry = $1 AND subject = ANY($2)"

_KEEP = """
INSERT INTO tartan.registry_ids (registry, subject, schema, id, asked_at)
SELECT $1, subject, schema, id, now() FROM unnest($2::text[], $3::int[], $4::int[]) AS given (subject, schema, id)
ON CONFLICT (registry, subject, schema) DO UPDATE SET id = excluded.id, asked_at = excluded.asked_at"""
