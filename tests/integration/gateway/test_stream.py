"""Streams on a real Kafka and a real Postgres: the snapshot and every change, once, or an honest close."""

import asyncio
import contextlib
import datetime
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType

from gateway import app as gateways
from gateway.http.auth import StreamTokens
from gateway.live import hub as hubs
from gateway.live import kafka_feed as pushes
from gateway.live import websocket as streams
from gateway.live.hub import GOING_AWAY, POLICY, RESTART, TRY_LATER
from projections.store.tables import SCHEMA
from runtime.kafka import topics
from runtime.kafka.clients import Appender, Outgoing, partition_of
from runtime.lifecycle import Running
from runtime.postgres.pool import open_pool
from runtime.settings import Settings
from sandbox.infra.kafka import Kafka
from sandbox.infra.machine import free_port
from schemas.encoding import codec
from schemas.ids import own_id
from schemas.topics import HEADER_POSITION, user_key
from tests.support.projections_log import transaction

KEY = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
PARTITIONS = 2
USER, OTHER = 4611686018427387905, 7
DAY = datetime.date(2026, 1, 1)
NOW = datetime.datetime(2026, 9, 21, tzinfo=datetime.UTC)


class World:
    """A running gateway, and the projection's part played by the test: rows committed, then told."""

    def __init__(self, settings: Settings, pool: asyncpg.Pool, appender: Appender, session: ClientSession) -> None:
        self.settings, self.pool, self.appender, self.session = settings, pool, appender, session
        self.offset = 0
        self.running: Running

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings.port}/v1/stream"

    def token(self, user: int = USER) -> str:
        return StreamTokens(self.settings).issue("a", user)[0]

    @asynccontextmanager
    async def stream(self, user: int = USER) -> AsyncIterator[ClientWebSocketResponse]:
        async with self.session.ws_connect(self.url, params={"token": self.token(user)}) as socket:
            yield socket

    async def commit(self, user: int = USER) -> str:
        """Commit one more transaction of a user, with the position, as the projection does; tell nobody yet."""
        number, self.offset = self.offset, self.offset + 1
        own = own_id(f"transaction-{number}")
        async with self.pool.acquire() as connection, connection.transaction():
            await connection.execute(
                f"""INSERT INTO {SCHEMA}.positions (partition, position, known_at) VALUES ($1, $2, $3)
                    ON CONFLICT (partition) DO UPDATE SET position = $2, known_at = $3""",
                partition(user),
                self.offset,
                NOW,
            )
            await connection.execute(
                f"""INSERT INTO {SCHEMA}.transactions (own_id, user_number, item_id, transaction_id, own_id_inherited, version,
                    transfers, first_changeset, last_changeset, known_at, payload, payload_schema, account_id,
                    amount_value, amount_scale, currency, pending, date)
                    VALUES ($1, $2, 'item', $3, false, 1, 1, 0, 0, $4, $6, 1, 'account', 1, 0, 'USD', false, $5)""",  # noqa: E501
                own,
                user,
                f"transaction-{number}",
                NOW,
                DAY + datetime.timedelta(days=number),
                codec.encode(transaction(f"transaction-{number}", "1")),
            )
        return own.hex()

    async def tell(self, own: str, offset: int, user: int = USER) -> None:
        message = {"event": "transaction.added", "data": {"id": own}, "timestamp": NOW.isoformat()}
        await self.tell_raw(json.dumps(message).encode(), offset, user)

    async def tell_raw(self, value: bytes, offset: int, user: int = USER) -> None:
        record = Outgoing(user_key(user), value, [(HEADER_POSITION, f"{offset}.0".encode())])
        await self.appender.append(f"{self.settings.topic_prefix}push", record, partition=partition(user))

    async def ready(self) -> None:
        async with asyncio.timeout(20):
            while self.running.not_ready():
                await asyncio.sleep(0.02)


def partition(user: int) -> int:
    return partition_of(user_key(user), PARTITIONS)


def settings_of(kafka_address: str, prefix: str, dsn: str) -> Settings:
    return Settings(
        kafka_address=kafka_address,
        topic_prefix=prefix,
        partitions=PARTITIONS,
        postgres_dsn=dsn,
        api_keys="a:key",
        stream_secret="s" * 32,
        key_encryption_key=KEY,
        plaid_client_id="id",
        plaid_secret="secret",
        port=free_port(range(28000, 29000)),
        postgres_pool_size=20,
    )


@asynccontextmanager
async def worlds(settings: Settings) -> AsyncIterator[World]:
    await topics.apply(settings)
    pool, appender = await open_pool(settings, stage="test"), Appender(settings, client="test")
    for number in (USER, OTHER):
        await pool.execute("INSERT INTO tartan.users VALUES ($1, 'a', $2)", number, f"user-{number}")
    await appender.start()
    try:
        async with ClientSession() as session, gateways.stage(settings) as running:
            world = World(settings, pool, appender, session)
            world.running = running
            await world.ready()
            yield world
    finally:
        await appender.stop()
        await pool.close()


@pytest.fixture
async def world(kafka_address: str, topic_prefix: str, database: str) -> AsyncIterator[World]:
    async with worlds(settings_of(kafka_address, topic_prefix, database)) as made:
        yield made


async def received(socket: ClientWebSocketResponse) -> dict[str, Any]:
    message = await socket.receive(timeout=10)
    assert message.type is WSMsgType.TEXT, message
    value: dict[str, Any] = json.loads(message.data)
    return value


async def closed(socket: ClientWebSocketResponse) -> int | None:
    """The close code, after whatever still came before it."""
    async with asyncio.timeout(15):
        while (await socket.receive()).type not in (WSMsgType.CLOSE, WSMsgType.CLOSED, WSMsgType.CLOSING):
            pass
    return socket.close_code


async def snapshot(socket: ClientWebSocketResponse) -> tuple[list[str], str]:
    """Ids of the transactions that came first, and the snapshot's position."""
    balances, transactions = await received(socket), await received(socket)
    assert (balances["event"], transactions["event"]) == ("initial.balances", "initial.transactions")
    assert balances["position"] == transactions["position"]
    return [row["id"] for row in transactions["data"]["transactions"]], transactions["position"]


async def test_a_browser_gets_its_snapshot_and_then_what_is_told_with_positions(world: World) -> None:
    own = await world.commit()
    async with world.stream() as socket:
        ids, position = await snapshot(socket)
        assert (ids, position) == ([own], f"{partition(USER)}:1")

        later = await world.commit()
        await world.tell(own, 0)
        await world.tell(later, 1)
        message = await received(socket)

    assert message["data"] == {"id": later}
    assert message["position"] == f"{partition(USER)}:1.0"
    assert {"event", "data", "timestamp"} <= message.keys()


async def test_all_streams_of_a_user_get_a_message_and_no_other_user_does(world: World) -> None:
    async with world.stream() as first, world.stream() as second, world.stream(OTHER) as other:
        for socket in (first, second, other):
            await snapshot(socket)

        await world.tell("ours", 100)
        await world.tell("theirs", 101 if partition(OTHER) == partition(USER) else 5, OTHER)

        assert (await received(first))["data"] == (await received(second))["data"] == {"id": "ours"}
        assert (await received(other))["data"] == {"id": "theirs"}


@pytest.mark.parametrize("seed", range(3))
async def test_snapshot_and_stream_together_show_each_change_once_while_changes_are_committed(
    world: World, seed: int
) -> None:
    """Commits, messages, repeats of a crashed publisher and browsers that come at any moment."""
    chance = random.Random(seed)
    total = 40
    committed: list[str] = []

    async def project() -> None:
        for number in range(total):
            committed.append(await world.commit())
            if chance.random() < 0.3:  # the next batch commits before this one is told
                await asyncio.sleep(0.01)
            await world.tell(committed[number], number)
            if chance.random() < 0.2:
                for again in range(max(0, number - 3), number + 1):
                    await world.tell(committed[again], again)
            await asyncio.sleep(chance.random() * 0.01)

    async def browse(delay_s: float) -> list[str]:
        await asyncio.sleep(delay_s)
        async with world.stream() as socket:
            seen, _ = await snapshot(socket)
            while len(seen) < total:
                seen.append((await received(socket))["data"]["id"])
            with contextlib.suppress(TimeoutError):
                seen.append((await socket.receive(timeout=0.2)).data)
            return seen

    browsers = [asyncio.create_task(browse(chance.random() * 0.8)) for _ in range(12)]
    await project()
    for browser in browsers:
        seen = await browser
        assert len(seen) == total
        assert set(seen) == set(committed)


async def test_without_a_valid_token_the_stream_is_closed_with_1008(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "TOKEN_S_MAX", 0.2)
    for token in ("", "nonsense", world.token(999), world.token()[:-2]):
        async with world.session.ws_connect(world.url, params={"token": token}) as socket:
            assert await closed(socket) == POLICY, token
    async with world.session.ws_connect(world.url) as silent:
        assert await closed(silent) == POLICY
    async with world.session.ws_connect(world.url) as wrong:
        await wrong.send_str("token")
        assert await closed(wrong) == POLICY


async def test_the_token_may_come_as_the_first_message_and_is_renewed_on_request(world: World) -> None:
    async with world.session.ws_connect(world.url) as socket:
        await socket.send_json({"token": world.token()})
        await snapshot(socket)

        await socket.send_json({"what": "ever"})
        await socket.send_json({"renew": True})
        renewed = await received(socket)

    assert renewed["event"] == "stream.token"
    viewer = StreamTokens(world.settings).read(renewed["data"]["token"])
    assert viewer is not None
    assert viewer.user == USER


async def test_a_users_streams_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs, "STREAMS_PER_USER_MAX", 2)
    async with world.stream() as first, world.stream() as second:
        await snapshot(first)
        await snapshot(second)
        async with world.stream() as third:
            assert await closed(third) == POLICY


async def test_a_slow_browser_is_cut_with_1013_and_slows_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs, "QUEUE_BYTES_MAX", 200_000)
    large = json.dumps({"event": "transaction.added", "data": {"id": "x" * 50_000}}).encode()
    # A small receive buffer and a reader that takes nothing: the server's writes block after some messages.
    reader = await asyncio.open_connection("127.0.0.1", world.settings.port, limit=1024)
    await upgrade(*reader, world.token())
    async with world.stream() as quick:
        await snapshot(quick)
        for offset in range(150):
            await world.tell_raw(large, 1000 + offset)
            assert len((await received(quick))["data"]["id"]) == 50_000

        rest = await asyncio.wait_for(reader[0].read(50_000_000), 20)
        while chunk := await asyncio.wait_for(reader[0].read(1_000_000), 20):
            rest = rest[-10_000:] + chunk

        await world.tell("after", 5000)
        assert (await received(quick))["data"]["id"] == "after"
    reader[1].close()
    assert TRY_LATER.to_bytes(2, "big") + b"too slow" in rest


async def upgrade(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: str) -> None:
    writer.write(
        f"GET /v1/stream?token={token} HTTP/1.1\r\nHost: t\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
    )
    assert b"101" in await reader.readline()


async def test_a_message_that_cannot_be_placed_costs_its_user_a_new_snapshot_and_nobody_else(world: World) -> None:
    async with world.stream() as ours, world.stream(OTHER) as other:
        await snapshot(ours)
        await snapshot(other)

        await world.appender.append(f"{world.settings.topic_prefix}push", Outgoing(user_key(USER), b"{}"))
        assert await closed(ours) == RESTART
        await world.tell("on", 1, OTHER)
        assert (await received(other))["data"] == {"id": "on"}


async def test_a_reader_that_falls_behind_closes_browsers_and_begins_at_the_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.stream() as socket:
        await snapshot(socket)
        monkeypatch.setattr(pushes, "LAG_MAX", -1)
        assert await closed(socket) == RESTART
    monkeypatch.undo()

    async with asyncio.timeout(20):
        while not await is_served(world):
            await asyncio.sleep(0.05)


async def is_served(world: World) -> bool:
    """Whether a new stream gets its snapshot and news; False where it is closed, as until the reader is back."""
    async with world.stream() as socket:
        first = await socket.receive(timeout=10)
        if first.type is not WSMsgType.TEXT:
            return False
        await received(socket)
        await world.tell("new", 1)
        assert (await received(socket))["data"] == {"id": "new"}
        return True


async def test_on_stop_browsers_are_told_that_the_server_goes_away(
    kafka_address: str, topic_prefix: str, database: str
) -> None:
    async with ClientSession() as session:
        async with worlds(settings_of(kafka_address, topic_prefix, database)) as world:
            socket = await session.ws_connect(world.url, params={"token": world.token()})
            await snapshot(socket)
            closing = asyncio.create_task(closed(socket))
        assert await closing == GOING_AWAY


@pytest.mark.timeout(180)
async def test_after_kafka_was_away_a_stream_goes_on_without_a_gap(
    tmp_path: Path, topic_prefix: str, database: str
) -> None:
    kafka = Kafka(tmp_path / "kafka")
    await kafka.start()
    try:
        settings = settings_of(kafka.address, topic_prefix, database)
        async with worlds(settings) as world, world.stream() as socket:
            await snapshot(socket)
            await world.tell("before", 1)
            assert (await received(socket))["data"] == {"id": "before"}

            kafka.kill()
            await kafka.start()
            await tell_when_back(world, "after", 2)

            # Told on the same stream, or the stream was closed and a new snapshot has to be taken: no third way.
            message = await socket.receive(timeout=60)
            assert message.type is WSMsgType.CLOSE or json.loads(message.data)["data"] == {"id": "after"}
    finally:
        kafka.kill()


async def tell_when_back(world: World, own: str, offset: int) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                return await world.tell(own, offset)
            except Exception:  # noqa: BLE001 - the broker is on its way
                await asyncio.sleep(0.5)
