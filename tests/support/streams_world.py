"""A world for this stage's tests: a simulated Plaid, the real Kafka and Postgres, and the log read by its own rules."""

import asyncio
import base64
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import asyncpg
from aiokafka import AIOKafkaConsumer, TopicPartition
from pydantic import SecretStr

from runtime.kafka import topics
from runtime.kafka.clients import Appender, Outgoing, connection, partition_of
from runtime.lifecycle import Running
from runtime.scheduler import enqueue
from runtime.settings import Settings
from runtime.users import keys as users
from runtime.users.keys import Destroyed, Keyring
from runtime.users.vault import Vault
from sandbox.simulator.api.server import Running as Simulator
from sandbox.simulator.api.server import running as simulated_plaid
from sandbox.simulator.bank.bank import Item
from sandbox.simulator.bank.truth import truth_of
from sandbox.simulator.options import Options
from schemas.encoding import codec
from schemas.events import BALANCE_REPORTED, TRANSACTION_REMOVED
from schemas.log import changesets, gate
from schemas.log.gate import ItemGate, Verdict
from schemas.log.records import Account, Head, History, Removal, Transaction, Webhook
from schemas.topics import user_key
from streams import app
from streams.app import stage
from streams.ports import SyncContext

WAIT_S = 20.0


@dataclass
class Record:
    """A record of `changesets`, opened."""

    partition: int
    offset: int
    head: Head
    events: list[tuple[str, Any]]


@dataclass
class Held:
    """What a reader holds of an Item after the whole log, by the gate."""

    transactions: dict[str, Transaction] = field(default_factory=dict)
    accounts: dict[str, Account] = field(default_factory=dict)
    head: Head | None = None
    verdicts: list[Verdict] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)


class World:
    """What a test talks to."""

    def __init__(self, settings: Settings, simulator: Simulator, pool: asyncpg.Pool, appender: Appender) -> None:
        self.settings = settings
        self.bank = simulator.plaid
        self.pool = pool
        self.vault = Vault(settings.master_key())
        self.keyring = Keyring(self.vault)
        self._appender = appender
        self._webhooks = 0
        self._sent: dict[int, int] = {}

    def topic(self, name: str) -> str:
        """A topic's name in the cluster."""
        return f"{self.settings.topic_prefix}{name}"

    def partition(self, user: int) -> int:
        """The partition of a user's records."""
        return partition_of(user_key(user), self.settings.partitions)

    async def register(self, item: Item, *, user_id: str | None = None) -> int:
        """Register an Item as the gateway does after Link; gives the user's number."""
        async with self.pool.acquire() as view:
            user = await users.find_or_create(view, self.vault, tenant="t", user_id=user_id or item.user)
            await enqueue.register_item(
                view,
                self.vault,
                item_id=item.item_id,
                tenant="t",
                user_number=user.number,
                access_token=item.access_token,
                institution_id=item.institution.institution_id,
                institution_name=item.institution.name,
                partitions=self.settings.partitions,
            )
        return int(user.number)

    async def webhook(
        self,
        item: Item | str,
        code: str = "SYNC_UPDATES_AVAILABLE",
        kind: str = "TRANSACTIONS",
        *,
        same_as: int | None = None,
        **fields: Any,
    ) -> int:
        """Append a webhook as ingest does. Gives the time in its signature, which `same_as` repeats."""
        item_id = item if isinstance(item, str) else item.item_id
        body = json.dumps({"webhook_type": kind, "webhook_code": code, "item_id": item_id} | fields).encode()
        self._webhooks += 1
        number = self._webhooks if same_as is None else same_as
        jwt = ".".join(_part(part) for part in ({"alg": "ES256", "kid": "k"}, {"iat": number})) + ".signature"
        record = Webhook(time.time_ns() // 1000, body, b"\0" * 32, jwt, "{}")
        sent = await self._appender.append(self.topic("webhooks"), Outgoing(item_id.encode(), codec.encode(record)))
        self._sent[sent.partition] = sent.offset
        return number

    async def append(self, partition: int, key: bytes, value: bytes) -> int:
        """Append to changesets past every rule, as a zombie would."""
        appended = await self._appender.append(self.topic("changesets"), Outgoing(key, value), partition=partition)
        return appended.offset

    async def row(self, item: Item) -> asyncpg.Record:
        """The Item's row of sync_state."""
        [row] = await self.pool.fetch("SELECT * FROM tartan.sync_state WHERE item_id = $1", item.item_id)
        return row

    async def attempts(self, item: Item) -> list[str]:
        """Outcomes of the passes over an Item."""
        rows = await self.pool.fetch(
            "SELECT outcome FROM tartan.sync_runs WHERE item_id = $1 ORDER BY run", item.item_id
        )
        return [row["outcome"] for row in rows]

    async def until(self, condition: Callable[[], Awaitable[object]], *, what: str, timeout_s: float = WAIT_S) -> None:
        """Wait for a condition."""
        ends = time.monotonic() + timeout_s
        while not await condition():
            if time.monotonic() > ends:
                raise AssertionError(f"not within {timeout_s:g} s: {what}")
            await asyncio.sleep(0.02)

    async def settled(self, *items: Item, timeout_s: float = WAIT_S) -> None:
        """Wait until all webhooks are read, nothing is due or under way, and the follower has read it all."""

        async def quiet() -> bool:
            read = await self.pool.fetch("SELECT partition, position FROM tartan.positions WHERE reader = 'mark_due'")
            positions = {row["partition"]: row["position"] for row in read}
            if any(positions.get(partition, 0) <= offset for partition, offset in self._sent.items()):
                return False
            rows = await self.pool.fetch(
                "SELECT s.* FROM tartan.sync_state s LEFT JOIN tartan.positions p "
                "ON p.reader = 'follow_heads' AND p.partition = s.partition WHERE s.item_id = ANY($1) AND "
                "(s.due_at IS NOT NULL OR s.lease_token IS NOT NULL OR s.last_attempt_at IS NULL "
                "OR s.wait_offset >= coalesce(p.position, 0))",
                [item.item_id for item in items],
            )
            return not rows

        await self.until(quiet, what="nothing due", timeout_s=timeout_s)

    async def records(self) -> list[Record]:
        """The whole topic `changesets`, opened with the users' keys."""
        consumer = AIOKafkaConsumer(group_id=None, auto_offset_reset="earliest", **connection(self.settings))
        await consumer.start()
        try:
            partitions = [
                TopicPartition(self.topic("changesets"), number) for number in range(self.settings.partitions)
            ]
            consumer.assign(partitions)
            ends = await consumer.end_offsets(partitions)
            read_rows = []
            for tp in partitions:
                consumer.seek(tp, 0)
                while await consumer.position(tp) < ends[tp]:
                    message = await consumer.getone(tp)
                    read_rows.append(await self._opened(tp.partition, message.offset, message.value))
            return read_rows
        finally:
            await consumer.stop()

    async def view(self, item: Item) -> Held:
        """What a reader holds of an Item: the gate and the events applied in order."""
        view, state = Held(), ItemGate()
        aside: dict[bytes, list[tuple[str, Any]]] = {}
        for record in await self.records():
            if record.head.item_id != item.item_id:
                continue
            verdict = gate.decide(record.head, state, erased=False, known=False)
            state = gate.advance(record.head, state, verdict)
            view.verdicts.append(verdict)
            view.records.append(record)
            if verdict is Verdict.CHUNK:
                aside[record.head.id] = record.events
            elif verdict is Verdict.ACCEPTED:
                view.head = record.head
                chunk_events = [event for part in record.head.parts for event in aside[part]]
                aside = {} if record.head.kind == gate.CHAINED else aside
                _apply([*chunk_events, *record.events], view)
        return view

    async def assert_true(self, item: Item) -> Held:
        """The log says of an Item what the simulator knows to be true."""
        view = await self.view(item)
        truth = truth_of(item, version="v2")
        read_rows = {
            name: (row.amount, row.date, row.pending, row.name, row.category_detailed, row.merchant_name)
            for name, row in view.transactions.items()
        }
        expected = {
            row["transaction_id"]: (
                row["amount"],
                row["date"],
                row["pending"],
                row["name"],
                row["category_detailed"],
                row["merchant_name"],
            )
            for row in truth["transactions"]
        }
        assert read_rows == expected
        known = {account["account_id"]: account["current"] for account in truth["accounts"]}
        assert {name: account.current for name, account in view.accounts.items() if name in known} == known
        return view

    async def _opened(self, partition: int, offset: int, value: bytes) -> Record:
        envelope = changesets.read(value)
        async with self.pool.acquire() as view:
            keys = (await self.keyring.of(view, [envelope.head.user]))[envelope.head.user]
        assert not isinstance(keys, Destroyed)
        block = changesets.unseal(envelope, keys)
        events = [(event.type, codec.decode_event(event)) for event in codec.decode_events(block)]
        return Record(partition, offset, envelope.head, events)


def _apply(events: list[tuple[str, Any]], view: Held) -> None:
    covered = next((record for _, record in events if isinstance(record, History)), None)
    if covered is not None and covered.complete:
        _conclude(covered, view)
    for kind, record in events:
        if kind == TRANSACTION_REMOVED:
            assert isinstance(record, Removal)
            view.transactions.pop(record.transaction_id, None)
        elif isinstance(record, Transaction):
            view.transactions[record.transaction_id] = record
        elif kind == BALANCE_REPORTED:
            view.accounts[record.account_id] = record


def _conclude(covered: History, view: Held) -> None:
    """Forget what a whole history covers: what is still there follows it."""
    for known in list(view.transactions.values()):
        if known.account_id in covered.account_ids and known.date >= (covered.since or ""):
            del view.transactions[known.transaction_id]


def _part(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


@asynccontextmanager
async def world(
    kafka_address: str, topic_prefix: str, database: str, *, options: Options | None = None, **given: Any
) -> AsyncIterator[World]:
    """Everything but the stage itself."""
    async with AsyncExitStack() as stack:
        simulator = await stack.enter_async_context(simulated_plaid(options or Options(rate_limits="off")))
        settings = Settings(
            kafka_address=kafka_address,
            topic_prefix=topic_prefix,
            partitions=3,
            postgres_dsn=SecretStr(database),
            plaid_url=simulator.url,
            plaid_client_id=simulator.plaid.options.client_id,
            plaid_secret=SecretStr(simulator.plaid.options.secret),
            fetch_concurrency=4,
            key_encryption_key=SecretStr(base64.b64encode(os.urandom(32)).decode()),
            **given,
        )
        await topics.apply(settings)
        pool = await stack.enter_async_context(asyncpg.create_pool(database, min_size=1, max_size=4))
        appender = Appender(settings, client="test")
        await appender.start()
        stack.push_async_callback(appender.stop)
        yield World(settings, simulator, pool, appender)


@asynccontextmanager
async def streams(
    stage_world: World, *, change: Callable[[SyncContext], SyncContext] = lambda passes: passes, **changed: Any
) -> AsyncIterator[Running]:
    """The stage, at work; a failure of it fails the test. `change`: of what its passes are made in."""
    settings = stage_world.settings.model_copy(update=changed)
    chosen = {name: getattr(settings, name) for name in ("days_requested", "removals_share_max", "record_bytes_max")}
    with patch.object(app, "SyncContext", lambda **given: change(SyncContext(**chosen | given))):
        async with stage(settings) as running:
            yield running
            ended = asyncio.ensure_future(running.ended)
            assert not ended.done(), ended
