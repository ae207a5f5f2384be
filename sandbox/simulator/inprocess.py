"""Serve a simulated Plaid inside the process, in virtual time: no server, thread or real clock.

    plaid = SimulatedPlaid(Options(seed=7, rate_limits="production", validate_requests=False), ManualClock(start))
    client = InProcessPlaid(plaid, sleep=loop.sleep)      # implements streams.ports.Bank
    item = plaid.create_item("ada", webhook_url="http://tartan.example/webhooks")
    page = await client.sync_page(item.access_token, None)
    for attempt in client.webhooks(until):                # moves the clock to `until`
        client.record_answer(attempt, status=200)         # anything but 200 is retried, as by Plaid

A request reaches the bank after half of its latency and its answer returns after the other half, so the bank may
change between them. Failures raise the same Retry and PlaidRefused as the client over HTTP; a contract test compares
both.
"""

import datetime as dt
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import msgspec
from msgspec import Raw, Struct

from runtime.plaid import item_models, models
from runtime.plaid.client import CATEGORY_VERSION, PAGE_TRANSACTIONS_MAX, PlaidRefused
from runtime.plaid.decoding import decode
from runtime.plaid.item_models import ItemAnswer
from runtime.plaid.models import AccountsAnswer, SyncPage
from sandbox.simulator.api.dispatcher import Answer, answer
from sandbox.simulator.api.signing import key_id
from sandbox.simulator.clock import ManualClock
from sandbox.simulator.simulated_plaid import SimulatedPlaid
from sandbox.simulator.webhooks.delivery import Delivery
from schemas.errors import Quarantine, Retry

TIMEOUT_S = 60.0
"""Default timeout of a request, as Tartan's own client."""

DAYS_REQUESTED = 730
"""Default days of history, as Tartan's own client; Plaid's maximum."""

UNANSWERED = 0
"""Status of a request or a webhook without an answer."""

Result = TypeVar("Result")
Sleep = Callable[[float], Awaitable[None]]
Latency = Callable[[str], float]
"""Return the round trip of a request to a path, in seconds."""


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
    """One attempt of a webhook. `at`: the time of sending; `jwk`: the key that verifies it, as JSON."""

    at: dt.datetime
    url: str
    body: bytes
    jwt: str
    jwk: bytes
    delivery: Delivery


class InProcessPlaid:
    """Answer a sync run's requests; each raises PlaidRefused, Retry or Quarantine.

    `sleep` lets virtual time pass; it is not called with 0.
    """

    def __init__(
        self,
        plaid: SimulatedPlaid,
        *,
        sleep: Sleep,
        latency: Latency = lambda _path: 0.0,
        timeout_s: float = TIMEOUT_S,
        days_requested: int = DAYS_REQUESTED,
    ) -> None:
        self.plaid = plaid
        self._sleep = sleep
        self._latency = latency
        self._timeout_s = timeout_s
        self._days_requested = days_requested
        self._keys = {"PLAID-CLIENT-ID": plaid.options.client_id, "PLAID-SECRET": plaid.options.secret}

    async def sync_page(self, token: str, cursor: str | None, *, count: int = PAGE_TRANSACTIONS_MAX) -> SyncPage:
        """Request one page of the changes after a cursor; None requests the whole history."""
        options: dict[str, Any] = {
            "include_original_description": True,
            "personal_finance_category_version": CATEGORY_VERSION,
        }
        body: dict[str, Any] = {"access_token": token, "count": count, "options": options}
        if cursor:
            body["cursor"] = cursor
        else:
            options["days_requested"] = self._days_requested
        return await self._request("/transactions/sync", body, models.sync_page)

    async def accounts(self, token: str) -> AccountsAnswer:
        """Request the accounts with their cached balances."""
        return await self._request("/accounts/get", {"access_token": token}, models.accounts)

    async def item(self, token: str) -> ItemAnswer:
        """Request the Item's state and the time of its last update."""
        return await self._request("/item/get", {"access_token": token}, item_models.item)

    async def remove(self, token: str) -> None:
        """Remove the Item at Plaid."""
        await self._request("/item/remove", {"access_token": token}, partial(decode, _Done))

    async def refresh(self, token: str) -> None:
        """Request a refresh of the bank's data."""
        await self._request("/transactions/refresh", {"access_token": token}, partial(decode, _Done))

    async def verification_key(self, key_id: str) -> bytes:
        """Request the JWK that verifies webhooks, as JSON."""
        answered = await self._request("/webhook_verification_key/get", {"key_id": key_id}, partial(decode, _Key))
        return bytes(answered.key)

    def answer(self, path: str, body: dict[str, Any]) -> Answer:
        """Answer one request at once."""
        return answer(self.plaid, path, self._keys, msgspec.json.encode(body))

    def next_due_at(self) -> dt.datetime | None:
        """Return the time of the next task or webhook; None where the next event needs a request."""
        times = (self.plaid.tasks.next_due_at(), self.plaid.deliveries.next_due_at())
        return min((due_at for due_at in times if due_at is not None), default=None)

    def webhooks(self, until: dt.datetime) -> list[WebhookAttempt]:
        """Run the simulator until a time and return the webhooks that it sends, in order.

        A ManualClock is moved to `until`; another clock must be there already. Call `record_answer` for each attempt.
        """
        attempts: list[WebhookAttempt] = []
        while (due_at := self.next_due_at()) is not None and due_at <= until:
            self._advance_to(due_at)
            self.plaid.tasks.run_due()
            attempts += [
                self._attempt(delivery, max(due_at, delivery.due_at)) for delivery in self.plaid.deliveries.due(due_at)
            ]
        self._advance_to(until)
        return attempts

    def record_answer(self, attempt: WebhookAttempt, *, status: int, retry_after: str | None = None) -> None:
        """Record the answer to a webhook; anything but 200 is retried. `UNANSWERED`: no answer came."""
        now = self.plaid.clock.now()
        self.plaid.deliveries.record_answer(attempt.delivery, status=status, retry_after=retry_after, now=now)

    def _attempt(self, delivery: Delivery, sent_at: dt.datetime) -> WebhookAttempt:
        jwt = self.plaid.notifier.signature(delivery, sent_at)
        key = self.plaid.keyring.keys[key_id(jwt)]
        webhook = delivery.webhook
        return WebhookAttempt(sent_at, webhook.url, webhook.body, jwt, msgspec.json.encode(key.jwk()), delivery)

    def _advance_to(self, moment: dt.datetime) -> None:
        clock = self.plaid.clock
        behind_s = (moment - clock.now()).total_seconds()
        if behind_s > 0:
            assert isinstance(clock, ManualClock), "a clock of the caller must be at this time already"
            clock.advance(behind_s)

    async def _request(self, path: str, body: dict[str, Any], decode: Callable[[bytes], Result]) -> Result:
        half_s = self._latency(path) / 2
        await self._wait(half_s)
        answered = self.answer(path, body)
        late_s = half_s + self.plaid.options.latency_s + answered.delay_s
        # The names of urllib3's errors, which the client over HTTP puts into its message.
        if answered.connection_fault == "TIMEOUT" or late_s >= self._timeout_s:
            await self._wait(self._timeout_s)
            raise Retry("no answer from Plaid: ReadTimeoutError")
        await self._wait(late_s)
        if answered.is_broken:
            raise Retry("no answer from Plaid: ProtocolError")
        if 200 <= answered.status <= 299:
            return decode(answered.body)
        raise _refused(answered.status, answered.body)

    async def _wait(self, seconds: float) -> None:
        if seconds > 0:
            await self._sleep(seconds)


def _refused(status: int, body: bytes) -> PlaidRefused | Retry:
    try:
        refusal = decode(_Refusal, body)
    except (Retry, Quarantine):
        return Retry(f"status {status} and no error of Plaid's")
    return PlaidRefused(
        error_type=refusal.error_type,
        error_code=refusal.error_code,
        status=status,
        request_id=refusal.request_id,
        reason=refusal.error_code_reason,
    )
