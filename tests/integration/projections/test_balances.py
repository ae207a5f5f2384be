"""Balances on a real Postgres: any cut gives the same tables, and what readers are given of them."""

import random

import pytest

from projections.read import queries
from projections.store.tables import SCHEMA
from projections.verify import digests
from sandbox.infra.postgres import Postgres
from schemas.log import gate
from tests.conftest import TEMPLATE
from tests.support.projections_database import Database, fresh
from tests.support.projections_log import Log, account, balance

BANK_TIMES = ("2026-03-01T08:00:00Z", "2026-03-02T08:00:00Z", None)
REPORTS = 30


@pytest.fixture(scope="session")
def template(template_dsn: str) -> str:
    assert template_dsn
    return TEMPLATE


def reported(log: Log, rng: random.Random) -> None:
    """Reports of two accounts of two Items, cached and real-time ones, as they come."""
    for item in ("A", "B"):
        log.link(item, 1, *balance(account(f"{item}1", "1")))
    for _ in range(REPORTS):
        item = rng.choice("AB")
        said = [
            account(f"{item}{number}", str(rng.randint(1, 3)), last_updated_datetime=rng.choice(BANK_TIMES))
            for number in rng.sample((1, 2), rng.randint(1, 2))
        ]
        if rng.random() < 0.5:
            log.free(item, balance(*said, realtime=True), type=gate.BALANCE)
        else:
            log.sync(item, *balance(*said))


@pytest.mark.parametrize("seed", range(3))
async def test_any_cut_gives_the_same_balances(postgres: Postgres, template: str, seed: int) -> None:
    log, rng = Log(), random.Random(seed)
    reported(log, rng)

    async with fresh(postgres, "whole") as whole, fresh(postgres, "singly") as singly, fresh(postgres, "cut") as cut:
        await whole.project(log.records)
        await singly.project(log.records, range(len(log.records)))
        await cut.project(log.records, sorted(rng.sample(range(len(log.records)), 5)))

        rows = await digests.full_rows(await whole.connection())
        assert await digests.full_rows(await singly.connection()) == rows
        assert await digests.full_rows(await cut.connection()) == rows
    counted = sum(len(found) for name, found in rows.items() if name == "account_versions")
    assert 4 <= counted < REPORTS * 2


async def test_readers_see_the_banks_newest_time_and_what_an_account_goes_on_from(
    postgres: Postgres, template: str
) -> None:
    log = Log()
    log.link("A", 1, *balance(account("A1", "5", last_updated_datetime=BANK_TIMES[0])))
    log.sync("A", *balance(account("A1", "5", last_updated_datetime=BANK_TIMES[1])))
    log.link("B", 1, *balance(account("B1", "7")))

    async with fresh(postgres, "read") as database:
        await database.project(log.records)
        await continued(database)
        connection = await database.connection()
        older, younger = await queries.accounts(connection, 1)
        newest = await queries.newest(connection, 1), await queries.newest(connection, 2)

    assert (older["current"], older["version"], older["last_updated_datetime"]) == ("5", 1, BANK_TIMES[1])
    assert (older["continues"], older["continued_by"]) == (None, {"item_id": "B", "account_id": "B1"})
    assert (younger["continues"], younger["last_updated_datetime"]) == ({"item_id": "A", "account_id": "A1"}, None)
    assert newest[0] is not None
    assert (newest[0].offset, newest[1]) == (2, None)


async def continued(database: Database) -> None:
    """Let one account go on from the other."""
    await database.alter(f"""
        UPDATE {SCHEMA}.accounts SET continued_by_item = 'B', continued_by_account = 'B1' WHERE item_id = 'A';
        UPDATE {SCHEMA}.accounts SET continues_item = 'A', continues_account = 'A1' WHERE item_id = 'B'""")
