"""A simulated Plaid inside the process, in virtual time: no server, no thread, no real clock.

    world = SimulatedPlaid(Options(seed=7, rate_limits="production", validate_requests=False), ManualClock(start))
    bank = InProcessPlaid(world, sleep=loop.sleep)            # what a pass over an Item asks: streams.ports.InProcessPlaid
    item = world.create_item("ada", webhook_url="http://tartan.example/webhooks")
    page = await bank.sync_page(item.access_token, None)
    world.faults.declare(Fault(code="TIMEOUT", item_id=item.item_id))
    world.step(item.item_id)                        # something happens at the bank
    for sent in bank.webhooks(until):               # moves the world's clock to `until`
        bank.record_answer(sent, status=200)             # anything else is tried again, as Plaid does

A request reaches the bank after half of its latency and its answer comes back after the other half, so the bank may
change in between. What breaks the way to Plaid over HTTP is the same Retry here, with the same words, and what Plaid
refuses the same PlaidRefused: a contract test asks both the same.
"""

import datetime as dt
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import msgspec
from msgspec import Raw, Struct

from runtime.plaid import models
from runtime.plaid.client import CATEGORY_VERSION, PAGE_TRANSACTIONS_MAX, PlaidRefused
from runtime.plaid.models import AccountsAnswer, ItemAnswer, SyncPage
from sandbox.simulator.api.dispatcher import Answer, answer
from sandbox.simulator.api.signing import key_id
from sandbox.simulator.bank.bank import Item
from sandbox.simulator.clock import ManualClock
from sandbox.simulator.simulated_plaid import SimulatedPlaid
from sandbox.simulator.webhooks.delivery import Delivery
from schemas.errors import Quarantine, Retry

PATIENCE_S = 60.0
"""How long a request waits for its answer, unless another bound is given: Tartan's own default."""

DAYS_REQUESTED = 730
"""Days of history asked for, unless others are given: Tartan's own default, and Plaid's most."""

UNANSWERED = 0
"""Status of a request or a webhook that nobody answered."""

Read = TypeVar("Read")
Sleep = Callable[[float], Awaitable[None]]
Latency = Callable[[str], float]
"""Gives the seconds that a request to a path takes, there and back."""

# urllib3's names for a connection that breaks in these ways, which is what the client over HTTP says.
_TIMED_OUT, _CUT = "ReadTimeoutError", "ProtocolError"


class _Refusal(Struct):
    error_type: str
    error_code: str
    request_id: str | None = None
    error_code_reason: str | None = None


class _Done(Struct):
    request_id: str | None = None


class _Key(Struct):
    key: Raw


@dataclass(frozen=True, slots=True)
class WebhookAttempt:
    """One attempt of a webhook. `at`: when it goes out; `jwk`: the key that verifies it, as JSON."""

    at: dt.datetime
    url: str
    body: bytes
    jwt: str
    jwk: bytes
    delivery: Delivery


class InProcessPlaid:
    """Plaid, as a pass over an Item sees it; each request raises PlaidRefused, Retry or Quarantine.

    `latency`: seconds that a request takes. `sleep`: lets virtual time pass; not called for nothing.
    """

    def __init__(
        self,
        world: SimulatedPlaid,
        *,
        sleep: Sleep,
        latency: Latency = lambda _path: 0.0,
        timeout_s: float = PATIENCE_S,
        days_requested: int = DAYS_REQUESTED,
    ) -> None:
        self.plaid = world
        self._sleep = sleep
        self._latency = latency
        self._timeout_s = timeout_s
        self._days_requested = days_requested
        self._keys = {"PLAID-CLIENT-ID": world.options.client_id, "PLAID-SECRET": world.options.secret}

    async def sync_page(self, token: str, cursor: str | None, *, count: int = PAGE_TRANSACTIONS_MAX) -> SyncPage:
        """Ask for one page of what changed after a cursor; None asks for the whole history."""
        options: dict[str, Any] = {
            "include_original_description": True,
            "personal_finance_category_version": CATEGORY_VERSION,
        }
        body: dict[str, Any] = {"access_token": token, "count": count, "options": options}
        if cursor:
            body["cursor"] = cursor
        else:
            options["days_requested"] = self._days_requested
        return await self._ask("/transactions/sync", body, models.sync_page)

    async def accounts(self, token: str) -> AccountsAnswer:
        """Ask for the accounts with their cached balances."""
        return await self._ask("/accounts/get", {"access_token": token}, models.accounts)

    async def item(self, token: str) -> ItemAnswer:
        """Ask for the Item's state and when Plaid last heard of its bank."""
        return await self._ask("/item/get", {"access_token": token}, models.item)

    async def remove(self, token: str) -> None:
        """End the Item at Plaid."""
        await self._ask("/item/remove", {"access_token": token}, _reads(_Done))

    async def refresh(self, token: str) -> None:
        """Have Plaid ask the bank now."""
        await self._ask("/transactions/refresh", {"access_token": token}, _reads(_Done))

    async def verification_key(self, key_id: str) -> bytes:
        """Ask for the key that signs webhooks: its JWK as JSON."""
        answered = await self._ask("/webhook_verification_key/get", {"key_id": key_id}, _reads(_Key))
        return bytes(answered.key)

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        """Answer one request at once: status and bytes, `UNANSWERED` and nothing where the connection breaks.

        This is what `sandbox.simulator.reader.Reader` asks.
        """
        answered = self._answer(path, body)
        return (UNANSWERED, b"") if answered.breaks else (answered.status, answered.body)

    def next_due_at(self) -> dt.datetime | None:
        """Say when the world next does something by itself, or sends a webhook; None: not before it is asked."""
        times = [at for at in (self.plaid.tasks.next_due_at(), self.plaid.deliveries.next_due_at()) if at is not None]
        return min(times, default=None)

    def webhooks(self, until: dt.datetime) -> list[WebhookAttempt]:
        """Let the world live until a time and give what it sends, in order of sending.

        A ManualClock is moved there; another clock has to stand there already. Each is to be `answered`.
        """
        sent: list[WebhookAttempt] = []
        while (at := self.next_due_at()) is not None and at <= until:
            self._move(at)
            self.plaid.tasks.run_due()
            sent += [self._sent(delivery, max(at, delivery.due_at)) for delivery in self.plaid.deliveries.due(at)]
        self._move(until)
        return sent

    def deliver(self, until: dt.datetime, post: Callable[[WebhookAttempt], int]) -> int:
        """Let the world live until a time; `post` takes each webhook when it is sent and gives the status."""
        sent = 0
        while (at := self.next_due_at()) is not None and at <= until:
            for one in self.webhooks(at):
                self.record_answer(one, status=post(one))
                sent += 1
        self._move(until)
        return sent

    def record_answer(self, sent: WebhookAttempt, *, status: int, retry_after: str | None = None) -> None:
        """Say what became of a webhook; anything but 200 makes Plaid try again. `UNANSWERED`: nobody took it."""
        now = self.plaid.clock.now()
        self.plaid.deliveries.record_answer(sent.delivery, status=status, retry_after=retry_after, now=now)

    def by_token(self, token: str) -> Item | None:
        """Find the Item that a token opens."""
        return self.plaid.bank.by_access_token(token)

    def _sent(self, delivery: Delivery, at: dt.datetime) -> WebhookAttempt:
        jwt = self.plaid.notifier.signature(delivery, at)
        key = self.plaid.keyring.keys[key_id(jwt)]
        webhook = delivery.webhook
        return WebhookAttempt(at, webhook.url, webhook.body, jwt, msgspec.json.encode(key.jwk()), delivery)

    def _move(self, at: dt.datetime) -> None:
        clock = self.plaid.clock
        behind_s = (at - clock.now()).total_seconds()
        if behind_s > 0:
            assert isinstance(clock, ManualClock), "a clock that is not the world's own has to stand there already"
            clock.advance(behind_s)

    def _answer(self, path: str, body: dict[str, Any]) -> Answer:
        return answer(self.plaid, path, self._keys, msgspec.json.encode(body))

    async def _ask(self, path: str, body: dict[str, Any], read: Callable[[bytes], Read]) -> Read:
        half_s = self._latency(path) / 2
        await self._pass(half_s)
        answered = self._answer(path, body)
        late_s = half_s + self.plaid.options.latency_s + answered.delay_s
        if answered.wire == "TIMEOUT" or late_s >= self._timeout_s:
            await self._pass(self._timeout_s)
            raise Retry(f"no answer from Plaid: {_TIMED_OUT}")
        await self._pass(late_s)
        if answered.breaks:
            raise Retry(f"no answer from Plaid: {_CUT}")
        if 200 <= answered.status <= 299:
            return read(answered.body)
        raise _refused(answered.status, answered.body)

    async def _pass(self, seconds: float) -> None:
        if seconds > 0:
            await self._sleep(seconds)


def _refused(status: int, body: bytes) -> PlaidRefused | Retry:
    try:
        refusal = models.decode(_Refusal, body)
    except (Retry, Quarantine):
        return Retry(f"status {status} and no error of Plaid's")
    return PlaidRefused(
        error_type=refusal.error_type,
        error_code=refusal.error_code,
        status=status,
        request_id=refusal.request_id,
        reason=refusal.error_code_reason,
    )


def _reads(shape: type[Read]) -> Callable[[bytes], Read]:
    return partial(models.decode, shape)
