"""No Item is silent without a reason that operators see, on a real Postgres: holds, quarantines, lost cursors, rows."""

import asyncpg
import pytest

from runtime.incidents import incidents
from runtime.postgres.clock import set_clock
from runtime.scheduler import breakers, enqueue, leases, queue, run_incidents
from runtime.scheduler.types import CURSOR_LOST, Claimed, Released
from runtime.settings import Settings
from runtime.users.keys import Keyring
from schemas.errors import Halt
from streams.schedule.fair_queue import FairQueue
from streams.storage.store import PostgresStore
from tests.support.streams_desk import VAULT, Desk

LOST = {"code": CURSOR_LOST, "detail": "again"}


def store(pool: asyncpg.Pool, **settings: object) -> PostgresStore:
    """The scheduler as passes have it."""
    given = Settings(plaid_limits="off", instance_id="1").model_copy(update=settings)
    return PostgresStore(pool, Keyring(VAULT), VAULT, given, FairQueue(given.weights()))


async def claimed(desk: Desk, item_id: str = "item") -> Claimed:
    """An Item under a lease."""
    await desk.register(item_id)
    [claimed_item] = await desk.claim()
    return claimed_item


async def open_kinds(connection: asyncpg.Connection) -> list[tuple[str, str, int]]:
    claimed_item = await connection.fetch("SELECT kind, subject, count FROM tartan.incidents WHERE closed_at IS NULL")
    return sorted((row["kind"], row["subject"], row["count"]) for row in claimed_item)


async def quarantined(connection: asyncpg.Connection) -> int:
    return int(await connection.fetchval("SELECT count(*) FROM tartan.quarantines WHERE redrive_offset IS NULL"))


async def test_an_unlink_that_is_asked_for_during_a_pass_is_not_held_by_what_the_pass_holds(desk: Desk) -> None:
    claimed_item = await claimed(desk)
    await enqueue.request_unlink(desk.connection, "item")

    await desk.release(claimed_item, outcome="appended", due_in_s=7_200.0, not_before_s=7_200.0)

    assert await desk.ready_in() == 0


async def test_a_mark_during_a_pass_does_wait_for_what_the_pass_holds(desk: Desk) -> None:
    claimed_item = await claimed(desk)
    await desk.mark()

    await desk.release(claimed_item, outcome="appended", due_in_s=7_200.0, not_before_s=7_200.0)

    assert await desk.ready_in() == 7_200


async def test_a_claim_says_why_the_attempt_before_it_failed(desk: Desk) -> None:
    claimed_item = await claimed(desk)

    await desk.release(
        claimed_item, outcome="failed", done=False, due_in_s=0.0, attempts=1, error={"code": "INSTITUTION_DOWN"}
    )
    [again] = await desk.claim()

    assert (claimed_item.last_code, again.last_code) == (None, "INSTITUTION_DOWN")


async def test_an_item_whose_credentials_are_gone_is_claimed_so_that_its_pass_says_so(desk: Desk) -> None:
    await desk.register("item")
    await desk.connection.execute("DELETE FROM tartan.credentials")

    [claimed_item] = await desk.claim()

    assert (claimed_item.item_id, claimed_item.sealed_token) == ("item", None)


async def test_cursors_that_are_refused_again_and_again_are_an_incident_and_a_reason_in_the_queue(desk: Desk) -> None:
    claimed_item = await claimed(desk)
    given = {"outcome": "appended", "done": True, "error": LOST}
    kinds = []
    for attempts in (run_incidents.FAILING_AFTER, run_incidents.FAILING_AFTER + 1):
        await desk.release(claimed_item, **given, attempts=attempts, due_in_s=3_600.0, not_before_s=3_600.0)
        await run_incidents.record(desk.connection, claimed_item, _released(given, attempts))
        kinds.append([kind for kind, _, _ in await open_kinds(desk.connection)])

    status = await queue.status(desk.connection, Settings())

    assert kinds == [[], ["sync_failing"]]
    assert [(listed.state.value, listed.why, listed.code) for listed in status.listed] == [
        ("delayed", "retry", CURSOR_LOST)
    ]
    assert await incidents.close_ended(desk.connection) == 0


def _released(given: dict[str, object], attempts: int) -> Released:
    return Released(**given, attempts=attempts)  # type: ignore[arg-type]


async def test_a_quarantine_its_letter_and_its_incident_are_there_before_the_item_is_given_back(
    desk: Desk, pool: asyncpg.Pool
) -> None:
    await set_clock(desk.connection, await pool.fetchval("SELECT now()"))
    await desk.register("item")
    stage = store(pool)
    [claimed_item] = await stage.claim(1)

    await stage.quarantine(claimed_item, "unrecordable")
    died_here = await open_kinds(desk.connection)
    await stage.release(
        claimed_item, Released(outcome="failed", done=True, stopped="quarantined", attempts=1, error=LOST)
    )

    assert died_here == await open_kinds(desk.connection) == [("item_quarantined", "item", 1)]
    assert await quarantined(desk.connection) == 1
    assert await desk.connection.fetchval("SELECT count(*) FROM tartan.dead_letters") == 1


async def test_who_lost_the_lease_quarantines_nothing(desk: Desk, pool: asyncpg.Pool) -> None:
    await set_clock(desk.connection, await pool.fetchval("SELECT now()"))
    await desk.register("item")
    stage = store(pool)
    [late] = await stage.claim(1)
    await stage.expire(late)
    [other] = await stage.claim(1)

    await stage.quarantine(late, "unrecordable")

    assert other.expired
    assert (await quarantined(desk.connection), await open_kinds(desk.connection)) == (0, [])
    assert await desk.connection.fetchval("SELECT count(*) FROM tartan.dead_letters") == 0


async def test_a_deploy_that_would_quarantine_too_many_stops_and_operators_are_told(
    desk: Desk, pool: asyncpg.Pool
) -> None:
    await set_clock(desk.connection, await pool.fetchval("SELECT now()"))
    for item_id in ("a", "b"):
        await desk.register(item_id)
    stage = store(pool, dead_letters_max=1)
    first, second = await stage.claim(2)

    await stage.quarantine(first, "broken")
    with pytest.raises(Halt, match="2 Items would be quarantined"):
        await stage.quarantine(second, "broken")

    assert await quarantined(desk.connection) == 1
    assert await open_kinds(desk.connection) == [("dead_letters", "streams", 1), ("item_quarantined", first.item_id, 1)]


async def test_an_unlinked_item_is_behind_all_that_the_sweep_looks_at(desk: Desk) -> None:
    claimed_item = await claimed(desk)
    await desk.connection.execute("UPDATE tartan.sync_state SET swept_at = tartan.clock() - interval '1 day'")

    await leases.finish_unlink(desk.connection, claimed_item)

    due = "SELECT count(*) FROM tartan.sync_state WHERE swept_at IS NULL OR swept_at < tartan.clock()"
    assert await desk.connection.fetchval(due) == 0


@pytest.mark.parametrize(
    ("stopped", "due", "stays"),
    [("unlinked", False, 0), ("gone", False, 0), ("gone", True, 1), (None, False, 1), ("login_required", False, 0)],
)
async def test_an_outage_is_over_once_no_item_of_the_bank_is_left_to_try(
    desk: Desk, stopped: str | None, due: bool, stays: int
) -> None:
    await desk.register("item")
    await breakers.failed(desk.connection, "ins_1", "INSTITUTION_DOWN", 1)
    await desk.connection.execute(
        "UPDATE tartan.sync_state SET stopped = $1, due_at = CASE WHEN $2 THEN due_at END", stopped, due
    )

    early = await breakers.forget(desk.connection)
    await desk.wait(breakers.OPEN_S)
    forgotten = await breakers.forget(desk.connection)

    assert (early, forgotten) == (0, 1 - stays)
    assert len(await open_kinds(desk.connection)) == stays
