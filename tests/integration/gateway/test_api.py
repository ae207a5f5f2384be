"""The REST API on a real Postgres and a simulated Plaid: who may see what, what linking does, how waits end."""

import asyncio
import datetime
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from gateway import app
from gateway.handlers import linking, ownership
from gateway.http.database import connected
from runtime.plaid.client import Exchanged, Plaid
from runtime.plaid.item_models import ItemAnswer
from runtime.users.vault import Vault
from tests.support.gateway_world import TODAY, Api, assert_shape, generation_is, serving_api


@pytest.fixture
async def api(database: str) -> AsyncIterator[Api]:
    async with serving_api(database) as served:
        yield served


async def test_a_link_makes_the_user_its_key_and_a_due_item_with_a_sealed_token(api: Api) -> None:
    listening = await asyncpg.connect(api.settings.postgres_dsn.get_secret_value())
    woken: asyncio.Queue[str] = asyncio.Queue()
    await listening.add_listener("tartan_due", lambda *call: woken.put_nowait(call[2]))

    item_id = await api.link()

    await asyncio.wait_for(woken.get(), 5)
    await listening.close()
    row = await api.pool.fetchrow("SELECT * FROM tartan.credentials JOIN tartan.sync_state USING (item_id)")
    assert row is not None
    keys = await api.pool.fetchval("SELECT count(*) FROM tartan.user_keys WHERE state = 'active'")
    assert (row["item_id"], row["tenant"], row["institution_id"], keys) == (item_id, "a", "ins_109508", 1)
    assert row["due_at"] is not None
    opened = Vault(api.settings.master_key()).open_token(row["sealed_token"], item_id=item_id)
    assert opened.startswith("access-")


async def test_a_second_item_of_a_user_is_theirs(api: Api) -> None:
    items = {await api.link(), await api.link(), await api.link("bob")}

    assert len(items) == 3
    assert await api.pool.fetchval("SELECT count(*) FROM tartan.users") == 2


async def test_an_item_that_was_linked_is_409_for_its_user_and_for_others(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    item_id = await api.link()

    async def exchange(self: Plaid, public_token: str) -> Exchanged:
        return Exchanged("access-sandbox-again", item_id)

    monkeypatch.setattr(Plaid, "exchange", exchange)
    for user, key in (("ada", "key-a"), ("bob", "key-a"), ("ada", "key-b")):
        status, problem = await api.ask("POST", "/v1/items", {"user_id": user, "public_token": "public-1"}, key=key)
        assert (status, problem["type"]) == (409, "urn:tartan:problem:item_linked")

    assert await api.pool.fetchval("SELECT count(*) FROM tartan.users") == 1


@pytest.fixture
def removed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Tokens of the Items that were given back to Plaid. No wait between tries."""
    tokens: list[str] = []

    async def remove(self: Plaid, token: str) -> None:
        tokens.append(token)

    monkeypatch.setattr(Plaid, "remove", remove)
    monkeypatch.setattr(linking, "REGISTER_EVERY_S", 0.0)
    return tokens


async def fail_inserts(api: Api, code: str, *, times: int) -> None:
    """Let the first registrations fail with this SQLSTATE, counted by a sequence, which never rolls back."""
    await api.pool.execute("CREATE SEQUENCE tartan.tries")
    await api.pool.execute(
        f"""CREATE FUNCTION tartan.fail() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
            IF nextval('tartan.tries') <= {times} THEN RAISE EXCEPTION 'failed' USING ERRCODE = '{code}'; END IF;
            RETURN NEW; END$$"""
    )
    await api.pool.execute(
        "CREATE TRIGGER fail BEFORE INSERT ON tartan.sync_state FOR EACH ROW EXECUTE FUNCTION tartan.fail()"
    )


@pytest.mark.parametrize(("code", "answered"), [("08006", 503), ("25006", 503), ("40P01", 503), ("23514", 500)])
async def test_an_item_that_cannot_be_registered_is_given_back_to_plaid(
    api: Api, removed: list[str], code: str, answered: int
) -> None:
    await fail_inserts(api, code, times=linking.REGISTER_TRIES)

    status, _ = await api.ask("POST", "/v1/items", {"user_id": "ada", "public_token": await api.token()})

    assert status == answered
    assert len(removed) == 1
    assert await api.pool.fetchval("SELECT count(*) FROM tartan.credentials") == 0


@pytest.mark.parametrize("code", ["08006", "25006", "40001", "40P01", "55P03"])
async def test_a_failure_that_passes_costs_a_link_a_second_try(api: Api, removed: list[str], code: str) -> None:
    await fail_inserts(api, code, times=1)

    await api.link()

    assert removed == []
    assert await api.pool.fetchval("SELECT count(*) FROM tartan.sync_state") == 1


@pytest.mark.parametrize("tries", [1, 5])
async def test_a_link_whose_commit_got_no_answer_is_201(
    api: Api, removed: list[str], monkeypatch: pytest.MonkeyPatch, tries: int
) -> None:
    lost: list[str] = []

    @asynccontextmanager
    async def losing(pool: asyncpg.Pool) -> AsyncIterator[asyncpg.Connection]:
        async with connected(pool) as connection:
            yield connection
        if not lost and await pool.fetchval("SELECT count(*) FROM tartan.credentials"):
            lost.append("an answer")
            raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")

    monkeypatch.setattr(linking, "connected", losing)
    monkeypatch.setattr(linking, "REGISTER_TRIES", tries)

    await api.link()

    assert (lost, removed) == (["an answer"], [])
    assert await api.pool.fetchval("SELECT generation FROM tartan.sync_state") == 1


async def test_a_look_for_an_item_waits_for_a_link_whose_commit_is_under_way(api: Api) -> None:
    async with connected(api.pool) as committing, committing.transaction():
        await ownership.lock_link(committing, "item-1")

        async with connected(api.pool) as looking, looking.transaction():
            await looking.execute("SET LOCAL lock_timeout = '50ms'")
            with pytest.raises(asyncpg.LockNotAvailableError):
                await ownership.lock_link(looking, "item-1")


async def test_a_banks_name_is_kept_without_what_postgres_cannot_hold(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = Plaid.item

    async def item(self: Plaid, token: str) -> ItemAnswer:
        return (await ask(self, token))._replace(institution_id="ins_1\0", institution_name="First\0 Bank")

    monkeypatch.setattr(Plaid, "item", item)

    await api.link()

    row = await api.pool.fetchrow("SELECT institution_id, institution_name FROM tartan.credentials")
    assert row is not None
    assert tuple(row) == ("ins_1", "First Bank")


async def test_a_link_under_way_at_a_stop_gives_its_item_back(
    database: str, removed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    exchanged = asyncio.Event()

    async def item(self: Plaid, token: str) -> ItemAnswer:
        exchanged.set()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(Plaid, "item", item)
    monkeypatch.setattr(linking, "NAME_S_MAX", 60.0)
    monkeypatch.setattr(linking, "CLOSE_S_MAX", 0.5)
    monkeypatch.setattr(app, "DRAIN_S", 0.1)
    async with serving_api(database) as api:
        body = {"user_id": "ada", "public_token": await api.token()}
        asking = asyncio.create_task(api.ask("POST", "/v1/items", body))
        await asyncio.wait_for(exchanged.wait(), 10)
    await asyncio.gather(asking, return_exceptions=True)

    assert len(removed) == 1


async def test_the_same_idempotency_key_links_once_and_answers_twice(api: Api) -> None:
    body = {"user_id": "ada", "public_token": await api.token()}
    headers = {"Idempotency-Key": "link-1"}

    answers = await asyncio.gather(*(api.ask("POST", "/v1/items", body, headers=headers) for _ in range(3)))
    other = await api.ask("POST", "/v1/items", {**body, "user_id": "bob"}, headers=headers)

    assert {status for status, _ in answers} == {201}
    assert len({answer["item_id"] for _, answer in answers}) == 1
    assert (other[0], other[1]["type"]) == (409, "urn:tartan:problem:idempotency_key_reused")


async def test_a_public_token_that_plaid_refuses_is_422_with_plaids_code_and_makes_no_user(api: Api) -> None:
    status, problem = await api.ask("POST", "/v1/items", {"user_id": "ada", "public_token": "public-sandbox-wrong"})

    assert (status, problem["plaid"]["error_code"]) == (422, "INVALID_PUBLIC_TOKEN")
    assert "public-sandbox-wrong" not in str(problem)
    assert await api.pool.fetchval("SELECT count(*) FROM tartan.users") == 0


async def test_a_link_token_is_plaids(api: Api) -> None:
    status, answer = await api.ask("POST", "/v1/link/token", {"user_id": "ada"})

    assert status == 200
    assert_shape(answer, "LinkToken")
    assert answer["link_token"].startswith("link-")


PATHS = (
    ("GET", "/v1/items/{item}"),
    ("DELETE", "/v1/items/{item}"),
    ("POST", "/v1/items/{item}/sync"),
    ("GET", "/v1/users/ada/items"),
    ("GET", "/v1/users/ada/accounts"),
    ("GET", "/v1/users/ada/transactions"),
    ("GET", "/v1/transactions/{transaction}"),
    ("POST", "/v1/users/ada/stream-token"),
)


async def test_another_tenant_sees_404_and_nobody_401_where_the_owner_sees_its_own(api: Api) -> None:
    item = await api.link()
    [transaction] = await api.show(item, user=await api.number(), transactions=1)

    for method, pattern in PATHS:
        path = pattern.format(item=item, transaction=transaction.hex())
        assert (await api.ask(method, path, key="key-b"))[0] == 404, path
        assert (await api.ask(method, path, key="wrong"))[0] == 401, path
        status, problem = await api.ask(method, path, key=None)
        assert (status, problem["type"]) == (401, "urn:tartan:problem:api_key_missing"), path
        assert "TARTAN_API_KEYS" in problem["detail"]
    marked = await api.pool.fetchrow("SELECT generation, unlink_requested FROM tartan.sync_state")
    assert marked is not None
    assert tuple(marked) == (1, False)
    for method, pattern in PATHS:
        path = pattern.format(item=item, transaction=transaction.hex())
        assert (await api.ask(method, path))[0] in (200, 201, 202), path


async def test_two_tenants_users_of_one_name_are_two_users(api: Api) -> None:
    await api.link("ada", key="key-a")
    await api.link("ada", key="key-b")

    ours = (await api.ask("GET", "/v1/users/ada/items", key="key-a"))[1]["items"]
    theirs = (await api.ask("GET", "/v1/users/ada/items", key="key-b"))[1]["items"]

    assert (len(ours), len(theirs)) == (1, 1)
    assert ours[0]["item_id"] != theirs[0]["item_id"]


async def test_what_the_tables_show_is_answered_in_the_documents_shape(api: Api) -> None:
    item = await api.link()
    fresh = (await api.ask("GET", f"/v1/items/{item}"))[1]
    [own] = await api.show(item, user=await api.number(), transactions=1)

    shown = (await api.ask("GET", f"/v1/items/{item}"))[1]
    items = (await api.ask("GET", "/v1/users/ada/items"))[1]
    accounts = (await api.ask("GET", "/v1/users/ada/accounts"))[1]
    one = (await api.ask("GET", f"/v1/transactions/{own.hex()}"))[1]
    page = (await api.ask("GET", "/v1/users/ada/transactions"))[1]

    assert (fresh["status"], shown["status"], items["items"]) == ("linking", "active", [shown])
    assert accounts["accounts"][0]["current"] == "1204.5000001"
    assert (one["amount"], one["currency"], one["id"]) == ("-19.99", "USD", own.hex())
    assert page == {"transactions": [one], "next_cursor": None}
    for document, name in (
        (fresh, "Item"),
        (shown, "Item"),
        (accounts["accounts"][0], "Account"),
        (one, "Transaction"),
        (page, "Transactions"),
    ):
        assert_shape(document, name)


async def test_pages_give_each_row_once_whatever_their_size_and_filters(api: Api) -> None:
    item = await api.link()
    ids = await api.show(item, user=await api.number(), transactions=40)

    async def pages(limit: int, filters: str) -> list[dict[str, Any]]:
        rows, cursor = [], ""
        while True:
            status, page = await api.ask("GET", f"/v1/users/ada/transactions?limit={limit}{filters}{cursor}")
            assert status == 200
            assert len(page["transactions"]) <= limit
            rows += page["transactions"]
            if page["next_cursor"] is None:
                return rows
            cursor = f"&cursor={page['next_cursor']}"

    whole = await pages(500, "")
    assert sorted(row["id"] for row in whole) == sorted(own.hex() for own in ids)
    assert whole == sorted(whole, key=lambda row: (row["date"], row["id"]), reverse=True)
    for limit in (1, 3, 7, 40, 41):
        assert await pages(limit, "") == whole
    pending = await pages(3, "&pending=true")
    assert pending == [row for row in whole if row["pending"]]
    since = (TODAY - datetime.timedelta(days=5)).isoformat()
    assert await pages(2, f"&from={since}&to={since}") == [row for row in whole if row["date"] == since]
    assert await pages(2, "&account_id=unknown") == []


async def test_an_unlink_is_asked_for_waited_for_and_answered_again(api: Api) -> None:
    item = await api.link()

    status, answer = await api.ask("DELETE", f"/v1/items/{item}")
    assert (status, answer) == (202, {"item_id": item, "status": "unlinking"})
    assert (await api.ask("GET", f"/v1/items/{item}"))[1]["status"] == "unlinking"
    waiting = asyncio.create_task(api.ask("DELETE", f"/v1/items/{item}?wait=10"))
    await generation_is(api, 3)
    await api.pool.execute("UPDATE tartan.credentials SET sealed_token = NULL, unlinked_at = now()")
    assert await waiting == (200, {"item_id": item, "status": "unlinked"})
    await api.pool.execute("UPDATE tartan.sync_state SET stopped = 'unlinked'")

    assert (await api.ask("DELETE", f"/v1/items/{item}"))[0] == 200
    assert (await api.ask("POST", f"/v1/items/{item}/sync"))[0] == 409
    assert (await api.ask("GET", f"/v1/items/{item}"))[1]["status"] == "unlinked"


@pytest.mark.parametrize(
    ("method", "path", "field"),
    [
        ("GET", "/v1/users/u/transactions?limit=1000", "limit"),
        ("GET", "/v1/users/u/transactions?sort=x", "sort"),
        ("GET", "/v1/users/u/transactions?cursor=%21", "cursor"),
        ("POST", "/v1/items/i/sync?wait=61", "wait"),
        ("GET", "/v1/transactions/xyz", "transaction_id"),
        ("POST", "/v1/link/token", "body"),
        ("GET", f"/v1/items/{'i' * 201}", "item_id"),
        ("GET", "/v1/items/%00", "item_id"),
    ],
)
async def test_wrong_values_are_named_over_http_too(api: Api, method: str, path: str, field: str) -> None:
    status, problem = await api.ask(method, path, [] if method == "POST" else None)

    assert (status, problem["type"]) == (400, "urn:tartan:problem:invalid_request")
    assert [fault["field"] for fault in problem["faults"]] == [field]


async def test_large_bodies_other_methods_and_unknown_paths_are_problems(api: Api) -> None:
    large = await api.ask("POST", "/v1/items", {"user_id": "u", "public_token": "p" * 200_000})
    method = await api.ask("PUT", "/v1/items")
    path = await api.ask("GET", "/v1/nothing")

    assert [large[0], method[0], path[0]] == [413, 405, 404]
    assert path[1] == {"type": "urn:tartan:problem:not_found", "title": "Not Found", "status": 404}


async def test_while_postgres_is_away_it_is_503_with_retry_after(api: Api) -> None:
    await api.pool.close()

    async with api.session.get(f"{api.address}/v1/users/u/items", headers={"Authorization": "Bearer key-a"}) as answer:
        assert (answer.status, answer.headers["Retry-After"]) == (503, "2")


async def test_the_page_comes_with_a_policy_that_lets_nothing_foreign_in(api: Api) -> None:
    for path, kind in (("/", "text/html"), ("/static/page.js", "text/javascript"), ("/static/page.css", "text/css")):
        async with api.session.get(api.address + path) as answer:
            assert (answer.status, answer.content_type) == (200, kind)
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
            text = await answer.text()
            assert "http://" not in text.replace("http://www.w3.org/", "")
            assert "https://" not in text
    async with api.session.get(api.address + "/static/../app.py") as answer:
        assert answer.status == 404


async def test_the_openapi_document_is_open_and_the_stream_wants_an_upgrade(api: Api) -> None:
    status, document = await api.ask("GET", "/v1/openapi.json", key=None)
    plain = await api.ask("GET", "/v1/stream", key=None)

    assert (status, document["openapi"], plain[0]) == (200, "3.1.0", 426)
