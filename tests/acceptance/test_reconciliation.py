"""A bank whose balance changes without a row: the gap is found, compared in a full resync, reported, and closed."""

import json
import subprocess
import sys
from decimal import Decimal
from typing import Any

import pytest

from tests.acceptance.conftest import Running
from tests.acceptance.test_the_whole_way import linked, until

WAIT_S_MAX = 60.0
DRIFT = Decimal("12.34")


@pytest.fixture
def further_settings() -> dict[str, str]:
    return {"TARTAN_RECONCILE_INTERVAL_S": "1"}


async def test_a_balance_that_drifts_is_found_compared_reported_and_closed_when_it_is_mended(running: Running) -> None:
    item_id = await linked(running, "ada")
    await linked(running, "bob")
    pool = running.observer.pool

    async def all_checked() -> bool:
        left = await pool.fetchval(
            """SELECT count(*) FROM reads.accounts a LEFT JOIN tartan.reconciliations r USING (item_id, account_id)
               WHERE a.opened IS NOT NULL AND r.state IS DISTINCT FROM 'tied_out'"""
        )
        return not left and bool(await pool.fetchval("SELECT count(*) FROM tartan.reconciliations"))

    await until(all_checked)
    for _ in range(3):
        await running.bank.step(changes=8)
    await running.observer.until_quiet(running.bank, timeout_s=WAIT_S_MAX)
    await until(all_checked)
    assert await pool.fetchval("SELECT count(*) FROM tartan.discrepancies") == 0
    account_id = await pool.fetchval(
        "SELECT account_id FROM reads.accounts WHERE item_id = $1 AND opened IS NOT NULL ORDER BY account_id", item_id
    )

    await drift(running, item_id, account_id, DRIFT)
    await until(lambda: is_reported(running))
    [open_gap] = await discrepancies(running)

    assert (open_gap["account_id"], open_gap["cause"], open_gap["repair"]) == (account_id, "missing_rows", "compare")
    assert (open_gap["outcome"], abs(open_gap["gap"]), open_gap["resolved_at"]) == ("persists", DRIFT, None)
    restated = await pool.fetch("SELECT cause FROM reads.changesets WHERE item_id = $1 AND type = 'restated'", item_id)
    assert [json.loads(row["cause"])["by"] for row in restated] == ["reconciliation"]
    await running.observer.until_quiet(running.bank, timeout_s=WAIT_S_MAX)
    exit_code, lines = reconcile(running, "--item", item_id)
    assert exit_code == 1
    assert lines[-1]["gaps"] == {"missing_rows": 1}

    await drift(running, item_id, account_id, -DRIFT)
    await until(all_checked)
    [closed] = await discrepancies(running)

    assert closed["outcome"] == "repaired"
    assert not await is_reported(running)
    assert reconcile(running, "--item", item_id)[0] == 0


async def drift(running: Running, item_id: str, account_id: str, amount: Decimal) -> None:
    """Let the bank correct a balance; an update brings it."""
    await running.bank.fault(kind="balance_drift", item_id=item_id, account_id=account_id, amount=str(amount))
    await running.bank.step(item_id, changes=2)
    await running.observer.until_quiet(running.bank, timeout_s=WAIT_S_MAX)


async def is_reported(running: Running) -> bool:
    """Return True while an incident reports a gap to operators."""
    return bool(
        await running.observer.pool.fetchval(
            "SELECT count(*) FROM tartan.incidents WHERE kind = 'balance_gap' AND closed_at IS NULL"
        )
    )


async def discrepancies(running: Running) -> list[Any]:
    return list(await running.observer.pool.fetch("SELECT * FROM tartan.discrepancies ORDER BY discrepancy"))


def reconcile(running: Running, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    """Run the operator's command and return its exit code and lines."""
    dsn = running.observer.settings.postgres_dsn.get_secret_value()
    process = subprocess.run(
        [sys.executable, "-m", "cli", "reconcile", "--json", *arguments],
        env={"TARTAN_POSTGRES_DSN": dsn},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return process.returncode, [json.loads(line) for line in process.stdout.splitlines()]
