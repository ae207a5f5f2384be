"""Alerts on a real Postgres and with a real receiver: once each, in order, whatever the receiver does."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import asyncpg
import pytest
import structlog
from aiohttp import web
from prometheus_client import REGISTRY
from pydantic import SecretStr

from runtime.incidents import incidents
from runtime.settings import Settings
from streams.alerts import sender
from streams.alerts.sender import AlertSender, LogChannel, WebhookChannel

WAIT_S = 20.0
SECRET = "T0000-B0000-secret"


@dataclass
class Receiver:
    """An operators' webhook that answers as told and keeps what it took."""

    url: str = ""
    status: int = 200
    plain_only: bool = False
    took: list[dict[str, Any]] = field(default_factory=list)
    refused: int = 0

    async def take(self, request: web.Request) -> web.Response:
        body = await request.json()
        if self.plain_only and set(body) != {"text"}:
            self.refused += 1
            return web.Response(status=400, text="invalid_payload")
        if self.status != 200:
            self.refused += 1
            return web.Response(status=self.status)
        self.took.append(body)
        return web.Response(text="ok")


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    taker = Receiver()
    app = web.Application()
    app.router.add_post(f"/services/{SECRET}", taker.take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    taker.url = f"http://127.0.0.1:{runner.addresses[0][1]}/services/{SECRET}"
    yield taker
    await runner.cleanup()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


class Seconds:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def teller(
    pool: asyncpg.Pool, http: aiohttp.ClientSession, receiver: Receiver, clock: Seconds | None = None
) -> AlertSender:
    return AlertSender(pool, WebhookChannel(http, receiver.url, answer_s=5.0), monotonic=clock or Seconds())


async def see(pool: asyncpg.Pool, subject: str = "item", *, kind: str = incidents.SYNC_FAILING, times: int = 1) -> None:
    async with pool.acquire() as connection:
        for _ in range(times):
            await incidents.report(connection, kind, subject, "INTERNAL_SERVER_ERROR: API_ERROR")


async def end(pool: asyncpg.Pool, subject: str = "item", *, kind: str = incidents.SYNC_FAILING) -> None:
    async with pool.acquire() as connection:
        await incidents.close(connection, kind, subject)


def counted(outcome: str) -> float:
    return REGISTRY.get_sample_value("tartan_alerts_total", {"outcome": outcome}) or 0.0


async def told_all(alert_sender: AlertSender) -> None:
    """Let a teller work until nothing is left to tell."""
    for _ in range(50):
        if await alert_sender.send_next() == sender.POLL_S:
            return
    raise AssertionError("50 turns and no end")


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            is_met = condition()
            if is_met if isinstance(is_met, bool) else await is_met:
                return
            await asyncio.sleep(0.02)


async def test_an_incident_is_told_once_however_often_it_is_seen(
    pool: asyncpg.Pool, http: aiohttp.ClientSession, receiver: Receiver
) -> None:
    alert_sender = teller(pool, http, receiver)
    await see(pool, times=3)
    await told_all(alert_sender)

    await see(pool, times=20)
    await told_all(alert_sender)

    [message] = receiver.took
    assert "sync keeps failing" in message["text"]
    assert "Item item" in message["text"]
    assert "INTERNAL_SERVER_ERROR" in message["text"]
    assert "What to do: " in message["text"]
    assert (message["kind"], message["subject"], message["count"]) == ("sync_failing", "item", 3)
    assert message["closed_at"] is None
    assert message["opened_at"].endswith("+00:00")
    assert message["detail"] == "INTERNAL_SERVER_ERROR: API_ERROR"


async def test_the_end_is_told_once_and_says_how_long_it_was(
    pool: asyncpg.Pool, http: aiohttp.ClientSession, receiver: Receiver
) -> None:
    alert_sender = teller(pool, http, receiver)
    await see(pool, times=2)
    await told_all(alert_sender)

    await end(pool)
    await told_all(alert_sender)
    await told_all(alert_sender)

    _, over = receiver.took
    assert over["text"].startswith("Tartan: over: An Item's sync keeps failing")
    assert "It lasted 0 s, seen 2 times." in over["text"]
    assert over["state"] == "closed"
    assert over["closed_at"] is not None


async def test_what_ended_before_it_was_told_is_one_message(
    pool: asyncpg.Pool, http: aiohttp.ClientSession, receiver: Receiver
) -> None:
    alert_sender = teller(pool, http, receiver)
    await see(pool)
    await end(pool)

    await told_all(alert_sender)

    [message] = receiver.took
    assert message["text"].startswith("Tartan: began and is already over: ")
    assert (message["state"], message["closed_at"] is not None) == ("open_and_closed", True)


async def test_messages_come_in_the_order_of_what_happened(
    pool: asyncpg.Pool, http: aiohttp.ClientSession, receiver: Receiver
) -> None:
    alert_sender = teller(pool, http, receiver)
    await see(pool, "a")
    await told_all(alert_sender)

    await see(pool, "b")
    await end(pool, "a")
    await see(pool, "c")
    await told_all(alert_sender)

    assert [(taken["subject"], taken["state"]) for taken in receiver.took] == [
        ("a", "open"),
        ("b", "open"),
        ("a", "closed"),
        ("c", "open"),
    ]


async def test_a_receiver_that_is_down_is_told_when_it_is_back_and_waited_for_longer_each_time(
    pool: asyncpg.Pool, http: aiohttp.ClientSession, receiver: Receiver
) -> None:
    alert_sender = teller(pool, http, receiver)
    before = {outcome: counted(outcome) for outcome in ("failed", "told")}
    receiver.status = 503
    await see(pool, "a")
    await see(pool, "b")

    waits = [await alert_sender.send_next() for _ in range(12)]
    untold = list(receiver.took)
    receiver.status = 200
    await told_all(alert_sender)

    assert untold == []
    assert waits[:4] == [1, 2, 4, 8]
    assert max(waits) == sender.WAIT_CAP_S
    assert [taken["subject"] for taken in receiver.took] == ["a", "b"]
    assert counted("failed") - before["failed"] == 12
    assert counted("told") - before["told"] == 2


async def test_a_receiver_that_takes_only_text_gets_only_text(
    pool: asyncpg.Pool, http: aiohttp.ClientSession, receiver: Receiver
) -> None:
    receiver.plain_only = True
    await see(pool)

    await told_all(teller(pool, http, receiver))

    [message] = receiver.took
    assert set(message) == {"text"}
    assert "sync keeps failing" in message["text"]


async def test_a_message_that_is_refused_for_its_content_goes_to_the_log_and_holds_up_no_other(
    pool: asyncpg.Pool, http: aiohttp.ClientSession, receiver: Receiver
) -> None:
    alert_sender = teller(pool, http, receiver)
    receiver.status = 400
    await see(pool, "a")
    with structlog.testing.capture_logs() as lines:
        for _ in range(sender.REFUSALS_MAX):
            await alert_sender.send_next()

    receiver.status = 200
    await see(pool, "b")
    await told_all(alert_sender)

    logged = [line for line in lines if line["event"] == "incident"]
    assert [(line["log_level"], line["subject"]) for line in logged] == [("error", "a")]
    assert [taken["subject"] for taken in receiver.took] == ["b"]


async def test_a_flood_is_one_message_with_numbers_and_the_first_names(
    pool: asyncpg.Pool, http: aiohttp.ClientSession, receiver: Receiver
) -> None:
    for number in range(300):
        await see(pool, f"item-{number}", kind=incidents.ITEM_QUARANTINED)
    await see(pool, "ins_1", kind=incidents.INSTITUTION_DOWN)

    await told_all(teller(pool, http, receiver))

    [message] = receiver.took
    assert message["text"].startswith("Tartan: 301 incidents at once")
    assert "300 x An Item is quarantined" in message["text"]
    assert "1 x A bank does not answer" in message["text"]
    assert "item-0" in message["text"]
    assert "item-299" not in message["text"]
    assert len(message["text"]) < 4000
    assert (message["count"], len(message["incidents"])) == (301, 20)


async def test_incidents_that_trickle_in_are_told_together_once_a_minute_has_had_its_share(
    pool: asyncpg.Pool, http: aiohttp.ClientSession, receiver: Receiver
) -> None:
    clock = Seconds()
    alert_sender = teller(pool, http, receiver, clock)
    for number in range(sender.MESSAGES_A_MINUTE_MAX):
        await see(pool, f"item-{number}")
        await alert_sender.send_next()
    for number in range(50):
        await see(pool, f"later-{number}")

    wait_s = await alert_sender.send_next()
    within = len(receiver.took)
    clock.now += wait_s
    await alert_sender.send_next()

    assert (within, wait_s) == (sender.MESSAGES_A_MINUTE_MAX, sender.MINUTE_S)
    assert receiver.took[-1]["count"] == 50


async def test_of_many_processes_each_incident_is_told_by_one(
    pool: asyncpg.Pool, http: aiohttp.ClientSession, receiver: Receiver
) -> None:
    tellers = [teller(pool, http, receiver) for _ in range(4)]
    for number in range(9):
        await see(pool, f"item-{number}")

    async def nothing_untold() -> bool:
        await asyncio.gather(*(alert_sender.send_next() for alert_sender in tellers))
        async with pool.acquire() as connection:
            return not await incidents.unalerted(connection, 1)

    await until(nothing_untold)

    assert [taken["subject"] for taken in receiver.took] == [f"item-{number}" for number in range(9)]


async def test_a_slow_receiver_does_not_hold_up_who_sees_the_incident_again(
    pool: asyncpg.Pool, http: aiohttp.ClientSession, receiver: Receiver
) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    class Slow:
        async def send(self, message: sender.Message) -> sender.Outcome:
            asked.set()
            await go_on.wait()
            return sender.Outcome.SENT

    await see(pool)
    turn = asyncio.create_task(AlertSender(pool, Slow()).send_next())
    await asked.wait()

    async with asyncio.timeout(WAIT_S):
        await see(pool, times=2)
        await end(pool)
    go_on.set()
    await turn

    await told_all(teller(pool, http, receiver))
    [message] = receiver.took
    assert (message["state"], message["count"]) == ("closed", 3)


async def test_without_an_address_incidents_are_lines_of_the_log(pool: asyncpg.Pool) -> None:
    alert_sender = AlertSender(pool, LogChannel(), monotonic=Seconds())
    await see(pool)
    with structlog.testing.capture_logs() as lines:
        await told_all(alert_sender)
        await end(pool)
        await told_all(alert_sender)

    assert [(line["log_level"], line["kind"], line["state"]) for line in lines] == [
        ("error", "sync_failing", "open"),
        ("info", "sync_failing", "closed"),
    ]


async def test_text_of_others_calls_nobody_in_the_receivers_channel(
    pool: asyncpg.Pool, http: aiohttp.ClientSession, receiver: Receiver
) -> None:
    async with pool.acquire() as connection:
        await incidents.report(connection, incidents.ITEM_REFUSED, "item", "<!channel> & all")

    await told_all(teller(pool, http, receiver))

    [message] = receiver.took
    assert "&lt;!channel&gt; &amp; all" in message["text"]
    assert message["detail"] == "<!channel> & all"


async def test_the_stage_tells_settles_and_counts_by_itself_and_never_logs_the_address(
    pool: asyncpg.Pool, database: str, receiver: Receiver
) -> None:
    receiver.status = 500
    await see(pool, "ins_1", kind=incidents.INSTITUTION_DOWN)
    await see(pool, "nobody", kind=incidents.ITEM_GONE)
    settings = Settings(postgres_dsn=SecretStr(database), alerts_url=SecretStr(receiver.url))

    with structlog.testing.capture_logs() as lines:
        running = asyncio.create_task(sender.run(pool, settings))
        try:
            await until(lambda: receiver.refused > 0)
            receiver.status = 200
            await until(lambda: len(receiver.took) == 2)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    assert {taken["kind"] for taken in receiver.took} == {"institution_down", "item_gone"}
    assert REGISTRY.get_sample_value("tartan_incidents_open", {"kind": "institution_down"}) == 1
    assert REGISTRY.get_sample_value("tartan_incidents_open", {"kind": "item_gone"}) == 0
    assert lines
    assert SECRET not in json.dumps(lines, default=str)


async def test_an_address_that_cannot_be_reached_is_not_named_either(
    pool: asyncpg.Pool, http: aiohttp.ClientSession
) -> None:
    await see(pool)
    with structlog.testing.capture_logs() as lines:
        for url in (f"http://127.0.0.1:1/services/{SECRET}", f"no address {SECRET}"):
            await AlertSender(pool, WebhookChannel(http, url, answer_s=1.0), monotonic=Seconds()).send_next()

    assert len(lines) == 2
    assert SECRET not in json.dumps(lines, default=str)
