"""Who a transaction is, on a real Postgres: the tables are those of the memory, however the log is cut."""

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from projections import digests, verify
from projections.state import Row
from sandbox.postgres import Postgres
from tests.conftest import TEMPLATE, finish
from tests.projections_database import fresh
from tests.projections_kin import Bank, Step, stories


@pytest.fixture(scope="session")
def template(template_dsn: str) -> str:
    assert template_dsn
    return TEMPLATE


@given(steps=stories, cuts=st.lists(st.integers(0, 100), max_size=6))
@settings(
    max_examples=15, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
def test_the_database_is_that_of_the_memory_for_any_cut(
    postgres: Postgres, template: str, steps: list[Step], cuts: list[int]
) -> None:  # fmt: skip
    finish(_same(postgres, Bank(steps), cuts))


async def _same(postgres: Postgres, bank: Bank, cuts: list[int]) -> None:
    memory = bank.known()
    async with fresh(postgres, "kin_whole") as whole, fresh(postgres, "kin_cut") as cut_up:
        await whole.project(bank.records)
        await cut_up.project(bank.records, cuts or range(len(bank.records)))

        connection = await whole.connection()
        assert await digests.full_rows(connection) == await digests.full_rows(await cut_up.connection())
        assert await digests.ledger_problems(connection) == []
        assert verify.totals(await verify.verify(connection))["violations"] == 0
        stored = await connection.fetch("SELECT * FROM projection_1.transactions")
        links = await connection.fetch("SELECT * FROM projection_1.identity_links")
        reviews = await connection.fetch("SELECT * FROM projection_1.reviews")
    assert {_row(row) for row in memory.rows.values()} == {
        (row["own_id"], row["item_id"], row["transaction_id"], row["version"], row["transfers"], row["legs"],
         row["review"], row["removed_at"] is None, row["words"])
        for row in stored
    }  # fmt: skip
    assert {(*key, one.own_id, one.rule, one.score, one.changeset) for key, one in memory.links.items()} == {
        (row["item_id"], row["transaction_id"], row["own_id"], row["rule"], row["score"], row["changeset"])
        for row in links
    }
    assert {(one.id, one.state, one.chosen, one.decided) for one in memory.reviews.values()} == {
        (row["id"], row["state"], row["chosen"], row["decided"]) for row in reviews
    }


def _row(row: Row) -> tuple[object, ...]:
    return (
        row.own_id, row.item_id, row.transaction_id, row.version, row.transfers, len(row.postings), row.review,
        row.removed_at is None, row.words,
    )  # fmt: skip
