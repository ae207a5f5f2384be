"""Consumer: feed each batch to the versions of this code's fold: the live one first, then the one that was live before.

The versions are read anew when a batch meets another one than expected. At a swap both are at the same positions, so
the batch at hand goes on where it is: nothing is missed, and records that a version has are skipped.
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
from runtime.postgres.errors import AWAY, reason
from runtime.postgres.pool import borrowed
from runtime.retry import Backoff
from runtime.settings import Settings
from schemas.errors import Halt, Retry

OLD_S_MAX = 60.0
"""Longest that a batch is tried on the old version while the live one waits; then the old one is fed no more."""
SWAPS_MAX = 20
"""So many times one batch may meet another version than the one that was there a moment before."""
LIVE_LOOK_S = 0.05
"""Interval at which a process that feeds the old version alone reads the live one's position."""
LOOK_S = 1.0
"""Interval at which a process that feeds nothing reads the versions."""

_log = logs.logger(__name__)


class Consumer:
    """One process's projectors. `live` is set while it feeds the live version, `not_live` while it does not."""

    def __init__(self, settings: Settings, *, pool: asyncpg.Pool, publisher: Publisher, owners: OwnerCache) -> None:
        self._settings = settings
        self._pool = pool
        self._publisher = publisher
        self._owners = owners
        self._projectors: dict[str, Projector] = {}
        self._versions: Mapping[str, Version] = {}
        self._trouble: str | None = None
        self._is_known = False
        self.live, self.not_live = asyncio.Event(), asyncio.Event()

    def troubles(self) -> list[str]:
        """Return why nothing is committed now; empty where batches are."""
        troubles = [self._trouble, *(projector.trouble for projector in self._projectors.values())]
        return [trouble for trouble in troubles if trouble is not None]

    async def run(self, reader: Reader) -> None:
        """Feed for ever: read records, decode their heads, cut batches, project each and acknowledge it.

        Raises: Halt, and any error of this code.
        """
        while True:
            received = await reader.take()
            for batch in cut_batches([decode_record(record) for record in received], EVENTS_MAX):
                await self._publisher.wait_for_room()
                await self.feed(batch)
                reader.acknowledge([record.received for record in batch])

    async def feed(self, batch: Sequence[LogRecord]) -> None:
        """Project a batch into each version that is fed. Idempotence: records that a version has are skipped."""
        for left in reversed(range(SWAPS_MAX)):
            await self.wait_for_version()
            try:
                if SCHEMA in self._projectors:
                    await self._projectors[SCHEMA].project_with_retry(batch)
                else:
                    await self._wait_for_live(batch)
                return await self._feed_old(batch)
            except VersionMismatch as error:
                if not left:
                    raise Halt(f"versions do not come to rest: {error}") from error
                _log.info("another version", reason=str(error))
                self.drop()
                self._is_known = False
        raise AssertionError("unreachable")

    async def refresh_versions(self) -> bool:
        """Read the versions, and return whether this process feeds one. Raises: Halt; Retry, one of AWAY."""
        async with borrowed(self._pool) as connection:
            found_versions = await versions.load_versions(connection)
        live, old = found_versions.get(SCHEMA), found_versions.get(OLD)
        if live is None:
            raise Halt("there are no tables: run `tartan migrate`")
        if self._versions != found_versions:
            self.drop()
            self._projectors = {}
            if live.fold == FOLD:
                self._projectors[SCHEMA] = self._projector(live, self._publisher)
            if old and old.fold == FOLD and not old.not_fed:
                self._projectors[OLD] = self._projector(old, None)
            self._versions = found_versions
            acts = SCHEMA in self._projectors
            _log.info("versions", live=live.number, fold=live.fold, old=old and old.number, acts=acts)
        self._is_known = True
        (self.live if SCHEMA in self._projectors else self.not_live).set()
        (self.not_live if SCHEMA in self._projectors else self.live).clear()
        self._trouble = None
        if not self._projectors:
            self._trouble = f"the live tables are version {live.number} of fold {live.fold}, this code's fold is {FOLD}"
        return self._trouble is None

    async def wait_for_version(self) -> None:
        """Wait until this process feeds a version, and the versions are known."""
        backoff = Backoff(RETRY_S_MIN, RETRY_S_MAX)
        while not self._is_known or not self._projectors:
            try:
                is_fed = await self.refresh_versions()
            except (Retry, *AWAY) as error:
                self._trouble = f"versions are not known: {reason(error)}"
                _log.warning("versions are not known", reason=reason(error))
                await backoff.wait()
                continue
            backoff.reset()
            if not is_fed:
                await asyncio.sleep(LOOK_S)

    def drop(self) -> None:
        """Close the projectors' connections."""
        for projector in self._projectors.values():
            projector.drop()

    async def positions(self, partitions: Collection[int]) -> dict[int, Position]:
        """Return the positions of the fed versions: where one is behind the other, the lower position.

        Raises: Retry, where Postgres does not answer.
        """
        lowest: dict[int, Position] = {}
        for schema in self._projectors or [SCHEMA]:
            for number, position in (await self._positions(schema)).items():
                if number in partitions and (number not in lowest or position.next < lowest[number].next):
                    lowest[number] = position
        return lowest

    async def published_up_to(self, partitions: Collection[int]) -> dict[int, int]:
        """Return the positions up to which this process publishes; empty where it does not feed the live version.

        Raises: Retry, where Postgres does not answer.
        """
        if SCHEMA not in self._projectors:
            return {}
        positions = await self._positions(SCHEMA)
        return {number: positions[number].next if number in positions else 0 for number in partitions}

    async def _feed_old(self, batch: Sequence[LogRecord]) -> None:
        """Project a batch into the old version. No failure there stops the live one."""
        if OLD not in self._projectors:
            return
        try:
            async with asyncio.timeout(OLD_S_MAX):
                await self._projectors[OLD].project_with_retry(batch)
        except VersionMismatch:
            raise
        except (Halt, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            await self._give_up(self._versions[OLD].number, reason(error))

    async def _give_up(self, number: int, why: str) -> None:
        """Feed an old version no more, and note it. Its positions stay, so nothing may start from them."""
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

    async def _wait_for_live(self, batch: Sequence[LogRecord]) -> None:
        """Wait for the live version, which others feed: the old one withholds the records that it withholds.

        Raises: VersionMismatch.
        """
        targets = {record.received.partition: record.received.offset + 1 for record in batch}
        number = self._versions[SCHEMA].number
        while True:
            try:
                rows = await self._pool.fetch(_LIVE, list(targets))
            except AWAY as error:
                self._trouble = f"waits for the live version: {reason(error)}"
            else:
                if any(row["number"] != number for row in rows):
                    raise VersionMismatch(f"version {number} is not live any more")
                if all(row["position"] >= targets[row["partition"]] for row in rows):
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
            return {}  # dropped: the next batch meets that
        except AWAY as error:
            raise Retry(f"positions are not known: {reason(error)}") from error

    def _projector(self, version: Version, publisher: Publisher | None) -> Projector:
        session = Session(self._settings, schema=version.schema)
        return Projector(session, publisher, self._owners, self._settings, version=version.number)


_LIVE = f"""
SELECT v.number, p.partition, p.position FROM {SCHEMA}.version v, {SCHEMA}.positions p
 WHERE p.partition = ANY($1::int[])"""
