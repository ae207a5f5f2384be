"""Updates larger than a record, on a real Kafka and Postgres: killed after each part, and parts that are late."""

import os
import random
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from runtime.kafka.clients import InDoubt
from sandbox.simulator.bank.bank import Item
from sandbox.simulator.bank.generators import TransactionGenerator
from sandbox.simulator.bank.transactions import Change
from sandbox.simulator.control.scripted_data import scripted_transaction
from schemas.encoding import codec
from schemas.log import changesets, gate
from schemas.log.gate import Verdict
from schemas.log.records import Cause, Head
from schemas.topics import user_key
from streams.ports import Log, SyncContext
from tests.support.streams_world import World, streams, world

SMALL = 8 * 1024
HEX = "0123456789abcdef"


@pytest.fixture
async def stage_world(kafka_address: str, topic_prefix: str, database: str) -> AsyncIterator[World]:
    """A world without the stage, and without quotas: passes that die one after the other would wait for them."""
    async with world(kafka_address, topic_prefix, database, plaid_limits="off") as running:
        yield running


class Killed:
    """The log, for passes that die: the n-th one after its n-th part, when something happens at the bank."""

    def __init__(self, log: Log, on_death: Callable[[], None]) -> None:
        self._log = log
        self._on_death = on_death
        self.deaths = 0
        self._parts = 0
        self.values: list[bytes] = []

    async def append(self, partition: int, key: bytes, value: bytes) -> int:
        offset = await self._log.append(partition, key, value)
        self.values.append(value)
        if changesets.read(value).head.kind != gate.PART:
            self._parts = 0
            return offset
        self._parts += 1
        if self._parts > self.deaths:
            self.deaths += 1
            self._parts = 0
            self._on_death()
            raise InDoubt("killed after a part")
        return offset

    async def end(self, partition: int) -> int:
        return await self._log.end(partition)


async def test_an_update_killed_after_each_of_its_parts_while_the_bank_goes_on_becomes_true(stage_world: World) -> None:
    item = stage_world.bank.create_item("user", transactions=60)
    killed: list[Killed] = []

    def dying(passes: SyncContext) -> SyncContext:
        killed.append(Killed(passes.log, lambda: _remove_a_pending(stage_world, item)))
        return passes._replace(log=killed[0])

    async with streams(stage_world):
        await stage_world.register(item)
        await stage_world.settled(item)
        before = await stage_world.assert_true(item)
    stage_world.bank.step(item.item_id, changes=1_000)
    pending = len(item.pending)
    async with streams(stage_world, change=dying, record_bytes_max=SMALL):
        await stage_world.webhook(item)
        await stage_world.settled(item, timeout_s=240.0)
        item_view = await stage_world.assert_true(item)

    new = list(zip(item_view.records, item_view.verdicts, strict=True))[len(before.records) :]
    accepted = [record.head for record, verdict in new if verdict is Verdict.ACCEPTED]
    aside = [record.head.id for record, verdict in new if verdict is Verdict.CHUNK]
    assert len(accepted) == 1
    assert len(accepted) + len(aside) == len(new)
    assert killed[0].deaths == len(accepted[0].parts) >= 5
    assert pending - len(item.pending) >= 5
    assert set(accepted[0].parts) < set(aside)
    assert all(len(value) <= SMALL for value in killed[0].values)
    assert await stage_world.attempts(item) == ["appended", "appended"]


async def test_parts_that_come_late_or_belong_to_nothing_have_no_effect(stage_world: World) -> None:
    item = stage_world.bank.create_item("user", transactions=300)
    logs: list[Killed] = []

    def keeping(passes: SyncContext) -> SyncContext:
        log = Killed(passes.log, lambda: None)
        log.deaths = 1_000  # none dies
        logs.append(log)
        return passes._replace(log=log)

    async with streams(stage_world, change=keeping, record_bytes_max=SMALL):
        user = await stage_world.register(item)
        await stage_world.settled(item)
        first = await stage_world.assert_true(item)
        # What a zombie still had on its way: a part of an update that was told already.
        late = next(value for value in logs[0].values if changesets.read(value).head.kind == gate.PART)
        await stage_world.append(stage_world.partition(user), user_key(user), late)
        stage_world.bank.step(item.item_id, changes=3)
        await stage_world.webhook(item)
        await stage_world.settled(item)
        item_view = await stage_world.assert_true(item)

    assert item_view.verdicts[len(first.verdicts) :] == [Verdict.CHUNK, Verdict.ACCEPTED]
    assert item_view.head is not None
    assert item_view.head.parts == []


async def test_an_event_too_large_for_a_record_quarantines_its_item_until_its_redrive(stage_world: World) -> None:
    large, small = (
        stage_world.bank.create_item("large", transactions=20),
        stage_world.bank.create_item("small", transactions=20),
    )

    async with streams(stage_world, record_bytes_max=SMALL):
        user = await stage_world.register(large)
        await stage_world.register(small)
        await stage_world.settled(large, small)
        stage_world.bank.apply_update(large, _wordy)
        await stage_world.webhook(large)
        await stage_world.settled(large)
        [quarantined] = await stage_world.pool.fetch("SELECT * FROM tartan.quarantines")
        row = await stage_world.row(large)
        stage_world.bank.step(small.item_id)
        await stage_world.webhook(small)
        await stage_world.settled(small)
        await stage_world.assert_true(small)
    async with streams(stage_world):
        await _append_redrive(stage_world, user, large.item_id)
        await stage_world.until(lambda: _passes(stage_world, large, 3), what="a pass after the redrive")
        await stage_world.settled(large)
        await stage_world.assert_true(large)

    assert (quarantined["item_id"], quarantined["reader"], quarantined["first_offset"]) == (
        large.item_id,
        "streams",
        -1,
    )
    assert "unrecordable" in quarantined["reason"]
    assert (row["stopped"], row["due_at"]) == ("quarantined", None)


def _remove_a_pending(stage_world: World, item: Item) -> None:
    """Let a pending transaction vanish, as a hold does."""

    def removal(drawing: TransactionGenerator) -> list[Change]:
        return [Change("removed", item.live[drawing.item.pending.draw(drawing.rng)])]

    stage_world.bank.apply_update(item, removal)


def _wordy(drawing: TransactionGenerator) -> list[Change]:
    """A transaction whose description fills more than two small records, and does not compress."""
    text = "".join(random.Random(1).choices(HEX, k=6 * SMALL))
    row = scripted_transaction(
        drawing, drawing.account(), amount=Decimal(5), description=text, day=datetime.now(UTC).date(), pending=False
    )
    return [Change("added", row)]


async def _append_redrive(stage_world: World, user: int, item_id: str) -> None:
    async with stage_world.pool.acquire() as connection:
        keys = (await stage_world.keyring.of(connection, [user]))[user]
    assert isinstance(keys, changesets.UserKeys)
    head = Head(
        id=os.urandom(16),
        kind=gate.FREE,
        type=gate.REDRIVE,
        parent=None,
        item_id=item_id,
        user=user,
        at=1,
        cause=Cause("operator"),
        key_generation=1,
        first_offset=-1,
    )
    value = changesets.seal(head, codec.encode_events([]), keys, nonce=os.urandom(12))
    await stage_world.append(stage_world.partition(user), user_key(user), value)


async def _passes(stage_world: World, item: Item, count: int) -> bool:
    return len(await stage_world.attempts(item)) >= count
