"""The webhook endpoint over HTTP: statuses, bounds, what is answered while the log or Plaid is away."""

import asyncio
import gzip
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from aiohttp import ClientSession
from prometheus_client import REGISTRY, generate_latest

from ingest import server
from ingest.app import serving
from ingest.keys import KeyCache
from ingest.server import HEADER, PATH, Endpoint
from runtime.kafka.clients import InDoubt, Outgoing
from runtime.settings import Settings
from sandbox.simulator.api.signing import Keyring
from schemas.encoding import codec
from schemas.errors import Retry
from schemas.log.records import Webhook

BODY = b'{\n  "webhook_type": "TRANSACTIONS",\n  "item_id": "item-1",\n  "environment": "sandbox"\n}'


Answer = tuple[int, dict[str, str], dict[str, object]]
"""Status, headers, body."""


@dataclass
class World:
    """Plaid's keys and a log in memory, and the endpoint between them."""

    address: str = ""
    keyring: Keyring = field(default_factory=lambda: Keyring(1, datetime.now(UTC)))
    appended: list[Outgoing] = field(default_factory=list)
    append_first: Callable[[], Awaitable[None]] | None = None
    plaid_first: Callable[[], Awaitable[None]] | None = None
    session: ClientSession = field(init=False)

    async def fetch(self, key_id: str) -> bytes | None:
        if self.plaid_first:
            await self.plaid_first()
        key = self.keyring.keys.get(key_id)
        return None if key is None else json.dumps(key.jwk()).encode()

    async def append(self, record: Outgoing) -> None:
        if self.append_first:
            await self.append_first()
        self.appended.append(record)

    async def post(
        self, body: bytes = BODY, *, at: datetime | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        sent = {HEADER: self.keyring.sign(body, at or datetime.now(UTC)), **(headers or {})}
        async with self.session.post(self.address, data=body, headers=sent) as answer:
            return answer.status, dict(answer.headers), await answer.json(content_type=None)


@asynccontextmanager
async def running(**settings: object) -> AsyncIterator[World]:
    world = World()
    chosen = Settings(port=0, **settings)  # type: ignore[arg-type]
    keys = KeyCache(world.fetch)
    endpoint = Endpoint(chosen, keys=keys, append=world.append)
    async with serving(endpoint, chosen) as port, ClientSession() as session:
        world.address, world.session = f"http://127.0.0.1:{port}{PATH}", session
        yield world
    await keys.close()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with running() as running_world:
        yield running_world


def counted(status: str, reason: str) -> float:
    return REGISTRY.get_sample_value("tartan_webhook_answers_total", {"status": status, "reason": reason}) or 0.0


async def test_a_genuine_webhook_is_in_the_log_before_it_is_answered_200(world: World) -> None:
    before = counted("200", "taken")

    status, _, answer = await world.post()

    assert (status, answer) == (200, {"received": True})
    record = codec.decode(Webhook, world.appended[0].value or b"")
    assert (world.appended[0].key, record.body) == (b"item-1", BODY)
    assert counted("200", "taken") == before + 1


async def test_a_forged_webhook_is_answered_401_with_a_problem_that_repeats_nothing_of_it(world: World) -> None:
    before = counted("401", "body_differs")
    token = world.keyring.sign(b"another body", datetime.now(UTC))

    status, headers, answer = await world.post(headers={HEADER: token})

    assert (status, headers["Content-Type"]) == (401, "application/problem+json")
    assert answer == {"type": "urn:tartan:problem:body_differs", "title": "Unauthorized", "status": 401}
    assert world.appended == []
    assert counted("401", "body_differs") == before + 1


async def test_without_a_token_or_with_two_it_is_401(world: World) -> None:
    token = world.keyring.sign(BODY, datetime.now(UTC))

    async with world.session.post(world.address, data=BODY) as answer:
        assert answer.status == 401
        assert (await answer.json(content_type=None))["type"] == "urn:tartan:problem:token_missing"
    async with world.session.post(world.address, data=BODY, headers=[(HEADER, token), (HEADER, token)]) as answer:
        assert (await answer.json(content_type=None))["type"] == "urn:tartan:problem:token_repeated"


async def test_the_header_is_found_in_any_case(world: World) -> None:
    headers = {HEADER.lower(): world.keyring.sign(BODY, datetime.now(UTC))}

    async with world.session.post(world.address, data=BODY, headers=headers) as answer:
        assert answer.status == 200


async def test_the_signature_covers_a_compressed_body_as_it_was_sent(world: World) -> None:
    packed = gzip.compress(BODY)

    status, _, _ = await world.post(packed, headers={"Content-Encoding": "gzip"})

    assert status == 200
    assert codec.decode(Webhook, world.appended[0].value or b"").body == packed


async def test_a_body_beyond_the_bound_is_413_announced_or_in_chunks(world: World) -> None:
    body = b"x" * (64 * 1024 + 1)

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 1000):
            yield body[start : start + 1000]

    status, _, answer = await world.post(body)
    token = world.keyring.sign(body, datetime.now(UTC))
    async with world.session.post(world.address, data=chunks(), headers={HEADER: token}) as chunked:
        assert chunked.status == 413
    exactly, _, _ = await world.post(body[:-1])

    assert (status, answer["type"]) == (413, "urn:tartan:problem:body_too_large")
    assert exactly == 200


async def test_other_methods_and_paths_are_problem_documents_too(world: World) -> None:
    async with world.session.get(world.address) as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "POST")
        assert answer.content_type == "application/problem+json"
    async with world.session.post(world.address + "/more", data=b"") as answer:
        assert (answer.status, answer.content_type) == (404, "application/problem+json")


async def test_a_stale_webhook_is_401_or_taken_as_the_setting_says() -> None:
    old = datetime.now(UTC) - timedelta(minutes=6)

    async with running() as world:
        status, _, answer = await world.post(at=old)
        assert (status, answer["type"]) == (401, "urn:tartan:problem:stale")
    async with running(webhook_stale="demote") as world:
        status, _, _ = await world.post(at=old)
        assert status == 200
        assert codec.decode(Webhook, world.appended[0].value or b"").stale


async def test_a_webhook_of_another_environment_is_refused(world: World) -> None:
    status, _, answer = await world.post(BODY.replace(b"sandbox", b"production"))

    assert (status, answer["type"]) == (403, "urn:tartan:problem:environment_differs")


async def test_a_late_clock_of_ours_is_counted(world: World) -> None:
    before = REGISTRY.get_sample_value("tartan_webhook_clock_alarms_total") or 0.0

    status, _, _ = await world.post(at=datetime.now(UTC) + timedelta(seconds=10))

    assert status == 200
    assert REGISTRY.get_sample_value("tartan_webhook_clock_alarms_total") == before + 1


@pytest.mark.parametrize("error", [Retry("no Kafka"), InDoubt("no answer")])
async def test_while_the_log_takes_nothing_it_is_429_with_retry_after(world: World, error: Retry) -> None:
    async def fail() -> None:
        raise error

    world.append_first = fail

    status, headers, answer = await world.post()

    assert (status, answer["type"]) == (429, "urn:tartan:problem:log")
    assert 30 <= int(headers["Retry-After"]) <= 60


async def test_a_slow_log_is_answered_429_in_time_and_the_append_is_kept_and_sent_once() -> None:
    release = asyncio.Event()
    late = REGISTRY.get_sample_value("tartan_webhook_late_appends_total", {"outcome": "appended"}) or 0.0

    async def wait() -> None:
        await release.wait()

    async with running(webhook_answer_s=0.2) as world:
        world.append_first = wait
        status, headers, answer = await world.post()
        assert (status, answer["type"], "Retry-After" in headers) == (429, "urn:tartan:problem:log_late", True)
        assert world.appended == []
        release.set()
        async with asyncio.timeout(5):
            while not world.appended:
                await asyncio.sleep(0)

    assert len(world.appended) == 1
    assert REGISTRY.get_sample_value("tartan_webhook_late_appends_total", {"outcome": "appended"}) == late + 1


async def test_while_plaid_gives_no_key_it_is_429_and_not_401() -> None:
    async def away() -> None:
        raise Retry("no answer")

    async def slow() -> None:
        await asyncio.Event().wait()

    async with running(webhook_answer_s=0.2) as world:
        world.plaid_first = away
        status, headers, answer = await world.post()
        assert (status, answer["type"], "Retry-After" in headers) == (429, "urn:tartan:problem:keys", True)
        world.plaid_first = slow
        status, _, answer = await world.post()
        assert (status, answer["type"]) == (429, "urn:tartan:problem:keys_late")


async def test_more_webhooks_at_once_than_the_bound_are_429(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "IN_FLIGHT_MAX", 2)
    release = asyncio.Event()
    arrived = asyncio.Semaphore(0)

    async def wait() -> None:
        arrived.release()
        await release.wait()

    world.append_first = wait
    requests = [asyncio.create_task(world.post()) for _ in range(2)]
    await arrived.acquire()
    await arrived.acquire()

    status, headers, answer = await world.post()
    release.set()

    assert (status, answer["type"]) == (429, "urn:tartan:problem:in_flight")
    assert 5 <= int(headers["Retry-After"]) <= 10
    assert [(await task)[0] for task in requests] == [200, 200]


async def test_a_body_that_trickles_is_cut_off(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "BODY_S_MAX", 0.1)

    async def trickle() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(1)
        yield b"}"

    token = world.keyring.sign(b"{}", datetime.now(UTC))
    async with world.session.post(world.address, data=trickle(), headers={HEADER: token}) as answer:
        assert answer.status == 408


async def test_no_answer_and_no_metric_holds_a_token_or_an_id(world: World) -> None:
    token = world.keyring.sign(BODY, datetime.now(UTC))
    _, _, answer = await world.post(b"other", headers={HEADER: token})

    secrets = (token, token.split(".")[2], world.keyring.current.kid, "item-1", hashlib.sha256(BODY).hexdigest())
    for text in (json.dumps(answer), generate_latest().decode()):
        assert [secret for secret in secrets if secret in text] == []
