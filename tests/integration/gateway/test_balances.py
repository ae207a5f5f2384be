"""Balances of now, from the bank through the log to readers, on a real Kafka and Postgres and a simulated Plaid."""

import asyncio
import datetime
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal
from typing import Any

import pytest
from aiohttp import ClientSession

from gateway.app import Gateway, serving
from gateway.live.hub import Hub
from gateway.live.kafka_feed import KafkaFeed
from projections import app as projections
from runtime.kafka.clients import Appender, InDoubt
from runtime.plaid.client import Plaid
from runtime.users.commands import CommandWriter
from sandbox.simulator.api.limits import Limit
from sandbox.simulator.bank.bank import Item
from sandbox.simulator.control import failure_modes
from sandbox.simulator.control.faults import Fault
from schemas.encoding import codec
from schemas.events import BALANCE_REPORTED_REALTIME
from schemas.log import gate
from schemas.log.records import Account
from tests.support.gateway_world import assert_shape
from tests.support.streams_world import World, streams, world

ENDPOINT = "/accounts/balance/get"
DATED = "ins_900004"
SETTINGS = {
    "api_keys": "t:key-t,b:key-b",
    "stream_secret": "s" * 32,
    "port": 0,
    "plaid_limits": "off",
    "balance_price": "0.10 USD",
}

Told = tuple[int, dict[str, Any]]


class Banking:
    """An application's back end, a bank, and what is between them."""

    def __init__(self, made: World, address: str, session: ClientSession) -> None:
        self.made, self.address, self.session = made, address, session
        self.headers: dict[str, str] = {}

    async def ask(self, method: str, path: str, body: object = None, *, key: str = "key-t", **headers: str) -> Told:
        sent = {"Authorization": f"Bearer {key}", **headers}
        async with self.session.request(method, self.address + path, json=body, headers=sent) as answer:
            self.headers = dict(answer.headers)
            return answer.status, await answer.json(content_type=None)

    async def balances(
        self, item: Item, body: object = None, *, once: str | None = None, wait: str = "20", key: str = "key-t"
    ) -> Told:
        headers = {"Idempotency-Key": once} if once else {}
        return await self.ask("POST", f"/v1/items/{item.item_id}/balances?wait={wait}", body, key=key, **headers)

    async def shown(self, item: Item, account_id: str) -> dict[str, Any]:
        """An account as readers see it."""
        _, found = await self.ask("GET", f"/v1/users/{item.user}/accounts")
        [account] = [one for one in found["accounts"] if one["account_id"] == account_id]
        return dict(account)

    async def item(self, **given: Any) -> Item:
        """An Item whose first sync is shown."""
        item = self.made.bank.create_item(given.pop("user", "ada"), transactions=5, **given)
        await self.made.register(item)

        async def is_shown() -> bool:
            return bool(
                await self.made.pool.fetchval(
                    "SELECT count(*) >= 2 FROM reads.changesets JOIN tartan.heads USING (item_id) WHERE item_id = $1",
                    item.item_id,
                )
            )

        await self.made.until(is_shown, what="the first sync is shown")
        return item

    def asked(self, code: str = "OK") -> int:
        """How many requests for balances Plaid answered so."""
        return self.made.bank.requests[ENDPOINT, code]


@asynccontextmanager
async def gateway(made: World) -> AsyncIterator[Banking]:
    """A gateway of its own."""
    async with AsyncExitStack() as stack:
        plaid, appender = Plaid(made.settings), Appender(made.settings, client="gateway")
        stack.push_async_callback(plaid.close)
        stack.push_async_callback(appender.stop)
        served = Gateway(made.settings, pool=made.pool, plaid=plaid, hub=Hub(), appender=appender)
        port = await stack.enter_async_context(serving(served, made.settings))
        session = await stack.enter_async_context(ClientSession())
        yield Banking(made, f"http://127.0.0.1:{port}", session)


@asynccontextmanager
async def banking(kafka_address: str, topic_prefix: str, database: str, **given: Any) -> AsyncIterator[Banking]:
    """All stages but ingest."""
    async with AsyncExitStack() as stack:
        made = await stack.enter_async_context(world(kafka_address, topic_prefix, database, **{**SETTINGS, **given}))
        await stack.enter_async_context(projections.stage(made.settings))
        await stack.enter_async_context(streams(made))
        yield await stack.enter_async_context(gateway(made))


@pytest.fixture
async def bank(kafka_address: str, topic_prefix: str, database: str) -> AsyncIterator[Banking]:
    async with banking(kafka_address, topic_prefix, database) as found:
        yield found


def some_account(item: Item) -> str:
    return next(name for name, account in item.accounts.items() if account.plan.type == "depository")


async def test_what_the_bank_says_now_is_kept_shown_and_priced(bank: Banking) -> None:
    item = await bank.item(institution_id="ins_109508")
    account_id = some_account(item)
    cached = await bank.shown(item, account_id)
    failure_modes.drift(item, account_id, Decimal("12.34"))

    status, told = await bank.balances(item)
    now = await bank.shown(item, account_id)

    assert (status, told["status"]) == (200, "applied")
    assert_shape(told, "Balances")
    assert_shape(told["accounts"][0], "Balance")
    assert {one["account_id"] for one in told["accounts"]} == set(item.accounts)
    [said] = [one for one in told["accounts"] if one["account_id"] == account_id]
    assert (
        Decimal(said["current"]) == item.accounts[account_id].current == Decimal(cached["current"]) + Decimal("12.34")
    )
    # Read at once, while the one of before may be kept for 30 s.
    assert (now["current"], now["source"], cached["source"]) == (said["current"], "realtime", "cached")
    assert told["cost"] == {"requests": 1, "billed": True, "unit_price": "0.10", "currency": "USD"}
    [record] = [one for one in await bank.made.records() if one.head.type == gate.BALANCE]
    assert (record.head.cause.request_ids, record.head.cause.by) == ([told["request_id"]], "t")
    assert {kind for kind, _ in record.events} == {BALANCE_REPORTED_REALTIME}
    assert len(record.events) == len(item.accounts)


async def test_a_sync_that_repeats_its_cached_balance_does_not_take_it_back(bank: Banking) -> None:
    item = await bank.item()
    account_id = some_account(item)
    cached = (await bank.shown(item, account_id))["current"]
    failure_modes.drift(item, account_id, Decimal("5"))
    await bank.balances(item)
    version = (await bank.shown(item, account_id))["version"]

    failure_modes.drift(item, account_id, Decimal("-5"))  # Plaid's cached balance is of before
    bank.made.bank.step(item.item_id)
    item.accounts[account_id].opening += Decimal(cached) - item.accounts[account_id].current
    status, synced = await bank.ask("POST", f"/v1/items/{item.item_id}/sync?wait=20")

    now = await bank.shown(item, account_id)
    assert (status, synced["status"], synced["changed"]) == (200, "applied", True)
    assert (now["source"], now["version"]) == ("realtime", version)


async def test_a_key_is_paid_for_once_by_any_gateway_and_takes_no_other_body(bank: Banking) -> None:
    item = await bank.item()
    account_id = some_account(item)

    first = await bank.balances(item, once="k")
    again = await bank.balances(item, once="k")
    async with gateway(bank.made) as other:
        elsewhere = await other.balances(item, once="k")
        reused = await other.balances(item, {"account_ids": [account_id]}, once="k")
    reused_here = await bank.balances(item, {"account_ids": [account_id]}, once="k")

    assert first == again
    assert bank.asked() == 1
    assert (first[0], elsewhere[0]) == (200, 200)
    by_id = {one["account_id"]: one for one in first[1]["accounts"]}
    assert {one["account_id"]: one for one in elsewhere[1]["accounts"]} == by_id
    assert (elsewhere[1]["request_id"], elsewhere[1]["cost"]) == (first[1]["request_id"], first[1]["cost"])
    for status, problem in (reused, reused_here):
        assert (status, problem["type"]) == (409, "urn:tartan:problem:idempotency_key_reused")


async def test_those_who_ask_at_once_share_one_paid_request(bank: Banking) -> None:
    item = await bank.item()
    account_id = some_account(item)
    bank.made.bank.faults.declare(Fault(code="SLOW", endpoint=ENDPOINT, delay_s=0.5))

    whole = asyncio.create_task(bank.balances(item))
    await asyncio.sleep(0.1)
    told = await asyncio.gather(whole, bank.balances(item), bank.balances(item, {"account_ids": [account_id]}))

    assert [status for status, _ in told] == [200, 200, 200]
    assert bank.asked() == 1
    assert sum(one["cost"]["requests"] for _, one in told) == 1
    assert [one["cost"]["billed"] for _, one in told] == [True, False, False]
    assert [one["account_id"] for one in told[2][1]["accounts"]] == [account_id]
    assert len([one for one in await bank.made.records() if one.head.type == gate.BALANCE]) == 1


async def test_a_client_that_does_not_wait_finds_the_answer_by_its_key(bank: Banking) -> None:
    item = await bank.item()
    bank.made.bank.faults.declare(Fault(code="SLOW", endpoint=ENDPOINT, delay_s=0.3))

    status, told = await bank.balances(item, once="k", wait="0.1")
    later, found = await bank.balances(item, once="k")

    assert (status, told["status"], told["accounts"], told["cost"]) == (202, "asking", [], None)
    assert_shape(told, "Balances")
    assert (later, found["status"], found["cost"]["requests"], bank.asked()) == (200, "applied", 1, 1)


async def test_our_quota_ends_before_plaids(kafka_address: str, topic_prefix: str, database: str) -> None:
    limits = "off,accounts/balance/get=3/1200"
    async with banking(kafka_address, topic_prefix, database, plaid_limits=limits) as bank:
        item = await bank.item()

        first, (status, problem) = await bank.balances(item), await bank.balances(item)
        after = int(bank.headers["Retry-After"])

        assert (first[0], status, problem["type"]) == (200, 429, "urn:tartan:problem:balance_limit")
        assert 1 <= after <= 65
        assert bank.asked() == 1

        other = await bank.item(user="bob")
        bank.made.bank.rate_limiter.limits[ENDPOINT] = Limit(0, 1200, "ACCOUNTS_BALANCE_GET_LIMIT")
        refused = await bank.balances(other)
        closed = await bank.balances(other)

        assert [refused[0], closed[0]] == [429, 429]
        assert refused[1]["plaid"]["error_code"] == "ACCOUNTS_BALANCE_GET_LIMIT"
        assert bank.asked("ACCOUNTS_BALANCE_GET_LIMIT") == 1  # our bucket let no other one through


@pytest.mark.parametrize("known", [True, False])
async def test_a_bank_without_balances_of_now_is_told_how_old_one_may_be(
    kafka_address: str, topic_prefix: str, database: str, known: bool
) -> None:
    named = {"dated_institutions": f"ins_1,{DATED}"} if known else {}
    async with banking(kafka_address, topic_prefix, database, **named) as bank:
        item = await bank.item(institution_id=DATED)

        status, told = await bank.balances(item)
        again, _ = await bank.balances(item)
        tomorrow = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)
        refused = await bank.balances(item, {"min_last_updated_datetime": tomorrow.isoformat()})
        shown = await bank.shown(item, some_account(item))

        assert (status, again) == (200, 200)
        assert all(one["last_updated_datetime"] for one in told["accounts"])
        assert shown["last_updated_datetime"] is not None
        assert None in {one["current"] for one in told["accounts"]}
        assert bank.asked("INVALID_FIELD") == (0 if known else 1)  # it is learnt once
        assert (refused[0], refused[1]["type"]) == (409, "urn:tartan:problem:balance_too_old")


async def test_an_item_that_stopped_is_answered_with_what_to_do(bank: Banking) -> None:
    item = await bank.item()
    bank.made.bank.break_item(item, "ITEM_LOGIN_REQUIRED")

    status, refused = await bank.balances(item)

    async def is_stopped() -> bool:
        return (await bank.made.row(item))["stopped"] == "login_required"

    await bank.made.until(is_stopped, what="a pass read the state")
    known, problem = await bank.balances(item)
    assert (status, refused["stopped"], refused["plaid"]["error_code"]) == (
        409,
        "login_required",
        "ITEM_LOGIN_REQUIRED",
    )
    assert (known, problem["stopped"]) == (409, "login_required")
    assert "update mode" in problem["remedy"]
    assert bank.asked("ITEM_LOGIN_REQUIRED") == 1


async def test_an_unlinked_item_is_not_asked_about(bank: Banking) -> None:
    item = await bank.item()
    assert (await bank.ask("DELETE", f"/v1/items/{item.item_id}?wait=20"))[0] == 200

    status, problem = await bank.balances(item)

    assert (status, problem["stopped"], bank.asked()) == (409, "unlinked", 0)
    assert "Link it again" in problem["remedy"]


async def test_a_bank_that_is_down_is_not_asked_until_its_breaker_lets_one_through(
    kafka_address: str, topic_prefix: str, database: str
) -> None:
    async with banking(kafka_address, topic_prefix, database, institution_failures_max=1) as bank:
        item = await bank.item()
        bank.made.bank.faults.declare(Fault(code="INSTITUTION_DOWN", endpoint=ENDPOINT))

        first, second = await bank.balances(item), await bank.balances(item)
        after = int(bank.headers["Retry-After"])

        assert [first[0], second[0]] == [503, 503]
        assert second[1]["type"] == "urn:tartan:problem:institution_down"
        assert after > 60
        assert (bank.asked("INSTITUTION_DOWN"), bank.asked()) == (1, 0)
        await bank.made.pool.execute("UPDATE tartan.breakers SET open_until = tartan.clock() - interval '1 s'")
        assert (await bank.balances(item))[0] == 200
        assert not await bank.made.pool.fetchval("SELECT failures FROM tartan.breakers")


async def test_nobody_asks_about_anothers_item(bank: Banking) -> None:
    item = await bank.item()
    others = await bank.item(user="bob")
    theirs = some_account(others)

    stranger = await bank.balances(item, key="key-b")
    mixed = await bank.balances(item, {"account_ids": [theirs]})
    shared = await bank.balances(others, once="k"), await bank.balances(item, once="k")

    assert (stranger[0], stranger[1]["type"]) == (404, "urn:tartan:problem:not_found")
    assert (mixed[0], mixed[1]["faults"][0]["field"]) == (400, "account_ids")
    # One tenant's key, two Items: it came with another request before.
    assert (shared[0][0], shared[1][0]) == (200, 409)


async def test_what_is_pushed_is_what_the_next_read_shows(bank: Banking) -> None:
    item = await bank.item()
    account_id = some_account(item)
    hub = Hub()
    reading = asyncio.create_task(KafkaFeed(bank.made.settings, hub).run())
    await bank.made.until(lambda: _is(hub.is_open), what="push is read")
    listening = hub.join(await bank.made.pool.fetchval("SELECT user_number FROM tartan.users WHERE user_id = 'ada'"))
    listening.begin(0)

    async def next_balance() -> dict[str, Any]:
        while True:
            message = json.loads(await asyncio.wait_for(listening.next(), 20))
            if message["event"] == "balance.updated" and message["data"]["account_id"] == account_id:
                return dict(message["data"])

    for round_ in range(4):
        await bank.shown(item, account_id)  # from here on it may be kept
        failure_modes.drift(item, account_id, Decimal("1.01"))
        bank.made.bank.step(item.item_id)
        path = "sync" if round_ % 2 else "balances"
        asking = asyncio.create_task(bank.ask("POST", f"/v1/items/{item.item_id}/{path}?wait=0.01"))
        pushed = await next_balance()
        shown = await bank.shown(item, account_id)
        assert [shown[name] for name in ("current", "available", "source")] == [
            pushed[name] for name in ("current", "available", "source")
        ]
        assert pushed["source"] == ("cached" if round_ % 2 else "realtime")
        await asking
    reading.cancel()


async def _is(value: object) -> object:
    return value


async def test_an_append_in_doubt_is_made_again_and_counts_once(bank: Banking, monkeypatch: pytest.MonkeyPatch) -> None:
    item = await bank.item()
    append, answers = CommandWriter.append, iter([True, False])

    async def doubtful(self: CommandWriter, *said: Any) -> Any:
        at = await append(self, *said)
        if next(answers):
            raise InDoubt("no answer")
        return at

    monkeypatch.setattr(CommandWriter, "append", doubtful)
    status, told = await bank.balances(item)

    records = [one for one in await bank.made.records() if one.head.type == gate.BALANCE]
    accepted = await bank.made.pool.fetchval("SELECT count(*) FROM reads.changesets WHERE type = $1", gate.BALANCE)
    assert (status, told["status"], bank.asked()) == (200, "applied", 1)
    assert (len(records), len({one.head.id for one in records}), accepted) == (2, 1, 1)


async def test_a_gateway_that_stops_keeps_what_a_bank_was_asked_for(bank: Banking) -> None:
    item = await bank.item()
    bank.made.bank.faults.declare(Fault(code="SLOW", endpoint=ENDPOINT, delay_s=1.0))

    async with gateway(bank.made) as stopping:
        status, told = await stopping.balances(item, wait="0.2")

    assert (status, told["status"]) == (202, "asking")
    assert [one.head.type for one in await bank.made.records()].count(gate.BALANCE) == 1


async def test_what_the_log_keeps_is_what_the_bank_said_to_the_digit(bank: Banking) -> None:
    item = await bank.item()
    account_id = some_account(item)
    failure_modes.drift(item, account_id, Decimal("0.1234567"))

    _, told = await bank.balances(item)

    [record] = [one for one in await bank.made.records() if one.head.type == gate.BALANCE]
    kept = {said.account_id: said for _, said in record.events if isinstance(said, Account)}
    [said] = [one for one in told["accounts"] if one["account_id"] == account_id]
    assert Decimal(said["current"]) == item.accounts[account_id].current
    assert said["current"] == kept[account_id].current
    row = await bank.made.pool.fetchrow("SELECT realtime_payload FROM reads.accounts WHERE account_id = $1", account_id)
    assert row is not None
    assert row["realtime_payload"] == codec.encode(kept[account_id])
