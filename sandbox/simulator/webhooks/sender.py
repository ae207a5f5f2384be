"""Post the webhooks that the delivery queue has due."""

import asyncio
import datetime as dt

import aiohttp

from sandbox.simulator.simulated_plaid import SimulatedPlaid
from sandbox.simulator.webhooks.delivery import Delivery

IDLE_S = 1.0
"""Longest sleep; a wake-up normally ends it."""


class HttpTransport:
    """Post bodies over HTTP."""

    def __init__(self, session: aiohttp.ClientSession, timeout_s: float) -> None:
        self._session = session
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)

    async def post(self, url: str, body: bytes, headers: dict[str, str]) -> tuple[int, str | None]:
        """Post once, without retries or redirects; return the status (0: no answer) and the Retry-After header."""
        try:
            async with self._session.post(
                url, data=body, headers=headers, timeout=self._timeout, allow_redirects=False
            ) as response:
                await response.read()
                return response.status, response.headers.get("Retry-After")
        except (TimeoutError, aiohttp.ClientError, OSError):
            return 0, None


class Sender:
    """Post due deliveries until cancelled."""

    def __init__(self, plaid: SimulatedPlaid, transport: HttpTransport, wake: asyncio.Event) -> None:
        self._plaid = plaid
        self._transport = transport
        self._wake = wake
        self._posting: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Post due webhooks, many at once, and sleep until the next one."""
        deliveries, clock = self._plaid.deliveries, self._plaid.clock
        try:
            while True:
                for delivery in deliveries.due(clock.now()):
                    task = asyncio.create_task(self._post(delivery))
                    self._posting.add(task)
                    task.add_done_callback(self._posting.discard)
                self._wake.clear()
                await sleep_until(deliveries.next_due_at(), self._plaid, self._wake)
        finally:
            for task in list(self._posting):
                task.cancel()
            await asyncio.gather(*self._posting, return_exceptions=True)

    async def _post(self, delivery: Delivery) -> None:
        plaid = self._plaid
        signature = plaid.notifier.signature(delivery, plaid.clock.now())
        headers = {"Content-Type": "application/json", "Plaid-Verification": signature}
        status, retry_after = 0, None
        try:
            status, retry_after = await self._transport.post(delivery.webhook.url, delivery.webhook.body, headers)
        finally:
            plaid.deliveries.record_answer(delivery, status=status, retry_after=retry_after, now=plaid.clock.now())
            self._wake.set()


async def sleep_until(due_at: dt.datetime | None, plaid: SimulatedPlaid, wake: asyncio.Event) -> None:
    """Sleep until a time or a wake-up, at most `IDLE_S`."""
    wait_s = IDLE_S
    if due_at is not None:
        wait_s = min(IDLE_S, max(0.0, (due_at - plaid.clock.now()).total_seconds()))
    await wait_for_event(wake, wait_s)


async def wait_for_event(event: asyncio.Event, timeout_s: float) -> None:
    """Wait for an event, at most `timeout_s`."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
