"""Manual syncs and their history: ids, waits, what was applied, refreshes, stopped and quarantined Items."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import pytest
import zstandard

from projections.events import public_events
from projections.store.tables import SCHEMA
from schemas.encoding import catalogue, codec
from schemas.events import TRANSACTION_ADDED, TRANSACTION_MODIFIED, TRANSACTION_REMOVED
from tests.support.gateway_world import Api, assert_shape, generation_is, serving_api

ADDED, MODIFIED, REMOVED = TRANSACTION_ADDED, TRANSACTION_MODIFIED, TRANSACTION_REMOVED


@pytest.fixture
async def api(database: str) -> AsyncIterator[Api]:
    async with serving_api(database) as served:
        yield served


async def shown_item(api: Api, user: str = "ada") -> str:
    """An Item whose link is shown."""
    item = await api.link(user)
    await api.show(item, user=await api.number(user))
    await api.read_up_to(item, 1)
    return item


async def found(api: Api, item: str, request_id: str) -> dict[str, Any]:
    status, answer = await api.ask("GET", f"/v1/items/{item}/syncs/{request_id}")
    assert status == 200
    assert_shape(answer, "Sync")
    return dict(answer)


async def test_a_sync_is_answered_at_once_and_its_id_finds_what_came_of_it(api: Api) -> None:
    item = await shown_item(api)

    status, answer = await api.ask("POST", f"/v1/items/{item}/sync")

    assert (status, answer["status"], answer["complete"], answer["changed"]) == (202, "accepted", False, None)
    assert_shape(answer, "Sync")
    before = await found(api, item, answer["request_id"])
    await api.attempt(item, generation=2, outcome="appended", offset=17, fetched=(2, 1, 0))
    fetched = await found(api, item, answer["request_id"])
    await api.accept(item, 17, said=[ADDED, ADDED, MODIFIED], net=[ADDED, ADDED])
    await api.read_up_to(item, 18)
    after = await found(api, item, answer["request_id"])
    assert [one["status"] for one in (before, fetched, after)] == ["accepted", "accepted", "applied"]
    assert (after["added"], after["modified"], after["removed"], after["no_op"]) == (2, 0, 0, 1)
    assert (after["complete"], after["changed"], after["bank_asked"]) == (True, True, False)


async def test_a_sync_that_waits_is_answered_once_readers_see_it(api: Api) -> None:
    item = await shown_item(api)
    waiting = asyncio.create_task(api.ask("POST", f"/v1/items/{item}/sync?wait=20"))
    await generation_is(api, 2)
    await api.pool.execute("UPDATE tartan.sync_state SET bank_updated_at = '2026-09-21T08:00:00Z'")

    await api.attempt(item, generation=2, outcome="appended", offset=17, fetched=(1, 0, 0))
    await api.accept(item, 17, said=[ADDED], net=[ADDED])
    unseen = await asyncio.wait({waiting}, timeout=0.3)
    await api.read_up_to(item, 18)
    status, answer = await waiting

    assert unseen[1] == {waiting}
    assert (status, answer["status"], answer["added"], answer["no_op"]) == (200, "applied", 1, 0)
    assert answer["bank_updated_at"] == "2026-09-21T08:00:00Z"
    assert answer["last_sync_at"] is not None


async def test_a_pass_that_began_before_the_request_does_not_answer_it(api: Api) -> None:
    item = await shown_item(api)
    request = (await api.ask("POST", f"/v1/items/{item}/sync"))[1]["request_id"]

    await api.attempt(item, generation=1)

    assert (await found(api, item, request))["status"] == "accepted"
    await api.attempt(item, generation=2)
    answer = await found(api, item, request)
    assert (answer["status"], answer["changed"], answer["added"], answer["no_op"]) == ("applied", False, 0, 0)


async def test_a_record_that_the_gate_skipped_answers_nothing_and_the_next_pass_does(api: Api) -> None:
    item = await shown_item(api)
    request = (await api.ask("POST", f"/v1/items/{item}/sync"))[1]["request_id"]

    await api.attempt(item, generation=2, outcome="appended", offset=17, fetched=(3, 0, 0))
    await api.read_up_to(item, 18)

    assert (await found(api, item, request))["status"] == "accepted"
    await api.attempt(item, generation=3, outcome="appended", offset=20, fetched=(3, 0, 0))
    await api.accept(item, 20, said=[ADDED] * 3, net=[ADDED] * 3)
    await api.read_up_to(item, 21)
    answer = await found(api, item, request)
    assert (answer["status"], answer["added"]) == ("applied", 3)


async def test_a_sync_that_failed_says_why_and_a_later_success_takes_its_place(api: Api) -> None:
    item = await shown_item(api)
    assert (await api.ask("POST", f"/v1/items/{item}/sync?wait=0.1"))[0] == 202
    waiting = asyncio.create_task(api.ask("POST", f"/v1/items/{item}/sync?wait=20"))
    await generation_is(api, 3)

    await api.attempt(item, generation=3, outcome="failed", error='{"code": "INSTITUTION_DOWN", "detail": "x"}')
    status, answer = await waiting

    assert (status, answer["status"], answer["complete"]) == (200, "failed", False)
    assert answer["error"]["code"] == "INSTITUTION_DOWN"
    await api.attempt(item, generation=3)
    assert (await found(api, item, answer["request_id"]))["status"] == "applied"


async def test_an_item_that_stopped_is_answered_with_the_remedy(api: Api) -> None:
    item = await shown_item(api)
    waiting = asyncio.create_task(api.ask("POST", f"/v1/items/{item}/sync?wait=20"))
    await generation_is(api, 2)

    await api.pool.execute("UPDATE tartan.sync_state SET stopped = 'login_required', due_at = NULL")
    await api.attempt(item, generation=2, outcome="stopped")
    status, answer = await waiting

    assert (status, answer["status"], answer["stopped"]) == (200, "stopped", "login_required")
    assert "update mode" in answer["remedy"]
    assert answer["error"] == {"code": "login_required"}


async def test_a_quarantined_item_is_409_with_the_remedy_and_its_requests_are_set_aside(api: Api) -> None:
    item = await shown_item(api)
    earlier = (await api.ask("POST", f"/v1/items/{item}/sync"))[1]["request_id"]
    await api.attempt(item, generation=2)
    request = (await api.ask("POST", f"/v1/items/{item}/sync"))[1]["request_id"]
    await api.pool.execute(
        "INSERT INTO tartan.quarantines (item_id, first_offset, partition, reason, reader) VALUES ($1, 5, 0, 'r', 'p')",
        item,
    )

    status, problem = await api.ask("POST", f"/v1/items/{item}/sync?wait=20")

    assert (status, problem["type"]) == (409, "urn:tartan:problem:item_quarantined")
    assert "redrive" in problem["remedy"]
    assert problem["since"]
    assert await api.pool.fetchval("SELECT generation FROM tartan.sync_state") == 3
    assert (await found(api, item, earlier))["status"] == "applied"
    aside = await found(api, item, request)
    assert (aside["status"], aside["error"], aside["stopped"]) == ("failed", {"code": "SET_ASIDE"}, "quarantined")


async def test_a_refresh_is_complete_when_a_pass_after_the_banks_update_is_shown(api: Api) -> None:
    item = await shown_item(api)
    waiting = asyncio.create_task(api.ask("POST", f"/v1/items/{item}/sync?refresh=true&wait=20"))
    await generation_is(api, 2)
    assert await api.pool.fetchval("SELECT refresh_wanted FROM tartan.sync_state")

    # The pass that tells Plaid to ask the bank finds only what Plaid had.
    await api.attempt(item, generation=2, outcome="appended", offset=17, fetched=(1, 0, 0))
    await api.accept(item, 17, said=[ADDED], net=[ADDED])
    await api.pool.execute("UPDATE tartan.sync_state SET refreshed_at = clock_timestamp(), refresh_wanted = false")
    await api.read_up_to(item, 18)
    early = await asyncio.wait({waiting}, timeout=0.5)
    await api.pool.execute("UPDATE tartan.sync_state SET last_webhook_at = clock_timestamp()")
    await asyncio.wait({waiting}, timeout=0.2)
    assert not waiting.done()
    await api.attempt(item, generation=3, outcome="appended", offset=20, fetched=(0, 2, 1))
    await api.accept(item, 20, said=[MODIFIED, MODIFIED, REMOVED], net=[MODIFIED, REMOVED])
    await api.pool.execute("UPDATE tartan.sync_runs SET started_at = clock_timestamp() WHERE generation = 3")
    await api.read_up_to(item, 21)
    status, answer = await waiting

    assert early[1] == {waiting}
    assert (status, answer["status"], answer["complete"], answer["bank_asked"]) == (200, "applied", True, True)
    assert [answer[name] for name in ("added", "modified", "removed", "no_op")] == [1, 1, 1, 1]
    refreshed_at = await api.pool.fetchval("SELECT refreshed_at FROM tartan.sync_state")
    assert datetime.fromisoformat(answer["bank_updated_at"]) == refreshed_at


async def test_a_refresh_whose_bank_is_slow_is_answered_with_what_is_known(api: Api) -> None:
    item = await shown_item(api)
    waiting = asyncio.create_task(api.ask("POST", f"/v1/items/{item}/sync?refresh=true&wait=2"))
    await generation_is(api, 2)

    await api.attempt(item, generation=2)
    await api.pool.execute("UPDATE tartan.sync_state SET refreshed_at = clock_timestamp()")
    status, answer = await waiting

    assert (status, answer["status"], answer["complete"], answer["bank_asked"]) == (202, "applied", False, True)
    assert answer["bank_updated_at"] is None


async def test_a_refresh_that_plaid_refuses_is_answered_with_its_code(api: Api) -> None:
    item = await shown_item(api)
    waiting = asyncio.create_task(api.ask("POST", f"/v1/items/{item}/sync?refresh=true&wait=20"))
    await generation_is(api, 2)

    await api.attempt(item, generation=2, error='{"code": "PRODUCTS_NOT_SUPPORTED", "detail": "transactions/refresh"}')
    status, answer = await waiting

    assert (status, answer["status"], answer["complete"], answer["bank_asked"]) == (200, "applied", False, False)
    assert answer["error"]["code"] == "PRODUCTS_NOT_SUPPORTED"


@pytest.mark.parametrize("bucket", ["item", "client"])
async def test_a_refresh_beyond_plaids_quota_is_429_and_marks_nothing(api: Api, bucket: str) -> None:
    item = await shown_item(api)
    await api.pool.execute(
        """INSERT INTO tartan.rate_limit_buckets (endpoint, item_id, tat)
           VALUES ('transactions/refresh', $1, tartan.clock() + interval '40 s')""",
        item if bucket == "item" else "",
    )

    url = f"{api.address}/v1/items/{item}/sync?refresh=true"
    async with api.session.post(url, headers={"Authorization": "Bearer key-a"}) as answer:
        problem = await answer.json(content_type=None)

    assert (answer.status, problem["type"]) == (429, "urn:tartan:problem:refresh_limit")
    assert 1 <= int(answer.headers["Retry-After"]) <= 40
    assert f"again in {answer.headers['Retry-After']} s" in problem["detail"]
    assert await api.pool.fetchval("SELECT generation FROM tartan.sync_state") == 1
    assert (await api.ask("POST", f"/v1/items/{item}/sync"))[0] == 202


async def test_a_request_id_is_its_items_and_its_tenants_alone(api: Api) -> None:
    item, other = await shown_item(api), await shown_item(api, "bob")
    request = (await api.ask("POST", f"/v1/items/{item}/sync"))[1]["request_id"]
    changed = ("A" if request[0] != "A" else "B") + request[1:]

    refused = [
        await api.ask("GET", f"/v1/items/{other}/syncs/{request}"),
        await api.ask("GET", f"/v1/items/{item}/syncs/{changed}"),
        await api.ask("GET", f"/v1/items/{item}/syncs/%F0%9F%99%82"),
        await api.ask("GET", f"/v1/items/unknown/syncs/{request}"),
        await api.ask("GET", f"/v1/items/{item}/syncs/{request}", key="key-b"),
    ]

    assert [status for status, _ in refused] == [404] * 5
    assert refused[1][1]["detail"] == "there is no such sync request"
    assert refused[4][1] == refused[3][1]


async def test_a_history_tells_each_pass_once_newest_first_whatever_the_pages_size(api: Api) -> None:
    item = await shown_item(api)
    await api.attempt(item, generation=1, outcome="appended", offset=3, fetched=(2, 2, 0), cause="webhook")
    await api.accept(item, 3, said=[ADDED, ADDED, MODIFIED, MODIFIED], net=[ADDED, ADDED])
    await api.attempt(item, generation=1, outcome="failed", error='{"code": "INTERNAL_SERVER_ERROR", "detail": ""}')
    await api.attempt(item, generation=1, outcome="appended", offset=5, fetched=(0, 0, 1))
    await api.accept(item, 5, said=[REMOVED], net=[REMOVED], expired=True)
    for _ in range(4):
        await api.attempt(item, generation=1, cause="schedule")

    async def pages(limit: int) -> list[dict[str, Any]]:
        rows, cursor = [], ""
        while True:
            status, page = await api.ask("GET", f"/v1/items/{item}/syncs?limit={limit}{cursor}")
            assert status == 200
            assert_shape(page, "SyncRuns")
            rows += page["syncs"]
            if page["next_cursor"] is None:
                return rows
            cursor = f"&cursor={page['next_cursor']}"

    whole = await pages(100)
    assert len(whole) == 7
    assert [await pages(limit) for limit in (1, 3, 7)] == [whole] * 3
    expired, failed, first = whole[4:]
    for row in whole:
        assert_shape(row, "SyncRun")
    assert first["applied"] == {"added": 2, "modified": 0, "removed": 0}
    assert (first["fetched"]["modified"], first["no_op"], first["cause"]) == (2, 2, "webhook")
    assert (failed["success"], failed["error"]["code"], failed["changeset"]) == (False, "INTERNAL_SERVER_ERROR", None)
    assert (expired["applied"], expired["no_op"], expired["changeset"]["offset"]) == (None, None, 5)


async def test_a_withheld_changeset_applied_nothing_yet(api: Api) -> None:
    item = await shown_item(api)
    await api.attempt(item, generation=1, outcome="appended", offset=3, fetched=(1, 0, 0))
    await api.accept(item, 3, said=[ADDED], net=[])
    await api.pool.execute(f"UPDATE {SCHEMA}.changesets SET redriven_by = 9")

    [row] = (await api.ask("GET", f"/v1/items/{item}/syncs"))[1]["syncs"]

    assert (row["fetched"]["added"], row["applied"], row["no_op"]) == (1, None, None)


async def test_what_a_redrive_freed_is_told_of_the_pass_that_fetched_it(api: Api) -> None:
    item = await shown_item(api)
    request = (await api.ask("POST", f"/v1/items/{item}/sync"))[1]["request_id"]
    for offset in (3, 4):
        await api.attempt(item, generation=2, outcome="appended", offset=offset, fetched=(2, 0, 0))
        await api.accept(item, offset, said=[ADDED, ADDED], net=[])
    await api.pool.execute(f"UPDATE {SCHEMA}.changesets SET redriven_by = 9 WHERE source_offset IN (3, 4)")
    told = [(ADDED, 3), (ADDED, 4), (MODIFIED, 4)]
    await api.accept(item, 9, net=[kind for kind, _ in told])
    block = codec.encode_events(
        [(kind, catalogue.TRANSACTION_EVENT, said_event(f"{item}-{offset}".encode())) for kind, offset in told]
    )
    await api.pool.execute(
        f"UPDATE {SCHEMA}.changesets SET events = $1 WHERE source_offset = 9", zstandard.compress(block)
    )

    await api.read_up_to(item, 10)

    later, earlier = (await api.ask("GET", f"/v1/items/{item}/syncs"))[1]["syncs"][:2]
    answer = await found(api, item, request)

    assert (later["applied"], later["no_op"]) == ({"added": 1, "modified": 1, "removed": 0}, 0)
    assert (earlier["applied"], earlier["no_op"]) == ({"added": 1, "modified": 0, "removed": 0}, 1)
    assert [answer[name] for name in ("status", "added", "modified", "no_op")] == ["applied", 1, 0, 1]


def said_event(changeset: bytes) -> bytes:
    """A transaction's event that a changeset said."""
    common = public_events.common_fields(tenant="a", user_id="ada", item_id="i", known_at=0, changeset=changeset)
    return public_events.first_transaction_event(common, b"o" * 16, b"")


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("GET /v1/items/{item}/syncs?limit=101", "limit"),
        ("GET /v1/items/{item}/syncs?limit=0", "limit"),
        ("GET /v1/items/{item}/syncs?cursor=AAAA", "cursor"),
        ("POST /v1/items/{item}/sync?refresh=1", "refresh"),
        ("POST /v1/items/{item}/sync?wait=-1", "wait"),
        ("GET /v1/queue/status?tenant=b", "tenant"),
    ],
)
async def test_wrong_values_are_refused_by_name(api: Api, path: str, field: str) -> None:
    item = await api.link()
    method, _, where = path.format(item=item).partition(" ")

    status, problem = await api.ask(method, where)

    assert (status, [fault["field"] for fault in problem["faults"]]) == (400, [field])


async def test_a_cursor_of_another_items_history_is_refused(api: Api) -> None:
    item, other = await shown_item(api), await shown_item(api, "bob")
    for _ in range(2):
        await api.attempt(item, generation=1)
    cursor = (await api.ask("GET", f"/v1/items/{item}/syncs?limit=1"))[1]["next_cursor"]

    status, problem = await api.ask("GET", f"/v1/items/{other}/syncs?cursor={cursor}")

    assert (status, problem["faults"][0]["field"]) == (400, "cursor")


async def test_freshness_says_when_plaid_and_the_bank_were_asked_and_what_comes_next(api: Api) -> None:
    item = await shown_item(api)
    await api.pool.execute(
        """UPDATE tartan.sync_state SET due_at = NULL, last_synced_at = '2026-09-21T10:00:00Z',
           bank_updated_at = '2026-09-21T09:00:00Z', last_webhook_at = '2026-09-21T09:30:00Z'"""
    )
    await api.pool.execute(f"UPDATE {SCHEMA}.items SET missing_rows = 3, history_status = 'HISTORICAL_UPDATE_COMPLETE'")

    shown = (await api.ask("GET", f"/v1/items/{item}"))[1]
    [account] = (await api.ask("GET", "/v1/users/ada/accounts"))[1]["accounts"]
    await api.pool.execute("UPDATE tartan.sync_state SET stopped = 'gone'")
    gone = (await api.ask("GET", f"/v1/items/{item}"))[1]

    assert_shape(shown, "Item")
    assert_shape(account["freshness"], "Freshness")
    assert account["freshness"] == {name: shown[name] for name in account["freshness"]}
    assert [shown[name] for name in ("last_synced_at", "bank_updated_at", "last_webhook_at", "next_check_at")] == [
        "2026-09-21T10:00:00Z",
        "2026-09-21T09:00:00Z",
        "2026-09-21T09:30:00Z",
        "2026-09-21T10:15:00Z",
    ]
    assert (shown["missing_rows"], shown["stopped"], shown["remedy"]) == (3, None, None)
    assert (gone["stopped"], gone["next_check_at"]) == ("gone", None)
    assert gone["remedy"]
