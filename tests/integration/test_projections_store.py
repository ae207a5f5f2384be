"""The projector on a real Postgres: the same log gives the same database, however it is cut, retried or raced."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence

import asyncpg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from projections import admission, digests, known, net_events, project, rows, store
from projections.admission import Opened, Owners
from projections.migrate import migrate
from projections.project import Projector
from projections.publish import Committed
from projections.session import Session
from projections.state import ItemRow, WorkingSet
from projections.store import ONE_STATEMENT_ROWS_MAX
from runtime.settings import Settings
from sandbox.postgres import Postgres
from schemas.errors import Halt
from schemas.records import Transaction
from tests.conftest import finish
from tests.projections_bank import BankHistory, Step, histories
from tests.projections_log import Log, account, added, balance, keys_of, modified, removed, transaction

TEMPLATE = "template_of_projections"


class Publisher:
    """Takes what is handed over and publishes nothing."""

    def __init__(self) -> None:
        self.committed: list[Committed] = []

    def floors(self) -> dict[int, int]:
        return {}

    def stored(self, floors: object) -> None:
        pass

    def hand(self, committed: Committed) -> None:
        self.committed.append(committed)

    async def room(self) -> None:
        pass


class Ownership:
    """Every user has a key and a name, save those above 1,000 (no key) and 500 (a destroyed one)."""

    async def of(self, _: object, users: Sequence[int]) -> Owners:
        known_users = [user for user in users if user < 1_000]
        return Owners(
            {user: keys_of(user) if user < 500 else None for user in known_users},
            {user: ("t", f"u{user}") for user in known_users},
        )


class Database:
    """A migrated database and a projector on it."""

    def __init__(self, dsn: str) -> None:
        self.session = Session(Settings(postgres_dsn=dsn))  # type: ignore[arg-type]
        self.publisher = Publisher()
        self.projector = Projector(self.session, self.publisher, Ownership())  # type: ignore[arg-type]
        self.dsn = dsn

    async def project(self, records: Sequence[object], cuts: Sequence[int] = ()) -> None:
        opened = [admission.opened(record) for record in records]  # type: ignore[arg-type]
        for batch in cut(opened, cuts):
            await self.projector.project(batch)

    async def connection(self) -> asyncpg.Connection:
        return await self.session.connection()

    async def full(self) -> str:
        return await digests.full_digest(await self.connection())


def cut(opened: Sequence[Opened], cuts: Sequence[int]) -> Iterator[Sequence[Opened]]:
    begin = 0
    for end in [*sorted({at % (len(opened) + 1) for at in cuts}), len(opened)]:
        if end > begin:
            yield opened[begin:end]
            begin = end


@pytest.fixture(scope="module")
def template(postgres: Postgres) -> str:
    dsn = finish(postgres.create_database(TEMPLATE))
    migrate(dsn)
    return TEMPLATE


@contextlib.asynccontextmanager
async def fresh(postgres: Postgres, name: str) -> AsyncIterator[Database]:
    dsn = await postgres.create_database(name, template=TEMPLATE)
    database = Database(dsn)
    await store.ensure_positions(await database.connection(), 1)
    try:
        yield database
    finally:
        await database.session.close()
        await postgres.drop_database(name)


@pytest.fixture
async def database(postgres: Postgres, template: str) -> AsyncIterator[Database]:
    async with fresh(postgres, "projections") as made:
        yield made


@given(steps=histories, cuts=st.lists(st.integers(0, 100), max_size=6))
@settings(
    max_examples=25, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
def test_any_cut_gives_the_same_database(
    postgres: Postgres, template: str, steps: list[Step], cuts: list[int]
) -> None:  # fmt: skip
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
    odd = {"name": 'tab\t "quote" \\N \n é 漢 😀', "datetime": "2026-03-01T00:00:00Z", "authorized_date": "2024-02-29",
           "merchant_name": "", "logo_url": "x" * 9_000, "iso_currency_code": None,
           "unofficial_currency_code": "DOGE"}  # fmt: skip
    amounts = ["0", "-0.0000001", "9999", "10000", "100000000.5", "92233720368", "-12.34", "1000000"]
    count = ONE_STATEMENT_ROWS_MAX + 20

    def said(variant: int) -> list[Transaction]:
        return [
            transaction(
                f"T{number}", amounts[(number + variant) % len(amounts)], pending=number % 3 == variant % 3,
                **(odd if number % 5 == 0 else {}),
            )
            for number in range(count)
        ]  # fmt: skip

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
        store.ONE_STATEMENT_ROWS_MAX = 10**6  # type: ignore[misc]
        try:
            await arrays.project(log.records, [1, 2, 3])
        finally:
            store.ONE_STATEMENT_ROWS_MAX = ONE_STATEMENT_ROWS_MAX  # type: ignore[misc]
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
    assert database.publisher.committed[-1].outbound == []


async def test_a_gap_is_halt(database: Database) -> None:
    log = Log()
    log.link("A")
    log.sync("A")

    with pytest.raises(Halt, match="a gap"):
        await database.project(log.records[1:])


async def test_one_refused_record_among_many_parks_its_item_alone(database: Database) -> None:
    log = Log()
    for number in range(40):
        log.link(f"I{number}")
    for number in range(40):
        log.sync(f"I{number}", *added(transaction(f"T{number}", name="a\x00b" if number in (7, 31) else "fine")))

    await database.project(log.records)

    connection = await database.connection()
    parked = await connection.fetch("SELECT item_id, first_offset FROM tartan.parkings ORDER BY first_offset")
    assert [tuple(row) for row in parked] == [("I7", 47), ("I31", 71)]
    assert await connection.fetchval("SELECT count(*) FROM reads.transactions") == 38
    assert (await known.positions(connection, [0]))[0].next == 80


async def test_whatever_the_fold_of_one_record_raises_parks_its_item(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    log = Log()
    for number in range(5):
        log.link(f"I{number}")
    fold = project.fold

    def failing(working: WorkingSet, item: ItemRow | None, *rest: object) -> object:
        if item is not None and item.item_id in ("I1", "I3"):
            raise ZeroDivisionError("with what the bank said in it")
        return fold(working, item, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(project, "fold", failing)
    await database.project(log.records)

    connection = await database.connection()
    parked = await connection.fetch("SELECT item_id, reason FROM tartan.parkings ORDER BY item_id")
    assert [tuple(row) for row in parked] == [
        ("I1", "Quarantine: ZeroDivisionError"), ("I3", "Quarantine: ZeroDivisionError"),
    ]  # fmt: skip
    assert await connection.fetchval("SELECT count(*) FROM reads.items") == 3


async def test_an_error_that_no_record_causes_escapes(database: Database) -> None:
    log = Log()
    log.link("A")
    log.link("B")
    await (await database.connection()).execute("ALTER TABLE projection_1.positions RENAME TO elsewhere")

    with pytest.raises(asyncpg.UndefinedTableError):
        await database.project(log.records)


async def test_a_parked_item_stays_parked_in_a_replay(postgres: Postgres, template: str) -> None:
    log = Log()
    log.link("A")
    log.sync("A", *added(transaction("T")))
    log.sync("A", *added(transaction("U")))

    async with fresh(postgres, "replayed") as replayed:
        connection = await replayed.connection()
        await connection.execute(
            "INSERT INTO tartan.parkings (item_id, first_offset, partition, reason, reader)"
            " VALUES ('A', 2, 0, 'an older code could not', 'projections')"
        )
        await replayed.project(log.records)

        assert await connection.fetchval("SELECT array_agg(transaction_id) FROM reads.transactions") == ["T"]
        assert await connection.fetchval("SELECT array_agg(source_offset) FROM projection_1.withheld") == [2]


async def test_a_user_without_a_key_parks_and_many_are_halt(database: Database) -> None:
    log = Log()
    log.link("lost", 1_001)
    log.link("well", 1)
    await database.project(log.records)

    connection = await database.connection()
    assert await connection.fetchval("SELECT item_id FROM tartan.parkings") == "lost"
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
            opened = [admission.opened(record) for record in log.records]
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
    handed = database.publisher.committed[0].outbound
    assert [net_events.decoded(rows.decompressed(row["events"])) for row in stored] == [
        one.net_events for one in handed
    ]
