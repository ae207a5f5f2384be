"""Statements of the ledger: balances at a date and as known at a time, turnover by month; by API and by command."""

import json
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest

from projections.read import ledger_reports
from projections.read.queries import to_json
from projections.verify import digests
from sandbox.infra.postgres import Postgres
from schemas.times import from_micros
from tests.support.command_line import tartan_process
from tests.support.gateway_world import Api, assert_shape, serving_api
from tests.support.projections_database import Database, fresh
from tests.support.projections_log import START_US, Log, account, added, balance, modified, removed, transaction

COMPLETE = "HISTORICAL_UPDATE_COMPLETE"
TIP_OWN = "SELECT own_id FROM reads.transactions WHERE transaction_id = 'posted'"


@pytest.fixture
async def api(database: str) -> AsyncIterator[Api]:
    """Behind the API: a tip, a refund, a salary, a purchase that was corrected into another month, one that went."""
    log = Log()
    log.link("A", 1, *balance(account(current="1000.5"), account("card", "12.34", type="credit")))
    log.sync(
        "A",
        *added(
            transaction("tip", "40", pending=True, date="2026-03-01"),
            transaction("moved", "10.01", date="2026-03-02"),
            transaction("refund", "-3", date="2026-03-03"),
            transaction("gone", "7", date="2026-03-03"),
            transaction("salary", "-2000", date="2026-03-05", category_primary="INCOME"),
            transaction("yen", "700", date="2026-04-01", account_id="card", iso_currency_code="JPY"),
        ),
        history_status=COMPLETE,
    )
    log.sync(
        "A",
        *removed("tip", "gone"),
        *added(transaction("posted", "48", pending_transaction_id="tip", date="2026-03-04")),
        *modified(transaction("moved", "11", date="2026-04-02", category_primary="TRAVEL")),
    )
    projected = Database(database)
    try:
        async with serving_api(database) as made:
            await made.pool.execute(
                "INSERT INTO tartan.users (user_number, tenant, user_id) VALUES (1, 'a', 'ada'), (2, 'a', 'eve')"
            )
            await made.pool.execute("INSERT INTO reads.positions (partition, position) VALUES (0, 0)")
            await projected.project(log.records)
            assert await digests.ledger_problems(await projected.connection()) == []
            yield made
    finally:
        await projected.session.close()


def at(number: int) -> str:
    """When the record with this number was known."""
    return str(to_json({"at": from_micros(START_US + (number + 1) * 1_000_000)})["at"])


async def balances(api: Api, **values: str) -> dict[tuple[str, str], tuple[str, str, str]]:
    query = "&".join(f"{name}={value}" for name, value in values.items())
    status, found = await api.ask("GET", f"/v1/users/ada/ledger/balances?{query}")
    assert status == 200
    for row in found["balances"]:
        assert_shape(row, "LedgerBalance")
    return {
        (row["reference"], row["currency"]): (row["class"], row["posted"], row["pending"]) for row in found["balances"]
    }


async def test_a_tip_is_three_transfers_and_counts_once(api: Api) -> None:
    rows = await api.pool.fetch(f"""SELECT number, layer, amount::text, reverses FROM reads.ledger_transfers
                                     WHERE own_id = ({TIP_OWN}) ORDER BY number""")

    assert [tuple(row) for row in rows] == [
        (1, "pending", "40.00000000", None),
        (2, "pending", "40.00000000", 1),
        (3, "posted", "48.00000000", None),
    ]
    assert (await balances(api))["FOOD_AND_DRINK", "USD"] == ("expense", "45", "0")  # 48 less the refund of 3


async def test_balances_are_what_the_bank_reported_and_what_came_since(api: Api) -> None:
    found = await balances(api)

    # LogRecord at 1000.5 with the first sync; since then 48 posted, 7 came back, and 10.01 became 11.
    assert found["checking", "USD"] == ("asset", "958.51", "0")
    assert found["card", "USD"] == ("liability", "-12.34", "0")
    assert found["card", "JPY"] == ("liability", "-700", "0")
    assert found["INCOME", "USD"] == ("income", "-2000", "0")
    assert found["opening", "USD"][0] == "equity"
    for wanted in ("USD", "JPY"):
        assert sum(Decimal(posted) for (_, currency), (_, posted, _) in found.items() if currency == wanted) == 0


async def test_balances_at_a_date_as_known_at_a_time(api: Api) -> None:
    then = await balances(api, known_at=at(1))
    assert then["checking", "USD"] == ("asset", "1000.5", "-40")
    assert then["FOOD_AND_DRINK", "USD"] == ("expense", "14.01", "40")

    early = await balances(api, at="2026-03-03")
    assert ("TRAVEL", "USD") not in early
    assert early["FOOD_AND_DRINK", "USD"] == ("expense", "-3", "0")
    before_all = await balances(api, at="1990-01-01")
    assert {name for name, _ in before_all} == {"checking", "card", "opening"}

    assert await balances(api, known_at="9999-01-01T00:00:00Z") == await balances(api)


async def test_turnover_by_month_counts_what_is_so_now(api: Api) -> None:
    status, found = await api.ask("GET", "/v1/users/ada/ledger/turnover")

    assert status == 200
    for row in found["turnover"]:
        assert_shape(row, "LedgerMonth")
    columns = ("month", "currency", "category", "class", "layer", "spent", "received", "net")
    assert [tuple(row[name] for name in columns) for row in found["turnover"]] == [
        ("2026-03", "USD", "FOOD_AND_DRINK", "expense", "posted", "48", "3", "45"),
        ("2026-03", "USD", "INCOME", "income", "posted", "0", "2000", "-2000"),
        ("2026-04", "JPY", "FOOD_AND_DRINK", "expense", "posted", "700", "0", "700"),
        ("2026-04", "USD", "TRAVEL", "expense", "posted", "11", "0", "11"),
    ]
    _, april = await api.ask("GET", "/v1/users/ada/ledger/turnover?from=2026-04-02&to=2026-04-02")
    assert [row["category"] for row in april["turnover"]] == ["TRAVEL"]


@pytest.mark.parametrize("what", ["balances", "turnover"])
async def test_a_users_ledger_is_their_tenants_alone(api: Api, what: str) -> None:
    assert (await api.ask("GET", f"/v1/users/ada/ledger/{what}", key="key-b"))[0] == 404
    assert (await api.ask("GET", f"/v1/users/nobody/ledger/{what}"))[0] == 404
    assert (await api.ask("GET", f"/v1/users/eve/ledger/{what}"))[1] == {what: []}
    assert (await api.ask("GET", f"/v1/users/ada/ledger/{what}?{'at' if what == 'balances' else 'from'}=soon"))[
        0
    ] == 400


@pytest.mark.usefixtures("template_dsn")
async def test_dates_without_end_are_no_error(postgres: Postgres) -> None:
    log = Log()
    log.link("B")
    log.sync("B", *added(transaction("old", date="0001-01-01"), transaction("late", date="9999-12-31")))

    async with fresh(postgres, "months_without_end") as database:
        await database.project(log.records)
        found = await ledger_reports.turnover(await database.connection(), 1)

    assert [row["month"] for row in found] == ["0001-01", "9999-12"]


def test_the_command_says_the_same(
    api: Api, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*options: str) -> tuple[object, Any]:
        ended = tartan_process(monkeypatch, capsys, "ledger", *options)
        return ended.code, ended.out

    monkeypatch.setenv("TARTAN_POSTGRES_DSN", api.settings.postgres_dsn.get_secret_value())

    code, out = run("ada", "--tenant", "a", "--json")
    assert code == 0
    shown = {row["reference"]: row["posted"] for row in json.loads(out)["balances"] if row["currency"] == "USD"}
    assert shown["checking"] == "958.51"
    _, out = run("ada", "--tenant", "a", "--turnover", "--from", "2026-04-01", "--json")
    assert [row["category"] for row in json.loads(out)["turnover"]] == ["FOOD_AND_DRINK", "TRAVEL"]
    _, out = run("ada", "--tenant", "a", "--at", "2026-03-03", "--known-at", "2100-01-01")
    assert "958.51" not in out
    assert run("eve", "--tenant", "a") == (0, "The ledger has no rows for this.\n")
    assert run("ada", "--tenant", "b", "--json")[0] == 1
    assert run("ada", "--tenant", "a", "--turnover", "--at", "2026-03-03")[0] == 2
