"""The simulator as others use it: raw requests, broken connections, signed webhooks, the control API."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from joserfc import jws
from joserfc.jwk import ECKey

from sandbox.simulator.api.server import Running, running
from sandbox.simulator.options import Options

KEYS = {"client_id": "simulated-client", "secret": "simulated-secret"}
WAIT_S = 5.0


@dataclass
class Inbox:
    """An endpoint for webhooks that answers as told and keeps what came."""

    url: str = ""
    statuses: list[int] = field(default_factory=list)
    retry_after: str | None = None
    got: list[tuple[bytes, str]] = field(default_factory=list)

    async def take(self, request: web.Request) -> web.Response:
        self.got.append((await request.read(), request.headers["Plaid-Verification"]))
        status = self.statuses.pop(0) if self.statuses else 200
        headers = {"Retry-After": self.retry_after} if self.retry_after and status == 429 else {}
        return web.Response(status=status, headers=headers)


@dataclass
class Caller:
    """A client without any knowledge of Plaid."""

    url: str
    session: aiohttp.ClientSession

    async def ask(self, path: str, keys: dict[str, str] = KEYS, **body: Any) -> tuple[int, Any]:
        async with self.session.post(self.url + path, json={**keys, **body}) as response:
            return response.status, await response.json()

    async def post(self, path: str, **body: Any) -> Any:
        async with self.session.post(f"{self.url}/simulator{path}", json=body) as response:
            answer = await response.json()
            assert response.status == 200, answer
            return answer

    async def get(self, path: str) -> Any:
        async with self.session.get(f"{self.url}/simulator{path}") as response:
            assert response.status == 200
            return await response.json()


@pytest.fixture
async def inbox() -> AsyncIterator[Inbox]:
    box = Inbox()
    app = web.Application()
    app.router.add_post("/webhooks", box.take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    box.url = f"http://127.0.0.1:{runner.addresses[0][1]}/webhooks"
    yield box
    await runner.cleanup()


@asynccontextmanager
async def simulated(inbox: Inbox, **options: Any) -> AsyncIterator[tuple[Running, Caller]]:
    chosen: dict[str, Any] = {"webhook_url": inbox.url, "time_scale": 0.001, "rate_limits": "off", **options}
    async with running(Options(**chosen)) as simulator, aiohttp.ClientSession() as session:
        yield simulator, Caller(simulator.url, session)


async def synced(caller: Caller, **wish: Any) -> dict[str, Any]:
    """An Item that was read once, so that its webhooks come."""
    item: dict[str, Any] = await caller.post("/items", exchange=True, **{"transactions": 20, **wish})
    status, _ = await caller.ask("/transactions/sync", access_token=item["access_token"])
    assert status == 200
    return item


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            held = condition()
            if held if isinstance(held, bool) else await held:
                return
            await asyncio.sleep(0.005)


async def test_a_webhook_is_signed_over_its_indented_bytes(inbox: Inbox) -> None:
    async with simulated(inbox) as (_, caller):
        item = await synced(caller)
        await caller.post("/step", item_id=item["item_id"])
        await until(lambda: bool(inbox.got))

        ((raw, signature),) = inbox.got
        key_id = jws.extract_compact(signature.encode()).protected["kid"]
        _, answer = await caller.ask("/webhook_verification_key/get", key_id=key_id)

        jwk = {name: value for name, value in answer["key"].items() if name in ("kty", "crv", "x", "y")}
        claims = json.loads(jws.deserialize_compact(signature, ECKey.import_key(jwk), algorithms=["ES256"]).payload)
        assert set(claims) == {"iat", "request_body_sha256"}
        assert claims["request_body_sha256"] == hashlib.sha256(raw).hexdigest()
        assert raw.startswith(b'{\n  "webhook_type": "TRANSACTIONS",\n  "webhook_code": "SYNC_UPDATES_AVAILABLE"')
        assert json.loads(raw) == {
            "webhook_type": "TRANSACTIONS",
            "webhook_code": "SYNC_UPDATES_AVAILABLE",
            "item_id": item["item_id"],
            "initial_update_complete": True,
            "historical_update_complete": True,
            "environment": "sandbox",
        }


async def test_updates_are_told_only_after_the_first_sync(inbox: Inbox) -> None:
    async with simulated(inbox) as (_, caller):
        item = await caller.post("/items", transactions=5)
        await caller.post("/step", item_id=item["item_id"])

        assert (await caller.get("/stats"))["webhooks"].get("made", 0) == 0


async def test_legacy_webhooks_can_come_as_well(inbox: Inbox) -> None:
    async with simulated(inbox, legacy_webhooks=True) as (_, caller):
        item = await caller.post("/items", transactions=40, ready=False)
        await until(lambda: len(inbox.got) == 2)
        await caller.post("/step", item_id=item["item_id"], changes=30)
        await until(lambda: len(inbox.got) == 4)

        codes = [json.loads(raw)["webhook_code"] for raw, _ in inbox.got]
        assert set(codes) == {"INITIAL_UPDATE", "HISTORICAL_UPDATE", "DEFAULT_UPDATE", "TRANSACTIONS_REMOVED"}


async def test_a_refused_webhook_comes_again(inbox: Inbox) -> None:
    async with simulated(inbox) as (_, caller):
        inbox.statuses = [500, 429, 200]
        inbox.retry_after = "40"
        item = await synced(caller)
        await caller.post("/step", item_id=item["item_id"])

        assert (await caller.get(f"/quiet?wait_s={WAIT_S}"))["quiet"]
        stats = await caller.get("/stats?records=1")

        assert [record["status"] for record in stats["records"]] == [500, 429, 200]
        assert [record["attempt"] for record in stats["records"]] == [1, 2, 3]
        assert stats["webhooks"]["acked"] == 1
        assert len({raw for raw, _ in inbox.got}) == 1


async def test_retries_can_carry_their_first_signature(inbox: Inbox) -> None:
    async with simulated(inbox, resign_retries=False, time_scale=0.05) as (_, caller):
        inbox.statuses = [500]
        item = await synced(caller)
        await caller.post("/step", item_id=item["item_id"])
        await until(lambda: len(inbox.got) == 2)

        assert len({signature for _, signature in inbox.got}) == 1


async def test_webhooks_are_lost_and_repeated_by_the_seed(inbox: Inbox) -> None:
    async with simulated(inbox) as (_, caller):
        await caller.post("/rates", webhooks_lost=0.3, webhooks_repeated=0.3, webhooks_delay_max_s=1)
        await synced(caller)
        await caller.post("/webhooks", times=200)
        await caller.get(f"/quiet?wait_s={WAIT_S}")
        counts = (await caller.get("/stats"))["webhooks"]

        assert counts["made"] == 200
        assert 30 < counts["lost"] < 100
        assert counts["sent"] == len(inbox.got) > 200 - counts["lost"]


async def test_a_rotated_key_signs_from_then_on(inbox: Inbox) -> None:
    async with simulated(inbox) as (_, caller):
        await synced(caller)
        await caller.post("/webhooks")
        await until(lambda: len(inbox.got) == 1)
        rotated = await caller.post("/keys/rotate", expire_old=True)
        await caller.post("/webhooks")
        await until(lambda: len(inbox.got) == 2)

        kids = [jws.extract_compact(signature.encode()).protected["kid"] for _, signature in inbox.got]
        assert kids[1] == rotated["kid"] != kids[0]
        _, old = await caller.ask("/webhook_verification_key/get", key_id=kids[0])
        assert old["key"]["expired_at"] is not None


async def test_a_webhook_of_no_item_can_be_sent_as_it_is(inbox: Inbox) -> None:
    async with simulated(inbox) as (_, caller):
        body = {"webhook_type": "LINK", "webhook_code": "SESSION_FINISHED", "public_tokens": ["public-sandbox-1"]}

        await caller.post("/webhooks", body=body, times=2)
        await until(lambda: len(inbox.got) == 2)

        assert json.loads(inbox.got[0][0]) == body


async def test_keys_are_taken_from_the_body_or_the_headers(inbox: Inbox) -> None:
    async with simulated(inbox) as (_, caller):
        item = await synced(caller)
        token = item["access_token"]

        status, _ = await caller.ask("/item/get", access_token=token)
        missing, body = await caller.ask("/item/get", {}, access_token=token)
        headers = {"PLAID-CLIENT-ID": "simulated-client", "Plaid-Secret": "simulated-secret"}
        async with caller.session.post(
            f"{caller.url}/item/get", json={"access_token": token}, headers=headers
        ) as response:
            by_headers = response.status

        assert (status, by_headers) == (200, 200)
        assert (missing, body["error_code"]) == (400, "MISSING_FIELDS")


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/transactions/sync", {"access_token": "TOKEN", "colour": "red"}, "UNKNOWN_FIELDS"),
        ("/transactions/sync", {}, "MISSING_FIELDS"),
        ("/transactions/sync", {"access_token": "TOKEN", "count": 501}, "INVALID_FIELD"),
        ("/transactions/sync", {"access_token": "TOKEN", "count": "many"}, "INVALID_FIELD"),
        ("/transactions/sync", {"access_token": 1}, "INVALID_FIELD"),
        ("/transactions/sync", {"access_token": "nonsense"}, "INVALID_ACCESS_TOKEN"),
        ("/transactions/sync", {"access_token": "access-sandbox-0"}, "INVALID_ACCESS_TOKEN"),
        ("/transactions/sync", {"access_token": "TOKEN", "options": {"days_requested": 731}}, "INVALID_FIELD"),
        ("/transactions/sync", {"access_token": "TOKEN", "options": {"account_id": "no"}}, "INVALID_ACCOUNT_ID"),
        ("/accounts/get", {"access_token": "TOKEN", "options": {"account_ids": ["no"]}}, "INVALID_ACCOUNT_ID"),
        ("/item/public_token/exchange", {"public_token": "public-sandbox-0"}, "INVALID_PUBLIC_TOKEN"),
        (
            "/sandbox/public_token/create",
            {"institution_id": "no", "initial_products": ["transactions"]},
            "INVALID_INSTITUTION",
        ),
        ("/no/such/endpoint", {}, "NOT_FOUND"),
    ],
)
async def test_what_plaid_python_could_not_send_is_refused(
    inbox: Inbox, path: str, body: dict[str, Any], code: str
) -> None:
    async with simulated(inbox) as (_, caller):
        item = await synced(caller)
        body = {name: item["access_token"] if value == "TOKEN" else value for name, value in body.items()}

        status, answer = await caller.ask(path, **body)

        assert status in (400, 404)
        assert answer["error_code"] == code


async def test_a_body_that_is_no_json_is_refused(inbox: Inbox) -> None:
    async with simulated(inbox) as (_, caller), caller.session.post(f"{caller.url}/item/get", data=b"{") as response:
        assert (await response.json())["error_code"] == "INVALID_BODY"


async def test_connections_break_on_demand(inbox: Inbox) -> None:
    async with simulated(inbox) as (_, caller):
        item = await synced(caller)
        for code in ("HTML", "RESET", "TRUNCATED", "TIMEOUT"):
            await caller.post("/faults", code=code, item_id=item["item_id"])

        async with caller.session.post(
            f"{caller.url}/transactions/sync", json={**KEYS, "access_token": item["access_token"]}
        ) as response:
            assert (response.status, response.content_type) == (200, "text/html")
        for _ in ("RESET", "TRUNCATED"):
            with pytest.raises(aiohttp.ClientError):
                await caller.ask("/transactions/sync", access_token=item["access_token"])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await caller.ask("/transactions/sync", access_token=item["access_token"])
        status, _ = await caller.ask("/transactions/sync", access_token=item["access_token"])
        assert status == 200


async def test_faults_strike_the_page_that_they_name(inbox: Inbox) -> None:
    async with simulated(inbox, page_split_share=0.0) as (_, caller):
        item = await synced(caller, transactions=50)
        token = item["access_token"]
        await caller.post("/faults", code="INTERNAL_SERVER_ERROR", item_id=item["item_id"], page=2, times=1)

        _, first = await caller.ask("/transactions/sync", access_token=token, count=20)
        failed, _ = await caller.ask("/transactions/sync", access_token=token, count=20, cursor=first["next_cursor"])
        passed, _ = await caller.ask("/transactions/sync", access_token=token, count=20, cursor=first["next_cursor"])

        assert (failed, passed) == (500, 200)
        assert (await caller.get("/faults"))["faults"] == []


async def test_limits_can_be_set_while_it_runs(inbox: Inbox) -> None:
    async with simulated(inbox) as (_, caller):
        item = await synced(caller)
        await caller.post("/limits", limits={"/item/get": [2, 100]})

        answers = [(await caller.ask("/item/get", access_token=item["access_token"])) for _ in range(3)]

        assert [status for status, _ in answers] == [200, 200, 429]
        assert answers[2][1]["error_type"] == "RATE_LIMIT_EXCEEDED"
        assert answers[2][1]["error_code"] == "ITEM_GET_LIMIT"


async def test_states_of_items_and_banks_change_on_demand(inbox: Inbox) -> None:
    async with simulated(inbox) as (_, caller):
        item = await synced(caller)
        item_id, token = item["item_id"], item["access_token"]

        async def sync_code(**wish: Any) -> str:
            await caller.post("/faults", **wish)
            _, body = await caller.ask("/transactions/sync", access_token=token)
            return str(body.get("error_code"))

        assert await sync_code(kind="item_error", item_id=item_id, code="ITEM_LOCKED") == "ITEM_LOCKED"
        assert await sync_code(kind="repair", item_id=item_id) == "None"
        assert await sync_code(kind="institution_down", item_id=item_id) == "INSTITUTION_DOWN"
        assert await sync_code(kind="institution_up", item_id=item_id) == "None"
        assert await sync_code(kind="permission_revoked", item_id=item_id) == "USER_PERMISSION_REVOKED"
        await until(lambda: len(inbox.got) == 3)
        codes = [json.loads(raw)["webhook_code"] for raw, _ in inbox.got]
        assert codes == ["ERROR", "LOGIN_REPAIRED", "USER_PERMISSION_REVOKED"]


async def test_every_trouble_can_be_declared_by_name(inbox: Inbox) -> None:
    async with simulated(inbox, page_split_share=0.0) as (simulator, caller):
        item = await synced(caller)
        held = simulator.plaid.item(item["item_id"])

        async def sync(**wish: Any) -> dict[str, Any]:
            await caller.post("/faults", **({"item_id": item["item_id"]} | wish))
            _, body = await caller.ask("/transactions/sync", access_token=item["access_token"], count=500)
            return dict(body)

        before = len((await sync(kind="polled"))["added"])
        fewer = len((await sync(kind="rows_removed", count=5))["added"])
        more = len((await sync(kind="rows_returned", count=1))["added"])
        account_id = next(iter(held.live.values())).account_id
        hidden = await sync(kind="account_hidden", account_id=account_id)
        shown = await sync(kind="account_shown")
        unseen = len((await sync(kind="unseen", count=3))["added"])
        polled = len(held.log)
        await sync(kind="polled")

        assert (before - fewer, more - fewer) == (5, 1)
        assert account_id not in {row["account_id"] for row in hidden["added"]}
        assert account_id in {row["account_id"] for row in shown["added"]}
        assert unseen == more
        assert len(held.log) >= polled + 3


async def test_histories_and_cursors_are_lost_by_name(inbox: Inbox) -> None:
    async with simulated(inbox, time_scale=0.01) as (_, caller):
        item = await synced(caller)
        item_id, token = item["item_id"], item["access_token"]
        _, page = await caller.ask("/transactions/sync", access_token=token)

        async def refusal(kind: str) -> str:
            await caller.post("/faults", kind=kind, item_id=item_id)
            _, body = await caller.ask("/transactions/sync", access_token=token, cursor=page["next_cursor"])
            return str(body["error_code"])

        assert await refusal("cursors_mutating") == "TRANSACTIONS_SYNC_MUTATION_DURING_PAGINATION"
        assert await refusal("cursors_refused") == "INVALID_FIELD"
        await caller.post("/faults", kind="history_unready", item_id=item_id, initial_s=5, complete_s=10)
        _, early = await caller.ask("/transactions/sync", access_token=token)

        async def complete() -> bool:
            _, late = await caller.ask("/transactions/sync", access_token=token)
            return bool(late["transactions_update_status"] == "HISTORICAL_UPDATE_COMPLETE")

        await until(complete)
        assert (early["transactions_update_status"], early["added"]) == ("NOT_READY", [])


async def test_a_bank_is_down_for_a_time_with_a_code_of_its_own(inbox: Inbox) -> None:
    async with simulated(inbox, time_scale=0.01) as (_, caller):
        item = await synced(caller)

        async def code() -> str:
            _, body = await caller.ask("/accounts/get", access_token=item["access_token"])
            return str(body.get("error_code"))

        async def up() -> bool:
            return await code() == "None"

        wish = {"kind": "institution_down", "item_id": item["item_id"], "code": "INSTITUTION_NOT_AVAILABLE"}
        await caller.post("/faults", for_s=20, **wish)

        assert await code() == "INSTITUTION_NOT_AVAILABLE"
        await until(up)


async def test_fates_of_webhooks_can_be_declared_and_withdrawn(inbox: Inbox) -> None:
    async with simulated(inbox) as (_, caller):
        item = await synced(caller)
        for fate in ("lost", "repeated", "lost"):
            await caller.post("/fates", fate=fate, item_id=item["item_id"])

        await caller.post("/step", item_id=item["item_id"], count=2)
        await caller.get(f"/quiet?wait_s={WAIT_S}")
        withdrawn = await caller.session.delete(f"{caller.url}/simulator/faults")
        await caller.post("/step", item_id=item["item_id"])
        await until(lambda: len(inbox.got) == 3)

        assert await withdrawn.json() == {"withdrawn": 1}


async def test_the_bank_lives_until_it_is_told_to_stop(inbox: Inbox) -> None:
    async with simulated(inbox) as (simulator, caller):
        await synced(caller)
        await caller.post("/activity", rate_per_s=200, changes=2)
        await until(lambda: len(inbox.got) >= 20)
        await caller.post("/activity", rate_per_s=0)
        await caller.get(f"/quiet?wait_s={WAIT_S}")

        before = len(next(iter(simulator.plaid.bank.items.values())).log)
        await asyncio.sleep(0.05)

        assert len(next(iter(simulator.plaid.bank.items.values())).log) == before


async def test_an_update_can_be_dictated_word_by_word(inbox: Inbox) -> None:
    async with simulated(inbox) as (_, caller):
        item = await synced(caller)
        wishes = [{"amount": "12.3400001", "name": "RENT", "date": "2026-05-01"}, {"amount": "-3", "pending": True}]

        made = await caller.post("/changes", item_id=item["item_id"], changes=wishes)
        await until(lambda: len(inbox.got) == 1)

        assert [(change["kind"], change["amount"], change["pending"]) for change in made["changes"]] == [
            ("added", "12.3400001", False),
            ("added", "-3", True),
        ]


async def test_the_truth_can_be_had_whole_by_item_and_as_digests(inbox: Inbox) -> None:
    async with simulated(inbox) as (_, caller):
        made = await caller.post("/items", count=3, transactions=10)

        whole = await caller.get("/truth")
        one = await caller.get(f"/truth?item_id={made['items'][1]['item_id']}&verbatim=1")
        digests = await caller.get("/truth?digests=1")

        assert [item["user"] for item in whole["items"]] == ["user-1", "user-2", "user-3"]
        assert all(len(item["transactions"]) == 10 for item in whole["items"])
        assert one["items"][0]["verbatim"][0]["transaction_id"] == one["items"][0]["transactions"][0]["transaction_id"]
        assert [item["digest"] for item in digests["items"]] == [item["digest"] for item in whole["items"]]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/items", {"transactions": -1}),
        ("/items", {"colour": "red"}),
        ("/items", {"institution_id": "no"}),
        ("/step", {"item_id": "no"}),
        ("/faults", {"code": "NO_SUCH"}),
        ("/faults", {"kind": "item_error"}),
        ("/faults", {"kind": "institution_down", "institution_id": "ins_109508", "code": "ITEM_LOCKED"}),
        ("/fates", {"fate": "stolen"}),
        ("/activity", {"rate_per_s": -1}),
        ("/changes", {"item_id": "no", "changes": [{"amount": "1"}]}),
        ("/link", {"link_token": "no"}),
    ],
)
async def test_a_wrong_wish_is_refused_with_its_reason(inbox: Inbox, path: str, body: dict[str, Any]) -> None:
    async with (
        simulated(inbox) as (_, caller),
        caller.session.post(f"{caller.url}/simulator{path}", json=body) as response,
    ):
        assert response.status == 400
        assert (await response.json())["error"]
