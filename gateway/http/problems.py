"""Problem documents: answer refusals and failures with the field and value at fault, never with a secret."""

from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler
from aiohttp.web_protocol import RequestHandler

from runtime import logs
from runtime.plaid.client import PlaidRefused
from runtime.postgres.errors import AWAY
from schemas.errors import Quarantine, Retry

CONTENT_TYPE = "application/problem+json"
UNAVAILABLE_S = 2
"""`Retry-After` where Postgres or Plaid did not answer: a failover takes some seconds, a lost connection none."""

_log = logs.logger(__name__)


@dataclass(frozen=True, slots=True)
class Fault:
    """One wrong value; `value` is None where it is missing or must not be repeated."""

    field: str
    reason: str
    value: str | None = None


@dataclass(eq=False)
class Problem(Exception):
    """A request that is answered with a problem document. Source: RFC 9457."""

    status: HTTPStatus
    kind: str
    detail: str | None = None
    faults: tuple[Fault, ...] = ()
    headers: dict[str, str] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    def response(self) -> web.Response:
        """Build the HTTP response."""
        document: dict[str, Any] = {
            "type": f"urn:tartan:problem:{self.kind}",
            "title": self.status.phrase,
            "status": self.status.value,
            **self.more,
        }
        if self.detail:
            document["detail"] = self.detail
        if self.faults:
            document["faults"] = [
                {"field": fault.field, "reason": fault.reason} | ({"value": fault.value} if fault.value else {})
                for fault in self.faults
            ]
        body = msgspec.json.encode(document)
        return web.Response(body=body, status=self.status.value, content_type=CONTENT_TYPE, headers=self.headers)


def invalid(*faults: Fault) -> Problem:
    """Return a Problem 400 that names the wrong values."""
    named = ", ".join(fault.field for fault in faults)
    return Problem(HTTPStatus.BAD_REQUEST, "invalid_request", f"wrong: {named}", faults)


def not_found(noun: str) -> Problem:
    """Return a Problem 404, also for a thing of another tenant, which must look the same."""
    return Problem(HTTPStatus.NOT_FOUND, "not_found", f"there is no such {noun}")


def unavailable(kind: str, *, wait_s: float = UNAVAILABLE_S) -> Problem:
    """Return a Problem 503 for a dependency that does not answer, with the seconds to wait."""
    headers = {"Retry-After": str(max(1, round(wait_s)))}
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, kind, "try again later", headers=headers)


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every refusal and failure into a problem document."""
    try:
        return await handler(request)
    except Problem as problem:
        return problem.response()
    except web.HTTPException as refusal:
        return _http_problem(refusal).response()
    except PlaidRefused as refused:
        return _plaid_problem(refused).response()
    except Retry as error:
        _log.warning("not answered", path=_route(request), reason=str(error))
        return unavailable("try_again", wait_s=error.wait_s or UNAVAILABLE_S).response()
    except AWAY as error:
        _log.warning("not answered", path=_route(request), reason=type(error).__name__)
        return unavailable("database").response()
    except Quarantine as error:
        _log.error("answer of Plaid's not understood", path=_route(request), reason=str(error))
        return Problem(HTTPStatus.BAD_GATEWAY, "plaid_answer").response()
    except Exception as error:  # noqa: BLE001 - the last handler before the client: the client gets a document, the log the trace
        _log.error("failed", path=_route(request), kind=type(error).__name__, exc_info=error)
        return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal").response()


def _http_problem(refusal: web.HTTPException) -> Problem:
    status = HTTPStatus(refusal.status)
    if status < HTTPStatus.BAD_REQUEST:
        raise refusal
    headers = {name: value for name, value in refusal.headers.items() if name == "Allow"}
    return Problem(status, status.name.lower(), headers=headers)


def plaid_error(refused: PlaidRefused) -> dict[str, Any]:
    """Return Plaid's codes for a problem document; its messages are not repeated. Source: PLAID.md 1.9."""
    return {
        "plaid": {"error_type": refused.error_type, "error_code": refused.error_code, "request_id": refused.request_id}
    }


def _plaid_problem(refused: PlaidRefused) -> Problem:
    more = plaid_error(refused)
    if refused.error_type == "RATE_LIMIT_EXCEEDED":
        return Problem(HTTPStatus.SERVICE_UNAVAILABLE, "plaid_busy", headers={"Retry-After": "60"}, more=more)
    if refused.error_code in ("INVALID_PUBLIC_TOKEN", "INVALID_LINK_TOKEN", "ITEM_NOT_FOUND"):
        return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "plaid_refused", more=more)
    return Problem(HTTPStatus.BAD_GATEWAY, "plaid_refused", more=more)


def _route(request: web.Request) -> str:
    # The route's pattern: a path itself holds ids, which do not belong into logs.
    resource = request.match_info.route.resource
    return resource.canonical if resource else "none"


class _Protocol(RequestHandler):
    __slots__ = ()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Refuse a malformed request; aiohttp's own answer is plain text, and its log an error with a traceback."""
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR or request.writer.output_size > 0:
            return super().handle_error(request, status, exc, message)
        response = Problem(HTTPStatus(status), "malformed_request", "the bytes are no readable request").response()
        response.force_close()
        return response


class _Server(web.Server):
    def __call__(self) -> RequestHandler:
        """Return the protocol of one connection."""
        return _Protocol(self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """Runs an application whose every refusal is a problem document."""

    async def _make_server(self) -> web.Server:
        server = await super()._make_server()
        server.__class__ = _Server  # aiohttp has no argument for the class of its protocol
        return server
