"""Stories in which all meets, on a real Postgres: what is read for a batch is all that the fold needs."""

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from projections.fold import full_resync
from projections.verify import verify_tables
from sandbox.infra.postgres import Postgres
from tests.conftest import TEMPLATE, finish
from tests.support.examples import examples
from tests.support.projections_database import Database, fresh
from tests.support.projections_mixed import Step, Story, stories
from tests.support.projections_twin_tables import of_memory, of_postgres


@pytest.fixture(scope="session")
def template(template_dsn: str) -> str:
    assert template_dsn
    return TEMPLATE


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_resync, "REMOVALS_ALWAYS_MAX", 1)


@given(steps=stories, cuts=st.lists(st.integers(0, 100), max_size=6))
@settings(
    max_examples=examples(12),
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_the_tables_are_those_of_the_memory_for_any_cut(
    postgres: Postgres, template: str, steps: list[Step], cuts: list[int]
) -> None:
    finish(_same(postgres, Story(steps), cuts))


async def _same(postgres: Postgres, story: Story, cuts: Sequence[int]) -> None:
    memory = story.memory()
    memory.project(story.records)
    for name, places in (("mixed_cut", cuts), ("mixed_one_by_one", range(len(story.records)))):
        async with fresh(postgres, name) as database:
            await _quarantine(database, story)
            await database.project(story.records, places)
            connection = await database.connection()
            found, wanted = await of_postgres(connection), of_memory(memory)
            for table in wanted:
                assert found[table] == wanted[table]
            assert verify_tables.totals(await verify_tables.verify(connection))["violations"] == 0


async def _quarantine(database: Database, story: Story) -> None:
    for item_id, quarantines in story.quarantined.items():
        for item_quarantine in quarantines:
            await database.alter(
                "INSERT INTO tartan.quarantines (item_id, first_offset, partition, reason, reader, quarantined_at)"
                f" VALUES ('{item_id}', {item_quarantine.first}, 0, 'of an older code', 'projections', tartan.clock())"
            )
