"""The sweep for missed webhooks, with a simulated Plaid, the real Kafka and Postgres, and the stage at work."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import asyncpg
import pytest
from aiohttp import web

from runtime.incidents import incidents
from runtime.kafka.clients import LogEnds
from runtime.plaid.client import Plaid, PlaidRefused
from runtime.plaid.item_models import ItemAnswer
from runtime.settings import Settings
from sandbox.simulator.bank.bank import Item
from sandbox.simulator.options import Options, WebhookRates
from schemas.errors import Quarantine, Retry
from streams.limits.postgres_limits import PostgresLimits
from streams.webhooks import consumer_lag, missed, sweep
from streams.webhooks.sweep import Round, Sweep, Timing
from tests.support.streams_world import World, streams, world

ITEMS = 40
ROUNDS = 4
LOST = 0.05
TIMING = Timing(grace_s=1.0, resweep_s=0.5, first_s=0.0, tick_s=0.1, idle_s=0.1)


@asynccontextmanager
async def address(take: Callable[[dict[str, Any]], Any]) -> AsyncIterator[str]:
    """Where Plaid sends its webhooks, and what becomes of each."""

    async def received(request: web.Request) -> web.Response:
        await take(json.loads(await request.read()))
        return web.Response()

    app = web.Application()
    app.router.add_post("/", received)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        [host, port] = runner.addresses[0]
        yield f"http://{host}:{port}/"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def sweeping(stage_world: World, *, timing: Timing = TIMING) -> AsyncIterator[Sweep]:
    """A process that sweeps."""
    plaid = Plaid(stage_world.settings)
    limits = PostgresLimits(stage_world.pool, stage_world.settings)
    try:
        yield Sweep(stage_world.pool, plaid, stage_world.vault.open_token, limits, stage_world.settings, timing=timing)
    finally:
        await plaid.close()


async def sweep_until(stage_world: World, sweeps: Sweep, *items: Item, after: datetime) -> Round:
    """Take turns until all Items were looked at after a moment. Gives the sums."""
    total = Round()

    async def all_seen() -> bool:
        nonlocal total
        turn = await sweeps.round()
        total = Round(*(count + other for count, other in zip(total[:4], turn[:4], strict=True)))
        rows = [await stage_world.row(item) for item in items]
        return all(row["swept_at"] is not None and row["swept_at"] > after for row in rows)

    await stage_world.until(all_seen, what="all Items swept", timeout_s=60)
    return total


async def loss_of(pool: asyncpg.Pool) -> dict[str, Any]:
    """What was counted."""
    value = await pool.fetchval("SELECT value FROM tartan.facts WHERE name = 'webhook_loss'")
    return dict(json.loads(value))


async def is_told(pool: asyncpg.Pool) -> bool:
    """Whether operators are told of missed webhooks."""
    closed_at = await pool.fetchval(
        "SELECT count(*) FROM tartan.incidents WHERE kind = $1 AND closed_at IS NULL", incidents.WEBHOOKS_MISSED
    )
    return bool(closed_at)


@pytest.mark.timeout(240)
async def test_of_webhooks_that_are_lost_each_is_found_and_healed_and_their_share_is_known(
    kafka_address: str, topic_prefix: str, database: str
) -> None:
    rates = WebhookRates(lost=LOST, repeated=0.1, delay_max_s=0.2)
    options = Options(seed=7, rate_limits="off", history_transactions=3, webhooks=rates)
    given = {"sweep_share": 1.0, "plaid_limits": "off", "claim_poll_s": 0.05}
    async with world(kafka_address, topic_prefix, database, options=options, **given) as stage_world:

        async def ingest(body: dict[str, Any]) -> None:
            await stage_world.webhook(body["item_id"], body["webhook_code"], body["webhook_type"])

        async with address(ingest) as url, streams(stage_world), sweeping(stage_world) as sweeps:
            items = [stage_world.bank.create_item(f"user-{number}", webhook_url=url) for number in range(ITEMS)]
            for item in items:
                await stage_world.register(item)
            await stage_world.settled(*items, timeout_s=60)

            for _ in range(ROUNDS):
                # Webhooks that follow each other within what two clocks may differ by are not told apart.
                await past(stage_world, datetime.now(UTC) + timedelta(seconds=missed.SKEW_S + 0.5))
                for item in items:
                    stage_world.bank.step(item.item_id)
                sent_at = datetime.now(UTC)
                await stage_world.until(lambda: _quiet(stage_world), what="all webhooks delivered")
                await stage_world.settled(*items, timeout_s=60)
                # Only the sweep heals what is lost: the schedule comes after 15 minutes.
                await sweep_until(stage_world, sweeps, *items, after=sent_at + timedelta(seconds=TIMING.grace_s + 0.1))
                await stage_world.settled(*items, timeout_s=60)

        lost = stage_world.bank.deliveries.counts["lost"]
        assert lost >= 3  # of 160, by this seed
        loss = await loss_of(stage_world.pool)
        assert (loss["sent"], loss["missed"]) == (ITEMS * ROUNDS, lost)
        assert await is_told(stage_world.pool)
        rows = await stage_world.pool.fetch("SELECT item_id FROM tartan.sync_runs WHERE cause = 'sweep'")
        # A slow machine may look again before a pass has begun; what came by webhook causes none.
        assert lost <= len(rows) <= 2 * lost
        for item in items:
            if item.item_id in {row["item_id"] for row in rows}:
                await stage_world.assert_true(item)


async def test_webhooks_that_nobody_has_read_are_seen_in_the_log(
    kafka_address: str, topic_prefix: str, database: str
) -> None:
    async with world(kafka_address, topic_prefix, database) as stage_world:
        ends = LogEnds(stage_world.settings)
        await ends.start()
        try:
            is_read = consumer_lag.on_webhooks(
                stage_world.pool, ends, stage_world.topic("webhooks"), stage_world.settings.partitions
            )
            empty = [await is_read(), await is_read()]

            await stage_world.webhook("item")
            waiting = [await is_read(), await is_read()]
            async with streams(stage_world):
                await stage_world.until(is_read, what="the webhook read")
        finally:
            await ends.stop()

    assert (empty, waiting) == ([False, True], [True, False])


async def _quiet(stage_world: World) -> bool:
    return stage_world.bank.deliveries.quiet


async def past(stage_world: World, moment: datetime) -> None:
    """Wait until a moment is over."""

    async def is_over() -> bool:
        return datetime.now(UTC) > moment

    await stage_world.until(is_over, what=f"{moment} over")


class Answering:
    """A Plaid that says the same of every Item, or raises."""

    def __init__(self, answer: ItemAnswer | Exception) -> None:
        self.answer = answer
        self.asked = 0

    async def item(self, token: str) -> ItemAnswer:
        """The Item's state."""
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Unlimited:
    """Limits that let all through, and remember what they were told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    async def take(self, endpoint: str, item_id: str) -> None:
        """Nothing to wait for."""

    async def exceeded(self, endpoint: str, item_id: str, *, error_code: str) -> None:
        """Remember it."""
        self.told.append(error_code)


def said(**fields: Any) -> ItemAnswer:
    """What Plaid says of an Item."""
    return ItemAnswer(**(dict.fromkeys(ItemAnswer._fields) | {"item_id": "item"} | fields))


def refused(error_type: str, error_code: str) -> PlaidRefused:
    """An error of Plaid's."""
    return PlaidRefused(error_type=error_type, error_code=error_code, status=400, request_id="r")


def swept_by(pool: asyncpg.Pool, bank: Answering, limits: Unlimited | None = None, **settings: Any) -> Sweep:
    """A process that sweeps."""
    given: dict[str, Any] = {"plaid_limits": "off", "sweep_share": 1.0} | settings
    timing = Timing(grace_s=120.0, resweep_s=300.0)

    def open_token(sealed: bytes, *, item_id: str) -> str:
        return sealed.decode()

    stage_world = limits or Unlimited()
    return Sweep(pool, bank, open_token, stage_world, Settings(**given), timing=timing)  # type: ignore[arg-type]


async def add(pool: asyncpg.Pool, *items: str, **fields: Any) -> None:
    """Items that nothing is known to be wrong with; `fields` are SQL."""
    for item in items:
        await pool.execute(
            "INSERT INTO tartan.credentials (item_id, tenant, user_number, sealed_token) VALUES ($1, 't', 1, 'token')",
            item,
        )
        await pool.execute(
            "INSERT INTO tartan.sync_state (item_id, tenant, user_number, partition, created_at, last_attempt_at) "
            "VALUES ($1, 't', 1, 0, now() - interval '2 days', now() - interval '1 hour')",
            item,
        )
        for name, value in fields.items():
            await pool.execute(f"UPDATE tartan.sync_state SET {name} = {value} WHERE item_id = $1", item)


async def due(pool: asyncpg.Pool) -> set[str]:
    """Items that were made due."""
    return {row["item_id"] for row in await pool.fetch("SELECT item_id FROM tartan.sync_state WHERE due_at <= now()")}


def ago(seconds: float) -> str:
    """A moment as Plaid writes it."""
    time = datetime.now(UTC) - timedelta(seconds=seconds)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def test_the_longest_unseen_go_first_and_those_seen_lately_wait(pool: asyncpg.Pool) -> None:
    await add(pool, "late", swept_at="now() - interval '2 hours'")
    await add(pool, "later", swept_at="now() - interval '3 hours'")
    await add(pool, "seen", swept_at="now() - interval '1 minute'")
    await add(pool, "new")
    bank = Answering(said())
    # 60 a minute lend two at once.
    sweeps = swept_by(pool, bank, plaid_limits="production,item/get=15/60")

    first = await sweeps.round()
    after_first = await seen(pool)
    await pool.execute("DELETE FROM tartan.rate_limit_buckets")
    second = await sweeps.round()

    assert (first.checked, after_first) == (2, {"new", "later"})
    assert (second.checked, await seen(pool)) == (1, {"new", "later", "late"})
    assert bank.asked == 3


async def seen(pool: asyncpg.Pool) -> set[str]:
    """Items that were swept within the last seconds."""
    rows = await pool.fetch("SELECT item_id FROM tartan.sync_state WHERE swept_at > now() - interval '30 s'")
    return {row["item_id"] for row in rows}


async def test_only_items_that_can_be_healed_are_asked_about(pool: asyncpg.Pool) -> None:
    await add(pool, "well")
    await add(pool, "broken", stopped="'login_required'")
    await add(pool, "quarantined", stopped="'quarantined'")
    await add(pool, "unlinked", stopped="'unlinked'")
    await add(pool, "leaving", unlink_requested="true")
    await add(pool, "tokenless")
    await pool.execute("UPDATE tartan.credentials SET sealed_token = NULL WHERE item_id = 'tokenless'")

    await swept_by(pool, Answering(said())).round()

    assert await seen(pool) == {"well", "broken"}
    assert await due(pool) == {"broken"}  # its login was repaired, and the webhook of that is lost


async def test_processes_that_sweep_at_once_share_the_items_and_the_quota(pool: asyncpg.Pool) -> None:
    await add(pool, *(f"item-{number}" for number in range(60)))
    bank = Answering(said())
    sweeps = [swept_by(pool, bank, plaid_limits="production,item/get=15/975") for _ in range(6)]

    turns = await asyncio.gather(*(count.round() for count in sweeps))

    # 975 a minute and a margin of 5 s are 15 a second: 31 in two seconds at once, and what comes in meanwhile.
    looked = sum(turn.checked for turn in turns)
    assert looked == bank.asked == len(await seen(pool))
    assert 31 <= looked < 60


async def test_a_missed_webhook_counts_once_although_it_is_named_at_each_look(pool: asyncpg.Pool) -> None:
    await add(pool, "item", last_webhook_at="now() - interval '1 hour'")
    bank = Answering(said(last_webhook_at=ago(600), last_webhook_code="SYNC_UPDATES_AVAILABLE"))
    sweeps = swept_by(pool, bank)

    first = await sweeps.round()
    healed = await due(pool)
    await pool.execute("UPDATE tartan.sync_state SET due_at = NULL, swept_at = now() - interval '301 s'")
    second = await sweeps.round()

    assert (first.sent, first.missed, healed) == (1, 1, {"item"})
    assert (second.checked, second.sent, second.missed) == (1, 0, 0)
    loss = await loss_of(pool)
    assert (loss["sent"], loss["missed"]) == (1, 1)


async def test_operators_are_told_while_more_than_a_percent_is_missed_within_the_hour(
    pool: asyncpg.Pool, database: str
) -> None:
    items = [f"item-{number}" for number in range(5)]
    await add(pool, *items)
    lost = Answering(said(last_webhook_at=ago(600), last_webhook_code="SYNC_UPDATES_AVAILABLE"))

    await swept_by(pool, lost).round()
    during = await is_told(pool)
    later = (datetime.now(UTC) + timedelta(minutes=70)).isoformat()
    async with asyncpg.create_pool(database, min_size=1, max_size=2, server_settings={"tartan.now": later}) as an_hour:
        turn = await swept_by(an_hour, lost).round()

    assert (during, turn.checked, turn.sent, await is_told(pool)) == (True, 5, 0, False)
    assert (await loss_of(pool))["missed"] == 5


async def test_a_429_ends_the_turn_and_is_told(pool: asyncpg.Pool) -> None:
    await add(pool, *(f"item-{number}" for number in range(20)))
    bank, limits = Answering(refused("RATE_LIMIT_EXCEEDED", "ITEM_GET_LIMIT")), Unlimited()

    turn = await swept_by(pool, bank, limits).round()

    assert turn.limited
    assert limits.told == ["ITEM_GET_LIMIT"] * bank.asked
    assert bank.asked <= 3  # those that were under way


async def test_an_item_that_plaid_calls_gone_gets_a_pass_that_finds_out(pool: asyncpg.Pool) -> None:
    await add(pool, "item")

    await swept_by(pool, Answering(refused("INVALID_INPUT", "INVALID_ACCESS_TOKEN"))).round()

    assert await due(pool) == {"item"}


@pytest.mark.parametrize(
    "error", [Retry("no answer"), Quarantine("no item"), refused("API_ERROR", "PLANNED_MAINTENANCE")]
)
async def test_an_item_without_an_answer_waits_for_its_next_turn(pool: asyncpg.Pool, error: Exception) -> None:
    await add(pool, "item")
    bank = Answering(error)

    turn = await swept_by(pool, bank).round()
    bank.answer = said(last_webhook_at=ago(600), last_webhook_code="SYNC_UPDATES_AVAILABLE")
    await pool.execute("UPDATE tartan.sync_state SET swept_at = now() - interval '301 s'")
    next_turn = await swept_by(pool, bank).round()

    assert (turn, next_turn.marked) == (Round(), 1)


async def test_what_plaid_says_of_the_bank_is_kept_and_does_not_go_back(pool: asyncpg.Pool) -> None:
    await add(pool, "older", bank_updated_at="now() - interval '1 day'")
    await add(pool, "newer", bank_updated_at="now() + interval '1 day'")

    await swept_by(pool, Answering(said(last_successful_update=ago(300)))).round()

    rows = await pool.fetch(
        "SELECT item_id, bank_observed_at > now() - interval '30 s' AS seen, "
        "round(extract(epoch FROM now() - bank_updated_at) / 300) AS age FROM tartan.sync_state ORDER BY item_id"
    )
    assert [tuple(row) for row in rows] == [("newer", True, -288), ("older", True, 1)]
    assert await due(pool) == {"newer", "older"}


async def test_a_share_of_zero_sweeps_nothing_and_stays(pool: asyncpg.Pool) -> None:
    await add(pool, "item")
    bank, marked = Answering(refused("INVALID_INPUT", "INVALID_ACCESS_TOKEN")), asyncio.Event()

    def runs(share: float) -> Any:
        settings = Settings(plaid_limits="off", sweep_share=share)
        opened: Any = lambda sealed, *, item_id: sealed.decode()  # noqa: E731
        return sweep.run(pool, cast("Any", bank), opened, cast("Any", Unlimited()), settings, marked.set, timing=TIMING)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(runs(0.0), 0.5)
    asked_without = bank.asked
    running = asyncio.create_task(runs(1.0))
    await asyncio.wait_for(marked.wait(), 10)
    running.cancel()

    assert (asked_without, bank.asked > 0) == (0, True)


async def test_while_webhooks_wait_to_be_read_nothing_counts_as_missed(pool: asyncpg.Pool) -> None:
    await add(pool, "item")
    bank, marked = Answering(refused("INVALID_INPUT", "INVALID_ACCESS_TOKEN")), asyncio.Event()
    asked: list[int] = []

    async def is_read() -> bool:
        asked.append(bank.asked)
        return len(asked) > 3

    settings = Settings(plaid_limits="off", sweep_share=1.0)
    opened: Any = lambda sealed, *, item_id: sealed.decode()  # noqa: E731
    running = asyncio.create_task(
        sweep.run(
            pool,
            cast("Any", bank),
            opened,
            cast("Any", Unlimited()),
            settings,
            marked.set,
            is_read=is_read,
            timing=TIMING,
        )
    )
    await asyncio.wait_for(marked.wait(), 10)
    running.cancel()

    assert asked[:4] == [0, 0, 0, 0]
