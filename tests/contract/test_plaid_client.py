"""The Plaid client against an HTTP server: what it asks, what it makes of answers, good and bad."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from aiohttp import web
from pydantic import SecretStr

from runtime.plaid import models
from runtime.plaid.client import Plaid, PlaidRefused
from runtime.settings import Settings
from schemas.errors import Halt, Quarantine, Retry

Answer = Callable[[str, dict[str, Any]], tuple[int, bytes]]

TRANSACTION = {
    "transaction_id": "t1",
    "account_id": "a1",
    "amount": 12.3400001,
    "date": "2026-01-02",
    "pending": False,
    "iso_currency_code": "USD",
    "unofficial_currency_code": None,
    "category": None,
    "category_id": None,
    "location": {"city": "Kyōto", "lat": 1.50},
    "counterparties": [{"name": "Ä", "new_here": [1.10]}],
    "payment_meta": None,
    "name": "COFFEE",
    "personal_finance_category": {
        "primary": "FOOD",
        "detailed": "FOOD_COFFEE",
        "confidence_level": "LOW",
        "version": "v2",
    },
}
ACCOUNT = {
    "account_id": "a1",
    "type": "depository",
    "name": "Checking",
    "mask": "0000",
    "apy": 0.50,
    "subtype": None,
    "balances": {"current": 100.10, "available": None, "limit": None, "iso_currency_code": "USD", "held": 3.30},
}


def page(**fields: Any) -> bytes:
    """An answer of /transactions/sync with these fields."""
    answer = {
        "added": [],
        "modified": [],
        "removed": [],
        "accounts": [],
        "next_cursor": "c1",
        "has_more": False,
        "transactions_update_status": "HISTORICAL_UPDATE_COMPLETE",
        "request_id": "r1",
    }
    return json.dumps(answer | fields).encode()


@asynccontextmanager
async def plaid(answer: Answer, **settings: Any) -> AsyncIterator[Plaid]:
    """A client of a server that answers as told."""

    async def handle(request: web.Request) -> web.Response:
        status, body = answer(request.path, {**await request.json(), "headers": request.headers})
        if status == 0:
            await asyncio.sleep(3)
        return web.Response(status=status or 200, body=body)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    client = Plaid(
        Settings(plaid_url=f"http://127.0.0.1:{port}", plaid_client_id="id", plaid_secret=SecretStr("s"), **settings)
    )
    try:
        yield client
    finally:
        await client.close()
        await runner.cleanup()


async def test_a_sync_asks_for_full_pages_with_all_that_the_log_wants() -> None:
    asked: list[dict[str, Any]] = []

    def answer(path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        asked.append({"path": path, **body})
        return 200, page()

    async with plaid(answer, days_requested=365) as client:
        await client.sync_page("token", None)
        await client.sync_page("token", "c0", count=7)

    first, second = asked
    assert first["path"] == "/transactions/sync"
    assert first["headers"]["PLAID-CLIENT-ID"] == "id"
    assert first["headers"]["PLAID-SECRET"] == "s"
    assert first["headers"]["Plaid-Version"] == "2020-09-14"
    assert (first["access_token"], first["count"], "cursor" in first) == ("token", 500, False)
    assert first["options"] == {
        "include_original_description": True,
        "personal_finance_category_version": "v2",
        "days_requested": 365,
    }
    assert (second["cursor"], second["count"], "days_requested" in second["options"]) == ("c0", 7, False)


def test_a_page_keeps_amounts_exact_and_nested_json_as_it_came() -> None:
    found = models.sync_page(page(added=[TRANSACTION], removed=[{"transaction_id": "t0", "account_id": "a1"}]))

    [transaction] = found.added
    assert transaction.amount == "12.3400001"
    assert transaction.category_primary == "FOOD"
    assert transaction.location_json == json.dumps(TRANSACTION["location"])
    assert transaction.counterparties_json == json.dumps(TRANSACTION["counterparties"])
    assert (transaction.payment_meta_json, transaction.extra_json) == (None, None)
    assert found.removed[0].transaction_id == "t0"
    assert (found.next_cursor, found.has_more, found.request_id) == ("c1", False, "r1")


def test_every_field_without_a_name_lands_in_extra() -> None:
    changed = TRANSACTION | {
        "zeta": {"deep": [1.10, None]},
        "nothing": None,
        "category": ["Food", "Coffee"],
        "running_balance": 10.10,
        "personal_finance_category": {"primary": "FOOD", "detailed": "X", "grade": "A"},
    }

    found = models.sync_page(page(added=[TRANSACTION], modified=[changed]))

    [transaction] = found.modified
    assert transaction.extra_json is not None
    assert '"running_balance":10.1' in transaction.extra_json.replace(" ", "")
    assert json.loads(transaction.extra_json) == {
        "zeta": {"deep": [1.10, None]},
        "category": ["Food", "Coffee"],
        "running_balance": 10.10,
        "personal_finance_category": {"grade": "A"},
    }
    assert transaction.category_detailed == "X"
    assert found.added[0].extra_json is None


def test_the_deprecated_category_gives_the_same_extra_on_both_ways() -> None:
    old = TRANSACTION | {"category": ["Food"], "category_id": "1"}

    fast = models.sync_page(page(added=[old])).added[0]
    tolerant = models.sync_page(page(added=[old, TRANSACTION | {"unknown": 1}])).added[0]

    assert json.loads(fast.extra_json or "") == {"category": ["Food"], "category_id": "1"}
    assert json.loads(tolerant.extra_json or "") == json.loads(fast.extra_json or "")
    assert msgspec.structs.replace(fast, extra_json=None) == msgspec.structs.replace(tolerant, extra_json=None)


def test_an_account_keeps_exact_balances_and_unknown_fields() -> None:
    [account] = models.accounts(json.dumps({"accounts": [ACCOUNT]}).encode()).accounts

    assert (account.current, account.available, account.iso_currency_code) == ("100.1", None, "USD")
    assert json.loads(account.extra_json or "") == {"apy": 0.50, "balances": {"held": 3.30}}


def test_a_page_without_a_required_field_is_quarantined_and_one_that_is_no_json_retried() -> None:
    with pytest.raises(Quarantine, match="next_cursor"):
        models.sync_page(b'{"added": []}')
    with pytest.raises(Quarantine):
        models.sync_page(page(added=[TRANSACTION | {"amount": None}]))
    with pytest.raises(Retry):
        models.sync_page(b"<html>")
    with pytest.raises(Retry):
        models.sync_page(b"\xff\xfe")


async def test_a_refusal_carries_codes_and_neither_message_nor_token() -> None:
    refusal = {
        "error_type": "ITEM_ERROR",
        "error_code": "ITEM_LOGIN_REQUIRED",
        "error_message": "private words",
        "request_id": "r9",
        "error_code_reason": "OAUTH_USER_REVOKED",
    }

    async with plaid(lambda *_: (400, json.dumps(refusal).encode())) as client:
        with pytest.raises(PlaidRefused) as caught:
            await client.sync_page("access-secret", None)

    error = caught.value
    assert (error.error_code, error.status, error.request_id, error.reason) == (
        "ITEM_LOGIN_REQUIRED",
        400,
        "r9",
        "OAUTH_USER_REVOKED",
    )
    assert "private" not in repr(error) + str(error)
    assert "access-secret" not in repr(error) + str(error)


@pytest.mark.parametrize(
    ("status", "body"), [(500, b""), (502, b"<html>bad gateway</html>"), (200, b"<html>"), (503, b"{}"), (429, b"\xff")]
)
async def test_what_is_no_answer_of_plaids_is_retried(status: int, body: bytes) -> None:
    async with plaid(lambda *_: (status, body)) as client:
        with pytest.raises(Retry):
            await client.accounts("token")


async def test_silence_and_a_closed_port_are_retried() -> None:
    async with plaid(lambda *_: (0, b""), plaid_timeout_s=0.2) as client:
        with pytest.raises(Retry, match="ReadTimeout"):
            await client.item("token")
    closed = Plaid(Settings(plaid_url="http://127.0.0.1:1", plaid_client_id="id", plaid_secret=SecretStr("s")))
    with pytest.raises(Retry):
        await closed.remove("token")
    await closed.close()


async def test_the_other_calls_read_what_they_need() -> None:
    answers: dict[str, Any] = {
        "/item/get": {
            "item": {"item_id": "i", "institution_id": "ins_1", "error": {"error_code": "ITEM_LOGIN_REQUIRED"}},
            "status": {"transactions": {"last_successful_update": "x"}, "last_webhook": {"code_sent": "y"}},
        },
        "/item/public_token/exchange": {"access_token": "at", "item_id": "i"},
        "/webhook_verification_key/get": {"key": {"alg": "ES256", "kid": "k", "new": 1}},
        "/link/token/create": {"link_token": "lt", "expiration": "soon"},
        "/sandbox/public_token/create": {"public_token": "pt"},
        "/institutions/get_by_id": {"institution": {"institution_id": "ins_1", "name": "Bank"}},
        "/item/webhook/update": {},
        "/transactions/refresh": {},
        "/item/remove": {},
    }

    async with plaid(lambda path, _: (200, json.dumps(answers[path]).encode())) as client:
        item = await client.item("t")
        assert (item.item_id, item.error_code, item.last_successful_update, item.last_webhook_code) == (
            "i",
            "ITEM_LOGIN_REQUIRED",
            "x",
            "y",
        )
        assert (await client.exchange("pt")).access_token == "at"
        assert json.loads(await client.verification_key("k")) == {"alg": "ES256", "kid": "k", "new": 1}
        assert (await client.link_token("u", access_token="at", account_selection=True)).link_token == "lt"
        assert (await client.link_token("u")).expiration == "soon"
        assert await client.sandbox_public_token("ins_1", username="user_good") == "pt"
        assert (await client.institution("ins_1")).name == "Bank"
        await client.update_webhook("t", "https://example.com")
        await client.refresh("t")
        await client.remove("t")


def test_a_client_without_keys_does_not_start() -> None:
    with pytest.raises(Halt, match="TARTAN_PLAID_CLIENT_ID"):
        Plaid(Settings(plaid_client_id="id"))
