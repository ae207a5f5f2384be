"""The webhook stage on a real Kafka: what is answered 200 is in the log, byte for byte, and verifies again."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import ClientSession, web
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from ingest.app import stage
from ingest.server import HEADER, PATH
from ingest.verification import verify_record
from runtime.archive import store
from runtime.archive.seal import archive
from runtime.kafka import topics
from runtime.kafka.clients import Appender, Outgoing
from runtime.lifecycle import Running
from runtime.settings import Settings
from sandbox.infra.kafka import Kafka
from sandbox.infra.machine import free_port
from sandbox.simulator.api.signing import Keyring
from schemas.encoding import codec
from schemas.log.records import Webhook
from tests.support.command_line import last_json, tartan

PARTITIONS = 3
BODY = b'{\n  "webhook_type": "TRANSACTIONS",\n  "item_id": "item-%d",\n  "environment": "sandbox"\n}'


class PlaidKeys:
    """The one endpoint of Plaid that ingest asks."""

    def __init__(self) -> None:
        self.keyring = Keyring(3, datetime.now(UTC))

    async def get(self, request: web.Request) -> web.Response:
        key = self.keyring.keys.get((await request.json())["key_id"])
        if key is None:
            refusal = {"error_type": "INVALID_INPUT", "error_code": "INVALID_WEBHOOK_VERIFICATION_KEY_ID"}
            return web.json_response({**refusal, "error_message": "", "request_id": "r"}, status=400)
        return web.json_response({"key": key.jwk(), "request_id": "r"})


class Ingest:
    """A running stage, and what a test does to it."""

    def __init__(self, settings: Settings, keyring: Keyring, session: ClientSession, running: Running) -> None:
        self.settings, self.keyring, self.session, self.running = settings, keyring, session, running

    async def post(self, body: bytes, *, token: str | None = None) -> tuple[int, str | None, float]:
        """Status, Retry-After, seconds to the answer."""
        loop = asyncio.get_running_loop()
        headers, started = {HEADER: token or self.keyring.sign(body, datetime.now(UTC))}, loop.time()
        address = f"http://127.0.0.1:{self.settings.port}{PATH}"
        async with self.session.post(address, data=body, headers=headers) as answer:
            return answer.status, answer.headers.get("Retry-After"), loop.time() - started


@asynccontextmanager
async def ingesting(kafka_address: str, prefix: str) -> AsyncIterator[Ingest]:
    plaid = PlaidKeys()
    app = web.Application()
    app.router.add_post("/webhook_verification_key/get", plaid.get)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    settings = Settings(
        kafka_address=kafka_address,
        topic_prefix=prefix,
        partitions=PARTITIONS,
        port=free_port(range(28000, 29000)),
        plaid_url=f"http://127.0.0.1:{runner.addresses[0][1]}",
        plaid_client_id="id",
        plaid_secret="secret",
    )
    try:
        await topics.apply(settings)
        async with stage(settings) as running, ClientSession() as session:
            yield Ingest(settings, plaid.keyring, session, running)
    finally:
        await runner.cleanup()


async def in_the_log(settings: Settings) -> list[tuple[bytes | None, bytes]]:
    """Key and value of all records of the topic, partition by partition."""
    topic = f"{settings.topic_prefix}webhooks"
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka_address, isolation_level="read_committed")
    async with consumer:
        assigned = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        consumer.assign(assigned)
        await consumer.seek_to_beginning(*assigned)
        ends = await consumer.end_offsets(assigned)
        records: list[tuple[bytes | None, bytes]] = []
        while any([await consumer.position(tp) < ends[tp] for tp in assigned]):
            for batch in (await consumer.getmany(*assigned, timeout_ms=1000)).values():
                records += [(record.key, record.value) for record in batch]
        return records


async def until(condition: Callable[[], Awaitable[bool]], *, timeout_s: float) -> None:
    async with asyncio.timeout(timeout_s):
        while not await condition():
            await asyncio.sleep(0.1)


def verify_webhooks(settings: Settings, *options: str) -> tuple[int, dict[str, Any]]:
    """Exit code and last line of `tartan verify webhooks`, where no Plaid answers."""
    environment = {
        "TARTAN_KAFKA_ADDRESS": settings.kafka_address,
        "TARTAN_TOPIC_PREFIX": settings.topic_prefix,
        "TARTAN_PARTITIONS": str(PARTITIONS),
        "TARTAN_PLAID_URL": "http://127.0.0.1:1",
        "TARTAN_ARCHIVE_URL": settings.archive_url,
    }
    result = tartan("verify", "webhooks", "--json", *options, **environment)
    return result.exit_code, last_json(result)


async def test_a_log_of_webhooks_verifies_again_offline_and_what_was_put_there_by_hand_is_found(
    kafka_address: str, topic_prefix: str, tmp_path: Path
) -> None:
    async with ingesting(kafka_address, topic_prefix) as ingest:
        await asyncio.gather(*(ingest.post(BODY % number) for number in range(20)))
        await ingest.post(b'{"webhook_type": "LINK", "public_token": "public-1", "environment": "sandbox"}')
        ingest.keyring.rotate(datetime.now(UTC), expire_old=True)
        await ingest.post(BODY % 20)
        settings = ingest.settings

    code, printed = await asyncio.to_thread(verify_webhooks, settings)
    assert (code, printed["checked"], printed["valid"], printed["without_body"], printed["violations"]) == (
        0,
        22,
        22,
        1,
        0,
    )
    assert sorted(key["webhooks"] for key in printed["keys"]) == [1, 21]

    webhook = codec.decode(Webhook, next(value for key, value in await in_the_log(settings) if key == b"item-7"))
    forged = msgspec.structs.replace(webhook, body=BODY % 8)
    appender = Appender(settings, client="hand")
    place = await appender.append(f"{topic_prefix}webhooks", Outgoing(b"item-8", codec.encode(forged)))
    await appender.stop()

    code, printed = await asyncio.to_thread(verify_webhooks, settings)
    assert (code, printed["checked"], printed["violations"]) == (1, 23, 1)
    assert printed["failures"] == [{"partition": place.partition, "offset": place.offset, "reason": "body_differs"}]
    assert printed["reasons"] == {"body_differs": 1}
    later = (datetime.now(UTC) + timedelta(days=1)).strftime("%Y-%m-%d")
    assert (await asyncio.to_thread(verify_webhooks, settings, "--since", later))[1]["checked"] == 0

    # What the topic no longer has is read from the archive; without one, it is said what is not there.
    settings = settings.model_copy(update={"archive_url": tmp_path.as_uri()})
    await archive(settings, store.connect(settings), sealed_before_ms=None, on_sealed=lambda _: None)
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_address)
    await admin.start()
    await admin.delete_records(
        {TopicPartition(f"{topic_prefix}webhooks", place.partition): RecordsToDelete(place.offset + 1)}
    )
    await admin.close()
    code, printed = await asyncio.to_thread(verify_webhooks, settings)
    assert (code, printed["checked"], printed["violations"], printed["missing"]) == (1, 23, 1, [])
    code, printed = await asyncio.to_thread(verify_webhooks, settings.model_copy(update={"archive_url": ""}))
    assert (code, printed["checked"], printed["violations"]) == (0, 22 - place.offset, 0)
    assert printed["missing"] == [{"partition": place.partition, "first": 0, "last": place.offset}]


async def test_what_is_answered_200_is_in_the_log_byte_for_byte_and_verifies_again(
    kafka_address: str, topic_prefix: str
) -> None:
    async with ingesting(kafka_address, topic_prefix) as ingest:
        bodies = [BODY % number for number in range(20)]
        answers = await asyncio.gather(*(ingest.post(body) for body in bodies))
        forged, _, _ = await ingest.post(b"{}", token=ingest.keyring.sign(b"other", datetime.now(UTC)))
        unknown, _, _ = await ingest.post(b"{}", token=Keyring(4, datetime.now(UTC)).sign(b"{}", datetime.now(UTC)))
        records = await in_the_log(ingest.settings)

    assert {status for status, _, _ in answers} == {200}
    assert (forged, unknown) == (401, 401)
    stored = {key: codec.decode(Webhook, value) for key, value in records}
    assert {key: record.body for key, record in stored.items()} == {
        json.loads(body)["item_id"].encode(): body for body in bodies
    }
    for record in stored.values():
        verify_record(record)


async def test_the_same_webhook_twice_is_two_records_and_a_link_body_is_not_kept(
    kafka_address: str, topic_prefix: str
) -> None:
    async with ingesting(kafka_address, topic_prefix) as ingest:
        token = ingest.keyring.sign(BODY % 1, datetime.now(UTC))
        link = b'{"webhook_type": "LINK", "webhook_code": "ITEM_ADD_RESULT", "public_token": "public-sandbox-1"}'
        statuses = [(await ingest.post(BODY % 1, token=token))[0] for _ in range(2)] + [(await ingest.post(link))[0]]
        records = await in_the_log(ingest.settings)

    assert statuses == [200] * 3
    assert sorted(key or b"" for key, _ in records) == [b"", b"item-1", b"item-1"]
    without_key = [value for key, value in records if key is None]
    assert [codec.decode(Webhook, value).body for value in without_key] == [None]
    assert b"public-sandbox-1" not in without_key[0]
    verify_record(codec.decode(Webhook, without_key[0]))


async def test_the_stage_says_when_kafka_answers(kafka_address: str, topic_prefix: str) -> None:
    async with ingesting(kafka_address, topic_prefix) as ingest:

        async def ready() -> bool:
            return not ingest.running.not_ready()

        await until(ready, timeout_s=10)


@pytest.mark.timeout(180)
async def test_while_kafka_is_away_plaid_is_told_to_come_back_and_nothing_is_sent_twice(
    tmp_path: Path, topic_prefix: str
) -> None:
    kafka = Kafka(tmp_path / "kafka")
    await kafka.start()
    try:
        async with ingesting(kafka.address, topic_prefix) as ingest:
            assert (await ingest.post(BODY % 0))[0] == 200

            kafka.kill()
            status, retry_after, seconds = await ingest.post(BODY % 1)
            assert (status, retry_after is not None, seconds < 10) == (429, True, True)

            await kafka.start()

            async def taken_again() -> bool:
                return (await ingest.post(BODY % 2))[0] == 200

            await until(taken_again, timeout_s=60)
            records = await in_the_log(ingest.settings)
    finally:
        kafka.kill()

    keys = [key for key, _ in records]
    assert keys.count(b"item-0") == 1
    # It may have got through after its answer, as Plaid's next attempt may: never twice by one request.
    assert keys.count(b"item-1") <= 1
    assert keys.count(b"item-2") >= 1
    for _, value in records:
        verify_record(codec.decode(Webhook, value))
