"""One request on its way to its handler: who asks, with which values; and its answer as JSON."""

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
from gateway.http.rate_limit import Buckets
from gateway.routes import Route

HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class Call(NamedTuple):
    """A request whose key and values were found right. Optional values that were not given are None.

    `tenant`: whose key it had; of a cron's secret it is no tenant's.
    """

    tenant: str
    values: Mapping[str, Any]
    body: bytes


Handle = Callable[[Call], Awaitable[Answer]]


def ok(document: Mapping[str, Any]) -> Answer:
    """200 with a document."""
    return Answer(HTTPStatus.OK, document)


def guarded(
    route: Route, handle: Handle, *, identify: Callable[[str | None], str], buckets: Buckets
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Put key, rate and values of a route before its handler. `identify`: who an `Authorization` header is."""

    async def answer(request: web.Request) -> web.StreamResponse:
        started = time.monotonic()
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
            answered = await handle(Call(tenant, values, body))
            status = answered.status
        except Problem as problem:
            status = problem.status
            raise
        finally:
            metrics.REQUESTS.labels(route.operation, str(status.value)).inc()
            metrics.REQUEST_SECONDS.labels(route.operation).observe(time.monotonic() - started)
        return web.Response(
            body=msgspec.json.encode(answered.document),
            status=answered.status.value,
            content_type="application/json",
            headers=HEADERS,
        )

    return answer
