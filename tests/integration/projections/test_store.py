"""The projector on a real Postgres: the same log gives the same database, however it is cut, retried or raced."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import asyncpg
import pytest
from asyncpg.exceptions import InternalClientError
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from projections import projector
from projections.decode.log_record import decode_record
from projections.events import public_events
from projections.gate import check
from projections.gate.check import AcceptedRecord
from projections.model.unit_of_work import ItemRow, UnitOfWork
from projections.publish import retention
from projections.publish.retention import Expiry
from projections.store import gate_state, rows, writer
from projections.store.writer import ONE_STATEMENT_ROWS_MAX
from projections.verify import digests
from runtime.kafka.reader import Received
from sandbox.infra.postgres import Postgres
from schemas.errors import Halt
from schemas.log.records import Transaction
from tests.conftest import TEMPLATE, finish
from tests.support.projections_bank import BankHistory, Step, histories
from tests.support.projections_database import Database, fresh
from tests.support.projections_log import Log, account, added, balance, modified, removed, transaction


@pytest.fixture(scope="session")
def template(template_dsn: str) -> str:
    """The database that has every table; a session has one, however many modules use this fixture."""
    assert template_dsn
    return TEMPLATE


@pytest.fixture
async def database(postgres: Postgres, template: str) -> AsyncIterator[Database]:
    async with fresh(postgres, "projections") as made:
        yield made


@given(steps=histories, cuts=st.lists(st.integers(0, 100), max_size=6))
@settings(
    max_examples=25,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_any_cut_gives_the_same_database(postgres: Postgres, template: str, steps: list[Step], cuts: list[int]) -> None:
    finish(_same(postgres, BankHistory(steps), cuts))


async def _same(postgres: Postgres, history: BankHistory, cuts: list[int]) -> None:
    records = history.log.records
    async with fresh(postgres, "whole") as whole, fresh(postgres, "cut") as cut_up:
        await whole.project(records)
        await cut_up.project(records, cuts or range(len(records)))

        connection = await whole.connection()
        assert await digests.full_rows(connection) == await digests.full_rows(await cut_up.connection())
        assert await digests.ledger_problems(connection) == []
        transactions, _ = await digests.state_rows(connection)
        assert {(row[0], row[1], row[3], row[5], row[6]) for row in transactions} == {
            (item, name, one.amount, one.date, one.pending)
            for item, truth in history.truth.items()
            for name, one in truth.live.items()
        }


async def test_many_rows_by_copy_are_the_rows_that_few_write_by_arrays(postgres: Postgres, template: str) -> None:
    odd = {
        "name": 'tab\t "quote" \\N \n é 漢 😀',
        "datetime": "2026-03-01T00:00:00Z",
        "authorized_date": "2024-02-29",
        "merchant_name": "",
        "logo_url": "x" * 9_000,
        "iso_currency_code": None,
        "unofficial_currency_code": "DOGE",
    }
    amounts = ["0", "-0.0000001", "9999", "10000", "100000000.5", "92233720368", "-12.34", "1000000"]
    count = ONE_STATEMENT_ROWS_MAX + 20

    def said(variant: int) -> list[Transaction]:
        return [
            transaction(
                f"T{number}",
                amounts[(number + variant) % len(amounts)],
                pending=number % 3 == variant % 3,
                **(odd if number % 5 == 0 else {}),
            )
            for number in range(count)
        ]

    log = Log()
    log.link("A")
    log.sync("A", *added(*said(0)))
    log.sync("A", *modified(*said(1)))
    log.sync("A", *removed(*(f"T{number}" for number in range(count))))
    few = Log()
    few.link("A")
    few.sync("A", *added(*said(0)))

    async with fresh(postgres, "copied") as copied, fresh(postgres, "arrays") as arrays:
        await copied.project(log.records, [1, 2, 3])
        writer.ONE_STATEMENT_ROWS_MAX = 10**6  # type: ignore[misc]
        try:
            await arrays.project(log.records, [1, 2, 3])
        finally:
            writer.ONE_STATEMENT_ROWS_MAX = ONE_STATEMENT_ROWS_MAX  # type: ignore[misc]
        assert await digests.full_rows(await copied.connection()) == await digests.full_rows(await arrays.connection())
        assert await digests.ledger_problems(await copied.connection()) == []


async def test_records_below_the_position_are_passed_over(database: Database) -> None:
    log = Log()
    log.link("A")
    log.sync("A", *added(transaction("T")))
    await database.project(log.records)
    before = await database.full()

    await database.project(log.records)

    assert await database.full() == before
    assert database.publisher.committed[-1].spans == {0: (2, 2)}
    assert database.publisher.committed[-1].changesets == []


async def test_a_gap_is_halt(database: Database) -> None:
    log = Log()
    log.link("A")
    log.sync("A")

    with pytest.raises(Halt, match="a gap"):
        await database.project(log.records[1:])


async def test_one_refused_record_among_many_quarantines_its_item_alone(database: Database) -> None:
    log = Log()
    for number in range(40):
        log.link(f"I{number}")
    for number in range(40):
        log.sync(f"I{number}", *added(transaction(f"T{number}", name="a\x00b" if number in (7, 31) else "fine")))

    await database.project(log.records)

    connection = await database.connection()
    quarantined = await connection.fetch("SELECT item_id, first_offset FROM tartan.quarantines ORDER BY first_offset")
    assert [tuple(row) for row in quarantined] == [("I7", 47), ("I31", 71)]
    assert await connection.fetchval("SELECT count(*) FROM reads.transactions") == 38
    assert (await gate_state.read_positions(connection, [0]))[0].next == 80


async def test_whatever_the_fold_of_one_record_raises_quarantines_its_item(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log()
    for number in range(5):
        log.link(f"I{number}")
    fold = projector.fold

    def failing(work: UnitOfWork, record: AcceptedRecord) -> object:
        if record.item is not None and record.item.item_id in ("I1", "I3"):
            raise ZeroDivisionError("with what the bank said in it")
        return fold(work, record)

    monkeypatch.setattr(projector, "fold", failing)
    await database.project(log.records)

    connection = await database.connection()
    quarantined = await connection.fetch("SELECT item_id, reason FROM tartan.quarantines ORDER BY item_id")
    assert [tuple(row) for row in quarantined] == [("I1", "ZeroDivisionError"), ("I3", "ZeroDivisionError")]
    assert await connection.fetchval("SELECT count(*) FROM reads.items") == 3


async def test_an_error_that_no_record_causes_escapes(database: Database) -> None:
    log = Log()
    log.link("A")
    log.link("B")
    await database.alter("ALTER TABLE projection.positions RENAME TO elsewhere")

    with pytest.raises(gate_state.VersionMismatch, match="gone"):
        await database.project(log.records)


async def test_a_schema_that_lacks_a_column_quarantines_nobody(database: Database) -> None:
    log = Log()
    log.link("A")
    await database.project(log.records)
    log.sync("A", *added(transaction("T")))
    connection = await database.connection()
    await database.alter("ALTER TABLE projection.transactions RENAME COLUMN logo_url TO elsewhere")

    with pytest.raises(asyncpg.UndefinedColumnError):
        await database.project(log.records[1:])

    assert await connection.fetchval("SELECT count(*) FROM tartan.quarantines") == 0
    assert (await gate_state.read_positions(connection, [0]))[0].next == 1


@pytest.mark.parametrize(
    "error", [MemoryError(), InternalClientError("x"), asyncpg.InsufficientPrivilegeError("x"), KeyError("x")]
)
async def test_an_error_that_is_none_of_data_quarantines_nobody(
    database: Database, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    log = Log()
    log.link("A")
    write = writer.write

    async def failing(connection: asyncpg.Connection, working: UnitOfWork, *rest: object, **more: object) -> None:
        if working.folded:
            raise error
        await write(connection, working, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(writer, "write", failing)
    with pytest.raises(type(error)):
        await database.project(log.records)

    assert await (await database.connection()).fetchval("SELECT count(*) FROM tartan.quarantines") == 0


@pytest.mark.parametrize("refused_by", ["encoding", "asyncpg"])
async def test_a_row_that_cannot_be_encoded_quarantines_its_item(
    database: Database, monkeypatch: pytest.MonkeyPatch, refused_by: str
) -> None:
    log = Log()
    log.link("A")
    log.link("B")
    values = rows.item_values

    def oversized(item: ItemRow) -> tuple[object, ...]:
        item_id, user, *others = values(item)
        if item_id == "A" and refused_by == "encoding":
            raise OverflowError("with what the bank said in it")
        return (item_id, "what the bank said" if item_id == "A" else user, *others)

    monkeypatch.setattr(rows, "item_values", oversized)
    await database.project(log.records)

    connection = await database.connection()
    quarantined = await connection.fetch("SELECT item_id, reason FROM tartan.quarantines")
    assert [row["item_id"] for row in quarantined] == ["A"]
    assert "bank" not in quarantined[0]["reason"]
    assert await connection.fetchval("SELECT array_agg(item_id) FROM reads.items") == ["B"]


async def run(database: Database, records: Sequence[Received]) -> None:
    await asyncio.wait_for(database.projector.project_with_retry([decode_record(record) for record in records]), 60.0)


@pytest.mark.parametrize("table", ["items", "accounts", "transactions"])
async def test_a_column_more_than_this_code_knows_stops_nothing(database: Database, table: str) -> None:
    log = Log()
    log.link("A", 1, *balance(account()))
    log.sync("A", *added(transaction("T")))
    await database.project(log.records)
    await database.alter(f"ALTER TABLE projection.{table} ADD COLUMN later text DEFAULT ''")

    log.sync("A", *modified(transaction("T", "11")), *balance(account(current="1")))
    await run(database, log.records[2:])

    connection = await database.connection()
    assert await connection.fetchval("SELECT count(*) FROM tartan.quarantines") == 0
    assert (await gate_state.read_positions(connection, [0]))[0].next == 3


async def test_control_names_its_columns(database: Database) -> None:
    log = Log()
    log.link("A")
    await database.project(log.records)
    connection = await database.connection()
    await database.alter("ALTER TABLE projection.items ADD COLUMN later text")

    log.sync("A")
    await database.project(log.records[1:])

    assert await database.connection() is connection


@pytest.mark.parametrize("transaction_timeout_s", [0.5, 60.0])
async def test_a_batch_that_takes_too_long_is_halved(
    postgres: Postgres, template: str, transaction_timeout_s: float
) -> None:
    log = Log()
    for number in range(12):
        log.link(f"I{number}")

    async with fresh(postgres, "slow") as made:
        await made.alter(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN PERFORM pg_sleep(0.1); RETURN new; END';"
            "CREATE TRIGGER slow BEFORE INSERT ON projection.changesets FOR EACH ROW EXECUTE FUNCTION slow()"
        )
        hasty = Database(
            made.dsn, lock_timeout_s=0.5, statement_timeout_s=0.5, transaction_timeout_s=transaction_timeout_s
        )
        try:
            await run(hasty, log.records)
        finally:
            await hasty.session.close()

        connection = await made.connection()
        assert await connection.fetchval("SELECT count(*) FROM reads.items") == 12
        assert await connection.fetchval("SELECT count(*) FROM tartan.quarantines") == 0


async def test_what_a_library_says_of_a_record_is_not_kept(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log()
    log.link("A")

    def failing(*_: object) -> object:
        raise ValueError("could not read 'Jane Doe, 12.34'")

    monkeypatch.setattr(check.decoding, "decode", failing)
    await database.project(log.records)

    assert await (await database.connection()).fetchval("SELECT reason FROM tartan.quarantines") == "ValueError"


async def test_events_are_forgotten_below_the_checkpoint_when_no_topic_has_them(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log()
    log.link("A")
    for number in range(9):
        log.sync("A", *added(transaction(f"T{number}")))
    await database.project(log.records)
    connection = await database.connection()
    await connection.execute("UPDATE projection.changesets SET known_at = now() WHERE source_offset >= 8")
    monkeypatch.setattr(retention, "ROWS_MAX", 3)

    async def kept() -> list[int]:
        return list(
            await connection.fetchval(
                "SELECT array_agg(source_offset ORDER BY source_offset) FROM reads.changesets WHERE events IS NOT NULL"
            )
        )

    async with asyncpg.create_pool(database.dsn, min_size=0, max_size=1) as pool:
        purge = Expiry(pool)
        await purge.run_once()
        assert await kept() == list(range(10))  # nothing was published yet

        await connection.execute("INSERT INTO tartan.published_checkpoints (partition, published) VALUES (0, 5)")
        await purge.run_once()
        assert await kept() == [5, 6, 7, 8, 9]

        await connection.execute("UPDATE tartan.published_checkpoints SET published = 10")
        await purge.run_once()
        await Expiry(pool).run_once()
        assert await kept() == [8, 9]

        await connection.execute(
            "UPDATE projection.changesets SET known_at = now() - interval '29 days 23 hours' WHERE source_offset = 8"
        )
        await purge.run_once()
        assert await kept() == [8, 9]

        await connection.execute(
            "UPDATE projection.changesets SET known_at = known_at - interval '1 hour' WHERE source_offset = 8"
        )
        expected = await database.full()
        await purge.run_once()
        assert await kept() == [9]
        assert await database.full() == expected

        await connection.execute(
            "UPDATE projection.changesets SET events = 'x' WHERE source_offset < 2;"
            " UPDATE projection.version SET number = number + 1"
        )
        await purge.run_once()
        assert await kept() == [9]  # of the version that has been swapped in


async def test_a_quarantined_item_stays_quarantined_in_a_replay(postgres: Postgres, template: str) -> None:
    log = Log()
    log.link("A")
    log.sync("A", *added(transaction("T")))
    log.sync("A", *added(transaction("U")))

    async with fresh(postgres, "replayed") as replayed:
        connection = await replayed.connection()
        await connection.execute(
            "INSERT INTO tartan.quarantines (item_id, first_offset, partition, reason, reader)"
            " VALUES ('A', 2, 0, 'an older code could not', 'projections')"
        )
        await replayed.project(log.records)

        assert await connection.fetchval("SELECT array_agg(transaction_id) FROM reads.transactions") == ["T"]
        assert await connection.fetchval("SELECT array_agg(source_offset) FROM projection.withheld") == [2]


async def test_a_user_without_a_key_quarantines_and_many_are_halt(database: Database) -> None:
    log = Log()
    log.link("lost", 1_001)
    log.link("well", 1)
    await database.project(log.records)

    connection = await database.connection()
    assert await connection.fetchval("SELECT item_id FROM tartan.quarantines") == "lost"
    assert await connection.fetchval("SELECT item_id FROM reads.items") == "well"
    for user in range(1_100, 1_130):
        log.link(f"i{user}", user)
    with pytest.raises(Halt, match="no key"):
        await database.project(log.records)


async def test_a_destroyed_key_is_accepted_with_no_events(database: Database) -> None:
    log = Log()
    log.link("A", 600)
    log.sync("A", *added(transaction("T")), user=600)

    await database.project(log.records)

    connection = await database.connection()
    rows_of = await connection.fetch("SELECT net_events FROM reads.changesets ORDER BY source_offset")
    assert [row["net_events"] for row in rows_of] == [0, 0]
    assert (await connection.fetchrow("SELECT head FROM reads.items"))["head"] == log.heads["A"]


async def test_two_projectors_on_one_partition_write_each_record_once(postgres: Postgres, template: str) -> None:
    log = Log()
    log.link("A")
    for number in range(30):
        log.sync("A", *added(transaction(f"T{number}")), *balance(account(current=str(number))))

    async with fresh(postgres, "raced") as one, fresh(postgres, "alone") as alone:
        other = Database(one.dsn)
        try:
            opened = [decode_record(record) for record in log.records]
            for number in range(len(opened)):  # each has all records that the other may have written meanwhile
                batch = opened[: number + 1]
                await asyncio.gather(one.projector.project(batch), other.projector.project(batch))
        finally:
            await other.session.close()
        await alone.project(log.records)
        assert await one.full() == await alone.full()


async def test_a_connection_that_is_lost_is_replaced(database: Database) -> None:
    log = Log()
    log.link("A")
    await database.project(log.records)
    (await database.connection()).terminate()

    log.sync("A", *added(transaction("T")))
    await database.project(log.records)

    assert await (await database.connection()).fetchval("SELECT count(*) FROM reads.transactions") == 1


async def test_the_block_of_events_is_kept_as_it_was_published(database: Database) -> None:
    log = Log()
    log.link("A")
    log.sync("A", *added(transaction("T"), transaction("U")))
    await database.project(log.records)

    stored = await (await database.connection()).fetch(
        "SELECT events, net_events FROM reads.changesets ORDER BY source_offset"
    )
    handed = database.publisher.committed[0].changesets
    assert [public_events.decode_block(rows.decompress(row["events"])) for row in stored] == [
        one.net_events for one in handed
    ]
