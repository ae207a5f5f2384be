"""Posts webhooks. Shell: the courier decides what is due and what an answer means."""

import asyncio
import datetime as dt
from typing import Protocol

import aiohttp

from sandbox.simulator.simulated_plaid import SimulatedPlaid
from sandbox.simulator.webhooks.delivery import Delivery

IDLE_S = 1.0
"""Longest sleep without looking at the courier: a bound, as a wake-up normally ends it."""


class Transport(Protocol):
    """Posts one body; gives the status (0: nobody answered in time) and the Retry-After header."""

    async def post(self, url: str, body: bytes, headers: dict[str, str]) -> tuple[int, str | None]:
        """Post once, without retries or redirects."""
        ...


class HttpTransport:
    """The transport over HTTP."""

    def __init__(self, session: aiohttp.ClientSession, timeout_s: float) -> None:
        self._session = session
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)

    async def post(self, url: str, body: bytes, headers: dict[str, str]) -> tuple[int, str | None]:
        """Post once, without retries or redirects."""
        try:
            async with self._session.post(
                url, data=body, headers=headers, timeout=self._timeout, allow_redirects=False
            ) as response:
                await response.read()
                return response.status, response.headers.get("Retry-After")
        except (TimeoutError, aiohttp.ClientError, OSError):
            return 0, None


class Sender:
    """Sends what the courier has, until it is cancelled."""

    def __init__(self, world: SimulatedPlaid, transport: Transport, wake: asyncio.Event) -> None:
        self._world = world
        self._transport = transport
        self._wake = wake
        self._posting: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Post due webhooks, many at once, and sleep until the next one."""
        courier, clock = self._world.deliveries, self._world.clock
        try:
            while True:
                for delivery in courier.due(clock.now()):
                    task = asyncio.create_task(self._post(delivery))
                    self._posting.add(task)
                    task.add_done_callback(self._posting.discard)
                self._wake.clear()
                await sleep_until(courier.next_due_at(), self._world, self._wake)
        finally:
            for task in list(self._posting):
                task.cancel()
            await asyncio.gather(*self._posting, return_exceptions=True)

    async def _post(self, delivery: Delivery) -> None:
        world = self._world
        signature = world.notifier.signature(delivery, world.clock.now())
        headers = {"Content-Type": "application/json", "Plaid-Verification": signature}
        status, retry_after = 0, None
        try:
            status, retry_after = await self._transport.post(delivery.webhook.url, delivery.webhook.body, headers)
        finally:
            world.deliveries.record_answer(delivery, status=status, retry_after=retry_after, now=world.clock.now())
            self._wake.set()


async def sleep_until(due_at: dt.datetime | None, world: SimulatedPlaid, wake: asyncio.Event) -> None:
    """Sleep until a time or a wake-up, never longer than a bound."""
    wait_s = IDLE_S
    if due_at is not None:
        wait_s = min(IDLE_S, max(0.0, (due_at - world.clock.now()).total_seconds()))
    try:
        async with asyncio.timeout(wait_s):
            await wake.wait()
    except TimeoutError:
        return
