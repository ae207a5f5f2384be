"""The main job as its users meet it: link, change, see it everywhere; re-authenticate; unlink."""

import asyncio
import io
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import fastavro

from projections.verify import digests
from sandbox.observe.published_events import read_topics
from schemas.encoding import catalogue
from schemas.topics import TRANSACTIONS
from tests.acceptance.conftest import Running
from tests.support.acceptance_published import assert_published, read_published

QUIET_S_MAX = 60.0
WAIT_S_MAX = 30.0


async def linked(running: Running, user: str, *, transactions: int = 80) -> str:
    [item] = await running.bank.make_items(user, transactions=transactions)
    await running.application.link(user, item["public_token"])
    await running.observer.until_quiet(running.bank, timeout_s=QUIET_S_MAX)
    return str(item["item_id"])


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    deadline = time.monotonic() + WAIT_S_MAX
    while not await condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def test_what_the_bank_has_is_in_tables_ledger_topics_and_api(running: Running) -> None:
    await linked(running, "ada")
    item_id = await linked(running, "bob")
    for _ in range(10):
        await running.bank.step(changes=6)
    await running.observer.until_quiet(running.bank, timeout_s=QUIET_S_MAX)

    async with running.observer.pool.acquire() as connection:
        assert await digests.state_digest(connection) == await running.bank.digest()
        assert await digests.ledger_problems(connection) == []
    await assert_published(running.observer)
    assert await shown_by_api(running, "bob") == await rows_of_bank(running, item_id)


async def shown_by_api(running: Running, user: str) -> dict[str, tuple[Any, ...]]:
    rows: list[dict[str, Any]] = []
    filters = {"limit": "50"}
    while True:
        page = await running.application.transactions(user, **filters)
        rows += page["transactions"]
        if not page.get("next_cursor"):
            return {
                row["transaction_id"]: (row["amount"], row["currency"], row["date"], row["pending"]) for row in rows
            }
        filters["cursor"] = page["next_cursor"]


async def rows_of_bank(running: Running, item_id: str) -> dict[str, tuple[Any, ...]]:
    [item] = [item for item in await running.bank.truth() if item["item_id"] == item_id]
    return {
        row["transaction_id"]: (
            row["amount"],
            row["iso_currency_code"] or row["unofficial_currency_code"],
            row["date"],
            row["pending"],
        )
        for row in item["transactions"]
    }


async def test_a_stranger_reads_the_public_topic_with_fastavro_alone(running: Running) -> None:
    item_id = await linked(running, "ada", transactions=30)
    read: dict[str, dict[str, Any]] = {}
    for records in (await read_topics(running.stack.settings(), [TRANSACTIONS])).values():
        for record in records:
            headers = {name: value.decode() for name, value in record.headers}
            assert {"ce_id", "ce_type", "ce_time", "ce_source", "ce_subject", "tartan-position"} <= headers.keys()
            assert record.value[:1] == b"\x00"
            schema = catalogue.full_schema(int.from_bytes(record.value[1:5], "big"))
            event: Any = fastavro.schemaless_reader(io.BytesIO(record.value[5:]), schema, None)
            assert headers["ce_type"] == "transaction.added"
            assert record.key.decode() == event["id"]
            read[event["transaction"]["transaction_id"]] = event

    rows = await rows_of_bank(running, item_id)
    assert {plaid: event["transaction"]["amount"] for plaid, event in read.items()} == {
        plaid: values[0] for plaid, values in rows.items()
    }
    assert {event["user_id"] for event in read.values()} == {"ada"}


async def test_a_browser_gets_a_snapshot_and_then_each_change_once(running: Running) -> None:
    item_id = await linked(running, "ada")
    token = await running.application.stream_token("ada")
    url = running.stack.gateway_url.replace("http", "ws", 1) + "/v1/stream"
    async with aiohttp.ClientSession() as session, session.ws_connect(url, params={"token": token}) as socket:
        balances = json.loads((await socket.receive(timeout=WAIT_S_MAX)).data)
        transactions = json.loads((await socket.receive(timeout=WAIT_S_MAX)).data)
        assert (balances["event"], transactions["event"]) == ("initial.balances", "initial.transactions")

        for _ in range(5):
            await running.bank.step(item_id, changes=4)
        await running.observer.until_quiet(running.bank, timeout_s=QUIET_S_MAX)
        count = await running.observer.pool.fetchval(
            "SELECT sum(net_events) FROM reads.changesets WHERE type = 'sync' AND source_offset >= $1",
            int(transactions["position"].partition(":")[2]),
        )
        messages = [json.loads((await socket.receive(timeout=WAIT_S_MAX)).data) for _ in range(int(count))]

    positions = [message["position"] for message in messages]
    assert len(set(positions)) == len(positions)
    assert {message["event"] for message in messages} <= {
        "transaction.added",
        "transaction.modified",
        "transaction.removed",
        "balance.updated",
    }
    assert all({"event", "data", "timestamp"} <= message.keys() for message in messages)


async def test_a_lost_login_stops_the_item_and_a_repaired_one_catches_up(running: Running) -> None:
    item_id = await linked(running, "ada")
    await running.bank.fault(kind="item_error", item_id=item_id, code="ITEM_LOGIN_REQUIRED")
    await until(lambda: has_status(running, item_id, "login_required"))
    await running.bank.step(item_id, changes=5)

    await running.bank.fault(kind="repair", item_id=item_id)
    await until(lambda: has_status(running, item_id, "active"))
    await running.observer.until_quiet(running.bank, timeout_s=QUIET_S_MAX)

    async with running.observer.pool.acquire() as connection:
        assert await digests.state_digest(connection) == await running.bank.digest()
    kinds = [
        kind
        for (topic, _), events in (await read_published(running.observer)).items()
        if topic == "items"
        for *_, kind in events
    ]
    assert sorted(kinds) == ["item.linked", "item.state_changed", "item.state_changed"]


async def has_status(running: Running, item_id: str, status: str) -> bool:
    shown = await running.application.item(item_id)
    return bool(shown["status"] == status)


async def test_an_unlinked_item_ends_at_plaid_and_keeps_its_rows(running: Running) -> None:
    item_id = await linked(running, "ada")
    before = await shown_by_api(running, "ada")

    answer = await running.application.unlink(item_id, wait_s=WAIT_S_MAX)

    assert answer["status"] == "unlinked"
    assert await shown_by_api(running, "ada") == before
    assert (await running.bank.stats())["requests"]["/item/remove"] == {"OK": 1}
    token = await running.observer.pool.fetchval(
        "SELECT sealed_token FROM tartan.credentials WHERE item_id = $1", item_id
    )
    assert token is None


async def test_a_manual_sync_answers_with_what_was_applied(running: Running) -> None:
    item_id = await linked(running, "ada")
    await running.bank.rates(webhooks_lost=1.0)
    await running.bank.step(item_id, changes=5)
    truth = await rows_of_bank(running, item_id)

    answer = await running.application.sync(item_id, wait_s=WAIT_S_MAX)

    assert answer["status"] == "applied"
    assert answer["changed"] is True
    assert await shown_by_api(running, "ada") == truth
