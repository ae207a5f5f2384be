"""Run one seed.

The steps: run a scenario, end its faults, wait until the installation is at rest, check it.
"""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta

from runtime.plaid_limits import ACCOUNTS, ITEM, SYNC, Limit
from runtime.plaid_limits import parse as limits_of
from sandbox.simulation import checks
from sandbox.simulation.deliveries import deliver
from sandbox.simulation.engine import loop
from sandbox.simulation.engine.installation import START, Installation
from sandbox.simulation.engine.worker import SCHEDULE_S, TICK_S
from sandbox.simulation.scenario import Scenario
from sandbox.simulation.trace import Trace
from sandbox.simulator.control.faults import CONNECTION_FAULTS, MUTATION
from sandbox.simulator.options import Options, WebhookRates

HEALING_S = SCHEDULE_S + 10 * TICK_S
"""Time after the faults: one round of the schedule, which repairs a lost webhook, and a margin."""
QUIET_S_MAX = 48 * 3600.0
"""Virtual time after which a run must be at rest: a webhook may be 23 h late, an Item wait 18 h."""
CHECK_S, CHECK_S_MAX = 5.0, 120.0
"""Interval of checks for rest; it grows, since each check costs real time."""


@dataclass
class Outcome:
    """The result of a run. `trace`: a hash that is equal for two runs of one seed."""

    seed: int
    problems: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    trace: str = ""
    virtual_s: float = 0.0
    claims: int = 0
    about: list[str] = field(default_factory=list)


def simulate(seed: int, *, shown: bool = False, dsn: str | None = None) -> Outcome:
    """Run one seed to its end. `dsn`: a fresh database for the scheduler's tables, which else are in memory."""
    return loop.run(lambda: _simulate(seed, shown=shown, dsn=dsn))


async def _simulate(seed: int, *, shown: bool, dsn: str | None) -> Outcome:
    rng = random.Random(seed)
    trace = Trace(shown=shown)
    is_scheduling = rng.random() < 0.6
    installation = Installation(random.Random(rng.random()), _options(seed, rng, is_scheduling), trace, _limits(rng))
    installation.is_scheduling = is_scheduling
    if dsn is not None:
        await installation.open_database(dsn)
    scenario = Scenario(installation, random.Random(rng.random()))
    delivery = asyncio.create_task(deliver(installation, scenario.is_ingest_up, random.Random(rng.random())))
    outcome = Outcome(seed)
    try:
        await scenario.run()
        await _rest(installation, scenario, outcome)
        tables = await installation.load_tables()
        outcome.problems += checks.problems(installation, tables, scenario, random.Random(rng.random()))
    except loop.Stuck as error:
        outcome.problems.append(str(error))
    finally:
        outcome.trace = trace.digest()
        delivery.cancel()
        await _dispose(scenario)
        await installation.close()
    outcome.faults = _faults(installation)
    outcome.virtual_s = asyncio.get_running_loop().time()
    outcome.claims = installation.monitor.claims
    if outcome.problems:
        item_id = next((item.item_id for item in scenario.items if item.item_id in outcome.problems[0]), "")
        outcome.about = trace.about(item_id, lines_max=checks.LINES_MAX)
    return outcome


def _options(seed: int, rng: random.Random, is_scheduling: bool) -> Options:
    rates = WebhookRates(
        lost=rng.choice((0.0, 0.2, 0.5)) if is_scheduling else 0.0,
        repeated=rng.choice((0.0, 0.3)),
        delayed=rng.choice((0.0, 0.4)),
        delay_max_s=rng.choice((20.0, 400.0)),
    )
    return Options(
        seed=seed,
        start_at=START,
        validate_requests=False,
        rate_limits="production",
        webhooks=rates,
        page_split_share=0.6,
        history_transactions=20,
        history_days=60,
        legacy_webhooks=rng.random() < 0.3,
        historical_update_delay_s=rng.choice((20.0, 200.0)),
    )


def _limits(rng: random.Random) -> dict[str, Limit]:
    """Return Plaid's quotas, in some runs so small that they delay sync runs."""
    limits = limits_of("production", environment="production")
    if rng.random() < 0.5:
        limits[SYNC], limits[ACCOUNTS], limits[ITEM] = Limit(10, 30), Limit(6, 25), Limit(6, 25)
    return limits


async def _rest(installation: Installation, scenario: Scenario, outcome: Outcome) -> None:
    """Wait until no work is in progress; an operator settles quarantines and removals.

    The schedule runs for one more round and then stops, since it would make Items due for ever.
    """
    loop_time = asyncio.get_running_loop().time
    if installation.is_scheduling:
        await asyncio.sleep(HEALING_S)
    installation.is_scheduling = False
    deadline, wait_s = loop_time() + QUIET_S_MAX, CHECK_S
    while (left := checks.unfinished(installation, await installation.load_tables())) and not installation.failures:
        if loop_time() > deadline:
            outcome.problems.append(f"not quiet after {timedelta(seconds=QUIET_S_MAX)}: {'; '.join(left[:5])}")
            return
        scenario.operator.settle(scenario.items)
        await asyncio.sleep(wait_s)
        wait_s = min(wait_s * 1.1, CHECK_S_MAX)


async def _dispose(scenario: Scenario) -> None:
    for process in [*scenario.dead_processes, *(worker.process for worker in scenario.workers.values())]:
        await process.dispose()
    # Tasks of servers with an outstanding answer.
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


def _faults(installation: Installation) -> Counter[str]:
    """Count the faults that happened, by kind."""
    faults = Counter(installation.faults.counts)
    plaid = installation.simulated_plaid
    for (_, code), count in plaid.requests.items():
        if code != "OK":
            is_simulated = code in CONNECTION_FAULTS or code == MUTATION
            faults[code.lower() if is_simulated else f"plaid_{code.lower()}"] += count
    counts = plaid.deliveries.counts
    faults.update({f"webhook_{kind}": counts[kind] for kind in ("lost", "failed") if counts[kind]})
    return faults
