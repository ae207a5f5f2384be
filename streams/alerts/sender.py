"""Send incidents to the operators, once each: to their webhook, or to the log. Shell.

One process sends at a time, in order. It locks no row of an incident meanwhile, so a slow receiver delays nobody. A
crash between the sending and the note of it sends twice.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Protocol

import aiohttp
import asyncpg
from prometheus_client import Counter, Gauge

from runtime import logs
from runtime.incidents import incidents
from runtime.retry import Backoff
from runtime.settings import Settings
from schemas.errors import Retry
from streams.alerts import messages
from streams.alerts.messages import Message
from streams.storage.session import session

POLL_S = 2.0
"""Longest wait before an incident is sent; each poll is one indexed read a process."""
SETTLE_EVERY_S = 15.0
"""Time within which an incident is closed that no sync run closes (an unlink, a redrive); age of the gauge."""
PURGE_EVERY_S = 3600.0
ANSWER_S = 10.0
"""Timeout of a receiver. The transaction that makes this process the sender is open meanwhile."""
WAIT_BASE_S = 1.0
WAIT_CAP_S = 300.0
"""A receiver that was down gets its alerts within five minutes of its return."""
REFUSALS_MAX = 5
"""Refusals of one message for its content, after which it goes to the log instead: it would delay all others."""
MESSAGES_A_MINUTE_MAX = 10
"""Messages of one process in a minute; the incidents beyond them share one message, because nobody reads a flood."""
MINUTE_S = 60.0
INCIDENTS_AT_ONCE_MAX = 5000
"""Incidents of one message; a bad deploy that quarantines more takes several messages."""

_CONTENT_REFUSED = (400, 413, 422)
_log = logs.logger(__name__)

OPEN = Gauge("tartan_incidents_open", "Incidents that last", ["kind"])
ALERTS = Counter("tartan_alerts", "Messages to operators, by outcome", ["outcome"])


class Outcome(Enum):
    """Outcome of a message; the values are labels of the metric `tartan_alerts`."""

    SENT = "told"
    LOGGED = "logged"
    FAILED = "failed"
    REFUSED = "refused"


class Channel(Protocol):
    """A way to the operators."""

    async def send(self, message: Message) -> Outcome:
        """Send once; FAILED or REFUSED where it has to be sent again."""


class LogChannel:
    """The log, where no address is set or an address refuses a message."""

    async def send(self, message: Message) -> Outcome:
        """Write a line: an error where an incident begins."""
        write = _log.error if message.begins else _log.info
        write("incident", text=message.text, **message.fields)
        return Outcome.LOGGED


class WebhookChannel:
    """A webhook of the operators'. Its address may be a secret, as Slack's is: no error contains it."""

    def __init__(self, http: aiohttp.ClientSession, url: str, *, answer_s: float) -> None:
        self._http = http
        self._url = url
        self._timeout = aiohttp.ClientTimeout(total=answer_s)

    async def send(self, message: Message) -> Outcome:
        """Post the message; where its content is refused, its text alone: some receivers take no other fields."""
        status = await self._post(message.body)
        if status in _CONTENT_REFUSED:
            status = await self._post({"text": message.body["text"]})
        if status is not None and 200 <= status <= 299:
            return Outcome.SENT
        if status is not None:
            _log.warning("alert refused", status=status)
        return Outcome.REFUSED if status in _CONTENT_REFUSED else Outcome.FAILED

    async def _post(self, body: dict[str, object]) -> int | None:
        try:
            async with self._http.post(self._url, json=body, timeout=self._timeout, allow_redirects=False) as answer:
                return answer.status
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            # The text of aiohttp's errors can contain the address.
            _log.warning("alert not sent", reason=type(error).__name__)
            return None


class AlertSender:
    """Sender of incidents, one message at a time. `monotonic`: seconds that only grow."""

    def __init__(
        self, pool: asyncpg.Pool, channel: Channel, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._pool = pool
        self._channel = channel
        self._monotonic = monotonic
        self._sent: deque[float] = deque(maxlen=MESSAGES_A_MINUTE_MAX)
        self._backoff = Backoff(WAIT_BASE_S, WAIT_CAP_S)
        self._refusals = 0

    async def send_next(self) -> float:
        """Send the next message, if no other process is sending, and return the seconds until the next call.

        Raises: Retry, where Postgres is away.
        """
        now = self._monotonic()
        while self._sent and now - self._sent[0] >= MINUTE_S:
            self._sent.popleft()
        budget = MESSAGES_A_MINUTE_MAX - len(self._sent)
        if not budget:
            return max(0.0, self._sent[0] + MINUTE_S - self._monotonic())
        async with session(self._pool) as connection, connection.transaction():
            if not await incidents.claim_alerting(connection):
                return POLL_S
            waiting = await incidents.unalerted(connection, INCIDENTS_AT_ONCE_MAX)
            if not waiting:
                return POLL_S
            is_flood = len(waiting) > budget
            message = messages.message_of_many(waiting) if is_flood else messages.message_of_one(waiting[0])
            is_sent = await self._send(message)
            if is_sent:
                await incidents.mark_alerted(connection, message.incidents)
        if not is_sent:
            return self._backoff.next_s()
        self._sent.append(self._monotonic())
        self._backoff.reset()
        self._refusals = 0
        return 0.0

    async def _send(self, message: Message) -> bool:
        outcome = await self._channel.send(message)
        ALERTS.labels(outcome.value).inc()
        self._refusals += outcome is Outcome.REFUSED
        if outcome is Outcome.REFUSED and self._refusals >= REFUSALS_MAX:
            outcome = await LogChannel().send(message)
            ALERTS.labels(outcome.value).inc()
        return outcome in (Outcome.SENT, Outcome.LOGGED)


async def run(pool: asyncpg.Pool, settings: Settings) -> None:
    """Send incidents, close those that ended and delete old ones, for ever; Postgres and the receiver may be away."""
    # The transaction has to outlive the receiver's answer, or the message would be sent again.
    answer_s = min(ANSWER_S, settings.transaction_timeout_s / 4)
    async with aiohttp.ClientSession() as http:
        url = settings.alerts_url.get_secret_value()
        channel: Channel = WebhookChannel(http, url, answer_s=answer_s) if url else LogChannel()
        await asyncio.gather(_send_all(AlertSender(pool, channel)), _settle_all(pool))


async def settle(pool: asyncpg.Pool) -> None:
    """Close the incidents that ended, and count the open ones. Raises: Retry."""
    async with session(pool) as connection:
        await incidents.close_ended(connection)
        counts = await incidents.open_counts(connection)
    for kind in incidents.KINDS:
        OPEN.labels(kind).set(counts.get(kind, 0))


async def _send_all(sender: AlertSender) -> None:
    while True:
        try:
            wait_s = await sender.send_next()
        except Retry as error:
            _log.warning("incidents not read", reason=str(error))
            wait_s = SETTLE_EVERY_S
        await asyncio.sleep(wait_s)


async def _settle_all(pool: asyncpg.Pool) -> None:
    purged_at = -PURGE_EVERY_S
    while True:
        try:
            await settle(pool)
            if time.monotonic() - purged_at >= PURGE_EVERY_S:
                async with session(pool) as connection:
                    await incidents.purge(connection)
                purged_at = time.monotonic()
        except Retry as error:
            _log.warning("incidents not settled", reason=str(error))
        await asyncio.sleep(SETTLE_EVERY_S)
