"""`tartan rebuild` on a real Kafka and a real Postgres."""

import asyncio
import base64
import json
import os
import sys
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest

from projections.fold.opening_balances import COMPLETE
from projections.rebuild import schema
from projections.store.tables import FOLD, NEXT, OLD
from runtime.archive import store
from runtime.archive.seal import archive
from sandbox.infra.generated_log import transactions
from schemas.errors import Halt
from schemas.log.records import Transaction
from tests.support.projections_log import account, added, balance, modified, removed, transaction
from tests.support.rebuild_world import KEY, World

USERS = range(1, 9)
MANY = 50_000
"""Transactions of the large log, in records of 100."""
EACH = 100
BLOCK = 10
"""Syncs whose transactions are drawn at once, from the same merchants."""
REBUILD = (sys.executable, "-m", "cli", "rebuild", "--no-swap", "--json")
LATER = (sys.executable, "-m", "tests.support.rebuild_later")


@pytest.fixture
async def world(kafka_address: str, topic_prefix: str, database: str) -> AsyncIterator[World]:
    made = World(kafka_address, topic_prefix, database)
    await made.open(USERS)
    yield made
    await made.close()


def history(world: World, *, changesets: int, each: int) -> None:
    """Items of all users with transactions, changes to them, and what takes them back."""
    for user in USERS:
        world.log.link(f"I{user}", user)
        for number in range(changesets):
            sync(world, user, number, each, status=COMPLETE if number == changesets - 1 else None)


def sync(world: World, user: int, number: int, each: int, *, status: str | None = COMPLETE) -> None:
    """What one sync of a user's Item says: purchases, a change to an earlier one, once one that is taken back."""
    item, said = f"I{user}", purchases(user, number)[:each]
    events = added(*said)
    if number:
        earlier = purchases(user, number - 1)[0]
        events += modified(msgspec.structs.replace(earlier, amount=f"{number}.125", category_primary="TRAVEL"))
    if number == 1:
        events += removed(said[-1].transaction_id)
    world.log.sync(
        item,
        *events,
        *balance(account(current=f"{number}.50")),
        user=user,
        history_status=status,
        counts={"transaction.added": each, "transaction.modified": int(number > 0)},
    )


def purchases(user: int, number: int) -> list[Transaction]:
    """What is new in one sync of a user."""
    block, place = divmod(number, BLOCK)
    return _block(user, block)[place * EACH : (place + 1) * EACH]


@cache
def _block(user: int, block: int) -> list[Transaction]:
    return transactions(BLOCK * EACH, seed=user * 1_000 + block)


async def started(world: World, *command: str, **environment: str) -> asyncio.subprocess.Process:
    """A process of the command line with the world's settings."""
    settings = world.settings
    said = {
        "KAFKA_ADDRESS": settings.kafka_address,
        "TOPIC_PREFIX": settings.topic_prefix,
        "POSTGRES_DSN": world.dsn,
        "PARTITIONS": str(settings.partitions),
        "KEY_ENCRYPTION_KEY": base64.b64encode(KEY).decode(),
        **environment,
    }
    return await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **{f"TARTAN_{name}": value for name, value in said.items()}},
    )


async def ended(process: asyncio.subprocess.Process) -> tuple[int | None, dict[str, Any]]:
    """The exit code of a process, and the last line that it wrote."""
    async with asyncio.timeout(120):
        out, error = await process.communicate()
    assert out, error.decode()
    return process.returncode, json.loads(out.splitlines()[-1])


async def test_a_rebuild_gives_the_live_version_again(world: World) -> None:
    history(world, changesets=3, each=20)
    await world.live()

    result = await world.rebuild()

    live, following = await world.both()
    assert live == following
    assert result.digest_equal
    assert result.comparison.differences == []
    assert result.comparison.accounts_compared == len(USERS)
    assert result.transactions_replayed == len(USERS) * (3 * 20 + 2)
    assert await world.value("SELECT state FROM tartan.rebuilds") == schema.LOADED
    indexes = "SELECT count(*) FROM pg_indexes WHERE schemaname = '{}'"
    assert await world.value(indexes.format(NEXT)) == await world.value(indexes.format("projection"))


async def test_a_rebuild_killed_three_times_under_live_writes_gives_the_live_version_again(world: World) -> None:
    each = MANY // EACH // len(USERS)
    history(world, changesets=each, each=EACH)
    await world.live()
    records = len(world.log.records)
    stop = asyncio.Event()

    async def write() -> None:
        number = each
        while not stop.is_set():
            for user in USERS:
                sync(world, user, number, 5)
            await world.live()
            number += 1
            await asyncio.sleep(0.2)

    writing: asyncio.Task[None] | None = None
    try:
        for share in (0.1, 0.4, 0.7):
            process = await started(world, *REBUILD, "--processes", "2", BATCH_BYTES_MAX=str(64 * 1024))
            reached = f"SELECT to_regclass('{NEXT}.positions') IS NOT NULL"
            await world.until(reached)
            await world.until(f"SELECT sum(position) > {records * share} FROM {NEXT}.positions")
            process.kill()
            await process.communicate()
            assert await world.value(f"SELECT count(*) FROM {NEXT}.transactions") > 0
            assert await world.value(f"SELECT sum(position) < {records} FROM {NEXT}.positions")
            writing = writing or asyncio.create_task(write())
        code, result = await ended(await started(world, *REBUILD, "--processes", "2"))
    finally:
        stop.set()
        if writing is not None:
            await writing
    assert (code, result["digest_equal"], result["resumed"]) == (0, True, True)
    assert 0 < result["records_replayed"] < len(world.log.records)

    last = await world.rebuild()

    live, following = await world.both()
    assert last.digest_equal
    assert live == following


async def test_a_rebuild_that_could_not_end_well_is_refused_with_its_reason(world: World) -> None:
    history(world, changesets=2, each=3)
    await world.live()
    assert (await world.rebuild()).digest_equal

    async def refused(reason: str, **options: Any) -> None:
        with pytest.raises(Halt, match=reason):
            await world.rebuild(**options)

    async with schema.exclusive_owner(world.settings):
        await refused("another process rebuilds")
    for wrong, right, reason in (
        (
            "INSERT INTO projection.positions (partition, position) VALUES (2, 0)",
            "DELETE FROM projection.positions WHERE partition = 2",
            "positions of 3 partitions",
        ),
        (
            "UPDATE projection.positions SET position = position + 5 WHERE partition = 1",
            "UPDATE projection.positions SET position = position - 5 WHERE partition = 1",
            "truncated or re-created",
        ),
        (
            "UPDATE projection.positions SET last_checksum = sha256(last_checksum)",
            f"UPDATE projection.positions p SET last_checksum = n.last_checksum FROM {NEXT}.positions n"
            " WHERE n.partition = p.partition",
            "is not the record that the live version has read: another log",
        ),
        (
            f"UPDATE {NEXT}.positions SET position = position + 5 WHERE partition = 1",
            f"UPDATE {NEXT}.positions SET position = position - 5 WHERE partition = 1",
            "the database went back",
        ),
        (
            f"UPDATE {NEXT}.version SET fold = 7",
            f"UPDATE {NEXT}.version SET fold = {FOLD}",
            "a version of fold 7 is begun",
        ),
    ):
        await world.execute(wrong)
        await refused(reason)
        await world.execute(right)
    await world.execute(f"UPDATE {NEXT}.version SET fold = 7")
    assert not (await world.rebuild(restart=True)).resumed
    await world.keep(retention_ms="3600000")
    await refused("has retention.ms 3600000 and there is no archive, so it loses records")
    await world.keep(retention_ms="-1")

    assert (await world.rebuild()).resumed


async def test_records_that_the_topic_has_lost_come_from_the_archive_or_the_rebuild_is_refused(
    world: World, tmp_path: Path
) -> None:
    history(world, changesets=5, each=3)
    await world.live()
    without = world.settings
    world.settings = without.model_copy(update={"archive_url": tmp_path.as_uri()})
    await archive(world.settings, store.connect(world.settings), sealed_before_ms=None, on_sealed=lambda _: None)
    sync(world, 1, 5, 3)
    await world.live()
    await world.lose(before=10)

    world.settings = without
    with pytest.raises(Halt, match="offsets 0 to 9 are gone, and there is no archive"):
        await world.rebuild()
    world.settings = without.model_copy(update={"archive_url": tmp_path.as_uri()})
    result = await world.rebuild()

    assert result.digest_equal
    assert result.records_replayed == len(world.log.records)


async def test_the_next_version_becomes_live_and_the_one_before_is_kept(world: World) -> None:
    history(world, changesets=2, each=3)
    await world.live()
    await world.execute("INSERT INTO tartan.published_checkpoints SELECT partition, position FROM projection.positions")
    before = await world.digest()

    result = await world.rebuild(swaps=True)

    assert (result.swapped, result.version) == (True, 2)
    assert await world.value("SELECT number FROM projection.version") == 2
    assert await world.digest() == await world.digest(OLD) == before
    kept = "SELECT count(*) FROM projection.changesets WHERE events IS NOT NULL"
    assert await world.value(kept) == 0, "events that were published are not encoded again"
    with pytest.raises(Halt, match="drop it with `tartan rebuild --drop-old`"):
        await world.rebuild(swaps=True)


async def test_a_worker_that_dies_is_told_of_and_the_next_rebuild_goes_on(world: World) -> None:
    history(world, changesets=100, each=2)
    await world.live()
    dies = (sys.executable, "-c", "import os, sys; sys.stdin.readline(); os.kill(os.getpid(), 9)")

    with pytest.raises(Halt, match=r"a worker of partitions \[\d\] stopped: it was ended by signal 9"):
        await world.rebuild(worker=dies)

    assert (await world.rebuild()).digest_equal


async def test_what_is_withheld_stays_withheld_and_a_redrive_frees_it_at_its_place(world: World) -> None:
    for user, item in ((1, "A"), (2, "B")):
        world.log.link(item, user)
        world.log.sync(item, *added(transaction(f"{item}-T")), user=user)
        world.log.sync(item, *added(transaction(f"{item}-U", name="a\0b")), user=user)
        world.log.sync(item, *added(transaction(f"{item}-V")), user=user)
    world.log.redrive("B", 2)
    await world.live()
    quarantined = "SELECT json_agg(p ORDER BY item_id, first_offset)::text FROM tartan.quarantines p"
    before = await world.value(quarantined)

    result = await world.rebuild()

    assert result.digest_equal
    assert await world.value(f"SELECT count(*) FROM {NEXT}.withheld") > 0
    assert await world.value(quarantined) == before


async def test_a_record_that_was_folded_and_cannot_be_folded_any_more_ends_the_rebuild(world: World) -> None:
    history(world, changesets=2, each=3)
    world.log.sync("I1", *added(transaction("lost")), user=1)
    await world.live()
    # As if a release had folded what this one cannot: the user's key is gone without a tombstone.
    await world.execute("DELETE FROM tartan.user_keys WHERE user_number = 1")

    with pytest.raises(Halt, match=r"changesets 1 at \d+, Item I1, was not quarantined, and cannot be replayed"):
        await world.rebuild()

    assert await world.value("SELECT count(*) FROM tartan.quarantines") == 0


async def test_users_whose_keys_are_destroyed_have_no_rows_in_the_next_version(world: World) -> None:
    history(world, changesets=2, each=3)
    await world.live()
    await world.execute("UPDATE tartan.user_keys SET wrapped = NULL, state = 'destroyed' WHERE user_number = 3")

    result = await world.rebuild(expect_changes=True)

    assert {one.user for one in result.comparison.differences} == {3}
    assert await world.value(f"SELECT count(*) FROM {NEXT}.transactions WHERE user_number = 3") == 0
    assert await world.value(f"SELECT count(*) FROM {NEXT}.transactions WHERE user_number = 4") > 0


async def test_a_difference_is_told_by_account_table_row_and_column_and_ends_the_rebuild(world: World) -> None:
    history(world, changesets=2, each=3)
    await world.live()
    changed = purchases(5, 0)[2].transaction_id
    await world.execute(
        f"UPDATE projection.transactions SET merchant_name = 'other' WHERE transaction_id = '{changed}'"
    )
    await world.execute("DELETE FROM projection.transaction_versions")
    swapped = "SELECT number FROM projection.version"
    number = await world.value(swapped)

    code, result = await ended(await started(world, *REBUILD[:4], "--json"))

    assert (code, result["digest_equal"], result["swapped"]) == (1, False, False)
    assert await world.value(swapped) == number
    by_account = {(one["item_id"], one["account_id"]): one["tables"] for one in result["differences"]}
    told = by_account["I5", "checking"]["transactions"]
    assert (told["different"], told["columns"], told["only_live"], told["only_next"]) == (1, ["merchant_name"], 0, 0)
    own_id = f"SELECT encode(own_id, 'hex') FROM projection.transactions WHERE transaction_id = '{changed}'"
    assert told["examples"] == [f"different {await world.value(own_id)}"]
    assert by_account["I1", ""]["transaction_versions"]["only_next"] > 0
    assert "former versions" in result["notes"][0]


async def test_values_that_two_rows_of_an_account_have_exchanged_are_a_difference(world: World) -> None:
    history(world, changesets=1, each=2)
    await world.live()
    await world.execute("""
        UPDATE projection.transactions t SET transaction_id = o.transaction_id FROM projection.transactions o
         WHERE o.account_id = t.account_id AND o.item_id = t.item_id AND o.own_id <> t.own_id""")

    result = await world.rebuild(expect_changes=True)

    assert {one.user for one in result.comparison.differences} == set(USERS)


async def test_a_new_column_is_filled_for_old_events(world: World) -> None:
    world.log.link("A", 1)
    world.log.sync("A", *added(transaction("T", website="coffee.example"), transaction("U")), user=1)
    await world.live()

    code, result = await ended(await started(world, *LATER, "column", "rebuild", "--no-swap", "--json"))

    assert (code, result["digest_equal"], result["new_columns"]) == (0, True, ["transactions.website"])
    filled = f"SELECT json_object_agg(transaction_id, website)::text FROM {NEXT}.transactions"
    assert json.loads(await world.value(filled)) == {"T": "coffee.example", "U": None}


async def test_a_changed_fold_is_expected_or_ends_the_rebuild(world: World) -> None:
    for user in (1, 2):
        world.log.link(f"I{user}", user)
        category = {} if user == 1 else {"category_primary": None, "category_detailed": None}
        world.log.sync(f"I{user}", *added(transaction(f"T{user}", **category)), user=user)
    await world.live()
    later = (*LATER, "category", "rebuild", "--no-swap", "--json")

    code, result = await ended(await started(world, *later))
    expected, again = await ended(await started(world, *later, "--expect-changes"))

    assert (code, expected) == (1, 0)
    assert result["differences"] == again["differences"]
    assert {one["user"] for one in result["differences"]} == {2}
    assert "ledger_transfers" in next(one for one in result["differences"] if one["account_id"])["tables"]
