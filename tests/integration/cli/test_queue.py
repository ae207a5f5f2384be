"""`tartan queue`: each Item is in one state, with the reason that holds it, for people and for programs."""

import asyncio
import json
from typing import Any

import asyncpg
import pytest
from click.testing import Result

from projections.store.tables import SCHEMA
from runtime.plaid_limits import SYNC
from runtime.scheduler import queue
from runtime.scheduler.quotas import CLIENT, client_pace
from runtime.settings import Settings
from tests.support import command_line
from tests.support.command_line import tartan_process

USER = 7


def tartan(database: str, *arguments: str, **environment: str | None) -> Result:
    return command_line.tartan(*arguments, TARTAN_POSTGRES_DSN=database, **environment)


def last_line(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.output.splitlines()[-1])
    return found


ITEMS = {
    # item: due_at, not_before, lease ends, wait_offset, attempts, not_ready, stopped, lane, bank (times in seconds)
    "ready-webhook": {"due": -30, "lane": 0},
    "ready-old": {"due": -300, "lane": 2},
    "lease-over": {"due": -5, "lane": 0, "lease": -1},
    "running": {"due": -5, "lane": 1, "lease": 30},
    "limited": {"due": -5, "lane": 0, "held": 60},
    "bank-down": {"due": -5, "lane": 0, "held": 600, "bank": "ins_down"},
    "behind-follower": {"due": -5, "lane": 0, "wait_offset": 10},
    "retried": {
        "due": 3600,
        "lane": 0,
        "attempts": 6,
        "error": '{"code": "INTERNAL_SERVER_ERROR", "detail": "API_ERROR"}',
    },
    "not-ready": {"due": 8, "lane": 3, "not_ready": 3},
    "scheduled": {"due": 8, "lane": 2},
    "quarantined": {"due": -5, "lane": 0},
    "quarantined-by-streams": {"stopped": "quarantined"},
    "login": {"stopped": "login_required"},
    "refused": {"stopped": "refused"},
    "idle": {},
    "unlinked": {"stopped": "unlinked"},
}
_PUT = """
    INSERT INTO tartan.sync_state (item_id, tenant, user_number, partition, institution_id, lane, due_at, not_before,
        lease_token, lease_until, wait_offset, attempts, not_ready, stopped, last_error, last_synced_at)
    VALUES ($1, 't', $2, 0, $3, $4, clock_timestamp() + make_interval(secs => $5),
        clock_timestamp() + make_interval(secs => $6), CASE WHEN $7::float8 IS NOT NULL THEN '\\x01'::bytea END,
        clock_timestamp() + make_interval(secs => $7), $8, $9, $10, $11, $12::text::jsonb, clock_timestamp())"""


async def fill(database: str) -> None:
    connection = await asyncpg.connect(database)
    for name, row in ITEMS.items():
        await connection.execute(
            _PUT,
            name,
            USER,
            row.get("bank", "ins_1"),
            row.get("lane", 3),
            row.get("due"),
            row.get("held"),
            row.get("lease"),
            row.get("wait_offset"),
            row.get("attempts", 0),
            row.get("not_ready", 0),
            row.get("stopped"),
            row.get("error"),
        )
    await connection.execute(
        """INSERT INTO tartan.quarantines (item_id, first_offset, partition, reason, reader)
           VALUES ('quarantined', 5, 0, 'does not open', 'projections'), ('idle', 2, 0, 'was', 'projections')"""
    )
    await connection.execute("UPDATE tartan.quarantines SET redrive_offset = 9 WHERE item_id = 'idle'")
    await connection.execute(
        "INSERT INTO tartan.positions (reader, partition, position) VALUES ('follow_heads', 0, 10)"
    )
    await connection.execute(
        """INSERT INTO tartan.breakers (institution_id, failures, trips, open_until, last_code)
           VALUES ('ins_down', 3, 1, clock_timestamp() + interval '5 min', 'INSTITUTION_DOWN'),
                  ('ins_1', 1, 0, NULL, 'INSTITUTION_DOWN')"""
    )
    await connection.execute(
        "INSERT INTO tartan.incidents (kind, subject, detail, count) VALUES ('institution_down', 'ins_down', 'd', 3)"
    )
    await connection.execute(
        """INSERT INTO tartan.sync_runs (item_id, started_at, duration_s, cause, outcome, error)
           SELECT 'retried', clock_timestamp(), 1, 'webhook', 'failed',
               jsonb_build_object('code', 'C' || n, 'detail', 'API_ERROR') FROM generate_series(1, 60) n"""
    )
    await connection.execute(
        f"""INSERT INTO {SCHEMA}.items (item_id, user_number, partition, missing_rows, missing_changeset_id, known_at)
            VALUES ('idle', $1, 0, 41, '\\xab', now())""",
        USER,
    )
    await connection.execute("""INSERT INTO tartan.facts VALUES ('webhook_loss', '{"sent": 100, "missed": 2}')""")
    await connection.execute(
        """INSERT INTO tartan.rate_limit_buckets (endpoint, item_id, tat)
           VALUES ('transactions/sync', '', clock_timestamp() + interval '60 s')"""
    )
    await connection.close()


def test_each_item_is_in_one_state_with_what_holds_it_back(database: str) -> None:
    asyncio.run(fill(database))

    told = last_line(tartan(database, "queue", "--json"))

    listed = {row["item_id"]: (row["state"], row["why"]) for row in told["listed"]}
    assert listed == {
        "ready-webhook": ("ready", None),
        "ready-old": ("ready", None),
        "lease-over": ("ready", None),
        "running": ("running", None),
        "limited": ("delayed", "rate_limit"),
        "bank-down": ("delayed", "bank"),
        "behind-follower": ("delayed", "follower"),
        "retried": ("delayed", "retry"),
        "not-ready": ("delayed", "history_not_ready"),
        "scheduled": ("delayed", "schedule"),
        "quarantined": ("quarantined", "does not open"),
        "quarantined-by-streams": ("quarantined", None),
        "login": ("stopped", "login_required"),
        "refused": ("stopped", "refused"),
    }
    assert told["states"] == {"ready": 3, "running": 1, "delayed": 6, "quarantined": 2, "stopped": 2, "idle": 1}
    assert told["items"] == sum(told["states"].values()) == len(ITEMS) - 1
    assert told["delayed_by"] == {reason: 1 for state, reason in listed.values() if state == "delayed"}
    assert told["stopped_by"] == {"login_required": 1, "refused": 1}


def test_sums_by_lane_and_bank_agree_with_the_states_and_tell_the_oldest_wait(database: str) -> None:
    asyncio.run(fill(database))

    told = last_line(tartan(database, "queue", "--json"))

    lanes = {lane["lane"]: lane for lane in told["lanes"]}
    for state in ("ready", "running", "delayed"):
        assert sum(lane[state] for lane in told["lanes"]) == told["states"][state]
        assert sum(bank[state] for bank in told["banks"]) == told["states"][state]
    assert 300 <= lanes["schedule"]["oldest_wait_s"] < 900
    assert 30 <= lanes["webhook"]["oldest_wait_s"] < 300
    assert lanes["manual"]["oldest_wait_s"] is None
    down = next(bank for bank in told["banks"] if bank["institution_id"] == "ins_down")
    assert (down["delayed"], down["ready"]) == (1, 0)


def test_ids_stay_whole_and_lines_end_with_words_whatever_the_terminals_width(database: str) -> None:
    asyncio.run(fill(database))
    long = "i" * 60
    asyncio.run(rename(database, "retried", long))

    found = tartan(database, "items", "list", COLUMNS=None)
    queued = tartan(database, "queue", COLUMNS="80")

    assert [line.split()[0] for line in found.output.splitlines()].count(long) == 1
    assert long in queued.output
    assert [line for line in (found.output + queued.output).splitlines() if line != line.rstrip()] == []


async def rename(database: str, item_id: str, new: str) -> None:
    connection = await asyncpg.connect(database)
    await connection.execute("UPDATE tartan.sync_state SET item_id = $2 WHERE item_id = $1", item_id, new)
    await connection.close()


def test_an_operator_sees_failures_breakers_incidents_quota_removals_and_lost_webhooks(database: str) -> None:
    asyncio.run(fill(database))

    told = last_line(tartan(database, "queue", "--json", TARTAN_PLAID_LIMITS="production"))

    assert [row["code"] for row in told["failures"]] == [f"C{n}" for n in range(60, 10, -1)]
    assert (told["failures"][0]["item_id"], told["failures"][0]["attempts"]) == ("retried", 6)
    assert [(row["institution_id"], row["code"]) for row in told["breakers"]] == [("ins_down", "INSTITUTION_DOWN")]
    assert [(row["kind"], row["count"]) for row in told["incidents"]] == [("institution_down", 3)]
    assert [(row["item_id"], row["transactions"]) for row in told["removals_withheld"]] == [("idle", 41)]
    assert "one of them tries" in told["incidents"][0]["remedy"]
    assert told["webhook_loss"] == {"sent": 100, "missed": 2}
    sync = next(bucket for bucket in told["buckets"] if bucket["endpoint"] == "transactions/sync")
    assert (sync["per_minute"], sync["left"]) == (2500, 0)
    assert 0 < sync["next_in_s"] <= 60
    assert told["schedule"]["quota_short"] is True
    off = last_line(tartan(database, "queue", "--json", TARTAN_PLAID_LIMITS="off"))
    assert (off["buckets"], off["schedule"]["quota_short"]) == ([], False)


@pytest.mark.parametrize("used", [0, 1, 7, 249, 250])
async def test_a_bucket_has_as_many_left_as_quotas_would_let_through(database: str, used: int) -> None:
    limits = Settings(plaid_limits="production").limits()
    pace = client_pace(limits[SYNC])
    connection = await asyncpg.connect(database)
    # Frozen, since a bucket of 2,500 a minute has one more each 27 ms.
    await connection.execute("SELECT set_config('tartan.now', now()::text, false)")
    await connection.execute(
        """INSERT INTO tartan.rate_limit_buckets (endpoint, item_id, tat)
           VALUES ($1, $2, tartan.clock() + make_interval(secs => $3))""",
        SYNC,
        CLIENT,
        used * pace.interval_s,
    )

    [found] = [bucket for bucket in await queue.buckets(connection, limits) if bucket.endpoint == SYNC]
    await connection.close()

    assert found.left == max(found.burst - used, 0)
    assert (found.next_in_s > 0) == (found.left == 0)


def test_a_loss_of_which_nothing_was_counted_yet_is_none(database: str) -> None:
    async def put() -> None:
        connection = await asyncpg.connect(database)
        await connection.execute("INSERT INTO tartan.facts VALUES ('webhook_loss', 'null')")
        await connection.close()

    asyncio.run(put())

    assert last_line(tartan(database, "queue", "--json"))["webhook_loss"] is None


def test_people_read_tables_with_whole_ids_and_an_empty_queue_says_so(database: str) -> None:
    empty = tartan(database, "queue")
    asyncio.run(fill(database))

    full = tartan(database, "queue")

    assert (empty.exit_code, full.exit_code) == (0, 0)
    assert "0 Items" in empty.output
    assert "Nothing waits." in empty.output
    assert "Nothing waits." not in full.output
    for word in (*(name for name in ITEMS if name not in ("unlinked",)), "INSTITUTION_DOWN", "does not open", "41"):
        assert word in full.output, word
    assert "never ticked" in full.output


def test_without_tables_or_postgres_it_is_one_line_that_says_what_to_do(
    database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def drop() -> None:
        connection = await asyncpg.connect(database)
        await connection.execute("DROP TABLE tartan.breakers CASCADE")
        await connection.close()

    asyncio.run(drop())
    said = []
    for dsn in (database, "postgresql://me:hush@127.0.0.1:1/tartan"):
        monkeypatch.setenv("TARTAN_POSTGRES_DSN", dsn)
        ended = tartan_process(monkeypatch, capsys, "queue")
        assert ended.code == 1
        said.append(ended.err)

    assert "run `tartan migrate`" in said[0]
    assert said[1].startswith("tartan: no database at postgresql://me:***@127.0.0.1:1/tartan: ")
    assert [text.count("\n") for text in said] == [1, 1]
