"""One run: a seed lets a story happen, the faults end, all comes to rest, and what must be true is looked at."""

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
from sandbox.simulation.scenario import Story
from sandbox.simulation.trace import Trace
from sandbox.simulator.control.faults import CONNECTION_FAULTS, MUTATION
from sandbox.simulator.options import Options, WebhookRates

HEALING_S = SCHEDULE_S + 10 * TICK_S
"""After the faults: one round of the schedule, which is what heals a lost webhook, and a little."""
QUIET_S_MAX = 48 * 3600.0
"""Virtual time after which a run that is not quiet never will be: a webhook may be 23 h late, an Item wait 18 h."""
LOOK_S, LOOK_S_MAX = 5.0, 120.0
"""How often a run is looked at: seldom where it rests for hours, since each look costs the machine's time."""


@dataclass
class Outcome:
    """What became of a run. `trace`: the same for two runs of one seed."""

    seed: int
    problems: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    trace: str = ""
    virtual_s: float = 0.0
    claims: int = 0
    about: list[str] = field(default_factory=list)


def simulate(seed: int, *, shown: bool = False, dsn: str | None = None) -> Outcome:
    """Run one seed to its end. `dsn`: of a fresh database for the scheduler's tables, which else are in memory."""
    return loop.run(lambda: _simulated(seed, shown=shown, dsn=dsn))


async def _simulated(seed: int, *, shown: bool, dsn: str | None) -> Outcome:
    rng = random.Random(seed)
    trace = Trace(shown=shown)
    is_scheduling = rng.random() < 0.6
    installation = Installation(random.Random(rng.random()), _options(seed, rng, is_scheduling), trace, _limits(rng))
    installation.is_scheduling = is_scheduling
    if dsn is not None:
        await installation.open(dsn)
    story = Story(installation, random.Random(rng.random()))
    pulse = asyncio.create_task(deliver(installation, story.ingest_answers, random.Random(rng.random())))
    outcome = Outcome(seed)
    try:
        await story.run()
        await _rested(installation, story, outcome)
        tables = await installation.seen()
        outcome.problems += checks.problems(installation, tables, story, random.Random(rng.random()))
    except loop.Stuck as error:
        outcome.problems.append(str(error))
    finally:
        outcome.trace = trace.digest()
        pulse.cancel()
        await _buried(story)
        await installation.close()
    outcome.faults = _faults(installation)
    outcome.virtual_s = asyncio.get_running_loop().time()
    outcome.claims = installation.monitor.claims
    if outcome.problems:
        named = next((item.item_id for item in story.items if item.item_id in outcome.problems[0]), "")
        outcome.about = trace.about(named, lines_max=checks.LINES_MAX)
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
    """Plaid's quotas, so small in some runs that they are felt."""
    plan = limits_of("production", environment="production")
    if rng.random() < 0.5:
        plan[SYNC], plan[ACCOUNTS], plan[ITEM] = Limit(10, 30), Limit(6, 25), Limit(6, 25)
    return plan


async def _rested(installation: Installation, story: Story, outcome: Outcome) -> None:
    """Wait until nothing is under way; an operator deals with what waits for one.

    The schedule goes on for one round, and then stops so that rest can be.
    """
    virtual = asyncio.get_running_loop()
    if installation.is_scheduling:
        await asyncio.sleep(HEALING_S)
    installation.is_scheduling = False
    until, look_s = virtual.time() + QUIET_S_MAX, LOOK_S
    while (left := checks.unfinished(installation, await installation.seen())) and not installation.failures:
        if virtual.time() > until:
            outcome.problems.append(f"not quiet after {timedelta(seconds=QUIET_S_MAX)}: {'; '.join(left[:5])}")
            return
        story.operator.settle(story.items)
        await asyncio.sleep(look_s)
        look_s = min(look_s * 1.1, LOOK_S_MAX)


async def _buried(story: Story) -> None:
    for process in [*story.buried, *(worker.process for worker in story.workers.values())]:
        await process.bury()
    # Servers that still had an answer to give.
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


def _faults(installation: Installation) -> Counter[str]:
    """What really happened, by kind."""
    faults = Counter(installation.hazards.counts)
    for (_, code), count in installation.plaid_world.requests.items():
        if code != "OK":
            faults[_kind(code)] += count
    courier = installation.plaid_world.deliveries
    faults.update({f"webhook_{kind}": courier.counts[kind] for kind in ("lost", "failed") if courier.counts[kind]})
    return faults


def _kind(code: str) -> str:
    return code.lower() if code in CONNECTION_FAULTS or code == MUTATION else f"plaid_{code.lower()}"
