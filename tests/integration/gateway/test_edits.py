"""What a user says about a transaction: through the gateway into a real log, and back out of a real Postgres."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest
from aiohttp import ClientSession

from gateway.app import Gateway, serving
from gateway.live.hub import Hub
from projections import app
from runtime.kafka import topics as cluster
from runtime.kafka.clients import Appender, LogEnds, Outgoing
from runtime.plaid.client import Plaid
from runtime.postgres.pool import open_pool
from runtime.settings import Settings
from runtime.users.keys import FIRST_GENERATION
from runtime.users.vault import Vault
from schemas.topics import CHANGESETS, full_name
from tests.support.projections_log import Log, added, modified, removed, transaction

KEY = bytes(range(32))
PARTITIONS = 2
WAIT_S_MAX = 30.0
NOBODY = "127.0.0.1:1"


@dataclass
class World:
    """Settings, the log's writer, the tables, and the API as two tenants see it."""

    settings: Settings
    log: Log
    appender: Appender
    tables: asyncpg.Connection
    session: ClientSession
    address: str = ""

    async def say(self) -> None:
        """Append what the log has and the topic has not."""
        for record in self.log.records:
            await self.appender.append(
                full_name(CHANGESETS, self.settings.topic_prefix), Outgoing(record.key, record.value)
            )
        self.log.records.clear()

    async def until_shown(self, count: int, *, view: str = "changesets") -> None:
        """Wait until readers see so many records."""
        deadline = time.monotonic() + WAIT_S_MAX
        while await self.tables.fetchval(f"SELECT count(*) FROM reads.{view}") < count:
            assert time.monotonic() < deadline, "too late"
            await asyncio.sleep(0.02)

    async def own_id(self, plaid_id: str = "T") -> str:
        found: bytes = await self.tables.fetchval(
            "SELECT own_id FROM reads.transactions WHERE transaction_id = $1", plaid_id
        )
        return found.hex()

    async def edit(
        self, own_id: str, body: object, *, key: str | None = None, wait: float | None = None, tenant: str = "t"
    ) -> tuple[int, Any]:
        headers = {"Idempotency-Key": key} if key else {}
        query = "" if wait is None else f"?wait={wait}"
        return await self.ask("PATCH", f"/v1/transactions/{own_id}{query}", body, tenant=tenant, **headers)

    async def ask(
        self, method: str, path: str, body: object = None, *, tenant: str = "t", **headers: str
    ) -> tuple[int, Any]:
        sent = {"Authorization": f"Bearer key-{tenant}", **headers}
        async with self.session.request(method, self.address + path, json=body, headers=sent) as answer:
            return answer.status, await answer.json(content_type=None)

    async def records(self) -> int:
        """Records in the log."""
        ends = LogEnds(self.settings)
        await ends.start()
        try:
            found = await ends.ends(full_name(CHANGESETS, self.settings.topic_prefix), range(PARTITIONS))
        finally:
            await ends.stop()
        return sum(one.end for one in found.values())

    async def spent(self) -> dict[str, int]:
        """What went into each category, posted."""
        rows = await self.tables.fetch(
            "SELECT reference, balance FROM reads.ledger_balances WHERE kind = 'category' AND layer = 'posted'"
        )
        return {row["reference"]: int(row["balance"]) for row in rows if row["balance"]}


@pytest.fixture
async def world(kafka_address: str, topic_prefix: str, database: str) -> AsyncIterator[World]:
    settings = Settings(
        kafka_address=kafka_address,
        topic_prefix=topic_prefix,
        postgres_dsn=database,
        partitions=PARTITIONS,
        port=0,
        key_encryption_key=base64.b64encode(KEY).decode(),
        instance_id="1",
        api_keys="t:key-t,b:key-b",
        stream_secret="s" * 32,
        plaid_client_id="nobody-asks",
        plaid_secret="nobody-asks",
    )  # type: ignore[arg-type]
    await cluster.apply(settings)
    tables = await asyncpg.connect(database)
    for user, tenant in ((1, "t"), (2, "b")):
        wrapped = Vault(KEY).wrap_data_key(user.to_bytes(32, "big"), user=user, generation=FIRST_GENERATION)
        await tables.execute(
            "INSERT INTO tartan.users (user_number, tenant, user_id) VALUES ($1, $2, $3)", user, tenant, f"u{user}"
        )
        await tables.execute(
            "INSERT INTO tartan.user_keys (user_number, generation, wrapped, state) VALUES ($1, 1, $2, 'active')",
            user,
            wrapped,
        )
    appender, log = Appender(settings, client="test"), Log()
    log.link("A", 1)
    log.sync("A", *added(transaction("T", "48", payment_meta_json='{"reason":"rent May"}')))
    async with ClientSession() as session:
        made = World(settings, log, appender, tables, session)
        await made.say()
        async with answering(made, settings):
            yield made
    await appender.stop()
    await tables.close()


@asynccontextmanager
async def answering(world: World, settings: Settings) -> AsyncIterator[None]:
    """A gateway of these settings answers what the world asks."""
    pool, plaid = await open_pool(settings, stage="test"), Plaid(settings)
    appender = Appender(settings, client="gateway", timeout_s=5)
    before = world.address
    try:
        gateway = Gateway(settings, pool=pool, plaid=plaid, hub=Hub(), appender=appender)
        async with serving(gateway, settings) as port:
            world.address = f"http://127.0.0.1:{port}"
            yield
    finally:
        world.address = before
        await appender.stop()
        await plaid.close()
        await pool.close()


@pytest.fixture
async def projected(world: World) -> AsyncIterator[World]:
    """The world with a projector that has read all of it."""
    async with app.stage(world.settings):
        await world.until_shown(2)
        yield world


async def test_an_edit_is_answered_when_readers_see_it_and_its_key_makes_it_once(projected: World) -> None:
    world, own = projected, await projected.own_id()
    said = {"category": "RENT", "notes": "flat", "tags": ["home"], "hidden": True, "display_date": "2026-05-01"}

    status, answer = await world.edit(own, said, key="k1")

    assert (status, answer["id"]) == (200, own)
    assert {name: answer[name] for name in said} == {**said, "notes": "flat\n---\nrent May"}
    assert answer["bank"] == {"name": "Coffee Shop", "category": "FOOD_AND_DRINK", "notes": "rent May"}
    assert await world.ask("GET", f"/v1/transactions/{own}") == (200, answer)
    assert await world.spent() == {"RENT": 48}
    assert await world.edit(own, dict(reversed(said.items())), key="k1") == (200, answer)
    conflict, problem = await world.edit(own, {"category": "FOOD"}, key="k1")
    assert (conflict, problem["type"]) == (409, "urn:tartan:problem:idempotency_key_reused")
    assert await world.records() == 3

    # Without a key each request is one of its own; what is left out stays, null clears, "" is a value.
    status, answer = await world.edit(own, {"category": None, "notes": ""})
    assert (status, answer["category"], answer["notes"], answer["tags"]) == (200, "FOOD_AND_DRINK", "", ["home"])
    assert answer["user_fields"] == {name: said[name] for name in ("tags", "hidden", "display_date")} | {"notes": ""}
    assert await world.spent() == {"FOOD_AND_DRINK": 48}


async def test_what_a_user_said_outlives_what_the_bank_says_and_splits_go_stale_in_the_open(projected: World) -> None:
    world, own = projected, await projected.own_id()
    parts = [{"category": "RENT", "amount": "40.00"}, {"category": "GIFT", "amount": "8", "note": "bulb"}]

    status, answer = await world.edit(own, {"splits": parts, "name": "Landlord"})

    kept = [{"category": "RENT", "amount": "40"}, {"category": "GIFT", "amount": "8", "note": "bulb"}]
    assert (status, answer["splits"], answer["splits_stale"], answer["name"]) == (200, kept, False, "Landlord")
    assert await world.spent() == {"RENT": 40, "GIFT": 8}
    for said, shown, stale in (
        (modified(transaction("T", "50")), {"FOOD_AND_DRINK": 50}, True),
        (removed("T"), {}, True),
        (added(transaction("T", "48")), {"RENT": 40, "GIFT": 8}, False),
    ):
        world.log.sync("A", *said)
        await world.say()
        await world.until_shown(await world.records())
        _, answer = await world.ask("GET", f"/v1/transactions/{own}")
        assert (answer["splits"], answer["splits_stale"], answer["name"]) == (kept, stale, "Landlord")
        assert await world.spent() == shown


async def test_a_transaction_that_is_anothers_or_nobodys_is_404(projected: World) -> None:
    answers = [
        await projected.edit(await projected.own_id(), {"category": "X"}, tenant="b"),
        await projected.edit("0" * 32, {"category": "X"}),
    ]

    assert [(status, problem["type"]) for status, problem in answers] == [(404, "urn:tartan:problem:not_found")] * 2
    assert await projected.records() == 2


async def test_wrong_values_are_refused_by_name_and_nothing_is_said(projected: World) -> None:
    def half(**more: object) -> dict[str, object]:
        return {"category": "A", "amount": "24", **more}

    wrong: Sequence[tuple[object, str]] = [
        ([], "body"),
        ({}, "body"),
        ({"amount": "1"}, "amount"),
        ({"category": 5}, "category"),
        ({"category": "x" * 101}, "category"),
        ({"category": "a\n"}, "category"),
        ({"notes": "x" * 4001}, "notes"),
        ({"notes": "a\0"}, "notes"),
        ({"tags": "x"}, "tags"),
        ({"tags": ["x"] * 2}, "tags"),
        ({"tags": [str(number) for number in range(21)]}, "tags"),
        ({"tags": [""]}, "tags"),
        ({"tags": [1]}, "tags"),
        ({"display_date": "2026-02-30"}, "display_date"),
        ({"hidden": "true"}, "hidden"),
        ({"name": ["x"]}, "name"),
        ({"splits": [half()]}, "splits"),
        ({"splits": [half(), half(amount=24)]}, "splits"),
        ({"splits": [half(), half(amount="24.01")]}, "splits"),
        ({"splits": [half(), half(amount="1e1")]}, "splits"),
        ({"splits": [half(), half(category="")]}, "splits"),
        ({"splits": [half(), half(other="")]}, "splits"),
        ({"splits": [half(), "x"]}, "splits"),
        ({"splits": [half(), {"amount": "24"}]}, "splits"),
    ]
    own = await projected.own_id()

    for body, field in wrong:
        status, problem = await projected.edit(own, body)
        assert (status, [fault["field"] for fault in problem["faults"]]) == (400, [field]), body
    assert (await projected.edit(own, {"notes": "é" * 4000, "splits": [half(), half()]}))[0] == 200
    assert await projected.records() == 3


async def test_text_that_people_type_is_kept_to_the_byte(projected: World) -> None:
    # Joiners within emoji and Persian words, no-break spaces, an ideographic space, an emoji that Python 3.11 does not
    # know, a bidirectional mark, and a line break of Windows.
    said = {
        "name": "\U0001f469\u200d\U0001f4bb \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "category": "10\u202f\u20ac\u00a0caf\u00e9",
        "tags": ["\u5929\u3000\u5730", "\U0001fae8"],
        "notes": "one\r\ntwo\tthree\u200f",
    }
    own = await projected.own_id()

    status, answer = await projected.edit(own, said)

    assert (status, answer["user_fields"]) == (200, said)
    assert (answer["name"], answer["category"], answer["tags"]) == (said["name"], said["category"], said["tags"])
    assert (await projected.spent())[said["category"]] == 48
    for controls in ({"name": "a\nb"}, {"notes": "a\x1b[31m"}, {"category": "a\x7f"}, {"tags": ["\x9b"]}):
        status, problem = await projected.edit(own, controls)
        assert (status, [fault["field"] for fault in problem["faults"]]) == (400, [*controls])


async def test_while_nobody_projects_an_edit_is_kept_and_answered_202(world: World) -> None:
    async with app.stage(world.settings):
        await world.until_shown(2)
    own = await world.own_id()

    status, answer = await world.edit(own, {"category": "RENT"}, key="k", wait=0.1)
    assert (status, answer["id"], answer["status"]) == (202, own, "accepted")
    assert (await world.edit(own, {"category": "RENT"}, key="k", wait=0.1))[0] == 202

    async with app.stage(world.settings):
        status, shown = await world.edit(own, {"category": "RENT"}, key="k", wait=WAIT_S_MAX)
    assert (status, shown["category"], shown["version"]) == (200, "RENT", 2)
    stored = await world.tables.fetch("SELECT id FROM reads.changesets WHERE type = 'edit'")
    assert [row["id"].hex() for row in stored] == [answer["changeset"]]


async def test_an_edit_of_an_item_that_is_set_aside_is_answered_202_and_withheld_with_the_rest(
    projected: World,
) -> None:
    world, own = projected, await projected.own_id()
    world.log.append("A", added(transaction("U")), keys=Log.stranger())
    await world.say()

    status, _ = await world.edit(own, {"category": "RENT"}, wait=0.1)

    assert status == 202
    await world.until_shown(2, view="withheld")
    assert (await world.ask("GET", f"/v1/transactions/{own}"))[1]["category"] == "FOOD_AND_DRINK"


async def test_while_kafka_is_away_an_edit_is_503_and_its_key_makes_a_retry_safe(projected: World) -> None:
    own = await projected.own_id()

    async with answering(projected, projected.settings.model_copy(update={"kafka_address": NOBODY})):
        status, problem = await projected.edit(own, {"category": "RENT"}, key="k")
        assert (status, problem["type"]) == (503, "urn:tartan:problem:try_again")
        assert (await projected.ask("GET", f"/v1/transactions/{own}"))[0] == 200

    assert (await projected.edit(own, {"category": "RENT"}, key="k"))[0] == 200
    assert await projected.records() == 3
