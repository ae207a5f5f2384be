"""Reconciliation on a real Postgres: what is loaded, what a gap leads to, and how it ends."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import asyncpg
import pytest

from projections.reconcile import inputs, job
from projections.reconcile.job import Reconciler, Result
from projections.reconcile.tie_out import GAP, MISSING_ROWS, PENDING, STALE_BALANCE, SYNCING, TIED_OUT, compare
from runtime.incidents import incidents
from runtime.operators import reconciliations
from runtime.operators.reconciliations import Key
from runtime.postgres.pool import open_pool
from sandbox.infra.postgres import Postgres
from sandbox.simulation.memory.projection_tables import MemoryProjections
from tests.support.projections_database import Database, fresh
from tests.support.projections_log import Log, added, owners
from tests.support.reconciliation_bank import Story, details_of, facts_of

DAY_S = 86_400.0


class World:
    """A database with an account of which the test tells what the bank says."""

    def __init__(self, database: Database, story: Story) -> None:
        self.database, self.story = database, story
        self.key = Key(story.item_id, story.account_id)
        self._read = 0

    async def project(self) -> None:
        """Fold what was told since."""
        records = self.story.log.records[self._read :]
        self._read = len(self.story.log.records)
        await self.database.project(records)

    async def check(self, *, alert_after_s: float = DAY_S) -> Result:
        """Fold what was told since, and check the account."""
        await self.project()
        [result] = await job.check(await self.connection(), [self.key], alert_after_s=alert_after_s)
        return result

    async def connection(self) -> asyncpg.Connection:
        return await self.database.connection()

    async def one(self, query: str, *values: Any) -> Any:
        return await (await self.connection()).fetchrow(query, *values)

    async def open(self) -> Any:
        """The open discrepancy."""
        return await self.one("SELECT * FROM tartan.discrepancies WHERE resolved_at IS NULL")

    async def wish(self) -> Any:
        """What the Item's row of sync_state says of repairs."""
        return await self.one("SELECT generation, history_incomplete, cause->>'by' AS by FROM tartan.sync_state")

    async def synced(self) -> None:
        """A pass over the Item has ended, and the history was whole."""
        await (await self.connection()).execute(
            "UPDATE tartan.sync_state SET last_synced_at = tartan.clock(), history_incomplete = false, due_at = NULL,"
            " done_generation = generation"
        )

    async def incidents(self) -> list[str]:
        rows = await (await self.connection()).fetch(
            "SELECT subject FROM tartan.incidents WHERE kind = $1 AND closed_at IS NULL", incidents.BALANCE_GAP
        )
        return [row["subject"] for row in rows]


@pytest.fixture
async def world(postgres: Postgres, template_dsn: str) -> AsyncIterator[World]:
    async with fresh(postgres, f"reconcile_{uuid.uuid4().hex[:12]}") as database:
        story = Story(7)
        await (await database.connection()).execute(
            "INSERT INTO tartan.sync_state (item_id, tenant, user_number, partition, done_generation)"
            " VALUES ($1, 't', 1, 0, 1)",
            story.item_id,
        )
        yield World(database, story)


async def test_what_is_loaded_is_what_the_fold_has(postgres: Postgres, template_dsn: str) -> None:
    log, memory = Log(), MemoryProjections(owners)
    stories = [Story(seed, item_id=f"item{seed}", log=log) for seed in range(6)]
    for _ in range(5):
        for story in stories:
            story.step()
    for story in stories[:3]:
        story.drift = Decimal(77)
        story.step()
    memory.project(log.records)
    keys = [Key(story.item_id, story.account_id) for story in stories]

    async with fresh(postgres, "reconcile_loaded") as database:
        await database.project(log.records)
        connection = await database.connection()
        loaded = await inputs.load(connection, [*keys, Key("item0", "nobody's")])
        details = {
            key: await inputs.load_details(connection, loaded.facts[key], compare(loaded.facts[key]), 1)
            for key in keys[:3]
        }

    assert loaded.facts == {key: facts_of(memory, *key) for key in keys}
    assert loaded.missing == [Key("item0", "nobody's")]
    assert set(loaded.positions.values()) == {len(log.records)}
    for key, found in details.items():
        wanted = details_of(memory, facts_of(memory, *key), compare(facts_of(memory, *key)))
        assert found.posted_then == wanted.posted_then
        assert found.pending_at_opening == wanted.pending_at_opening
        assert (found.lines, set(found.duplicates)) == (wanted.lines, set(wanted.duplicates))


async def test_money_that_moves_without_a_row_has_the_history_read_again_and_is_told_when_that_did_not_help(
    world: World,
) -> None:
    assert (await world.check()).verdict.state == TIED_OUT
    world.story.drift = Decimal("12.34")
    world.story.step()

    first = await world.check()
    wish, opened = await world.wish(), await world.open()
    waiting = await world.check()
    await world.synced()
    later = [await world.check() for _ in range(3)]

    assert (first.verdict.why, first.step.repair, first.step.start) == (MISSING_ROWS, "compare", True)
    assert (wish["history_incomplete"], wish["by"]) == (True, "reconciliation")
    assert (opened["cause"], abs(opened["gap"]), opened["outcome"]) == (MISSING_ROWS, Decimal("12.34"), None)
    # Until the history is read again nothing is counted, nobody is told, and it is not asked for twice.
    assert (waiting.verdict.why, waiting.step.act) == (SYNCING, "nothing")
    assert [result.step.alert for result in later] == [False, False, True]
    assert await world.incidents() == [f"{world.story.item_id}/{world.story.account_id}"]
    assert (await world.open())["outcome"] == "persists"

    world.story.tell(added(world.story.new()))
    world.story.drift = Decimal(0)
    world.story.step()
    last = await world.check()

    assert (last.verdict.state, last.step.outcome) == (TIED_OUT, "repaired")
    assert await world.incidents() == []
    [told] = await reconciliations.history(await world.connection(), world.key)
    assert (told["outcome"], told["count"], told["repair"]) == ("repaired", 4, "compare")


async def test_a_stale_balance_asks_for_a_sync_and_is_over_when_the_bank_tells_it(world: World) -> None:
    await world.check()
    before, generation = world.story.current, (await world.wish())["generation"]
    world.story.tell(added(world.story.new()), current=before)

    first = await world.check()
    wish = await world.wish()
    await world.synced()
    again = await world.check()
    world.story.step()
    last = await world.check()

    assert (first.verdict.why, first.step.repair) == (STALE_BALANCE, "sync")
    assert (wish["generation"], wish["history_incomplete"]) == (generation + 1, False)
    assert (again.step.start, again.step.alert) == (False, False)
    assert (last.verdict.state, last.step.outcome) == (TIED_OUT, "repaired")
    assert await world.incidents() == []


async def test_pending_rows_in_a_balance_are_waited_for_and_never_told_of_early(world: World) -> None:
    await world.check()
    rows = world.story.pending_of(2)
    held = sum(Decimal(one.amount) for one in rows)
    world.story.tell(added(*rows), current=world.story.current + (held if world.story.is_owed else -held))

    results = [await world.check(alert_after_s=0.0) for _ in range(5)]
    for row in rows:
        world.story.tell(world.story.post(row))
    last = await world.check()

    assert {(result.verdict.why, result.step.repair, result.step.alert) for result in results} <= {
        (PENDING, "wait", False)
    }
    assert (last.verdict.state, last.step.outcome) == (TIED_OUT, "resolved")


async def test_an_account_that_is_gone_leaves_nothing_behind(world: World) -> None:
    world.story.drift = Decimal(5)
    world.story.step()
    world.story.drift = Decimal(9)
    world.story.step()
    for _ in range(4):
        await world.check()
        await world.synced()
    assert await world.incidents() != []

    connection = await world.connection()
    await connection.execute("RESET ROLE")
    await connection.execute("DELETE FROM projection.accounts")
    assert await job.check(connection, [world.key], alert_after_s=DAY_S) == []

    assert await connection.fetchval("SELECT count(*) FROM tartan.discrepancies") == 0
    assert await connection.fetchval("SELECT count(*) FROM tartan.reconciliations") == 0
    assert await world.incidents() == []


async def test_each_account_is_checked_once_an_interval_and_in_bounded_rounds(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "ACCOUNTS_A_ROUND_MAX", 4)
    others = [Story(seed, item_id=f"item{seed}", log=world.story.log) for seed in range(9)]
    await world.project()
    settings = world.database.settings.model_copy(update={"reconcile_interval_s": 3600.0})
    pool = await open_pool(settings, stage="test", role=settings.projector_role)
    try:
        first, second = Reconciler(pool, settings), Reconciler(pool, settings)
        async with pool.acquire() as connection:
            enrolled = await reconciliations.enrol(connection, interval_s=3600.0, accounts_max=100)
            again = await reconciliations.enrol(connection, interval_s=3600.0, accounts_max=100)
            places = await connection.fetch("SELECT next_at FROM tartan.reconciliations")
            await connection.execute("UPDATE tartan.reconciliations SET next_at = tartan.clock()")
        rounds = [await asyncio.gather(first.run_round(), second.run_round()) for _ in range(2)]
    finally:
        await pool.close()

    assert (enrolled, again) == (len(others) + 1, 0)
    assert len({row["next_at"] for row in places}) > len(others) / 2
    assert sorted(rounds[0]) == [4, 4]
    assert sum(rounds[1]) == len(others) + 1 - 8
    checked = await world.one("SELECT count(*) AS n FROM tartan.reconciliations WHERE state = 'tied_out'")
    assert checked["n"] == len(others) + 1


async def test_a_gap_between_ledger_and_rows_is_a_fault_of_ours(world: World) -> None:
    await world.check()
    connection = await world.connection()
    await connection.execute("RESET ROLE")
    await connection.execute(
        """UPDATE projection.ledger_balances b SET debits = debits + 1 FROM projection.ledger_accounts a
            WHERE a.id = b.account AND a.kind = 'bank' AND b.layer = 'posted'"""
    )

    results = [await world.check() for _ in range(5)]

    assert {(result.verdict.state, result.verdict.why, result.verdict.against) for result in results} == {
        (GAP, "unknown", "rows")
    }
    assert [result.step.alert for result in results] == [False, False, False, True, True]
