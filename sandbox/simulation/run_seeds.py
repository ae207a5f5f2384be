"""Run `tartan simulate`: many seeds, one after the other; a failure prints its seed and the command to replay it."""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from sandbox.simulation import day
from sandbox.simulation.engine import postgres
from sandbox.simulation.run import Outcome, simulate

POSTGRES_EVERY = 20
"""Seeds that this divides keep the scheduler's tables in a real Postgres, which takes several times as long."""


@dataclass(frozen=True, slots=True)
class SimulateOptions:
    """The options of the command. `seed`: only this one; `first`: the first of `seeds`; `items`: those of a day."""

    seeds: int = 100
    first: int = 1
    seed: int | None = None
    trace: bool = False
    json: bool = False
    day: bool = False
    items: int = 1_000


@dataclass
class Tally:
    """The result of many runs."""

    runs: int = 0
    failures: int = 0
    postgres_runs: int = 0
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, object]:
        """Return the values of the report."""
        return {
            "runs": self.runs,
            "failures": self.failures,
            "faults": dict(sorted(self.faults.items())),
            "postgres_runs": self.postgres_runs,
            "seconds": round(self.seconds, 1),
        }


def run_simulate(options: SimulateOptions) -> int:
    """Run seeds, or a day, and print the result; return the exit code: 0 only without failures."""
    quiet()
    if options.day:
        return _day(options)
    seeds = [options.seed] if options.seed is not None else range(options.first, options.first + options.seeds)
    tally = run_seeds(seeds, shown=options.trace, on_failure=_print_failure)
    if options.json:
        print(json.dumps(tally.as_json()))
    else:
        print(f"{tally.runs} runs, {tally.failures} failures, {tally.seconds:.1f} s")
    return 1 if tally.failures else 0


def run_seeds(
    seeds: "range | list[int]", *, shown: bool = False, on_failure: Callable[[Outcome], None] = lambda _: None
) -> Tally:
    """Run seeds one after the other."""
    tally, started_at = Tally(), time.monotonic()
    with postgres.run_databases() as databases:
        for seed in seeds:
            if seed % POSTGRES_EVERY == 0:
                with databases.database() as dsn:
                    outcome = simulate(seed, shown=shown, dsn=dsn)
                tally.postgres_runs += 1
            else:
                outcome = simulate(seed, shown=shown)
            tally.runs += 1
            tally.faults.update(outcome.faults)
            if outcome.problems:
                tally.failures += 1
                on_failure(outcome)
    tally.seconds = time.monotonic() - started_at
    return tally


def quiet() -> None:
    """Disable the agents' log: thousands of lines a run, about intended faults."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def _print_failure(outcome: Outcome) -> None:
    print(f"seed {outcome.seed} failed: tartan simulate --seed {outcome.seed} --trace")
    for problem in outcome.problems:
        print(f"  {problem}")
    for line in outcome.about:
        print(f"    {line}")


def _day(options: SimulateOptions) -> int:
    result = day.simulate_day(items=options.items)
    report = result.as_json()
    print(json.dumps(report) if options.json else "\n".join(f"{name}: {value}" for name, value in report.items()))
    return 1 if result.problems() else 0
