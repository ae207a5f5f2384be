"""Versions of the projections on a real Postgres: swapped there and back, dropped, and what stands in the way."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncpg
import pytest

from projections.decode.log_record import decode_record
from projections.projector import Projector
from projections.rebuild import swap as versions_swap
from projections.rebuild import versions
from projections.rebuild.versions import NotSwapped
from projections.store import ddl, grants
from projections.store.connection import Session
from projections.store.tables import FOLD, NEXT, OLD, SCHEMA
from projections.verify import digests
from runtime.kafka.reader import Received
from runtime.postgres.pool import snapshot
from tests.support.projections_database import Database
from tests.support.projections_log import Log, account, added, balance, modified, transaction


class Beside:
    """A database with a version beside the live one, and a projector that replays into it."""

    def __init__(self, dsn: str) -> None:
        self.live = Database(dsn)
        self.session = Session(self.live.settings, schema=NEXT)
        self.replay = Projector(self.session, None, self.live.ownership, self.live.settings, version=2)  # type: ignore[arg-type]
        self.told: list[str] = []

    async def begin(self) -> None:
        """Make the next version."""
        await self.live.alter("; ".join(ddl.create(NEXT, 2, grants.DEFAULT)))
        for schema in (SCHEMA, NEXT):
            await self.live.alter(f"INSERT INTO {schema}.positions (partition, position) VALUES (0, 0)")

    async def project(self, records: Sequence[Received]) -> None:
        """Fold records into the live version, and say that their events are published."""
        await self.live.project(records)
        await self.live.alter("""INSERT INTO tartan.published_checkpoints (partition, published)
            SELECT partition, position FROM projection.positions
            ON CONFLICT (partition) DO UPDATE SET published = excluded.published""")

    async def replayed(self, records: Sequence[Received]) -> None:
        """Fold records into the other version."""
        await self.replay.project([decode_record(record) for record in records])

    async def swap(self, *, differs: bool = False, patience_s: float = 20.0) -> versions_swap.Swapped:
        """Swap with a version that is where the live one is."""
        return await versions_swap.swap(
            self.live.settings,
            catch_up=lambda _: asyncio.sleep(0),
            differs=differs,
            tell=self.told.append,
            patience_s=patience_s,
        )

    async def back(self, *, patience_s: float = 20.0) -> versions_swap.Swapped:
        return await versions_swap.swap_back(self.live.settings, tell=self.told.append, patience_s=patience_s)


@pytest.fixture
async def beside(database: str) -> AsyncIterator[Beside]:
    made = Beside(database)
    await made.begin()
    yield made
    await made.session.close()
    await made.live.session.close()


@pytest.fixture
async def tables(database: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database, server_settings={"search_path": SCHEMA})
    yield connection
    await connection.close()


def story() -> Log:
    log = Log()
    log.link("item", 1, *balance(account()))
    log.sync("item", *added(transaction("a", "12.34"), transaction("b", "-5")))
    log.sync("item", *modified(transaction("a", "13")), *balance(account(current="88")))
    return log


async def numbers(connection: asyncpg.Connection) -> dict[str, int]:
    return {schema: one.number for schema, one in (await versions.load_versions(connection)).items()}


async def epoch(connection: asyncpg.Connection) -> str:
    return str(await connection.fetchval("SELECT value FROM tartan.facts WHERE name = 'epoch'"))


async def test_a_swap_makes_the_next_version_the_one_that_readers_see_and_back_undoes_it(
    beside: Beside, tables: asyncpg.Connection
) -> None:
    log = story()
    await beside.project(log.records)
    await beside.replayed(log.records)
    await tables.execute(f"UPDATE {NEXT}.items SET institution_name = 'as the next version has it'")
    seen = "SELECT institution_name FROM reads.items"
    first = await epoch(tables)

    swapped = await beside.swap(differs=True)

    assert (swapped.live, swapped.old, swapped.attempts) == (2, 1, 1)
    assert await numbers(tables) == {SCHEMA: 2, OLD: 1}
    assert await tables.fetchval(seen) == "as the next version has it"
    assert await tables.fetchval("SELECT institution_name FROM items") == "as the next version has it"
    second = await epoch(tables)
    assert second != first

    await beside.back()

    assert await numbers(tables) == {SCHEMA: 1, OLD: 2}
    assert await tables.fetchval(seen) == "Bank"
    assert await epoch(tables) not in (first, second)


async def test_nothing_that_readers_have_seen_changes_its_meaning_where_both_versions_are_the_same(
    beside: Beside, tables: asyncpg.Connection
) -> None:
    log = story()
    await beside.project(log.records)
    await beside.replayed(log.records)
    digest, first = await digests.full_digest(tables), await epoch(tables)

    await beside.swap()

    assert await digests.full_digest(tables) == digest
    assert await epoch(tables) == first


async def test_streams_begin_anew_on_the_way_back_to_another_fold_that_was_equal_at_the_swap(
    beside: Beside, tables: asyncpg.Connection
) -> None:
    log = story()
    await beside.project(log.records)
    await beside.replayed(log.records)
    await beside.swap()
    first = await epoch(tables)
    await tables.execute(f"UPDATE {SCHEMA}.version SET fold = {FOLD + 1}")  # as a later release's

    await beside.back()

    assert await epoch(tables) != first


async def test_the_version_that_became_live_takes_records_as_the_one_before_it(
    beside: Beside, tables: asyncpg.Connection
) -> None:
    log = story()
    await beside.project(log.records)
    await beside.replayed(log.records)
    await beside.swap()
    beside.live.session.drop()  # as a projector does that finds another version
    more = log.sync("item", *added(transaction("c", "7")))

    await beside.project([more])

    assert await tables.fetchval("SELECT position FROM reads.positions") == len(log.records)
    assert await tables.fetchval(f"SELECT position FROM {OLD}.positions") == len(log.records) - 1
    with pytest.raises(asyncpg.PostgresError):  # the rights on the ledger went along
        await (await beside.live.connection()).execute("DELETE FROM ledger_transfers")


async def test_versions_at_different_places_are_not_swapped(beside: Beside, tables: asyncpg.Connection) -> None:
    log = story()
    await beside.project(log.records)
    await beside.replayed(log.records[:2])

    with pytest.raises(NotSwapped, match="0 at 2 of 3"):
        await beside.swap(patience_s=0)

    assert await numbers(tables) == {SCHEMA: 1, NEXT: 2}


async def test_a_topic_that_is_filled_again_holds_a_swap_up(beside: Beside, tables: asyncpg.Connection) -> None:
    log = story()
    await beside.project(log.records)
    await beside.replayed(log.records)
    await tables.execute("INSERT INTO tartan.held_topics (topic, partition, since) VALUES ('items', 0, 3)")

    with pytest.raises(NotSwapped, match="republish` fills items"):
        await beside.swap(patience_s=0)
    await tables.execute("DELETE FROM tartan.held_topics")
    await beside.swap()

    assert await numbers(tables) == {SCHEMA: 2, OLD: 1}


async def test_what_is_not_published_holds_a_swap_up(beside: Beside, tables: asyncpg.Connection) -> None:
    log = story()
    await beside.project(log.records[:2])
    await beside.live.project(log.records[2:])
    await beside.replayed(log.records)

    with pytest.raises(NotSwapped, match="0 up to 2 of 3"):
        await beside.swap(patience_s=0)

    assert await numbers(tables) == {SCHEMA: 1, NEXT: 2}


async def test_a_long_running_reader_holds_a_swap_up_and_is_named_while_other_readers_go_on(
    beside: Beside, tables: asyncpg.Connection, database: str
) -> None:
    log = story()
    await beside.project(log.records)
    await beside.replayed(log.records)
    report = await asyncpg.connect(database, server_settings={"application_name": "the yearly report"})
    reading = report.transaction(isolation="repeatable_read")
    await reading.start()
    assert await report.fetchval("SELECT count(*) FROM reads.items") == 1

    swapping = asyncio.create_task(beside.swap())
    async with asyncio.timeout(10):
        while not beside.told:
            assert await tables.fetchval("SELECT count(*) FROM reads.transactions") == 2
            await asyncio.sleep(0.01)
    assert f"{report.get_server_pid()} (the yearly report" in beside.told[0]
    assert await report.fetchval("SELECT count(*) FROM reads.transactions") == 2
    await reading.rollback()

    assert (await swapping).attempts > 1
    await report.close()


async def test_who_reads_the_tables_by_their_own_names_holds_a_swap_up_too(
    beside: Beside, tables: asyncpg.Connection
) -> None:
    log = story()
    await beside.project(log.records)
    await beside.replayed(log.records)

    async with tables.transaction():
        await tables.execute(f"LOCK TABLE {SCHEMA}.transactions IN ACCESS SHARE MODE")  # as a backup does
        with pytest.raises(NotSwapped, match=f"session {tables.get_server_pid()}"):
            await beside.swap(patience_s=0)


async def test_a_snapshot_is_of_one_version_however_late_it_looks(beside: Beside, database: str) -> None:
    log = story()
    await beside.project(log.records)
    await beside.replayed(log.records)
    reader = await asyncpg.connect(database)
    async with snapshot(reader):
        swapping = asyncio.create_task(beside.swap())
        async with asyncio.timeout(10):
            while not beside.told:
                await asyncio.sleep(0.01)
        assert await reader.fetchval("SELECT number FROM projection.version") == 1

    await swapping

    async with snapshot(reader):
        assert await reader.fetchval("SELECT number FROM projection.version") == 2
    await reader.close()


async def test_a_dropped_version_is_gone_and_what_others_built_on_it_is_not(
    beside: Beside, tables: asyncpg.Connection
) -> None:
    log = story()
    await beside.project(log.records)
    await beside.replayed(log.records)
    await beside.swap()
    await tables.execute(f"CREATE VIEW public.of_somebody AS SELECT * FROM {OLD}.items")

    with pytest.raises(NotSwapped, match="of_somebody"):
        await versions.drop_old(beside.live.settings)
    await tables.execute("DROP VIEW public.of_somebody")
    dropped = await versions.drop_old(beside.live.settings)

    assert dropped.number == 1
    assert await numbers(tables) == {SCHEMA: 2}
    assert await tables.fetchval("SELECT count(*) FROM reads.transactions") == 2
    with pytest.raises(NotSwapped, match="no version"):
        await beside.back()


async def test_nobody_goes_back_to_a_version_that_is_not_fed_or_of_another_fold(
    beside: Beside, tables: asyncpg.Connection
) -> None:
    log = story()
    await beside.project(log.records)
    await beside.replayed(log.records)
    await beside.swap()

    await tables.execute(f"UPDATE {OLD}.version SET fold = {FOLD + 1}")
    with pytest.raises(NotSwapped, match=f"of fold {FOLD + 1}"):
        await beside.back()
    await tables.execute(f"UPDATE {OLD}.version SET fold = {FOLD}")
    await tables.execute(
        "UPDATE tartan.rebuilds SET result = jsonb_build_object('not_fed', 'it went astray') WHERE number = 1"
    )
    with pytest.raises(NotSwapped, match="it went astray"):
        await beside.back()

    [live, old] = await versions.status(tables)
    assert (live.to_json()["state"], old.to_json()["state"], old.to_json()["not_fed"]) == (
        "live",
        "old",
        "it went astray",
    )


async def test_readers_columns_stay_where_a_version_has_others(beside: Beside, tables: asyncpg.Connection) -> None:
    log = story()
    await beside.project(log.records)
    await beside.replayed(log.records)
    await tables.execute(f"ALTER TABLE {NEXT}.items ADD COLUMN colour text DEFAULT 'blue'")

    await beside.swap()
    assert await tables.fetchval("SELECT colour FROM reads.items") == "blue"
    await beside.back()

    row = await tables.fetchrow("SELECT * FROM reads.items")
    assert row is not None
    assert list(row.items())[-1] == ("colour", None)


async def test_operators_see_both_versions_and_drop_the_old_one(beside: Beside) -> None:
    log = story()
    await beside.project(log.records)
    await beside.replayed(log.records)
    await beside.swap()

    shown = await command(beside, "--status")
    dropped = await command(beside, "--drop-old")

    assert [(one["number"], one["state"], one["behind"]) for one in shown["versions"]] == [
        (2, "live", 0),
        (1, "old", 0),
    ]
    assert dropped["dropped"] == 1


async def command(beside: Beside, option: str) -> Any:
    """The answer of `tartan rebuild` with one of its options."""
    environment = {"TARTAN_POSTGRES_DSN": beside.live.settings.postgres_dsn.get_secret_value()}
    running = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from cli import main as cli\ncli.main()",
        "rebuild",
        option,
        "--json",
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await asyncio.wait_for(running.communicate(), 60)
    assert running.returncode == 0
    return json.loads(out.splitlines()[-1])
