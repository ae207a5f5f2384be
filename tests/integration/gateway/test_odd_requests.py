"""Bytes that no client should send: each is refused with a problem document, and none is the server's fault."""

import asyncio
import base64
import json
import random
import re
from collections.abc import AsyncIterator

import msgspec
import pytest

from gateway.routes import ROUTES
from tests.support.examples import examples
from tests.support.gateway_world import CRON_SECRET, Api, serving_api

ODD_TEXTS = [
    *(b"%FF", b"%00", b"%ED%A0%80", b"9" * 5_000, b"-1", b"18446744073709551616", b"1e9", b"%E1%9A%A1", b"a%2Fb", b""),
    *(b"0" * 32, b"+1", b"NaN", b"2026-02-30", b"9999-12-31T23:59:59-05:00", b"0001-01-01T00:00:00%2B14:00"),
    base64.urlsafe_b64encode(msgspec.msgpack.encode((1, 2**63, b"\0" * 8))).rstrip(b"="),
]
ODD_HEADERS = [b"\xff", b"\xe9t\xe9", b"a" * 5_000, b" ", b"\x80\x81", b'"', b"k" * 30]
ODD_BODIES = [
    *(b"", b"null", b"[]", b'{"a": "\xe9"}', b'{"user_id": "\\ud800", "public_token": "x"}', b"[" * 50_000),
    *(b'{"user_id": 1e999}', b'{"wait": 99999999999999999999}', b'{"splits": {"a": 1}, "name": "\\u0000"}'),
    *(b"\xff\xfe", b"{" * 9),
]


@pytest.fixture
async def api(database: str) -> AsyncIterator[Api]:
    async with serving_api(database, api_rate_per_s=10_000.0) as served:
        yield served


async def send(api: Api, request: bytes) -> tuple[int, bytes, bytes]:
    """Send the bytes of one request; return the status, the head and the body of its answer."""
    host, port = api.address.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), head.lower(), body


def request_of(method: str, path: bytes, *, key: str, header: bytes, body: bytes) -> bytes:
    """Return the bytes of a request with an odd header value."""
    lines = [
        method.encode() + b" " + path + b" HTTP/1.1",
        b"Host: x",
        b"Connection: close",
        b"Authorization: Bearer " + key.encode(),
        b"Idempotency-Key: " + header,
        b"Content-Type: application/json",
        b"Content-Length: " + str(len(body)).encode(),
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def test_no_request_is_the_servers_fault(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    draw = random.Random(1)
    for route in ROUTES:
        if route.operation == "stream":
            continue
        names = [parameter.name for parameter in route.parameters if parameter.place == "query"]
        for _ in range(examples(25)):
            path = re.sub(rb"{[^}]+}", lambda _: draw.choice(ODD_TEXTS) or b"x", route.path.encode())
            if names:
                path += b"?" + draw.choice(names).encode() + b"=" + draw.choice(ODD_TEXTS)
            key = CRON_SECRET if route.guard == "cron" else "key-a"
            header = draw.choice(ODD_HEADERS)
            request = request_of(route.method, path, key=key, header=header, body=draw.choice(ODD_BODIES))

            status, head, body = await send(api, request)

            assert status < 500, (request[:300], body)
            if status >= 400 and b"/subjects" not in path:
                assert b"application/problem+json" in head, (request[:300], head)
                assert json.loads(body)["status"] == status
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("number", ["9" * 5_000, "0", "-1", "٣", "1e3", "99999999999"])
async def test_a_version_that_is_none_is_refused(api: Api, number: str) -> None:
    status, answer = await api.ask("GET", f"/subjects/transactions-value/versions/{number}", key=None)

    assert status in (404, 422), answer
