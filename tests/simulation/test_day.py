"""A day at twice the demand that the quota allows, with Items and quotas at a hundredth."""

import pytest

from sandbox.simulation.day import simulate_day


@pytest.mark.timeout(600)
def test_a_day_of_too_much_demand_is_shared_fairly_within_the_quota() -> None:
    day = simulate_day(items=1_000, hours=24.0)

    assert day.refused == 0
    assert day.spread() <= 0.1
    assert day.small_p99_s() <= 5.0
    assert min(day.passes.values()) > 0
    assert len(day.waits) > 100
    assert day.asked <= day.quota
