"""Plaid inside the process: how virtual time passes, and webhooks as data."""

import asyncio
import datetime as dt
import json
from collections.abc import Callable
from typing import Any

import pytest
from joserfc import jws
from joserfc.jwk import ECKey

from sandbox.simulator.api.signing import key_id
from sandbox.simulator.bank.bank import Item
from sandbox.simulator.clock import ManualClock
from sandbox.simulator.control.faults import Fault
from sandbox.simulator.control.scripted_data import ScriptedChange, scripted_changes
from sandbox.simulator.inprocess import InProcessPlaid, WebhookAttempt
from sandbox.simulator.options import Options
from sandbox.simulator.simulated_plaid import SimulatedPlaid
from schemas.errors import Retry
from tests.support.sync_reader import deliver

START = dt.datetime(2026, 5, 1, 12, tzinfo=dt.UTC)
URL = "http://tartan.example/webhooks"


class Virtual:
    """A world whose clock moves when somebody sleeps; `on_sleep` happens meanwhile."""

    def __init__(self, *, latency_s: float = 0.0, timeout_s: float = 60.0, **options: Any) -> None:
        chosen: dict[str, Any] = {"rate_limits": "off", "validate_requests": False, "webhook_url": URL, **options}
        self.clock = ManualClock(START)
        self.world = SimulatedPlaid(Options(**chosen), self.clock)
        self.slept: list[float] = []
        self.on_sleep: Callable[[], object] = lambda: None
        self.bank = InProcessPlaid(self.world, sleep=self._sleep, latency=lambda _path: latency_s, timeout_s=timeout_s)

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.clock.advance(seconds)
        self.on_sleep()

    def synced(self) -> Item:
        """An Item that was read once, so that its webhooks come."""
        item = self.world.create_item("ada", transactions=10)
        self.bank.answer("/transactions/sync", {"access_token": item.access_token})
        return item


def after(seconds: float) -> dt.datetime:
    return START + dt.timedelta(seconds=seconds)


def seconds_of(sent: list[WebhookAttempt]) -> list[float]:
    return [(one.at - START).total_seconds() for one in sent]


async def test_a_request_without_latency_takes_no_time() -> None:
    virtual = Virtual()
    item = virtual.world.create_item("ada", transactions=10)

    page = await virtual.bank.sync_page(item.access_token, None)

    assert (len(page.added), virtual.slept, virtual.clock.now()) == (10, [], START)


async def test_a_bank_may_change_on_the_way_there_and_on_the_way_back() -> None:
    virtual = Virtual(latency_s=2.0)
    item = virtual.world.create_item("ada", transactions=10)
    wishes = iter(
        [
            ScriptedChange(amount="1", transaction_id="on the way there"),
            ScriptedChange(amount="2", transaction_id="and back"),
        ]
    )
    virtual.on_sleep = lambda: virtual.world.apply_update(
        item, lambda drawing: scripted_changes(drawing, [next(wishes)])
    )

    page = await virtual.bank.sync_page(item.access_token, None)

    told = {row.transaction_id for row in page.added}
    assert virtual.slept == [1.0, 1.0]
    assert set(item.live) - told == {"and back"}
    assert "on the way there" in told


@pytest.mark.parametrize(
    ("code", "slept"), [("TIMEOUT", [1.0, 9.0]), ("RESET", [1.0, 1.0]), ("UNSENT", [1.0, 1.0]), ("HTML", [1.0, 1.0])]
)
async def test_a_broken_connection_takes_the_time_that_its_client_waits(code: str, slept: list[float]) -> None:
    virtual = Virtual(latency_s=2.0, timeout_s=9.0)
    item = virtual.world.create_item("ada", transactions=10)
    virtual.world.faults.declare(Fault(code=code))

    with pytest.raises(Retry):
        await virtual.bank.sync_page(item.access_token, None)

    assert virtual.slept == slept


async def test_a_request_can_be_cancelled_while_it_waits() -> None:
    virtual = Virtual(latency_s=2.0)
    item = virtual.world.create_item("ada", transactions=10)

    async def forever(seconds: float) -> None:
        del seconds
        await asyncio.Event().wait()

    asking = asyncio.create_task(
        InProcessPlaid(virtual.world, sleep=forever, latency=lambda _: 1.0).remove(item.access_token)
    )
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)

    assert asking.cancelled()
    assert not item.removed


def test_webhooks_come_signed_in_order_and_at_their_times() -> None:
    virtual = Virtual()
    item = virtual.synced()
    for _ in range(3):
        virtual.world.step(item.item_id)
        virtual.clock.advance(10)

    sent = virtual.bank.webhooks(after(60))

    assert seconds_of(sent) == [0, 10, 20]
    assert virtual.clock.now() == after(60)
    for one in sent:
        jwk = json.loads(one.jwk)
        key = ECKey.import_key({name: jwk[name] for name in ("kty", "crv", "x", "y")})
        claims = json.loads(jws.deserialize_compact(one.jwt, key, algorithms=["ES256"]).payload)
        assert jwk["kid"] == key_id(one.jwt)
        assert claims["iat"] == int(one.at.timestamp())
        assert json.loads(one.body)["item_id"] == item.item_id
        assert one.url == URL


def test_what_happens_later_and_its_webhooks_come_as_time_passes() -> None:
    virtual = Virtual()
    item = virtual.world.create_item("ada", transactions=10, ready=False)
    virtual.bank.answer("/transactions/sync", {"access_token": item.access_token})

    first = virtual.bank.next_due_at()
    sent = virtual.bank.webhooks(after(60))

    assert first == after(3)
    assert seconds_of(sent) == [3, 20]
    assert item.phase == "HISTORICAL_UPDATE_COMPLETE"
    assert virtual.bank.next_due_at() is None


@pytest.mark.parametrize("resign", [True, False])
def test_a_refused_webhook_is_tried_for_a_day_and_signed_anew_or_as_of_its_making(resign: bool) -> None:
    virtual = Virtual(resign_retries=resign)
    item = virtual.synced()
    sent: list[WebhookAttempt] = []

    def refuse(one: WebhookAttempt) -> int:
        sent.append(one)
        return 500

    virtual.world.step(item.item_id)
    deliver(virtual.bank, after(86_400), refuse)

    times = [0, 30, 150, 630, 2550, 10_230, 40_950]
    assert seconds_of(sent) == times
    assert [_iat(one) for one in sent] == (times if resign else [0] * len(times))
    assert len({one.body for one in sent}) == 1


def test_a_receiver_that_asks_for_time_gets_it() -> None:
    virtual = Virtual()
    item = virtual.synced()
    virtual.world.step(item.item_id)
    (first,) = virtual.bank.webhooks(START)

    virtual.bank.record_answer(first, status=429, retry_after="120")

    assert virtual.bank.next_due_at() == after(120)
    assert seconds_of(virtual.bank.webhooks(after(120))) == [120]


def test_an_attempt_carries_the_key_that_signed_it_though_another_signs_now() -> None:
    virtual = Virtual(resign_retries=False)
    item = virtual.synced()
    virtual.world.step(item.item_id)
    (first,) = virtual.bank.webhooks(START)
    virtual.bank.record_answer(first, status=500)
    virtual.world.keyring.rotate(START, expire_old=True)

    (second,) = virtual.bank.webhooks(after(30))

    jwk = json.loads(second.jwk)
    assert second.jwt == first.jwt
    assert (jwk["kid"], jwk["expired_at"]) == (key_id(first.jwt), int(START.timestamp()))


def test_a_whole_day_of_a_busy_bank_passes_without_a_real_second_being_waited_for() -> None:
    virtual = Virtual()
    items = [virtual.synced() for _ in range(20)]
    taken: list[WebhookAttempt] = []

    def take(one: WebhookAttempt) -> int:
        taken.append(one)
        return 200 if len(taken) % 5 else 503

    for hour in range(24):
        for item in items:
            virtual.world.step(item.item_id)
        deliver(virtual.bank, after((hour + 1) * 3600), take)

    assert virtual.slept == []
    assert virtual.clock.now() == after(86_400)
    assert seconds_of(taken) == sorted(seconds_of(taken))
    assert virtual.world.deliveries.counts["acked"] == 24 * 20 < len(taken)


def _iat(sent: WebhookAttempt) -> float:
    claims = json.loads(jws.extract_compact(sent.jwt.encode()).payload)
    return float(claims["iat"] - START.timestamp())
