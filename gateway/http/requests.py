"""Requests: authenticate, rate-limit and validate a request, call its handler, and encode the answer as JSON."""

import time
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

import msgspec
from aiohttp import web

from gateway import metrics
from gateway.http.idempotency import Answer
from gateway.http.parameters import read_all
from gateway.http.problems import Problem
from gateway.http.rate_limit import RequestBuckets
from gateway.http.route import Route

HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class Call(NamedTuple):
    """An authenticated request with validated values; an optional value that was not given is None.

    `tenant`: owner of the API key, or auth.CRON.
    """

    tenant: str
    values: Mapping[str, Any]
    body: bytes


Handler = Callable[[Call], Awaitable[Answer]]


def ok(document: Mapping[str, Any]) -> Answer:
    """Return an answer 200 with a document."""
    return Answer(HTTPStatus.OK, document)


def guard(
    route: Route, handler: Handler, *, identify: Callable[[str | None], str], buckets: RequestBuckets
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Wrap a handler in authentication, rate limit, validation and metrics.

    Args:
        route: Parameters and operation of the handler.
        handler: Called with validated values.
        identify: Returns the caller of an `Authorization` header or raises Problem.
        buckets: Rate limits by caller.
    """

    async def respond(request: web.Request) -> web.StreamResponse:
        started_at = time.monotonic()
        status = HTTPStatus.INTERNAL_SERVER_ERROR
        try:
            tenant = identify(request.headers.get("Authorization"))
            buckets.take(tenant)
            body = await request.read()
            values = read_all(
                route.parameters,
                path=request.match_info,
                query=list(request.query.items()),
                headers=request.headers,
                body=body,
            )
            status, document = await handler(Call(tenant, values, body))
        except Problem as problem:
            status = problem.status
            raise
        finally:
            metrics.REQUESTS.labels(route.operation, str(status.value)).inc()
            metrics.REQUEST_SECONDS.labels(route.operation).observe(time.monotonic() - started_at)
        encoded = msgspec.json.encode(document)
        return web.Response(body=encoded, status=status.value, content_type="application/json", headers=HEADERS)

    return respond
