"""`tartan simulate`: many seeds, one after the other; a failure names its seed and what replays it."""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from sandbox.simulation import day
from sandbox.simulation.engine import postgres
from sandbox.simulation.run import Outcome, simulate

POSTGRES_EVERY = 20
"""Each seed that this divides keeps the scheduler's tables in a real Postgres, which takes several times as long."""


@dataclass(frozen=True, slots=True)
class SimulateOptions:
    """What is asked for. `seed`: this one alone; `first`: of `seeds` in a row. `items`: of a day."""

    seeds: int = 100
    first: int = 1
    seed: int | None = None
    trace: bool = False
    json: bool = False
    day: bool = False
    items: int = 1_000


@dataclass
class Tally:
    """What many runs came to."""

    runs: int = 0
    failures: int = 0
    postgres_runs: int = 0
    seconds: float = 0.0
    faults: Counter[str] | None = None

    def shown(self) -> dict[str, object]:
        """As JSON."""
        return {
            "runs": self.runs,
            "failures": self.failures,
            "faults": dict(sorted((self.faults or Counter()).items())),
            "postgres_runs": self.postgres_runs,
            "seconds": round(self.seconds, 1),
        }


def run_simulate(options: SimulateOptions) -> int:
    """Run seeds, or a day, and say what came of it. Gives the exit code: 0 only without failures."""
    quiet()
    if options.day:
        return _day(options)
    seeds = [options.seed] if options.seed is not None else range(options.first, options.first + options.seeds)
    tally = run_seeds(seeds, shown=options.trace, on_failure=_told)
    if options.json:
        print(json.dumps(tally.shown()))
    else:
        print(f"{tally.runs} runs, {tally.failures} failures, {tally.seconds:.1f} s")
    return 1 if tally.failures else 0


def run_seeds(
    seeds: "range | list[int]", *, shown: bool = False, on_failure: Callable[[Outcome], None] = lambda _: None
) -> Tally:
    """Run seeds one after the other."""
    tally, began = Tally(faults=Counter()), time.monotonic()
    assert tally.faults is not None
    with postgres.runs() as runs:
        for seed in seeds:
            if seed % POSTGRES_EVERY == 0:
                with runs.database() as dsn:
                    outcome = simulate(seed, shown=shown, dsn=dsn)
                tally.postgres_runs += 1
            else:
                outcome = simulate(seed, shown=shown)
            tally.runs += 1
            tally.faults.update(outcome.faults)
            if outcome.problems:
                tally.failures += 1
                on_failure(outcome)
    tally.seconds = time.monotonic() - began
    return tally


def quiet() -> None:
    """Say nothing of what the agents log: thousands of lines a run, about faults that are meant."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def _told(outcome: Outcome) -> None:
    print(f"seed {outcome.seed} failed: tartan simulate --seed {outcome.seed} --trace")
    for problem in outcome.problems:
        print(f"  {problem}")
    for line in outcome.about:
        print(f"    {line}")


def _day(options: SimulateOptions) -> int:
    result = day.simulate_day(items=options.items)
    shown = result.shown()
    print(json.dumps(shown) if options.json else "\n".join(f"{name}: {value}" for name, value in shown.items()))
    return 1 if result.problems() else 0
