"""Answers that say no: problem documents that name the reason and never repeat what was sent."""

import json
from http import HTTPStatus

from aiohttp import web
from aiohttp.typedefs import Handler

CONTENT_TYPE = "application/problem+json"


def problem(status: int, reason: str, *, headers: dict[str, str] | None = None) -> web.Response:
    """A problem document. Source: RFC 9457, 3."""
    document = {"type": f"urn:tartan:problem:{reason}", "title": HTTPStatus(status).phrase, "status": status}
    return web.Response(body=json.dumps(document).encode(), status=status, content_type=CONTENT_TYPE, headers=headers)


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give aiohttp's own refusals (no such path, no such method) the same form."""
    try:
        return await handler(request)
    except web.HTTPException as refusal:
        if refusal.status < HTTPStatus.BAD_REQUEST:
            raise
        kept = {name: value for name, value in refusal.headers.items() if name == "Allow"}
        return problem(refusal.status, HTTPStatus(refusal.status).name.lower(), headers=kept)
