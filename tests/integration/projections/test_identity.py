"""Who a transaction is, on a real Postgres: the tables are those of the memory, however the log is cut."""

import asyncio
import json

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from projections.model.unit_of_work import Row
from projections.verify import digests, verify_tables
from sandbox.infra.postgres import Postgres
from schemas.encoding import catalogue, codec
from schemas.events import APPROVE_REVIEW, DECISION_MADE
from schemas.ids import own_id
from schemas.log import gate
from schemas.log.records import Decision
from tests.conftest import TEMPLATE, finish
from tests.support.projections_database import fresh
from tests.support.projections_kin import Bank, Step, stories
from tests.support.projections_log import Log, account, added, balance, removed, transaction
from tests.support.projections_relink import Login


@pytest.fixture(scope="session")
def template(template_dsn: str) -> str:
    assert template_dsn
    return TEMPLATE


@given(steps=stories, cuts=st.lists(st.integers(0, 100), max_size=6))
@settings(
    max_examples=15,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_the_database_is_that_of_the_memory_for_any_cut(
    postgres: Postgres, template: str, steps: list[Step], cuts: list[int]
) -> None:
    finish(_same(postgres, Bank(steps), cuts))


async def _same(postgres: Postgres, bank: Bank, cuts: list[int]) -> None:
    memory = bank.folded()
    async with fresh(postgres, "kin_whole") as whole, fresh(postgres, "kin_cut") as cut_up:
        await whole.project(bank.records)
        await cut_up.project(bank.records, cuts or range(len(bank.records)))

        connection = await whole.connection()
        assert await digests.full_rows(connection) == await digests.full_rows(await cut_up.connection())
        assert await digests.ledger_problems(connection) == []
        assert verify_tables.totals(await verify_tables.verify(connection))["violations"] == 0
        stored = await connection.fetch("SELECT * FROM projection.transactions")
        links = await connection.fetch("SELECT * FROM projection.transaction_matches")
        reviews = await connection.fetch("SELECT * FROM projection.reviews")
    assert {_row(row) for row in memory.rows.values()} == {
        (
            row["own_id"],
            row["item_id"],
            row["transaction_id"],
            row["version"],
            row["transfers"],
            row["active_transfers"],
            row["review"],
            row["removed_at"] is None,
            row["payload"],
        )
        for row in stored
    }
    assert {(*key, one.own_id, one.rule, one.score, one.changeset) for key, one in memory.links.items()} == {
        (row["item_id"], row["transaction_id"], row["own_id"], row["rule"], row["score"], row["changeset"])
        for row in links
    }
    assert {(one.id, one.state, one.chosen, one.decided) for one in memory.reviews.values()} == {
        (row["id"], row["state"], row["chosen"], row["decided"]) for row in reviews
    }


async def test_a_login_that_is_linked_again_is_in_the_ledger_once(postgres: Postgres, template: str) -> None:
    login = Login(7, transactions=300)
    await asyncio.to_thread(login.pull, login.first)
    again, _ = login.relink(login.first, share_changed=0.2)
    login.link(again)
    await asyncio.to_thread(login.pull, again)
    records = login.log.records
    async with fresh(postgres, "relinked") as whole, fresh(postgres, "relinked_cut") as cut_up:
        await whole.project(records)
        await cut_up.project(records, range(len(records)))

        connection = await whole.connection()
        assert await digests.full_rows(connection) == await digests.full_rows(await cut_up.connection())
        assert verify_tables.totals(await verify_tables.verify(connection))["violations"] == 0
        counted, held = await connection.fetchrow(
            "SELECT count(*) FILTER (WHERE review IS NULL), count(review) FROM projection.transactions"
            " WHERE removed_at IS NULL"
        )
        assert (counted, held < 15) == (300, True)
        banked = {row["reference"]: row["balance"] for row in await connection.fetch(_BANKED)}
    for one in login.first.accounts.values():
        assert banked.get(one.account_id, 0) == 0
    for one in again.accounts.values():
        if one.account_id in banked:
            owed = one.plan.type in ("credit", "loan")
            assert banked[one.account_id] == (-one.current if owed else one.current)


_BANKED = """
SELECT a.reference, sum(b.debits - b.credits) / 1e8 AS balance
  FROM projection.ledger_balances b JOIN projection.ledger_accounts a ON a.id = b.account
 WHERE a.kind = 'bank' AND b.layer = 'posted' GROUP BY a.reference"""


async def test_a_held_transaction_that_posted_hands_its_id_on(postgres: Postgres, template: str) -> None:
    """Two rows of one id of Plaid's, in whatever order the statement shows them to the unique index."""
    log, twin = Log(), {"original_description": "TWIN MARKET"}
    log.link("A")
    log.sync("A", *balance(account("a")), *added(*(transaction(f"a{n}", account_id="a", **twin) for n in range(2))))
    log.edit("A", own_id("a0", salt=b"A"), "a0", notes="for Bob")
    log.link("B")
    pending = transaction("p", account_id="b", pending=True, **twin)
    log.sync("B", *balance(account("b")), *added(pending))
    log.sync("B", *removed("p"), *added(transaction("q", account_id="b", pending_transaction_id="p", **twin)))
    async with fresh(postgres, "handed_on") as database:
        await database.project(log.records, range(len(log.records)))
        connection = await database.connection()
        held = await connection.fetchrow("SELECT * FROM projection.transactions WHERE review IS NOT NULL")
        assert (held["transaction_id"], held["own_id_inherited"]) == ("q", True)

        made = Decision(
            held["review"].hex(), APPROVE_REVIEW, None, json.dumps({"own_id": own_id("a0", salt=b"A").hex()})
        )
        log.free("B", [(DECISION_MADE, catalogue.DECISION, codec.encode(made))], type=gate.DECISION)
        await database.project(log.records[-1:])

        rows = await connection.fetch("SELECT * FROM projection.transactions WHERE transaction_id = 'q'")
        assert [(row["own_id"], row["removed_at"]) for row in rows] == [(own_id("a0", salt=b"A"), None)]
        assert await connection.fetchval("SELECT count(*) FROM tartan.quarantines") == 0
        assert verify_tables.totals(await verify_tables.verify(connection))["violations"] == 0


def _row(row: Row) -> tuple[object, ...]:
    return (
        row.own_id,
        row.item_id,
        row.transaction_id,
        row.version,
        row.transfers,
        len(row.postings),
        row.review,
        row.removed_at is None,
        row.payload,
    )
