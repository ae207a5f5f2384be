"""Telling operators of incidents, once each: at a webhook of theirs, or in the log. Shell.

One process tells at a time and in order; it holds no row meanwhile, so a slow receiver holds up nobody. A crash
between telling and noting it tells twice.
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
from runtime.settings import Settings
from schemas.errors import Retry
from streams.alerts import messages
from streams.alerts.messages import Message
from streams.storage.session import session

POLL_S = 2.0
"""How soon an incident is told; one indexed look a process each time."""
SETTLE_EVERY_S = 15.0
"""How soon the end of what no pass ends (an unlink, a redrive) is seen, and how old the gauge may be."""
PURGE_EVERY_S = 3600.0
ANSWER_S = 10.0
"""How long a receiver may take. The transaction that makes this process the teller is open meanwhile."""
WAIT_FIRST_S = 1.0
WAIT_S_MAX = 300.0
"""Longest wait for a receiver that is down: it is told within five minutes of its return."""
REFUSALS_MAX = 5
"""Refusals of one message, that is of its content, after which it is logged instead: it would hold up all others."""
MESSAGES_A_MINUTE_MAX = 10
"""Messages of one process in a minute; what is beyond them is told together, because a flood is read by nobody."""
MINUTE_S = 60.0
TOLD_AT_ONCE_MAX = 5000
"""Incidents of one message; a bad deploy that quarantines more is told in as many messages."""

_CONTENT_REFUSED = (400, 413, 422)
_log = logs.logger(__name__)

OPEN = Gauge("tartan_incidents_open", "Incidents that last", ["kind"])
ALERTS = Counter("tartan_alerts", "Messages to operators, by what became of them", ["outcome"])


class Outcome(Enum):
    """What became of a message."""

    TOLD = "told"
    LOGGED = "logged"
    FAILED = "failed"
    REFUSED = "refused"


class Channel(Protocol):
    """A way to operators."""

    async def tell(self, message: Message) -> Outcome:
        """Tell once; FAILED or REFUSED where it has to be told again."""


class LogChannel:
    """The log, where no address is set or an address will not take a message."""

    async def tell(self, message: Message) -> Outcome:
        """Write a line: an error where something begins."""
        write = _log.error if message.begins else _log.info
        write("incident", text=message.text, **message.fields)
        return Outcome.LOGGED


class WebhookChannel:
    """A webhook of the operators'. Its address may be a secret, as Slack's is: no error names it."""

    def __init__(self, http: aiohttp.ClientSession, url: str, *, answer_s: float) -> None:
        self._http = http
        self._url = url
        self._timeout = aiohttp.ClientTimeout(total=answer_s)

    async def tell(self, message: Message) -> Outcome:
        """Post the message; where its content is refused, its text alone: some receivers take no other fields."""
        status = await self._post(message.body)
        if status in _CONTENT_REFUSED:
            status = await self._post({"text": message.body["text"]})
        if status is not None and 200 <= status <= 299:
            return Outcome.TOLD
        if status is not None:
            _log.warning("alert not taken", status=status)
        return Outcome.REFUSED if status in _CONTENT_REFUSED else Outcome.FAILED

    async def _post(self, body: dict[str, object]) -> int | None:
        try:
            async with self._http.post(self._url, json=body, timeout=self._timeout, allow_redirects=False) as answer:
                return answer.status
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            # The text of aiohttp's errors can hold the address.
            _log.warning("alert not sent", reason=type(error).__name__)
            return None


class Teller:
    """Tells what is untold, one message a turn. `monotonic`: seconds that only grow."""

    def __init__(
        self, pool: asyncpg.Pool, channel: Channel, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._pool = pool
        self._channel = channel
        self._monotonic = monotonic
        self._sent: deque[float] = deque(maxlen=MESSAGES_A_MINUTE_MAX)
        self._failures = 0
        self._refusals = 0

    async def turn(self) -> float:
        """Tell the next message, if it is this process's turn. Gives the seconds until the next turn.

        Raises: Retry, where Postgres is away.
        """
        budget = self._budget()
        if not budget:
            return max(0.0, self._sent[0] + MINUTE_S - self._monotonic())
        async with session(self._pool) as connection, connection.transaction():
            if not await incidents.claim_alerting(connection):
                return POLL_S
            found = await incidents.unalerted(connection, TOLD_AT_ONCE_MAX)
            if not found:
                return POLL_S
            message = messages.of_many(found) if len(found) > budget else messages.of_one(found[0])
            outcome = await self._tell(message)
            if outcome in (Outcome.TOLD, Outcome.LOGGED):
                await incidents.mark_alerted(connection, message.about)
        return self._wait(outcome)

    async def _tell(self, message: Message) -> Outcome:
        outcome = await self._channel.tell(message)
        ALERTS.labels(outcome.value).inc()
        if outcome is Outcome.REFUSED:
            self._refusals += 1
            if self._refusals >= REFUSALS_MAX:
                outcome = await LogChannel().tell(message)
                ALERTS.labels(outcome.value).inc()
        return outcome

    def _budget(self) -> int:
        now = self._monotonic()
        while self._sent and now - self._sent[0] >= MINUTE_S:
            self._sent.popleft()
        return MESSAGES_A_MINUTE_MAX - len(self._sent)

    def _wait(self, outcome: Outcome) -> float:
        if outcome in (Outcome.TOLD, Outcome.LOGGED):
            self._sent.append(self._monotonic())
            self._failures = self._refusals = 0
            return 0.0
        self._failures += 1
        return float(min(WAIT_S_MAX, WAIT_FIRST_S * 2 ** min(self._failures - 1, 30)))


async def run(pool: asyncpg.Pool, settings: Settings) -> None:
    """Tell operators of incidents, for ever; Postgres and the receiver may be away meanwhile."""
    # The transaction has to outlive the receiver's answer, or what was told would be told again.
    answer_s = min(ANSWER_S, settings.transaction_timeout_s / 4)
    async with aiohttp.ClientSession() as http:
        url = settings.alerts_url.get_secret_value()
        channel: Channel = WebhookChannel(http, url, answer_s=answer_s) if url else LogChannel()
        await asyncio.gather(_tell(Teller(pool, channel)), _keep(pool))


async def settle(pool: asyncpg.Pool) -> None:
    """Close what is over and count what is open. Raises: Retry."""
    async with session(pool) as connection:
        await incidents.close_ended(connection)
        counts = await incidents.open_counts(connection)
    for kind in incidents.KINDS:
        OPEN.labels(kind).set(counts.get(kind, 0))


async def _tell(teller: Teller) -> None:
    while True:
        try:
            wait_s = await teller.turn()
        except Retry as error:
            _log.warning("incidents not read", reason=str(error))
            wait_s = SETTLE_EVERY_S
        await asyncio.sleep(wait_s)


async def _keep(pool: asyncpg.Pool) -> None:
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
