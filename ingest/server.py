"""Serve `POST /webhooks/plaid`: cheap checks first, then the signature, then the log; 200 only once the log has it."""

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from aiohttp import web
from aiohttp.typedefs import Handler

from ingest import metrics
from ingest.keys import KeyCache
from ingest.refusals import Reason, WebhookRefused
from ingest.tokens import Token, parse
from ingest.verification import check_body, check_signature
from ingest.webhook_record import WebhookRecord, build_record
from runtime import logs
from runtime.crash_points import CrashPoint, reach
from runtime.kafka.clients import Outgoing
from runtime.settings import Settings
from schemas.encoding import codec
from schemas.errors import Retry

PATH = "/webhooks/plaid"
HEADER = "Plaid-Verification"
PROBLEM_TYPE = "application/problem+json"

IN_FLIGHT_MAX = 1024
"""Webhooks at once. Each has a body of at most 64 KiB, so 64 MiB; more wait at Plaid, which sends them again."""
BODY_S_MAX = 5.0
"""Timeout of a body. Plaid's have 1 KiB and come in one packet; a sender of a byte a second gets no more."""
BUSY_S, OUTAGE_S = 5, 30
"""`Retry-After` where the server is full, and where Kafka or Plaid's keys are away. Up to as much again is added at
random, so that the webhooks of an outage do not come back in one second."""
CLOCK_ALARM_S = 2.0
"""A clock in step is off by milliseconds, and a token is on its way for some."""

Append = Callable[[Outgoing], Awaitable[object]]
"""Append one record to the topic `webhooks`; returns once it is in the log. Raises: Retry."""

_log = logs.logger(__name__)


class _TooLarge(Exception):
    """The body has more bytes than the setting allows."""


class _TooSlow(Exception):
    """The body did not arrive in time."""


class Endpoint:
    """The webhook endpoint."""

    def __init__(self, settings: Settings, *, keys: KeyCache, append: Append) -> None:
        self._settings = settings
        self._keys = keys
        self._append = append
        self._handling = 0
        self._late_appends: set[asyncio.Task[object]] = set()

    def app(self) -> web.Application:
        """Build the application. Serve it with `auto_decompress=False`: the signature covers the bytes as sent."""
        app = web.Application(middlewares=[_problems])
        app.router.add_post(PATH, self.receive)
        return app

    async def drain(self, *, timeout_s: float) -> None:
        """Wait for appends that outlived their answers."""
        if self._late_appends:
            await asyncio.wait(self._late_appends, timeout=timeout_s)

    async def receive(self, request: web.Request) -> web.Response:
        """Answer one webhook: read it, verify it, append it; 429 has Plaid send it again."""
        started_at = time.monotonic()
        if self._handling + len(self._late_appends) >= IN_FLIGHT_MAX:
            return _later("in_flight", BUSY_S)
        self._handling += 1
        metrics.IN_FLIGHT.set(self._handling + len(self._late_appends))
        deadline = started_at + self._settings.webhook_answer_s
        try:
            token, body = await _read(request, self._settings.webhook_body_bytes_max)
            async with asyncio.timeout(deadline - time.monotonic()):
                record = await self._verify(token, body)
        except _TooLarge:
            return _refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body_too_large", {"Connection": "close"})
        except _TooSlow:
            return _refused(HTTPStatus.REQUEST_TIMEOUT, "body_too_slow", {"Connection": "close"})
        except WebhookRefused as refusal:
            if refusal.reason is Reason.ENVIRONMENT:  # genuine, and not meant for this installation
                return _refused(HTTPStatus.FORBIDDEN, refusal.reason.value)
            return _refused(HTTPStatus.UNAUTHORIZED, refusal.reason.value, {"WWW-Authenticate": HEADER})
        except TimeoutError:
            return _later("keys_late", OUTAGE_S)
        except Retry as error:
            return _later("keys", OUTAGE_S if error.wait_s is None else int(error.wait_s) + 1)
        else:
            return await self._append_record(record, deadline=deadline)
        finally:
            self._handling -= 1
            metrics.IN_FLIGHT.set(self._handling + len(self._late_appends))
            metrics.ANSWER_SECONDS.observe(time.monotonic() - started_at)

    async def _verify(self, token: Token, body: bytes) -> WebhookRecord:
        check_body(token, body)
        key = await self._keys.get(token.key_id)
        check_signature(token, key)
        record = build_record(
            token,
            key,
            body,
            received_at=time.time_ns() // 1000,
            stale=self._settings.webhook_stale,
            environment=self._settings.plaid_environment,
        )
        metrics.CLOCK_AHEAD_SECONDS.set(record.ahead_s)
        if record.ahead_s > CLOCK_ALARM_S:
            metrics.CLOCK_ALARMS.inc()
            _log.warning("our clock is late", seconds=round(record.ahead_s, 1))
        return record

    async def _append_record(self, record: WebhookRecord, *, deadline: float) -> web.Response:
        reach(CrashPoint.INGEST_BEFORE_APPEND)
        append = asyncio.ensure_future(self._append(Outgoing(record.key, codec.encode(record.record))))
        done, _ = await asyncio.wait({append}, timeout=max(0.0, deadline - time.monotonic()))
        if not done:
            # The record may still get into the log. It is never sent again: Plaid does that, as a new request.
            assert isinstance(append, asyncio.Task)
            self._late_appends.add(append)
            append.add_done_callback(self._end_late)
            return _later("log_late", OUTAGE_S)
        try:
            append.result()
        except Retry as error:
            _log.warning("webhook not in the log", reason=str(error))
            return _later("log", OUTAGE_S)
        reach(CrashPoint.INGEST_AFTER_APPEND)
        metrics.APPENDED.labels(record.type).inc()
        metrics.ANSWERS.labels("200", "taken_stale" if record.record.stale else "taken").inc()
        return web.json_response({"received": True})

    def _end_late(self, append: asyncio.Task[object]) -> None:
        self._late_appends.discard(append)
        failed = append.cancelled() or append.exception() is not None
        metrics.LATE_APPENDS.labels("failed" if failed else "appended").inc()


async def _read(request: web.Request, bytes_max: int) -> tuple[Token, bytes]:
    """Read the token and the raw body; a chunked body, which has no length, is cut off at the bound.

    Raises: WebhookRefused, _TooLarge, _TooSlow.
    """
    if (request.content_length or 0) > bytes_max:
        raise _TooLarge
    values = request.headers.getall(HEADER, [])
    if len(values) > 1:  # another reader might take the other one
        raise WebhookRefused(Reason.TOKEN_REPEATED)
    token = parse(values[0] if values else "")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S_MAX):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > bytes_max:
                    raise _TooLarge
    except TimeoutError as error:
        raise _TooSlow from error
    return token, bytes(body)


def _later(reason: str, wait_s: int) -> web.Response:
    """Answer 429, the only status whose `Retry-After` Plaid honours. Source: PLAID.md 1.7."""
    wait_s += random.randint(0, wait_s)  # noqa: S311 - spreads load, guards nothing
    return _refused(HTTPStatus.TOO_MANY_REQUESTS, reason, {"Retry-After": str(wait_s)})


def _refused(status: HTTPStatus, reason: str, headers: dict[str, str] | None = None) -> web.Response:
    metrics.ANSWERS.labels(str(status.value), reason).inc()
    return _problem(status, reason, headers)


def _problem(status: HTTPStatus, reason: str, headers: dict[str, str] | None = None) -> web.Response:
    """Build a problem document, which never repeats bytes of the request. Source: RFC 9457, 3."""
    document = {"type": f"urn:tartan:problem:{reason}", "title": status.phrase, "status": status}
    return web.Response(body=json.dumps(document).encode(), status=status, content_type=PROBLEM_TYPE, headers=headers)


@web.middleware
async def _problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give aiohttp's own refusals (no such path, no such method) the form of a problem document."""
    try:
        return await handler(request)
    except web.HTTPException as refusal:
        if refusal.status < HTTPStatus.BAD_REQUEST:
            raise
        headers = {name: value for name, value in refusal.headers.items() if name == "Allow"}
        status = HTTPStatus(refusal.status)
        return _problem(status, status.name.lower(), headers)
