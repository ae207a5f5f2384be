"""What waits for a person: through the API and the command line into a real log, and back out of a real Postgres."""

import asyncio
import base64
import json
from typing import Any

import pytest

from schemas.errors import Quarantine
from tests.integration.gateway.test_edits import KEY, World, projected, world
from tests.support.command_line import tartan
from tests.support.projections_log import account, added, balance, transaction

__all__ = ["projected", "world"]

TWIN = {"original_description": "TWIN MARKET", "date": "2026-03-02"}


async def two_items(world: World) -> None:
    """One account that two Items tell of, with twins of which the user spoke of one."""
    log = world.log
    log.link("OLD")
    log.sync(
        "OLD",
        *balance(account("old")),
        *added(*(transaction(f"old{number}", "5", account_id="old", **TWIN) for number in range(2))),
    )
    await world.say()
    await world.until_shown(await world.records())
    status, _ = await world.edit(await world.own_id("old0"), {"notes": "for Bob"})
    assert status == 200
    log.link("NEW")
    log.sync(
        "NEW",
        *balance(account("new")),
        *added(*(transaction(f"new{number}", "5", account_id="new", **TWIN) for number in range(2))),
    )
    await world.say()
    await world.until_shown(await world.records())


async def waiting(world: World) -> list[Any]:
    status, answer = await world.ask("GET", "/v1/users/u1/reviews")
    assert status == 200
    assert await world.ask("GET", "/v1/reviews?user_id=u1") == (200, answer)
    return list(answer["reviews"])


async def test_what_waits_is_not_counted_until_it_is_approved_or_rejected(projected: World) -> None:
    world = projected
    await two_items(world)

    first, second = await waiting(world)

    assert {one["transaction"]["status"] for one in (first, second)} == {"in_review"}
    assert {one["transaction"]["transaction_id"] for one in (first, second)} == {"new0", "new1"}
    assert [one["score"] for one in first["candidates"]] == [100, 100]
    assert (await world.spent())["FOOD_AND_DRINK"] == 48 + 10
    edited = await world.own_id("old0")

    status, problem = await world.ask("POST", f"/v1/reviews/{first['id']}/approve")
    assert (status, problem["faults"][0]["field"]) == (400, "own_id")
    status, problem = await world.ask("POST", f"/v1/reviews/{first['id']}/approve", {"own_id": "0" * 32})
    assert (status, problem["faults"][0]["field"]) == (400, "own_id")
    assert (await world.ask("POST", f"/v1/reviews/{first['id']}/reject", tenant="b"))[0] == 404

    status, answer = await world.ask("POST", f"/v1/reviews/{first['id']}/approve", {"own_id": edited})
    assert (status, answer["state"], answer["chosen"]) == (200, "approved", edited)
    assert await world.ask("POST", f"/v1/reviews/{first['id']}/approve", {"own_id": edited}) == (200, answer)
    status, problem = await world.ask("POST", f"/v1/reviews/{first['id']}/reject")
    assert (status, problem["type"]) == (409, "urn:tartan:problem:review_ended")
    _, now = await world.ask("GET", f"/v1/transactions/{edited}")
    assert (now["item_id"], now["notes"], now["status"]) == ("NEW", "for Bob", "shown")
    assert (await world.spent())["FOOD_AND_DRINK"] == 48 + 10

    assert await world.ask("POST", f"/v1/reviews/{first['id']}/approve") == (200, answer)
    [left] = (await waiting(world))[0]["candidates"]
    assert left["transaction"]["id"] == await world.own_id("old1")

    status, problem = await world.ask("POST", f"/v1/reviews/{second['id']}/approve", {"own_id": edited})
    assert (status, problem["type"]) == (409, "urn:tartan:problem:candidate_gone")
    status, answer = await world.ask("POST", f"/v1/reviews/{second['id']}/reject")
    assert (status, answer["state"], answer["transaction"]["status"]) == (200, "rejected", "shown")
    assert (await world.spent())["FOOD_AND_DRINK"] == 48 + 15
    assert await waiting(world) == []
    status, problem = await world.ask("POST", f"/v1/reviews/{second['id']}/approve")
    assert (status, problem["type"], problem["review"]["state"]) == (409, "urn:tartan:problem:review_ended", "rejected")


async def test_a_decision_that_nobody_reads_in_time_is_accepted(world: World) -> None:
    from projections import app

    async with app.stage(world.settings):
        await world.until_shown(2)
        await two_items(world)
    [first, _] = await waiting(world)

    status, answer = await world.ask("POST", f"/v1/reviews/{first['id']}/reject?wait=0.1", **{"Idempotency-Key": "k"})
    assert (status, answer["status"]) == (202, "accepted")

    async with app.stage(world.settings):
        await world.until_shown(await world.records())
    status, answer = await world.ask("POST", f"/v1/reviews/{first['id']}/reject", **{"Idempotency-Key": "k"})
    assert (status, answer["state"]) == (200, "rejected")


async def test_the_command_lists_and_decides(projected: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world = projected
    await two_items(world)
    for name, value in {
        "POSTGRES_DSN": world.settings.postgres_dsn.get_secret_value(),
        "KAFKA_ADDRESS": world.settings.kafka_address,
        "TOPIC_PREFIX": world.settings.topic_prefix,
        "KEY_ENCRYPTION_KEY": base64.b64encode(KEY).decode(),
        "PARTITIONS": str(world.settings.partitions),
    }.items():
        monkeypatch.setenv(f"TARTAN_{name}", value)

    async def run(*arguments: str) -> tuple[int, Any]:
        result = await asyncio.to_thread(tartan, "reviews", *arguments, "--json")
        if isinstance(result.exception, Quarantine):
            return result.exit_code, str(result.exception)
        lines = result.stdout.strip().splitlines()
        return result.exit_code, json.loads(lines[-1]) if lines and lines[-1].startswith("{") else result.output

    code, told = await run("list", "--tenant", "t", "--user", "u1")
    assert (code, len(told["reviews"])) == (0, 2)
    first = told["reviews"][0]
    chosen, other = (first["candidates"][number]["transaction"]["id"] for number in (1, 0))
    records = await world.records()
    code, told = await run("approve", first["id"])
    assert (code, chosen in told, other in told) == (1, True, True)
    assert (await run("approve", first["id"], "--is", "0" * 32))[0] == 1
    assert await world.records() == records
    await follow(world)
    code, told = await run("approve", first["id"], "--is", chosen)
    assert (code, told["outcome"], told["chosen"]) == (0, "approved", chosen)
    assert (await run("approve", first["id"]))[0] != 0
    [second] = (await run("list"))[1]["reviews"]
    assert second["id"] != first["id"]
    code, told = await run("approve", second["id"])
    assert (code, told["outcome"], told["chosen"]) == (0, "approved", other)


async def follow(world: World) -> None:
    """Let the log's other reader, which has no part in this, stand far ahead."""
    await world.tables.execute(
        "INSERT INTO tartan.positions (reader, partition, position) SELECT 'follow_heads', p, 1000 FROM"
        " generate_series(0, 1) AS p ON CONFLICT (reader, partition) DO UPDATE SET position = 1000"
    )
