"""The queue's status for a tenant, and the schedule for an outside cron."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from tests.support.gateway_world import CRON_SECRET, Api, assert_shape, serving_api


@pytest.fixture
async def api(database: str) -> AsyncIterator[Api]:
    async with serving_api(database) as served:
        yield served


async def queue(api: Api, key: str = "key-a") -> dict[str, Any]:
    status, answer = await api.ask("GET", "/v1/queue/status", key=key)
    assert status == 200
    assert_shape(answer, "QueueStatus")
    return dict(answer)


async def cron(api: Api, method: str = "GET", secret: str | None = CRON_SECRET) -> tuple[int, Any]:
    return await api.ask(method, "/internal/schedule", key=secret)


async def make_idle(api: Api, *, unseen_s: float) -> None:
    await api.pool.execute(
        """UPDATE tartan.sync_state SET due_at = NULL, created_at = tartan.clock() - make_interval(secs => $1),
           last_synced_at = tartan.clock() - make_interval(secs => $1)""",
        unseen_s,
    )


async def test_a_tenant_sees_its_own_items_and_nothing_of_others_or_of_the_client(api: Api) -> None:
    ours, theirs = await api.link(), await api.link(key="key-b")
    await api.attempt(theirs, generation=1, outcome="failed", error='{"code": "X"}')
    await api.pool.execute(
        """INSERT INTO tartan.incidents (kind, subject, detail) SELECT 'sync_failing', item_id, 'd'
           FROM tartan.sync_state"""
    )
    await api.pool.execute("INSERT INTO tartan.breakers (institution_id, open_until) VALUES ('ins_other', now())")
    await api.pool.execute("""INSERT INTO tartan.facts VALUES ('webhook_loss', '{"sent": 10, "missed": 1}')""")

    told = await queue(api)

    assert (told["items"], told["states"]["ready"]) == (1, 1)
    assert [row["item_id"] for row in told["listed"]] == [ours]
    assert (told["failures"], told["breakers"], told["buckets"], told["webhook_loss"]) == ([], [], [], None)
    assert [row["subject"] for row in told["incidents"]] == [ours]
    assert theirs not in str(told)
    assert [row["code"] for row in (await queue(api, "key-b"))["failures"]] == ["X"]


async def test_a_tenant_without_items_has_an_empty_queue(api: Api) -> None:
    told = await queue(api)

    assert (told["items"], told["listed"], told["banks"]) == (0, [], [])
    assert [lane["lane"] for lane in told["lanes"]] == ["webhook", "manual", "schedule", "backfill"]


async def test_those_who_ask_at_once_are_all_answered(api: Api) -> None:
    item = await api.link()

    answers = await asyncio.gather(*(queue(api) for _ in range(20)))

    assert {row["item_id"] for told in answers for row in told["listed"]} == {item}


async def test_the_crons_secret_is_asked_for_and_a_tenants_key_is_none(api: Api) -> None:
    await api.link()
    await make_idle(api, unseen_s=2000)

    refused = [await cron(api, method, secret) for method in ("GET", "POST") for secret in (None, "wrong", "key-a")]

    assert [status for status, _ in refused] == [401] * 6
    assert [problem["type"].rpartition(":")[2] for _, problem in refused[:2]] == [
        "cron_secret_missing",
        "cron_secret_wrong",
    ]
    assert (await api.ask("GET", "/v1/queue/status", key=CRON_SECRET))[0] == 401
    assert await api.pool.fetchval("SELECT due_at FROM tartan.sync_state") is None


async def test_without_a_secret_the_endpoint_is_off_and_says_how_to_turn_it_on(database: str) -> None:
    from pydantic import SecretStr

    async with serving_api(database, cron_secret=SecretStr("")) as api:
        answers = [await cron(api, method, secret) for method in ("GET", "POST") for secret in (None, "")]

    assert {(status, problem["type"]) for status, problem in answers} == {(404, "urn:tartan:problem:schedule_off")}
    assert "TARTAN_CRON_SECRET" in answers[0][1]["detail"]


async def test_a_cron_makes_due_what_was_not_asked_about_and_wakes_the_workers(api: Api) -> None:
    await api.link()
    await make_idle(api, unseen_s=2000)
    listening = await asyncpg.connect(api.settings.postgres_dsn.get_secret_value())
    woken: asyncio.Queue[str] = asyncio.Queue()
    await listening.add_listener("tartan_due", lambda *call: woken.put_nowait(call[2]))

    status, first = await cron(api, "POST")
    _, second = await cron(api, "POST")

    await asyncio.wait_for(woken.get(), 10)
    await listening.close()
    assert (status, first["marked"], second["marked"]) == (200, 1, 0)
    assert_shape(first, "Ticked")
    assert_shape(first["health"], "ScheduleHealth")
    row = await api.pool.fetchrow("SELECT due_at, lane, cause->>'kind' AS cause FROM tartan.sync_state")
    assert row is not None
    assert (row["lane"], row["cause"]) == (2, "schedule")


async def test_health_tells_a_schedule_that_never_ticked_and_one_that_is_alive(api: Api) -> None:
    _, before = await cron(api)
    await cron(api, "POST")
    _, after = await cron(api)

    assert (before["healthy"], before["last_tick_at"], after["healthy"], after["reasons"]) == (False, None, True, [])
    assert "never ticked" in before["reasons"][0]
    assert after["last_tick_age_s"] < 60
    assert (after["overdue"], after["last_tick_marked"]) == (0, 0)


async def test_health_tells_items_that_nobody_asked_about_and_a_tick_that_is_old(api: Api) -> None:
    await api.link()
    await cron(api, "POST")
    await make_idle(api, unseen_s=2000)
    await api.pool.execute(
        """UPDATE tartan.facts SET value = jsonb_build_object('at', now() - interval '1 h', 'marked', 3)
           WHERE name = 'schedule_tick'"""
    )

    _, health = await cron(api)

    assert (health["healthy"], health["overdue"], health["last_tick_marked"]) == (False, 1, 3)
    assert 1990 < health["oldest_unseen_s"] < 2300
    assert [("last tick" in reason, ": 1; " in reason) for reason in health["reasons"]] == [
        (True, False),
        (False, True),
    ]


async def test_items_that_wait_for_a_reason_are_not_overdue(api: Api) -> None:
    await api.link()
    await cron(api, "POST")
    await make_idle(api, unseen_s=5000)
    await api.pool.execute(
        """UPDATE tartan.sync_state SET due_at = tartan.clock(), not_before = tartan.clock() + interval '1 h'"""
    )

    _, health = await cron(api)

    assert (health["healthy"], health["overdue"]) == (True, 0)
