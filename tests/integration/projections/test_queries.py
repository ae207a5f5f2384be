"""What readers get to see: pages, filters, snapshots."""

import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from projections.read import queries
from projections.read.queries import TransactionFilter, decimal_text
from sandbox.infra.postgres import Postgres
from schemas import money
from tests.integration.projections.test_store import Database, fresh, template  # noqa: F401
from tests.support.projections_log import Log, account, added, balance, modified, removed, transaction
from tests.support.projections_reads import transfers


def story() -> Log:
    log = Log()
    log.link("A", 1, *balance(account(current="100.10"), account("card", "-3", limit="500")))
    log.link("B", 1)
    log.link("C", 2)
    said = [
        transaction(
            f"T{number}",
            f"{number}.5",
            date=f"2026-03-{1 + number // 4:02d}",
            account_id=("checking", "card")[number % 2],
            pending=number % 5 == 0,
        )
        for number in range(30)
    ]
    log.sync("A", *added(*said))
    log.sync("B", *added(transaction("only", date="2026-01-01")))
    log.sync("C", *added(transaction("other")), user=2)
    log.sync("A", *removed("T1"), *modified(transaction("T2", "-0.07", date="2026-03-01")))
    return log


async def every(database: Database, which: TransactionFilter, limit: int) -> list[str]:
    connection = await database.connection()
    found: list[str] = []
    after = None
    while True:
        page = await queries.transactions(connection, 1, which, limit=limit, after=after)
        assert len(page.rows) <= limit
        found += [row["transaction_id"] for row in page.rows]
        if page.next is None:
            return found
        after = page.next


@pytest.mark.parametrize("limit", [1, 3, 30, 500])
async def test_pages_give_each_transaction_once_newest_first(postgres: Postgres, template: str, limit: int) -> None:
    async with fresh(postgres, f"paged{limit}") as database:
        await database.project(story().records)

        found = await every(database, TransactionFilter(), limit)

        assert len(found) == len(set(found)) == 30
        dates = ["2026-01-01" if name == "only" else f"2026-03-{1 + int(name[1:]) // 4:02d}" for name in found]
        assert dates == sorted(dates, reverse=True)
        assert "T1" not in found


async def test_filters_choose(postgres: Postgres, template: str) -> None:
    async with fresh(postgres, "filtered") as database:
        await database.project(story().records)
        since, until = datetime.date(2026, 3, 2), datetime.date(2026, 3, 3)

        assert set(await every(database, TransactionFilter(item_id="B"), 10)) == {"only"}
        assert set(await every(database, TransactionFilter(removed=True), 10)) == {"T1"}
        assert len(await every(database, TransactionFilter(removed=None), 10)) == 31
        assert set(await every(database, TransactionFilter(since=since, until=until), 10)) == {
            f"T{n}" for n in range(4, 12)
        }
        pending = await every(database, TransactionFilter(pending=True, account_id="checking"), 10)
        assert set(pending) == {"T0", "T10", "T20"}


async def test_a_snapshot_shows_one_users_world_and_where_it_was_read(postgres: Postgres, template: str) -> None:
    async with fresh(postgres, "shown") as database:
        log = story()
        await database.project(log.records)

        shown = await queries.snapshot(await database.connection(), 1, 0, limit=5)

        assert (shown.position, len(shown.items), len(shown.transactions.rows)) == (len(log.records), 2, 5)
        assert {(row["account_id"], row["current"], row["limit"]) for row in shown.accounts} == {
            ("checking", "100.10", None),
            ("card", "-3", "500"),
        }
        assert shown.known_at == "2025-10-09T08:53:27.000000Z"


async def test_a_transaction_with_its_transfers_and_an_items_history(postgres: Postgres, template: str) -> None:
    async with fresh(postgres, "told") as database:
        log = story()
        await database.project(log.records)
        connection = await database.connection()
        page = await queries.transactions(connection, 1, TransactionFilter(since=datetime.date(2026, 3, 1)), limit=500)
        [row] = [row for row in page.rows if row["transaction_id"] == "T2"]

        assert (row["amount"], row["version"]) == ("-0.07", 2)
        assert await queries.transaction(connection, 1, bytes.fromhex(row["id"])) == row
        assert await queries.transaction(connection, 2, bytes.fromhex(row["id"])) is None
        moved = await transfers(connection, 1, bytes.fromhex(row["id"]))
        assert [(one["number"], one["amount"], one["reverses"]) for one in moved] == [
            (1, "2.5", None),
            (2, "2.5", 1),
            (3, "0.07", None),
        ]
        history = await queries.changesets(connection, 1, "A")
        assert [(one["type"], one["net_events"]) for one in history] == [("sync", 2), ("sync", 30), ("link", 3)]
        applied = await queries.applied(connection, "A")
        assert applied is not None
        assert (applied.head, applied.head_offset) == (log.heads["A"].hex(), 6)
        assert await queries.is_applied(connection, log.heads["A"])
        assert await queries.position(connection, 0) == 7
        assert {one["currency"] for one in await queries.ledger_balances(connection, 1)} == {"USD"}


async def test_ledger_amounts_are_exact_to_the_eighteenth_decimal(postgres: Postgres, template: str) -> None:
    async with fresh(postgres, "exact") as database:
        log = Log()
        log.link("A", 1)
        coins = ("9.000000000000000001", "8.999999999999999999", "-7.123456789012345678")
        said = [
            transaction(f"T{number}", amount, iso_currency_code=None, unofficial_currency_code="ETH")
            for number, amount in enumerate(coins)
        ]
        log.sync("A", *added(*said))

        await database.project(log.records)

        connection = await database.connection()
        page = await queries.transactions(connection, 1)
        assert {row["amount"] for row in page.rows} == set(coins)
        amounts = await connection.fetch("SELECT amount::text FROM reads.transactions ORDER BY transaction_id")
        assert [row["amount"] for row in amounts] == list(coins)
        for row in page.rows:
            [moved] = await transfers(connection, 1, bytes.fromhex(row["id"]))
            assert moved["amount"] == row["amount"].removeprefix("-")
        [bank, category] = await queries.ledger_balances(connection, 1)
        assert (bank["balance"], category["balance"]) == ("-10.876543210987654322", "10.876543210987654322")


@given(st.integers(-money.BIGINT_MAX, money.BIGINT_MAX), st.integers(0, 18))
def test_value_and_scale_give_the_text_again(value: int, scale: int) -> None:
    text = decimal_text(value, scale)

    assert text is not None
    assert money.parse_decimal(text) == money.ScaledAmount(value, scale)
