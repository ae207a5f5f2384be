"""A bank whose balance moves without a row: found, its history read again, told, and over once the bank mends it."""

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


async def test_a_balance_that_drifts_is_found_compared_told_and_over_when_it_is_mended(running: Running) -> None:
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
    await until(lambda: told(running))
    [open_one] = await discrepancies(running)

    assert (open_one["account_id"], open_one["cause"], open_one["repair"]) == (account_id, "missing_rows", "compare")
    assert (open_one["outcome"], abs(open_one["gap"]), open_one["resolved_at"]) == ("persists", DRIFT, None)
    restated = await pool.fetch("SELECT cause FROM reads.changesets WHERE item_id = $1 AND type = 'restated'", item_id)
    assert [json.loads(row["cause"])["by"] for row in restated] == ["reconciliation"]
    await running.observer.until_quiet(running.bank, timeout_s=WAIT_S_MAX)
    exit_code, lines = reconcile(running, "--item", item_id)
    assert exit_code == 1
    assert lines[-1]["gaps"] == {"missing_rows": 1}

    await drift(running, item_id, account_id, -DRIFT)
    await until(all_checked)
    [over] = await discrepancies(running)

    assert over["outcome"] == "repaired"
    assert not await told(running)
    assert reconcile(running, "--item", item_id)[0] == 0


async def drift(running: Running, item_id: str, account_id: str, amount: Decimal) -> None:
    """Let the bank correct a balance; an update brings it."""
    await running.bank.fault(kind="balance_drift", item_id=item_id, account_id=account_id, amount=str(amount))
    await running.bank.step(item_id, changes=2)
    await running.observer.until_quiet(running.bank, timeout_s=WAIT_S_MAX)


async def told(running: Running) -> bool:
    """Whether operators are told of a gap now."""
    return bool(
        await running.observer.pool.fetchval(
            "SELECT count(*) FROM tartan.incidents WHERE kind = 'balance_gap' AND closed_at IS NULL"
        )
    )


async def discrepancies(running: Running) -> list[Any]:
    return list(await running.observer.pool.fetch("SELECT * FROM tartan.discrepancies ORDER BY discrepancy"))


def reconcile(running: Running, *words: str) -> tuple[int, list[dict[str, Any]]]:
    """The operator's command, as operators run it."""
    dsn = running.observer.settings.postgres_dsn.get_secret_value()
    done = subprocess.run(
        [sys.executable, "-m", "cli", "reconcile", "--json", *words],
        env={"TARTAN_POSTGRES_DSN": dsn},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]
