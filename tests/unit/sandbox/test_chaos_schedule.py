"""The choices of chaos: made by the seed alone, and wide enough that nothing is spared."""

from hypothesis import given
from hypothesis import strategies as st

from runtime.crash_points import CrashPoint
from sandbox.chaos.schedule import CHAINS_A_RUN, KILLS_A_RUN, SPAN_S, Kind, schedule

seeds = st.integers(0, 2**31 - 1)


@given(seed=seeds, kills=st.integers(1, 100))
def test_the_same_seed_makes_the_same_runs(seed: int, kills: int) -> None:
    assert schedule(seed=seed, kills=kills) == schedule(seed=seed, kills=kills)


@given(seed=seeds, kills=st.integers(1, 200))
def test_as_many_are_killed_as_were_asked_for(seed: int, kills: int) -> None:
    runs = schedule(seed=seed, kills=kills)

    assert sum(run.kills for run in runs) == kills
    assert all(0 < run.kills <= KILLS_A_RUN for run in runs)


@given(seed=seeds)
def test_sixty_kills_spare_no_point_and_no_kind_of_fault(seed: int) -> None:
    runs = schedule(seed=seed, kills=60)

    died_at = {death.point for run in runs for chain in run.chains for death in chain.deaths}
    # A swap is no step of the stages that run all the time: test_versions_swap_kills has its points.
    assert died_at == {point for point in CrashPoint if not point.startswith("swap.")}
    assert {fault.kind for run in runs for fault in run.faults} == set(Kind)


@given(seed=seeds, kills=st.integers(2, 100))
def test_a_process_has_one_chain_of_deaths_a_run(seed: int, kills: int) -> None:
    for run in schedule(seed=seed, kills=kills):
        slots = [chain.slot for chain in run.chains]

        assert len(slots) == len(set(slots)) <= CHAINS_A_RUN
        assert all(chain.kills >= 1 for chain in run.chains)
        assert all(0 <= at_s <= SPAN_S for at_s in [one.at_s for one in (*run.chains, *run.faults)])


def test_another_seed_makes_other_runs() -> None:
    assert schedule(seed=1, kills=20) != schedule(seed=2, kills=20)
