"""What users say, in Postgres: what the oracle in memory has, however the log is cut into batches."""

import json
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from projections.store import rows
from projections.verify import digests
from sandbox.infra.postgres import Postgres
from sandbox.simulation.memory.projection_tables import MemoryProjections
from schemas.ids import own_id
from tests.conftest import TEMPLATE, finish
from tests.support.projections_database import Database, fresh
from tests.support.projections_life import Life, lives
from tests.support.projections_log import Log, added, modified, removed, transaction
from tests.support.projections_memory import fold_batches


@pytest.fixture(scope="session")
def template(template_dsn: str) -> str:
    """A database with every table."""
    assert template_dsn.endswith(TEMPLATE)
    return TEMPLATE


@given(life=lives, cuts=st.lists(st.integers(0, 100), max_size=6))
@settings(
    max_examples=15,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_the_tables_are_the_oracles_whatever_the_cuts(
    postgres: Postgres, template: str, life: Life, cuts: list[int]
) -> None:
    finish(_same(postgres, life, cuts))


async def test_every_user_value_comes_back_byte_for_byte_and_waits_through_a_restart(
    postgres: Postgres, template: str
) -> None:
    odd = {
        "notes": 'é 漢 😀 "\\" \t\n---\n',
        "tags": ["", "z", "a"],
        "mood": {"b": [1, None, True, 10**30], "a": ""},
        "category": "",
        "hidden": False,
    }
    log = Log()
    log.link("A")
    log.edit("A", own_id("T", salt=b"A"), "T", **odd)
    log.edit("A", own_id("P", salt=b"A"), "P", name="Pending")
    log.sync("A", *added(transaction("T"), transaction("P", pending=True)))
    log.edit(
        "A", own_id("T", salt=b"A"), "T", splits=[{"category": "X", "amount": "10"}, {"category": "Y", "amount": "0"}]
    )
    log.sync("A", *removed("P"), *added(transaction("Q", pending_transaction_id="P")), *modified(transaction("T", "9")))

    async with fresh(postgres, "whole") as whole, fresh(postgres, "cut") as cut_up:
        await whole.project(log.records)
        await cut_up.project(log.records, range(len(log.records)))

        await _assert_same(whole, fold_batches(log.records, None))
        assert await whole.full() == await cut_up.full()
        assert await digests.ledger_problems(await whole.connection()) == []


async def _same(postgres: Postgres, life: Life, cuts: Sequence[int]) -> None:
    log = life.logs[0]
    async with fresh(postgres, "life") as database:
        await database.project(log, cuts)

        await _assert_same(database, fold_batches(log, None))
        assert await digests.ledger_problems(await database.connection()) == []


async def _assert_same(database: Database, memory: MemoryProjections) -> None:
    connection = await database.connection()
    found = await connection.fetch(
        "SELECT own_id, version, active_transfers, user_fields FROM reads.transactions ORDER BY own_id"
    )
    assert [(row["own_id"], row["version"], row["active_transfers"], _text(row["user_fields"])) for row in found] == [
        (row.own_id, row.version, len(row.postings), row.user_fields)
        for row in sorted(memory.rows.values(), key=lambda row: row.own_id)
    ]
    versions = await connection.fetch(
        "SELECT own_id, version, user_fields FROM reads.transaction_versions ORDER BY own_id, version"
    )
    assert [(row["own_id"], row["version"], _text(row["user_fields"])) for row in versions] == [
        (row.own_id, row.version, row.user_fields)
        for row in sorted((version.row for version in memory.versions), key=lambda row: (row.own_id, row.version))
    ]
    waiting = await connection.fetch("SELECT item_id, waiting_edits FROM reads.items ORDER BY item_id")
    assert [(row["item_id"], json.loads(row["waiting_edits"] or "{}")) for row in waiting] == [
        (name, row.waiting_edits) for name, row in sorted(memory.items.items())
    ]
    told = await connection.fetch("SELECT source_offset, events FROM reads.changesets ORDER BY source_offset")
    assert [(row["source_offset"], rows.decompress(row["events"])) for row in told] == [
        (one.context.offset, one.block) for one in sorted(memory.folded, key=lambda one: one.context.offset)
    ]


def _text(stored: str | None) -> str | None:
    """JSON as the fold writes it: Postgres has white space and an order of keys of its own."""
    if stored is None:
        return None
    return json.dumps(json.loads(stored), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
