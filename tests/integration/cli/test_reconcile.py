"""`tartan reconcile`: one object an account, the sums last, and an exit code for what nothing explains."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest
from click.testing import Result

from sandbox.infra.postgres import Postgres
from tests.support.command_line import tartan
from tests.support.projections_database import Database, fresh
from tests.support.projections_log import Log, added
from tests.support.reconciliation_bank import Story


@pytest.fixture
async def database(postgres: Postgres, template_dsn: str) -> AsyncIterator[Database]:
    async with fresh(postgres, f"cli_reconcile_{uuid.uuid4().hex[:12]}") as made:
        yield made


async def reconcile(database: Database, *options: str) -> Result:
    return await asyncio.to_thread(tartan, "reconcile", *options, TARTAN_POSTGRES_DSN=database.dsn)


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


async def test_accounts_that_tie_out_or_wait_for_pending_rows_are_no_failure(database: Database) -> None:
    log = Log()
    first, second = Story(1, log=log), Story(2, item_id="other", log=log)
    rows = second.pending_of(1)
    held = Decimal(rows[0].amount)
    second.tell(added(*rows), current=second.current + (held if second.is_owed else -held))
    await database.project(log.records)

    result = await reconcile(database, "--json")
    table = await reconcile(database)

    *accounts, sums = lines(result)
    assert result.exit_code == 0, result.output
    assert {(one["item_id"], one["state"], one["cause"]) for one in accounts} == {
        (first.item_id, "tied_out", None),
        (second.item_id, "gap", "pending"),
    }
    assert sums == {
        "accounts": 2,
        "tied_out": 1,
        "not_comparable": {},
        "gaps": {"pending": 1},
        "persisting": 0,
        "tied_out_or_explained": True,
    }
    assert table.exit_code == 0
    assert "2 accounts: 1 tie out, 1 pending." in table.output
    assert second.account_id in table.output


async def test_a_gap_that_nothing_explains_is_a_failure_of_the_account_asked_for_alone(database: Database) -> None:
    log = Log()
    story, _ = Story(3, log=log), Story(4, item_id="other", log=log)
    story.drift = Decimal("-3.21")
    story.step()
    await database.project(log.records)

    result = await reconcile(database, "--json", "--item", story.item_id)
    fine = await reconcile(database, "--json", "--account", "account-of-other")
    nobody = await reconcile(database, "--json", "--item", "nobody's")

    account, sums = lines(result)
    assert result.exit_code == 1
    assert (account["cause"], abs(Decimal(account["gap"])), account["repair"]) == (
        "missing_rows",
        Decimal("3.21"),
        "compare",
    )
    assert (sums["accounts"], sums["tied_out_or_explained"]) == (1, False)
    assert (fine.exit_code, lines(fine)[-1]["tied_out"]) == (0, 1)
    assert nobody.exit_code == 1
