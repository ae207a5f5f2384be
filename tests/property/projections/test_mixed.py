"""Properties of stories in which all meets, on the pure core: tests/support/projections_mixed.py says of what."""

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from projections.fold import full_resync
from runtime.kafka.reader import Received
from sandbox.simulation.memory.projection_tables import MemoryProjections
from tests.support.projections_memory import cut
from tests.support.projections_mixed import Step, Story, stories

OF_AN_ACCOUNT_WITHOUT_ROWS: list[Step] = [("sync", 0, 9), ("change_account", 0, 0)]
"""An account is opened although nothing was bought, and then has another id."""
OF_A_GONE_TWIN: list[Step] = [
    ("buy_twin", 5, 0),
    ("buy_twin", 1, 0),
    ("link", 0, 0),
    ("sync", 0, 0),
    ("edit", 0, 0),
    ("drop", 0, 0),
    ("buy_twin", 3, 3),
    ("sync", 0, 0),
    ("edit", 1, 0),
    ("drop", 0, 0),
    ("buy_twin", 3, 0),
]
"""One of twins that a user spoke of goes, and another purchase comes, while the other twin stays."""


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_resync, "REMOVALS_ALWAYS_MAX", 1)


def folded(story: Story, batches: Sequence[Sequence[Received]]) -> MemoryProjections:
    memory = story.memory()
    for batch in batches:
        memory.project(batch)
    return memory


@given(stories, st.lists(st.integers(0, 100), max_size=6))
@example(OF_AN_ACCOUNT_WITHOUT_ROWS, [2])
@example(OF_A_GONE_TWIN, [])
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_cut_into_batches_gives_the_same_and_quarantines_nothing(steps: list[Step], cuts: list[int]) -> None:
    story = Story(steps)

    one_by_one = folded(story, [[record] for record in story.records])

    assert folded(story, cut(story.records, cuts)).full() == one_by_one.full()
    assert folded(story, [story.records]).full() == one_by_one.full()
    assert one_by_one.reasons == {}
