"""Which versions a process feeds, and that whatever becomes of the old one never stops the live one."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import asyncpg
import pytest

from projections.consumer import Consumer
from projections.decode.log_record import decode_record
from projections.rebuild import versions
from projections.rebuild.versions import NotSwapped
from projections.store.tables import FOLD, OLD, SCHEMA
from projections.verify import digests
from runtime.kafka.reader import Received
from runtime.postgres.pool import open_pool
from tests.integration.projections.test_versions import Beside, beside, numbers, story, tables  # noqa: F401
from tests.support.projections_log import Log, added, transaction


class Fed:
    """A database in which version 2 is live and version 1 is kept, and a feeder."""

    def __init__(self, database: Beside, log: Log, pool: asyncpg.Pool) -> None:
        self.database, self.log, self.pool = database, log, pool
        self.feeder = self.made()

    def made(self) -> Consumer:
        live = self.database.live
        return Consumer(live.settings, pool=self.pool, publisher=live.publisher, owners=live.ownership)  # type: ignore[arg-type]

    async def feed(self, records: Sequence[Received]) -> None:
        await asyncio.wait_for(self.feeder.feed([decode_record(record) for record in records]), 30)

    def sync(self, number: int) -> Received:
        return self.log.sync("item", *added(transaction(f"more-{number}", "7")))


@pytest.fixture
async def fed(beside: Beside) -> AsyncIterator[Fed]:
    log = story()
    await beside.project(log.records)
    await beside.replayed(log.records)
    await beside.swap()
    pool = await open_pool(beside.live.settings, stage="test", size=2, role=beside.live.settings.projector_role)
    made = Fed(beside, log, pool)
    yield made
    made.feeder.drop()
    await pool.close()


async def places(tables: asyncpg.Connection) -> tuple[int, int]:
    live, old = await versions.positions(tables, SCHEMA), await versions.positions(tables, OLD)
    return live[0].next, old[0].next


async def test_both_versions_take_what_comes_and_a_swap_back_is_found_by_the_next_batch(
    fed: Fed, tables: asyncpg.Connection
) -> None:
    await fed.feed([fed.sync(1)])
    assert await places(tables) == (4, 4)
    await tables.execute("UPDATE tartan.published_checkpoints SET published = 4")
    await fed.database.back()

    await fed.feed([fed.sync(2)])

    assert await places(tables) == (5, 5)
    assert await numbers(tables) == {SCHEMA: 1, OLD: 2}
    live = await digests.full_digest(tables)
    await tables.execute(f"SET search_path = {OLD}")
    assert await digests.full_digest(tables) == live
    handed = [committed.spans for committed in fed.database.live.publisher.committed]
    assert handed[-2:] == [{0: (3, 4)}, {0: (4, 5)}]


async def test_an_old_version_that_is_dropped_is_forgotten(fed: Fed, tables: asyncpg.Connection) -> None:
    await fed.feed([fed.sync(1)])
    await versions.drop_old(fed.database.live.settings)
    # The log's continuity asks every minute, whether anything comes or not.
    assert await fed.feeder.positions([0]) == await versions.positions(tables, SCHEMA)

    await fed.feed([fed.sync(2)])

    assert (await versions.positions(tables, SCHEMA))[0].next == 5
    assert await fed.feeder.positions([0]) == await versions.positions(tables, SCHEMA)


async def test_an_old_version_that_went_astray_is_not_fed_and_nobody_goes_back_to_it(
    fed: Fed, tables: asyncpg.Connection
) -> None:
    later = fed.sync(1)
    await tables.execute(f"""
        INSERT INTO {OLD}.changesets (partition, source_offset, id, user_number, kind, type, cause, net_events, digest,
            produced_at, known_at) VALUES (0, 3, 'x', 1, 'chained', 'sync', '{{}}', 0, '', now(), now())""")

    await fed.feed([later])
    await fed.feed([fed.sync(2)])

    assert await places(tables) == (5, 3)
    assert (await fed.feeder.positions([0]))[0].next == 5
    with pytest.raises(NotSwapped, match="0 at 3, Item item"):
        await fed.database.back()


async def test_a_process_of_another_fold_waits_and_says_for_what(fed: Fed, tables: asyncpg.Connection) -> None:
    await tables.execute(f"UPDATE {SCHEMA}.version SET fold = {FOLD + 1}; UPDATE {OLD}.version SET fold = {FOLD + 1}")

    assert not await fed.feeder.refresh_versions()

    assert fed.feeder.troubles() == [f"the live tables are version 2 of fold {FOLD + 1}, this code's fold is {FOLD}"]
    assert await fed.feeder.published_up_to([0]) == {}


async def test_a_process_that_feeds_the_old_version_alone_stays_behind_the_live_one(
    fed: Fed, tables: asyncpg.Connection
) -> None:
    await tables.execute(f"UPDATE {SCHEMA}.version SET fold = {FOLD + 1}")
    feeding = asyncio.create_task(fed.feed([fed.sync(1)]))
    async with asyncio.timeout(10):
        while not any("to come along" in why for why in fed.feeder.troubles()):
            await asyncio.sleep(0.01)
    assert await places(tables) == (3, 3)

    await tables.execute(f"UPDATE {SCHEMA}.positions SET position = 4")  # as a process of the other fold does
    await feeding

    assert await places(tables) == (4, 4)
    assert fed.database.live.publisher.committed[-1].spans == {0: (0, 3)}
