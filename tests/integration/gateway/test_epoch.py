"""What the gateway does when readers are shown a version that says something else."""

import asyncio

import asyncpg

from gateway.live.epoch import EpochWatch
from gateway.live.hub import RESTART, Hub
from projections.read import queries


async def test_browsers_begin_anew_when_the_epoch_changes_and_at_no_other_look(database: str) -> None:
    hub = Hub()
    hub.open()
    browser = hub.join(1)
    async with asyncpg.create_pool(database, min_size=1, max_size=1) as pool:
        epoch = EpochWatch(pool, hub)
        await epoch.check()
        await epoch.check()
        ended = asyncio.create_task(browser.ended())
        await asyncio.sleep(0)
        assert not ended.done()

        await pool.execute("UPDATE tartan.facts SET value = to_jsonb('another'::text) WHERE name = 'epoch'")
        await epoch.check()

        assert (await ended).code == RESTART
        assert hub.is_open


async def test_what_was_read_before_the_epoch_changed_is_not_given_again(database: str) -> None:
    connection = await asyncpg.connect(database)
    await connection.execute("""
        INSERT INTO projection.changesets (partition, source_offset, id, user_number, kind, type, cause, net_events,
            digest, produced_at, known_at) VALUES (0, 7, 'x', 1, 'chained', 'sync', '{}', 0, '', now(), now())""")
    first = await queries.newest(connection, 1)

    await connection.execute("UPDATE tartan.facts SET value = to_jsonb('another'::text) WHERE name = 'epoch'")

    assert first is not None
    assert await queries.newest(connection, 1) == queries.Newest('"another"', 7)
    assert first.epoch not in (None, '"another"')
    await connection.close()
