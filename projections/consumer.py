"""Feeds each batch to the versions of this code's fold: the live one first, then the one that was live before. Shell.

Which versions there are is read anew when a batch finds another one than it expected. At a swap both are at the same
positions, so the batch at hand goes on where it is: nothing is missed, and what is there already is passed over.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence

import asyncpg

from projections.decode.log_record import LogRecord, cut_batches, decode_record
from projections.projector import EVENTS_MAX, RETRY_S_MAX, RETRY_S_MIN, Projector
from projections.publish.publisher import Publisher
from projections.rebuild import versions
from projections.rebuild.versions import Version
from projections.store.connection import Session
from projections.store.gate_state import VersionMismatch
from projections.store.tables import FOLD, OLD, SCHEMA
from projections.user_keys import OwnerCache
from runtime import logs, metrics
from runtime.kafka.reader import Position, Reader
from runtime.postgres.errors import AWAY, POSTGRES_ERRORS, reason
from runtime.postgres.pool import borrowed
from runtime.retry import Backoff
from runtime.settings import Settings
from schemas.errors import Halt, Retry

OLD_S_MAX = 60.0
"""How long a batch may try to get into the old version while the live one waits behind it; then that is given up."""
LOOKS_MAX = 20
"""How often one batch may find another version than the one that was there a moment before."""
LIVE_LOOK_S = 0.05
"""How often the live version's position is read by a process that feeds the old one alone."""
LOOK_S = 1.0
"""How often a process that feeds nothing looks for a version of its fold."""

_log = logs.logger(__name__)


class Consumer:
    """One process's projectors. `acts` is set while it feeds the live version, `yields` while it does not."""

    def __init__(self, settings: Settings, *, pool: asyncpg.Pool, publisher: Publisher, ownership: OwnerCache) -> None:
        self._settings = settings
        self._pool = pool
        self._publisher = publisher
        self._ownership = ownership
        self._live: Projector | None = None
        self._old: Projector | None = None
        self._found: Mapping[str, Version] = {}
        self._trouble: str | None = None
        self._is_known = False
        self.acts, self.yields = asyncio.Event(), asyncio.Event()

    def troubles(self) -> list[str]:
        """Why nothing is committed now; empty where it is."""
        projectors = [one for one in (self._live, self._old) if one is not None]
        return [*([self._trouble] if self._trouble else []), *(why for one in projectors for why in one.troubles())]

    async def look(self) -> bool:
        """Find out which versions there are; whether one is to be fed by this process. Raises: Retry, one of AWAY."""
        async with borrowed(self._pool) as connection:
            found = await versions.load_versions(connection)
        live, old = found.get(SCHEMA), found.get(OLD)
        if live is None:
            raise Halt("there are no tables: run `tartan migrate`")
        if self._found != found:
            self.drop()
            self._live = self._projector(live, self._publisher) if live.fold == FOLD else None
            self._old = self._projector(old, None) if old and old.fold == FOLD and not old.not_fed else None
            self._found = found
            _log.info("versions", live=live.number, fold=live.fold, old=old and old.number, acts=self._live is not None)
        self._is_known = True
        (self.acts if self._live else self.yields).set()
        (self.yields if self._live else self.acts).clear()
        self._trouble = None
        if self._live is None and self._old is None:
            self._trouble = f"the live tables are version {live.number} of fold {live.fold}, this code's fold is {FOLD}"
        return self._trouble is None

    async def wait(self) -> None:
        """Wait until a version is to be fed by this process, and it is known which."""
        while not self._is_known or self._live is self._old is None:
            if not await self._looked():
                await asyncio.sleep(LOOK_S)

    def drop(self) -> None:
        """Give up the projectors' connections."""
        for projector in (self._live, self._old):
            if projector is not None:
                projector.drop()

    async def positions(self, partitions: Collection[int]) -> dict[int, Position]:
        """How far the versions that are fed have come: where one is behind the other, the lower position.

        Raises: Retry, where Postgres does not answer.
        """
        fed = [schema for schema, one in ((SCHEMA, self._live), (OLD, self._old)) if one is not None]
        found: dict[int, Position] = {}
        for schema in fed or [SCHEMA]:
            for number, at in (await self._positions(schema)).items():
                if number in partitions and (number not in found or at.next < found[number].next):
                    found[number] = at
        return found

    async def published_up_to(self, partitions: Collection[int]) -> dict[int, int]:
        """Up to where the events of partitions are this process's to publish; empty where it only follows.

        Raises: Retry, where Postgres does not answer.
        """
        if self._live is None:
            return {}
        at = await self._positions(SCHEMA)
        return {number: at[number].next if number in at else 0 for number in partitions}

    async def run(self, reader: Reader) -> None:
        """Feed for ever. Raises: Halt, and whatever is an error of this code."""
        while True:
            taken = await reader.take()
            for batch in cut_batches([decode_record(record) for record in taken], EVENTS_MAX):
                await self._publisher.wait_for_room()
                await self.feed(batch)
                reader.acknowledge([record.received for record in batch])

    async def feed(self, batch: Sequence[LogRecord]) -> None:
        """Bring a batch into each version that is fed. Idempotence: what a version has is passed over."""
        for left in reversed(range(LOOKS_MAX)):
            await self.wait()
            try:
                if self._live is not None:
                    await self._live.patiently(batch)
                else:
                    await self._until_live_has(batch)
                return await self._follow(batch)
            except VersionMismatch as error:
                if not left:
                    raise Halt(f"versions do not come to rest: {error}") from error
                _log.info("another version", reason=str(error))
                self.drop()
                self._is_known = False
        raise AssertionError("unreachable")

    async def _follow(self, batch: Sequence[LogRecord]) -> None:
        """Bring a batch into the old version. Whatever fails there never stops the live one."""
        if self._old is None:
            return
        try:
            async with asyncio.timeout(OLD_S_MAX):
                await self._old.patiently(batch)
        except VersionMismatch:
            raise
        except (Halt, *POSTGRES_ERRORS) as error:
            await self._give_up(self._found[OLD].number, reason(error))

    async def _give_up(self, number: int, why: str) -> None:
        """Feed an old version no more, and let everybody know. Its positions stay, so nothing may start from them."""
        metrics.NOT_FED.inc()
        _log.error("the old version is not fed any more", version=number, reason=why)
        backoff = Backoff(RETRY_S_MIN, RETRY_S_MAX)
        while True:
            try:
                await versions.mark_not_fed(self._pool, number, why)
            except AWAY as error:
                self._trouble = f"not noted that version {number} is not fed: {reason(error)}"
                await backoff.wait()
            else:
                self._is_known = False
                return

    async def _until_live_has(self, batch: Sequence[LogRecord]) -> None:
        """Wait for the live version, which others feed: what it withholds, the old one withholds too.

        Raises: VersionMismatch.
        """
        wanted: dict[int, int] = {}
        for record in batch:
            wanted[record.received.partition] = record.received.offset + 1
        number = self._found[SCHEMA].number
        while True:
            try:
                rows = await self._pool.fetch(_LIVE, list(wanted))
            except AWAY as error:
                self._trouble = f"waits for the live version: {reason(error)}"
            else:
                if any(row["number"] != number for row in rows):
                    raise VersionMismatch(f"version {number} is not live any more")
                if all(row["position"] >= wanted[row["partition"]] for row in rows):
                    self._trouble = None
                    return
                self._trouble = f"waits for version {number}, which is live, to come along"
            await asyncio.sleep(LIVE_LOOK_S)

    async def _positions(self, schema: str) -> dict[int, Position]:
        try:
            return await versions.positions(self._pool, schema)
        except asyncpg.UndefinedTableError:
            if schema != OLD:
                raise
            return {}  # dropped: the next batch finds that out
        except AWAY as error:
            raise Retry(f"positions are not known: {reason(error)}") from error

    async def _looked(self) -> bool:
        backoff = Backoff(RETRY_S_MIN, RETRY_S_MAX)
        while True:
            try:
                return await self.look()
            except (Retry, *AWAY) as error:
                self._trouble = f"versions are not known: {reason(error)}"
                _log.warning("versions are not known", reason=reason(error))
                await backoff.wait()

    def _projector(self, version: Version, publisher: Publisher | None) -> Projector:
        session = Session(self._settings, schema=version.schema)
        return Projector(session, publisher, self._ownership, self._settings, version=version.number)


_LIVE = f"""
SELECT v.number, p.partition, p.position FROM {SCHEMA}.version v, {SCHEMA}.positions p
 WHERE p.partition = ANY($1::int[])"""
