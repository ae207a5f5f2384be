"""`POST /webhooks/plaid`: cheap checks first, then the signature, then the log; 200 only once the log has it."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from aiohttp import web

from ingest import intake, metrics
from ingest.keys import KeyCache
from ingest.problems import problem, problems
from ingest.reasons import Reason, Refused
from ingest.tokens import Token, parse
from ingest.verification import check_body, check_signature
from runtime import logs
from runtime.crash_points import CrashPoint, reach
from runtime.kafka.clients import Outgoing
from runtime.settings import Settings
from schemas.encoding import codec
from schemas.errors import Retry

PATH = "/webhooks/plaid"
HEADER = "Plaid-Verification"

IN_FLIGHT_MAX = 1024
"""Webhooks at once. Each holds at most a body of 64 KiB, so 64 MiB; more wait at Plaid, which sends them again."""

BODY_S_MAX = 5.0
"""How long a body may take. Plaid's have 1 KiB and come in one packet; a sender of a byte a second gets no more."""

BUSY_S, OUTAGE_S = 5, 30
"""`Retry-After` where we are full, and where Kafka or Plaid's keys are away. Up to as much again is added by
chance, so that what waited out an outage does not come back in one second."""

CLOCK_ALARM_S = 2.0
"""A clock in step is off by milliseconds, and a token is on its way for some."""

Append = Callable[[Outgoing], Awaitable[object]]
"""Append one record to the topic `webhooks`; returns once it is in the log. Raises: Retry."""

_log = logs.logger(__name__)


class _TooLarge(Exception):
    """The body has more bytes than the setting allows."""


class Endpoint:
    """The webhook endpoint."""

    def __init__(self, settings: Settings, *, keys: KeyCache, append: Append) -> None:
        self._settings = settings
        self._keys = keys
        self._append = append
        self._handling = 0
        self._kept: set[asyncio.Task[object]] = set()

    def app(self) -> web.Application:
        """The application, to be served with `auto_decompress=False`: the signature covers the bytes as sent."""
        app = web.Application(middlewares=[problems])
        app.router.add_post(PATH, self.receive)
        return app

    async def drain(self, *, timeout_s: float) -> None:
        """Wait for appends that outlived their answers."""
        if self._kept:
            await asyncio.wait(self._kept, timeout=timeout_s)

    async def receive(self, request: web.Request) -> web.Response:
        """Answer one webhook."""
        started = time.monotonic()
        if self._handling + len(self._kept) >= IN_FLIGHT_MAX:
            return self._later("in_flight", BUSY_S)
        self._handling += 1
        metrics.IN_FLIGHT.set(self._handling + len(self._kept))
        try:
            return await self._answer(request, deadline=started + self._settings.webhook_answer_s)
        finally:
            self._handling -= 1
            metrics.IN_FLIGHT.set(self._handling + len(self._kept))
            metrics.ANSWER_SECONDS.observe(time.monotonic() - started)

    async def _answer(self, request: web.Request, *, deadline: float) -> web.Response:
        try:
            body_max = self._settings.webhook_body_bytes_max
            _check_length(request, body_max)
            token = _token(request)
            async with asyncio.timeout(BODY_S_MAX):
                body = await _read(request, body_max)
        except _TooLarge:
            return _refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body_too_large", {"Connection": "close"})
        except TimeoutError:
            return _refused(HTTPStatus.REQUEST_TIMEOUT, "body_too_slow", {"Connection": "close"})
        except Refused as refusal:
            return _unauthorized(refusal)
        return await self._take(token, body, deadline=deadline)

    async def _take(self, token: Token, body: bytes, *, deadline: float) -> web.Response:
        """Verify what came in and put it into the log."""
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                entry = await self._verified(token, body)
        except Refused as refusal:
            return _unauthorized(refusal)
        except TimeoutError:
            return self._later("keys_late", OUTAGE_S)
        except Retry as error:
            return self._later("keys", OUTAGE_S if error.wait_s is None else int(error.wait_s) + 1)
        return await self._log_it(entry, deadline=deadline)

    async def _verified(self, token: Token, body: bytes) -> intake.Entry:
        check_body(token, body)
        key = await self._keys.get(token.key_id)
        check_signature(token, key)
        entry = intake.entry(
            token,
            key,
            body,
            received_at=time.time_ns() // 1000,
            stale=self._settings.webhook_stale,
            environment=self._settings.plaid_environment,
        )
        metrics.CLOCK_AHEAD_SECONDS.set(entry.ahead_s)
        if entry.ahead_s > CLOCK_ALARM_S:
            metrics.CLOCK_ALARMS.inc()
            _log.warning("our clock is late", seconds=round(entry.ahead_s, 1))
        return entry

    async def _log_it(self, entry: intake.Entry, *, deadline: float) -> web.Response:
        reach(CrashPoint.INGEST_BEFORE_APPEND)
        append = asyncio.ensure_future(self._append(Outgoing(entry.key, codec.encode(entry.record))))
        done, _ = await asyncio.wait({append}, timeout=max(0.0, deadline - time.monotonic()))
        if not done:
            # The record may still get into the log. It is never sent again: Plaid does that, as a new request.
            self._keep(append)
            return self._later("log_late", OUTAGE_S)
        try:
            append.result()
        except Retry as error:
            _log.warning("webhook not in the log", reason=str(error))
            return self._later("log", OUTAGE_S)
        reach(CrashPoint.INGEST_AFTER_APPEND)
        metrics.APPENDED.labels(entry.type).inc()
        metrics.ANSWERS.labels("200", "taken_stale" if entry.record.stale else "taken").inc()
        return web.json_response({"received": True})

    def _keep(self, append: "asyncio.Future[object]") -> None:
        assert isinstance(append, asyncio.Task)
        self._kept.add(append)
        append.add_done_callback(self._ended_late)

    def _ended_late(self, append: asyncio.Task[object]) -> None:
        self._kept.discard(append)
        failed = append.cancelled() or append.exception() is not None
        metrics.LATE_APPENDS.labels("failed" if failed else "appended").inc()

    def _later(self, reason: str, wait_s: int) -> web.Response:
        """Ask Plaid to come back; it honours this on 429 alone. Source: PLAID.md 1.7."""
        metrics.ANSWERS.labels("429", reason).inc()
        wait_s += random.randint(0, wait_s)  # noqa: S311 - spreads load, guards nothing
        return problem(HTTPStatus.TOO_MANY_REQUESTS, reason, headers={"Retry-After": str(wait_s)})


def _check_length(request: web.Request, bytes_max: int) -> None:
    if (request.content_length or 0) > bytes_max:
        raise _TooLarge


def _token(request: web.Request) -> Token:
    """The request's token. Two of them are refused: which one would another reader take?"""
    values = request.headers.getall(HEADER, [])
    if len(values) > 1:
        raise Refused(Reason.TOKEN_REPEATED)
    return parse(values[0] if values else "")


async def _read(request: web.Request, bytes_max: int) -> bytes:
    """Read the raw body; a chunked one, which tells no length, is cut off where it passes the bound."""
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > bytes_max:
            raise _TooLarge
    return bytes(body)


def _unauthorized(refusal: Refused) -> web.Response:
    if refusal.reason is Reason.ENVIRONMENT:  # genuine, and not meant for this installation
        return _refused(HTTPStatus.FORBIDDEN, refusal.reason.value)
    return _refused(HTTPStatus.UNAUTHORIZED, refusal.reason.value, {"WWW-Authenticate": HEADER})


def _refused(status: HTTPStatus, reason: str, headers: dict[str, str] | None = None) -> web.Response:
    metrics.ANSWERS.labels(str(status.value), reason).inc()
    return problem(status, reason, headers=headers)
