"""Reconciliation over the API: a tenant's own accounts, their last check, their discrepancies, a check now."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from projections.store.tables import SCHEMA
from schemas.encoding import catalogue, codec
from tests.support.gateway_world import NOW, Api, assert_shape, serving_api
from tests.support.projections_log import account


@pytest.fixture
async def api(database: str) -> AsyncIterator[Api]:
    async with serving_api(database) as served:
        yield served


async def opened(api: Api, *, current: str = "0", user: str = "ada", key: str = "key-a") -> tuple[str, str]:
    """An account that was opened with nothing, and of which the bank reports a balance."""
    item_id = await api.link(user, key=key)
    await api.show(item_id, user=await api.number(user))
    await api.pool.execute(f"UPDATE {SCHEMA}.items SET history_status = 'HISTORICAL_UPDATE_COMPLETE'")
    await synced(api)
    await reported(api, item_id, current)
    return item_id, f"/v1/accounts/account-of-{item_id}/reconciliations"


async def synced(api: Api) -> None:
    """All that was asked for is done."""
    await api.pool.execute("UPDATE tartan.sync_state SET done_generation = generation")


async def reported(api: Api, item_id: str, current: str) -> None:
    words = codec.encode(account(f"account-of-{item_id}", current))
    await api.pool.execute(
        f"""UPDATE {SCHEMA}.accounts SET opened = 0, cached_payload = $2, cached_payload_schema = $3, cached_at = $4
            WHERE item_id = $1""",
        item_id,
        words,
        catalogue.ACCOUNT,
        NOW,
    )


async def ask(api: Api, method: str, path: str, *, key: str = "key-a") -> dict[str, Any]:
    status, answer = await api.ask(method, path, key=key)
    assert status == 200, answer
    assert_shape(answer, "Reconciliations")
    for one in answer["discrepancies"]:
        assert_shape(one, "Discrepancy")
    return dict(answer)


async def test_a_check_now_tells_the_gap_its_cause_and_its_repair_and_later_that_it_is_over(api: Api) -> None:
    item_id, path = await opened(api, current="12.34")

    before = await ask(api, "GET", path)
    now = await ask(api, "POST", path)
    await reported(api, item_id, "0")
    await ask(api, "POST", path)
    after = await ask(api, "GET", path)

    assert (before["last"], before["discrepancies"]) == (None, [])
    assert (now["item_id"], now["account_id"]) == (item_id, f"account-of-{item_id}")
    last = now["last"]
    assert (last["state"], last["cause"], last["gap"], last["ledger"], last["bank"]) == (
        "gap",
        "missing_rows",
        "12.34",
        "0",
        "12.34",
    )
    [open_one] = now["discrepancies"]
    assert (open_one["cause"], open_one["repair"], open_one["outcome"], open_one["resolved_at"]) == (
        "missing_rows",
        "compare",
        None,
        None,
    )
    assert (after["last"]["state"], after["last"]["cause"], after["last"]["gap"]) == ("tied_out", None, "0")
    assert [one["outcome"] for one in after["discrepancies"]] == ["repaired"]
    assert after["discrepancies"][0]["resolved_at"] is not None


async def test_an_account_without_an_opening_is_not_accused(api: Api) -> None:
    item_id, path = await opened(api, current="5")
    await api.pool.execute(f"UPDATE {SCHEMA}.accounts SET opened = NULL")

    now = await ask(api, "POST", path)

    assert (now["last"]["state"], now["last"]["reason"]) == ("not_comparable", "no_opening")
    assert now["discrepancies"] == []
    assert item_id


async def test_another_tenants_account_looks_as_if_it_were_not_there(api: Api) -> None:
    item_id, path = await opened(api, current="7")

    for method in ("GET", "POST"):
        status, answer = await api.ask(method, path, key="key-b")
        unknown = await api.ask(method, "/v1/accounts/nobody/reconciliations", key="key-b")

        assert (status, answer) == unknown == (404, answer)
        assert item_id not in str(answer)
    assert await api.pool.fetchval("SELECT count(*) FROM tartan.reconciliations") == 0


async def test_where_several_items_have_the_id_the_item_has_to_be_named(api: Api) -> None:
    item_id, path = await opened(api)
    other, _ = await opened(api, user="bob")
    await api.pool.execute(
        f"UPDATE {SCHEMA}.accounts SET account_id = $2 WHERE item_id = $1", other, f"account-of-{item_id}"
    )

    status, answer = await api.ask("GET", path)
    named = await ask(api, "POST", f"{path}?item_id={other}")

    assert (status, answer["faults"][0]["field"]) == (400, "item_id")
    assert named["item_id"] == other
