"""ItemQuarantine, dead letters and redrive on a real Postgres."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from projections.decode.log_record import LogRecord, decode_record
from projections.fold import full_resync
from projections.publish import kafka_records, retention
from projections.publish.outbox import Outbox
from projections.read import queries
from projections.verify import digests
from runtime.version import code_version
from sandbox.infra.postgres import Postgres
from sandbox.simulation.memory.projection_tables import MemoryProjections
from schemas import events
from schemas.errors import Halt
from schemas.log import gate
from tests.conftest import TEMPLATE, finish
from tests.support.projections_database import Database, fresh
from tests.support.projections_log import Log, added, modified, owners, removed, transaction
from tests.support.projections_log import restated as history
from tests.support.projections_reads import quarantined as quarantined_items
from tests.support.projections_trouble import FEW, Trouble, troubles


@pytest.fixture(scope="session")
def template(template_dsn: str) -> str:
    """The database that has every table."""
    assert template_dsn
    return TEMPLATE


@pytest.fixture
async def database(postgres: Postgres, template: str) -> AsyncIterator[Database]:
    async with fresh(postgres, "redriven") as made:
        yield made


async def quarantine(database: Database, item: str, offset: int, redrive: int | None = None) -> None:
    """Store a item_quarantine, as an older code left it."""
    await (await database.connection()).execute(
        "INSERT INTO tartan.quarantines (item_id, first_offset, partition, reason, reader, redrive_offset)"
        " VALUES ($1, $2, 0, 'an older code could not', 'projections', $3)",
        item,
        offset,
        redrive,
    )


async def quarantines(database: Database) -> list[tuple[Any, ...]]:
    rows = await (await database.connection()).fetch(
        "SELECT item_id, first_offset, redrive_offset FROM tartan.quarantines ORDER BY 1, 2"
    )
    return [tuple(row) for row in rows]


async def column(database: Database, query: str) -> list[Any]:
    return [row[0] for row in await (await database.connection()).fetch(query)]


def poisoned(*, refused_by: str = "key") -> Log:
    """An Item whose third record cannot be processed, and what follows; another one beside it."""
    log = Log()
    log.link("A")
    log.sync("A", *added(transaction("T")))
    if refused_by == "key":
        log.sync("A", *added(transaction("U")), keys=Log.stranger())
    else:
        log.sync("A", *added(transaction("U", name="a\x00b")))
    log.sync("A", *added(transaction("V")))
    log.link("B")
    return log


@given(trouble=troubles, cuts=st.lists(st.integers(0, 100), max_size=6))
@settings(
    max_examples=8,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_cut_and_a_rebuild_give_the_same_database(
    postgres: Postgres, template: str, trouble: Trouble, cuts: list[int]
) -> None:
    always, full_resync.REMOVALS_ALWAYS_MAX = full_resync.REMOVALS_ALWAYS_MAX, FEW  # type: ignore[misc]
    try:
        finish(_same(postgres, trouble, cuts))
    finally:
        full_resync.REMOVALS_ALWAYS_MAX = always  # type: ignore[misc]


async def _same(postgres: Postgres, trouble: Trouble, cuts: list[int]) -> None:
    log = trouble.log.records
    async with fresh(postgres, "whole") as whole, fresh(postgres, "cut") as cut_up, fresh(postgres, "again") as again:
        for item, [quarantined] in trouble.quarantined.items():
            for database in (whole, cut_up):
                await quarantine(database, item, quarantined.first)
        await whole.project(log)
        await cut_up.project(log, cuts or range(len(log)))
        for item, first, redrive in await quarantines(whole):
            await quarantine(again, item, first, redrive)
        await again.project(log, cuts)

        rows = await digests.full_rows(await whole.connection())
        assert await digests.full_rows(await cut_up.connection()) == rows
        assert await digests.full_rows(await again.connection()) == rows
        assert await quarantines(cut_up) == await quarantines(whole) == await quarantines(again)
        assert await digests.ledger_problems(await whole.connection()) == []
        await _is_the_memorys(whole, trouble)


async def _is_the_memorys(database: Database, trouble: Trouble) -> None:
    """Two stores, one fold: what Postgres has is what the oracle in memory has."""
    memory = MemoryProjections(owners, quarantined=trouble.quarantined)
    memory.project(trouble.log.records)
    connection = await database.connection()
    assert await quarantines(database) == memory.full()["quarantined"]
    assert [
        tuple(row)
        for row in await connection.fetch(
            "SELECT own_id, version, transfers, last_changeset, removed_at IS NULL, missing_since_offset"
            " FROM projection.transactions ORDER BY own_id"
        )
    ] == sorted(
        (row.own_id, row.version, row.transfers, row.last_changeset, row.removed_at is None, row.missing_since_offset)
        for row in memory.rows.values()
    )
    assert [
        tuple(row)
        for row in await connection.fetch(
            "SELECT source_offset, id, net_events, redriven_by FROM projection.changesets ORDER BY 1"
        )
    ] == sorted(
        (one.context.offset, one.context.changeset_id, len(one.net_events), one.redriven_by) for one in memory.folded
    )
    assert [
        tuple(row)
        for row in await connection.fetch(
            "SELECT item_id, missing_rows, missing_changeset_id FROM projection.items ORDER BY 1"
        )
    ] == sorted(
        (item.item_id, item.missing_rows, item.missing_changeset_id) for item in memory.items.values() if item.gate.head
    )


async def test_a_redrive_folds_what_was_withheld_and_ends_the_quarantine(database: Database) -> None:
    log = Log()
    log.link("A")
    log.sync("A", *added(transaction("T")))
    log.sync("A", *modified(transaction("T", "11")))
    await quarantine(database, "A", 1)
    await database.project(log.records)
    assert await column(database, "SELECT source_offset FROM projection.withheld ORDER BY 1") == [1, 2]

    log.redrive("A")
    await database.project(log.records)

    connection = await database.connection()
    assert await quarantines(database) == [("A", 1, 3)]
    assert await column(database, "SELECT source_offset FROM projection.withheld") == []
    assert await column(database, "SELECT redriven_by FROM reads.changesets ORDER BY source_offset") == [
        None,
        3,
        3,
        None,
    ]
    row = await connection.fetchrow("SELECT first_changeset, last_changeset, version FROM reads.transactions")
    assert tuple(row) == (3, 3, 2)


async def test_what_a_redrive_published_is_what_the_table_gives_again(database: Database) -> None:
    log = Log()
    log.link("A")
    log.sync("A", *added(transaction("T")))
    log.sync("A", *modified(transaction("T", "11")))
    log.redrive("A")
    await quarantine(database, "A", 1)
    await database.project(log.records)

    handed = database.publisher.committed[-1].changesets
    async with asyncpg.create_pool(database.dsn, min_size=0, max_size=1) as pool:
        stored = await Outbox(pool).read_changesets(0, 0, 4)

    assert [one.offset for one in stored] == [0, 3]
    assert stored[1].is_redrive
    assert kafka_records.build_records(stored) == kafka_records.build_records(handed)


@pytest.mark.parametrize("refused_by", ["key", "postgres"])
async def test_a_redrive_that_fails_again_leaves_all_as_it_was(
    postgres: Postgres, template: str, refused_by: str
) -> None:
    log = poisoned(refused_by=refused_by)
    log.redrive("A")
    log.sync("A", *added(transaction("W")))
    log.redrive("A")

    async with fresh(postgres, "whole") as whole, fresh(postgres, "single") as single:
        await whole.project(log.records)
        await single.project(log.records, range(len(log.records)))

        assert await quarantines(whole) == [("A", 2, 5), ("A", 5, 7), ("A", 7, None)]
        assert await column(whole, "SELECT source_offset FROM projection.withheld ORDER BY 1") == [2, 3, 6]
        assert await column(whole, "SELECT transaction_id FROM reads.transactions") == ["T"]
        assert await column(whole, "SELECT net_events FROM reads.changesets WHERE type = 'redrive'") == [0, 0]
        assert await digests.full_rows(await whole.connection()) == await digests.full_rows(await single.connection())
        reasons = "SELECT reason FROM tartan.quarantines ORDER BY first_offset"
        assert await column(whole, reasons) == await column(single, reasons)


async def test_a_redrive_and_a_new_poison_in_one_batch(database: Database) -> None:
    log = Log()
    log.link("A")
    log.sync("A", *added(transaction("T")))
    log.redrive("A")
    log.sync("A", keys=Log.stranger())
    log.sync("A", *added(transaction("U")))
    await quarantine(database, "A", 1)

    await database.project(log.records)

    assert await quarantines(database) == [("A", 1, 2), ("A", 3, None)]
    assert await column(database, "SELECT transaction_id FROM reads.transactions") == ["T"]
    assert await column(database, "SELECT subject FROM tartan.incidents WHERE closed_at IS NULL") == ["A"]


async def test_a_quarantine_leaves_a_dead_letter_with_the_sealed_original(database: Database) -> None:
    log = poisoned()

    await database.project(log.records)

    [letter] = await (await database.connection()).fetch("SELECT * FROM tartan.dead_letters")
    original = log.records[2]
    assert (letter["stage"], letter["topic"], letter["partition"], letter["source_offset"], letter["item_id"]) == (
        "projections",
        "changesets",
        0,
        2,
        "A",
    )
    assert (letter["key"], letter["value"]) == (original.key, original.value)
    assert "does not open with its user's key" in letter["reason"]
    assert (letter["code_version"], letter["attempts"], letter["redriven_at"]) == (code_version(), 1, None)


async def test_a_replay_that_withholds_writes_no_second_letter(database: Database) -> None:
    log = poisoned()
    await quarantine(database, "A", 2)

    await database.project(log.records)

    assert await column(database, "SELECT source_offset FROM tartan.dead_letters") == []
    assert await column(database, "SELECT subject FROM tartan.incidents") == []


async def test_letters_and_incident_end_with_the_redrive_that_succeeds(database: Database) -> None:
    log = Log()
    log.link("A", 1_001)  # no key yet
    log.redrive("A", 1_001)
    await database.project(log.records)
    open_letters = "SELECT source_offset FROM tartan.dead_letters WHERE redriven_at IS NULL ORDER BY 1"
    open_incidents = "SELECT subject FROM tartan.incidents WHERE kind = 'item_quarantined' AND closed_at IS NULL"
    assert await column(database, open_letters) == [0, 1]
    assert await column(database, open_incidents) == ["A"]

    database.ownership.restored = True
    log.redrive("A", 1_001)
    await database.project(log.records)

    assert await column(database, open_letters) == []
    assert await column(database, open_incidents) == []
    assert await column(database, "SELECT item_id FROM reads.items") == ["A"]


async def test_what_operators_see_of_quarantined_items(database: Database) -> None:
    log = poisoned()
    await database.project(log.records)

    [quarantined] = await quarantined_items(await database.connection())

    assert (quarantined["item_id"], quarantined["reader"], quarantined["first_offset"], quarantined["withheld"]) == (
        "A",
        "projections",
        2,
        2,
    )
    log.redrive("A")
    assert [row["first_offset"] for row in await quarantined_items(await database.connection())] == [2]


async def test_more_quarantines_than_a_sound_deploy_makes_stop_the_process(postgres: Postgres, template: str) -> None:
    log = Log()
    log.link("I0")
    for number in range(1, 5):
        log.append(f"I{number}", [], type=gate.LINK, keys=Log.stranger())

    async with fresh(postgres, "rate") as made:
        database = Database(made.dsn, dead_letters_max=2)
        try:
            await database.project(log.records[:3])
            with pytest.raises(Halt, match="3 Items quarantined within 600 s, at most 2"):
                await database.project(log.records[:4])

            assert [one[0] for one in await quarantines(database)] == ["I1", "I2"]
            assert await column(database, "SELECT position FROM reads.positions") == [3]
            assert await column(database, "SELECT source_offset FROM tartan.dead_letters") == [1, 2]
            stops = "SELECT subject FROM tartan.incidents WHERE kind = 'dead_letters' AND closed_at IS NULL"
            assert await column(database, stops) == ["projections"]

            connection = await database.connection()
            await connection.execute("UPDATE tartan.quarantines SET quarantined_at = quarantined_at - interval '601 s'")
            await database.project(log.records)
            assert [one[0] for one in await quarantines(database)] == ["I1", "I2", "I3", "I4"]
        finally:
            await database.session.close()


async def test_redrives_that_fail_again_stop_nothing(postgres: Postgres, template: str) -> None:
    log = Log()
    for number in range(2):
        log.append(f"I{number}", [], type=gate.LINK, keys=Log.stranger())
    for number in range(2):
        log.redrive(f"I{number}")
        log.redrive(f"I{number}")
    log.link("well")

    async with fresh(postgres, "in_vain") as made:
        database = Database(made.dsn, dead_letters_max=2)
        try:
            await database.project(log.records, [2, 4])

            assert await column(database, "SELECT item_id FROM reads.items") == ["well"]
            assert len(await quarantines(database)) == 6
            log.append("I3", [], type=gate.LINK, keys=Log.stranger())
            with pytest.raises(Halt, match="3 Items quarantined"):
                await database.project(log.records)
        finally:
            await database.session.close()


async def test_the_quarantines_of_a_rebuild_do_not_count(postgres: Postgres, template: str) -> None:
    log = Log()
    for number in range(4):
        log.append(f"I{number}", [], type=gate.LINK, keys=Log.stranger())

    async with fresh(postgres, "rebuilt") as made:
        database = Database(made.dsn, dead_letters_max=1)
        try:
            for number in range(4):
                await quarantine(database, f"I{number}", number)
            await database.project(log.records)
            assert await column(database, "SELECT position FROM reads.positions") == [4]
        finally:
            await database.session.close()


async def test_removals_that_wait_are_an_incident_until_a_person_decides(database: Database) -> None:
    log = Log()
    log.link("A")
    log.sync("A", *added(*(transaction(f"T{number}") for number in range(20))))
    log.restate("A", *history(permille=200))
    subject = log.heads["A"]
    waiting = "SELECT detail FROM tartan.incidents WHERE kind = 'removals_withheld' AND closed_at IS NULL"

    await database.project(log.records)
    [detail] = await column(database, waiting)
    assert detail == f"20 transactions of 20 are not in the restated history {subject.hex()}"
    [item] = await queries.items(await database.connection(), 1)
    assert (item["missing_rows"], item["missing_changeset_id"]) == (20, subject.hex())
    before = await digests.state_digest(await database.connection())

    log.decide("A", events.APPROVE_REMOVALS, subject)
    await database.project(log.records)

    assert await column(database, waiting) == []
    assert await digests.state_digest(await database.connection()) != before
    assert await digests.state_rows(await database.connection()) == ([], [])


async def test_marks_are_in_the_full_digest_and_not_in_the_state(postgres: Postgres, template: str) -> None:
    log, marked = Log(), Log()
    said = [transaction(f"T{number}") for number in range(700)]
    for one in (log, marked):
        one.link("A")
        one.sync("A", *added(*said))
    log.restate("A", *history(*said, permille=200))
    marked.restate("A", *history(permille=200))

    async with fresh(postgres, "plain") as plain, fresh(postgres, "marked") as waiting:
        await plain.project(log.records, [1, 2])
        await waiting.project(marked.records, [1, 2])  # 700 marks go by COPY

        connection = await waiting.connection()
        assert (
            await connection.fetchval("SELECT count(*) FROM reads.transactions WHERE missing_since_offset = 2") == 700
        )
        assert await digests.state_digest(connection) == await digests.state_digest(await plain.connection())
        assert await waiting.full() != await plain.full()

        marked.decide("A", events.REJECT_REMOVALS)
        await waiting.project(marked.records)
        assert (
            await connection.fetchval("SELECT count(*) FROM reads.transactions WHERE missing_since_offset IS NULL")
            == 700
        )


async def test_an_ordinary_batch_costs_no_statement_more(database: Database) -> None:
    log = Log()
    log.link("A")
    log.sync("A", *added(transaction("T")))
    await database.project(log.records)
    connection = await database.connection()
    asked: list[str] = []

    log.sync("A", *removed("T"))
    with connection.query_logger(lambda one: asked.append(one.query)):
        await database.project(log.records)

    assert len(asked) <= 5  # begin and lock, control, rows, write, commit
    assert not [query for query in asked if "incidents" in query or "dead_letters" in query or "withheld" in query]


async def test_what_was_redriven_does_not_hold_up_the_expiry(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "ROWS_MAX", 2)
    log = Log()
    for number in range(4):
        log.link(f"I{number}")
    log.redrive("I1")
    log.link("young")
    await quarantine(database, "I1", 1)
    await database.project(log.records)
    connection = await database.connection()
    await connection.execute("INSERT INTO tartan.published_checkpoints (partition, published) VALUES (0, 6)")
    await connection.execute("UPDATE projection.changesets SET known_at = now() WHERE source_offset IN (1, 5)")

    async with asyncpg.create_pool(database.dsn, min_size=0, max_size=1) as pool:
        await retention.Expiry(pool).run_once()

    kept = "SELECT source_offset FROM reads.changesets WHERE events IS NOT NULL"
    assert await column(database, kept) == [5]


async def test_two_projectors_redrive_once(postgres: Postgres, template: str) -> None:
    log = Log()
    log.link("A")
    log.sync("A", *added(transaction("T")))
    log.redrive("A")

    async with fresh(postgres, "raced") as one:
        other = Database(one.dsn)
        await quarantine(one, "A", 1)
        try:
            opened: Sequence[LogRecord] = [decode_record(record) for record in log.records]
            await asyncio.gather(one.projector.project(opened), other.projector.project(opened))
        finally:
            await other.session.close()
        assert await quarantines(one) == [("A", 1, 2)]
        assert await column(one, "SELECT net_events FROM reads.changesets ORDER BY source_offset") == [1, 0, 1]
