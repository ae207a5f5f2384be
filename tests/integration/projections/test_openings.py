"""Opening balances on a real Postgres: the same however they are written, effective before every date."""

import pytest

from projections.store.writer import ONE_STATEMENT_ROWS_MAX
from projections.verify import digests
from sandbox.infra.postgres import Postgres
from schemas.ids import opening_id
from tests.support.projections_database import fresh
from tests.support.projections_log import Log, account, added, balance, transaction

COMPLETE = "HISTORICAL_UPDATE_COMPLETE"


@pytest.mark.usefixtures("template_dsn")
async def test_an_opening_is_the_same_by_copy_and_by_arrays_and_before_every_date(postgres: Postgres) -> None:
    log = Log()
    log.link("old", 1, *balance(account("card", "300.07", type="credit")))
    many = [transaction(f"t{number}", "1.01", account_id="card") for number in range(ONE_STATEMENT_ROWS_MAX + 5)]
    log.sync("old", *added(*many), history_status=COMPLETE)
    log.link("new", 1, *balance(account("checking", "0.0000001")))
    log.sync("new", *added(transaction("x", "5", date="0001-01-01")), history_status=COMPLETE)

    async with fresh(postgres, "openings_whole") as whole, fresh(postgres, "openings_cut") as cut:
        await whole.project(log.records)
        await cut.project(log.records, range(len(log.records)))
        connection = await whole.connection()
        assert await digests.full_rows(connection) == await digests.full_rows(await cut.connection())
        own_ids = [opening_id(1, "old", "card"), opening_id(1, "new", "checking")]
        for one in (whole, cut):
            found = await (await one.connection()).fetch(_OPENINGS, own_ids)
            assert [tuple(row) for row in found] == [(5_0000001 * 10, 1, True), ((51005 - 30007) * 10**6, 1, True)]


_OPENINGS = """SELECT amount, number, effective = '-infinity' FROM projection.ledger_transfers
                WHERE own_id = ANY($1::bytea[]) ORDER BY amount"""
