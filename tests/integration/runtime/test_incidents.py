"""Incidents on a real Postgres: one while it lasts, closed when it is over, kept for a while."""

import json
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from runtime.incidents import incidents
from runtime.incidents.incidents import Incident
from runtime.postgres.clock import set_clock
from runtime.scheduler import enqueue, leases, run_incidents
from runtime.scheduler.types import Claimed, Released
from runtime.users.vault import Vault

VAULT = Vault(bytes(32))


async def claimed_item(connection: asyncpg.Connection, item_id: str = "item", **row: Any) -> Claimed:
    """An Item under a lease; `row`: columns of sync_state beforehand."""
    await enqueue.register_item(
        connection,
        VAULT,
        item_id=item_id,
        tenant="t",
        user_number=1,
        access_token=f"access-{item_id}",
        institution_id="ins_1",
        institution_name="Bank",
        partitions=1,
    )
    await put(connection, item_id, **row)
    [claimed] = await leases.claim(connection, slots=1, lease_s=60.0, holder="1")
    return claimed


async def put(connection: asyncpg.Connection, item_id: str = "item", **row: Any) -> None:
    for column, value in row.items():
        await connection.execute(f"UPDATE tartan.sync_state SET {column} = $2 WHERE item_id = $1", item_id, value)


async def after(connection: asyncpg.Connection, claimed: Claimed, **result: Any) -> None:
    given = {"outcome": "failed", "done": False} | result
    await run_incidents.record(connection, claimed, Released(**given))


async def opened(connection: asyncpg.Connection) -> list[Incident]:
    return await incidents.open_incidents(connection, limit=100)


async def rows(connection: asyncpg.Connection) -> list[tuple[str, int, bool]]:
    found = await connection.fetch("SELECT kind, count, closed_at FROM tartan.incidents ORDER BY incident")
    return [(row["kind"], row["count"], row["closed_at"] is not None) for row in found]


async def test_a_failing_sync_is_one_incident_however_many_attempts_fail(connection: asyncpg.Connection) -> None:
    claimed = await claimed_item(connection)

    for attempts in range(1, 21):
        await after(connection, claimed, attempts=attempts, error={"code": "late", "detail": f"attempt {attempts}"})

    [one] = await opened(connection)
    assert (one.kind, one.subject, one.count, one.detail) == ("sync_failing", "item", 16, "late: attempt 20")
    assert one.opened_at <= one.last_at


async def test_a_sync_that_works_again_ends_the_incident_and_a_later_failure_is_another(
    connection: asyncpg.Connection,
) -> None:
    claimed = await claimed_item(connection, attempts=7)
    await after(connection, claimed, attempts=7)

    await after(connection, claimed, outcome="appended", done=True)
    await after(connection, claimed, attempts=5)

    assert await rows(connection) == [("sync_failing", 1, True), ("sync_failing", 1, False)]


@pytest.mark.parametrize("stopped", ["login_required", "revoked", "erased"])
async def test_what_the_user_has_to_mend_is_no_incident_and_ends_that_of_the_sync(
    connection: asyncpg.Connection, stopped: str
) -> None:
    claimed = await claimed_item(connection, attempts=7)
    await after(connection, claimed, attempts=7)

    await after(connection, claimed, outcome="stopped", done=True, stopped=stopped)

    assert await rows(connection) == [("sync_failing", 1, True)]


@pytest.mark.parametrize(("stopped", "kind"), [("gone", "item_gone"), ("refused", "item_refused")])
async def test_an_item_that_stops_is_an_incident_of_its_own(
    connection: asyncpg.Connection, stopped: str, kind: str
) -> None:
    claimed = await claimed_item(connection, attempts=7)
    await after(connection, claimed, attempts=7)

    for _ in range(3):
        await after(connection, claimed, stopped=stopped, done=True, error={"code": "NO", "detail": "why"})

    assert await rows(connection) == [("sync_failing", 1, True), (kind, 3, False)]
    [one] = await opened(connection)
    assert one.detail == "NO: why"


@pytest.mark.parametrize(
    "error",
    [
        {"code": "INSTITUTION_DOWN", "detail": "INSTITUTION_ERROR"},
        {"code": "TRANSACTIONS_SYNC_LIMIT", "detail": "RATE_LIMIT_EXCEEDED"},
    ],
)
async def test_what_a_bank_or_the_quota_causes_is_not_an_incident_of_each_item(
    connection: asyncpg.Connection, error: dict[str, str]
) -> None:
    claimed = await claimed_item(connection)

    await after(connection, claimed, attempts=9, error=error)

    assert await rows(connection) == []


@pytest.mark.parametrize(
    ("kind", "while_it_lasts", "over"),
    [
        ("sync_failing", {"attempts": 6}, {"attempts": 0}),
        ("item_gone", {"stopped": "gone"}, {"stopped": None}),
        ("item_refused", {"stopped": "refused"}, {"stopped": "unlinked"}),
        ("item_quarantined", {"stopped": "quarantined"}, {"stopped": None}),
        ("removals_withheld", {"stopped": None}, {"stopped": "unlinked"}),
    ],
)
async def test_what_no_pass_ends_is_settled_from_the_items_state(
    connection: asyncpg.Connection, kind: str, while_it_lasts: dict[str, Any], over: dict[str, Any]
) -> None:
    await claimed_item(connection, **while_it_lasts)
    await incidents.report(connection, kind, "item", "")

    early = await incidents.close_ended(connection)
    await put(connection, **over)
    late = await incidents.close_ended(connection)
    again = await incidents.close_ended(connection)

    assert (early, late, again) == (0, 1, 0)
    assert await rows(connection) == [(kind, 1, True)]


async def test_a_quarantine_lasts_until_its_redrive_is_read(connection: asyncpg.Connection) -> None:
    claimed = await claimed_item(connection)
    await leases.quarantine(connection, claimed, reason="torn")
    await incidents.report(connection, incidents.ITEM_QUARANTINED, "item", "torn")

    early = await incidents.close_ended(connection)
    await connection.execute("UPDATE tartan.quarantines SET redrive_offset = 9")
    late = await incidents.close_ended(connection)

    assert (early, late) == (0, 1)


async def test_an_erased_items_incidents_are_over_and_those_of_banks_are_not(connection: asyncpg.Connection) -> None:
    await incidents.report(connection, incidents.SYNC_FAILING, "nobody", "")
    await incidents.report(connection, incidents.INSTITUTION_DOWN, "ins_1", "")

    settled = await incidents.close_ended(connection)

    assert settled == 1
    assert await incidents.open_counts(connection) == {"institution_down": 1}


async def test_a_wait_for_the_quota_does_not_end_a_failure(connection: asyncpg.Connection) -> None:
    claimed = await claimed_item(connection, attempts=7)
    await after(connection, claimed, attempts=7)

    await after(connection, claimed, outcome="limited", attempts=7)

    assert await rows(connection) == [("sync_failing", 1, False)]


async def test_many_items_that_are_suspected_to_be_gone_are_one_incident_of_the_client(
    connection: asyncpg.Connection,
) -> None:
    error = {"code": "too_many_gone", "detail": "9 of 10"}
    for number in range(3):
        claimed = await claimed_item(connection, f"item-{number}", attempts=8)
        await put(connection, f"item-{number}", last_error=json.dumps(error))
        await after(connection, claimed, attempts=9, error=error)

    lasting = (await rows(connection), await incidents.close_ended(connection))
    await connection.execute("UPDATE tartan.sync_state SET last_error = NULL")
    over = await incidents.close_ended(connection)

    assert lasting == ([("too_many_gone", 3, False)], 0)
    assert over == 1


async def test_a_reader_that_does_not_stop_again_is_well(connection: asyncpg.Connection) -> None:
    await incidents.report(connection, incidents.DEAD_LETTERS, "projections", "")
    now = await connection.fetchval("SELECT now()")

    settled = []
    for later_s in (incidents.QUIET_S - 5, incidents.QUIET_S + 5):
        await set_clock(connection, now + timedelta(seconds=later_s))
        settled.append(await incidents.close_ended(connection))

    assert settled == [0, 1]


async def test_an_end_that_comes_after_the_reading_is_still_to_be_told(connection: asyncpg.Connection) -> None:
    await incidents.report(connection, incidents.DEAD_LETTERS, "projections", "")
    read = await incidents.unalerted(connection, 10)

    await incidents.close_all(connection, [incidents.DEAD_LETTERS], "projections")
    await incidents.mark_alerted(connection, read)

    [end] = await incidents.unalerted(connection, 10)
    assert (end.alerted, end.closed_at is not None) == (True, True)
    await incidents.mark_alerted(connection, [end])
    assert await incidents.unalerted(connection, 10) == []


async def test_only_what_was_told_long_ago_is_purged(connection: asyncpg.Connection) -> None:
    for subject in ("told", "untold", "open"):
        await incidents.report(connection, incidents.DEAD_LETTERS, subject, "")
    for subject in ("told", "untold"):
        await incidents.close(connection, incidents.DEAD_LETTERS, subject)
    await incidents.mark_alerted(
        connection, [one for one in await incidents.unalerted(connection, 9) if one.subject == "told"]
    )
    now = await connection.fetchval("SELECT now()")

    purged = []
    for days in (89, 91):
        await set_clock(connection, now + timedelta(days=days))
        purged.append(await incidents.purge(connection))

    left = await connection.fetch("SELECT subject FROM tartan.incidents ORDER BY subject")
    assert purged == [0, 1]
    assert [row["subject"] for row in left] == ["open", "untold"]


def test_every_kind_says_what_it_is_and_what_to_do() -> None:
    for kind, words in incidents.KINDS.items():
        assert words.title, kind
        assert words.remedy.endswith("."), kind
    assert incidents.describe("of another version").title
