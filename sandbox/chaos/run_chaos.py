"""`tartan chaos`: runs of faults on one stack, and after each run a comparison with the truth.

Steps of a run: start updates at the bank, inject the faults, stop the updates, wait until all is quiet, verify.
"""

import asyncio
import json
import logging
import random
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import aiohttp
from rich.console import Console

from runtime.postgres.errors import POSTGRES_ERRORS
from sandbox.chaos.failure_report import save_failure
from sandbox.chaos.injection import Injector, active_bank
from sandbox.chaos.proxied_stack import ProxiedStack
from sandbox.chaos.schedule import Run, schedule
from sandbox.chaos.verifier import Verifier
from sandbox.infra.clients import Bank
from sandbox.observe.observer import Session, open_session
from schemas.errors import TartanError

USERS = 6
ITEMS_A_USER = 2
HISTORY_TRANSACTIONS = 60
RATE_PER_S = 6.0
"""Updates at the bank: enough that every point is passed every second, and few enough for two cores with faults."""
FIRST_QUIET_S_MAX = 90.0
RUN_S_MAX = 240.0
"""A run's faults take 20 to 60 s; one that does not end is a failure."""
SEEDS = 2**31
FAILURES = ["INTERNAL_SERVER_ERROR", "HTML", "RESET", "TRUNCATED"]
"""Failures of the bank by itself. A rate limit or an outage would delay an Item for minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosOptions:
    """Options of the command.

    `kills`: SIGKILLs in all. `seed` None draws one; it is printed, and the same one chooses the same faults.
    `verbose` prints the journal of each run after it.
    """

    kills: int
    seed: int | None = None
    as_json: bool = False
    verbose: bool = False


@dataclass(slots=True)
class _Outcome:
    seed: int
    started: float = field(default_factory=time.monotonic)
    kills: int = 0
    runs: int = 0
    failures: int = 0
    faults: Counter[str] = field(default_factory=Counter)

    def summary(self) -> dict[str, Any]:
        return {
            "kills": self.kills,
            "runs": self.runs,
            "failures": self.failures,
            "faults": dict(sorted(self.faults.items())),
            "seconds": round(time.monotonic() - self.started, 1),
            "seed": self.seed,
        }


async def run_chaos(options: ChaosOptions) -> int:
    """Run it and return the exit code: 0 only if all data was correct after every run.

    Raises: Halt, where the stack does not start.
    """
    # Our Kafka clients log each time that a server is away, which is intended here.
    logging.getLogger().addHandler(logging.NullHandler())
    seed = random.randrange(SEEDS) if options.seed is None else options.seed
    console = Console(stderr=True, soft_wrap=True)
    runs = schedule(seed=seed, kills=options.kills)
    console.print(f"seed {seed}: {options.kills} kills in {len(runs)} runs")
    outcome = _Outcome(seed)
    with console.status("Starting …") as status:
        stack = ProxiedStack(seed=seed, progress=lambda step: status.update(f"Starting {step} …"))
        try:
            await stack.start()
            status.update("Linking …")
            async with open_session(stack) as session:
                await _link_items(session)
                await _Chaos(stack, session, outcome, console).run_all(runs, verbose=options.verbose)
        finally:
            status.update("Stopping …")
            await stack.stop()
    summary = outcome.summary()
    console.print("{kills} kills in {runs} runs, {failures} failures, {seconds:g} s".format(**summary))
    if outcome.failures:
        console.print(f"Again: tartan chaos --kills {options.kills} --seed {seed}")
    if options.as_json:
        print(json.dumps(summary))
    return 1 if outcome.failures else 0


async def _link_items(session: Session) -> None:
    """Link the Items of all users, and wait until all their data is in the tables."""
    await session.bank.rates(sync_failures=FAILURES)
    for user in range(USERS):
        for _ in range(ITEMS_A_USER):
            [item] = await session.bank.make_items(f"user-{user + 1}", transactions=HISTORY_TRANSACTIONS)
            await session.application.link(f"user-{user + 1}", item["public_token"])
    await session.observer.until_quiet(session.bank, timeout_s=FIRST_QUIET_S_MAX)


class _Chaos:
    def __init__(self, stack: ProxiedStack, session: Session, outcome: _Outcome, console: Console) -> None:
        self._stack, self._bank, self._verifier = stack, session.bank, Verifier(stack, session)
        self._outcome, self._console = outcome, console

    async def run_all(self, runs: Sequence[Run], *, verbose: bool) -> None:
        """Do one run after the other, up to the first with wrong data: those after it would prove nothing."""
        for run in runs:
            injector = Injector(self._stack, self._bank)
            problems = await self._run(run, len(runs), injector)
            if verbose:
                self._console.print("\n".join(injector.journal), markup=False, highlight=False)
            if problems:
                folder = await save_failure(self._stack, asdict(run), problems, injector.journal)
                self._console.print(f"Saved: {folder}")
                break
        self._outcome.faults.update(await _bank_failures(self._bank))

    async def _run(self, run: Run, count: int, injector: Injector) -> list[str]:
        """Inject a run's faults, verify the stack and return the problems."""
        started = time.monotonic()
        problems = await _bounded(self._inject(injector, run), "the faults")
        injected = time.monotonic()
        problems = problems or await _bounded(self._verifier.problems(injector.note), "the proof")
        verified = time.monotonic()
        self._outcome.runs += 1
        self._outcome.kills += injector.kills
        self._outcome.faults += injector.faults
        self._outcome.failures += bool(problems)
        others = sum(injector.faults.values()) - injector.kills
        self._console.print(
            f"run {run.number:2}/{count}  {injector.kills:2} kills  {others:2} other faults  "
            f"{injected - started:5.1f} s, then {verified - injected:5.1f} s until "
            + ("[red]wrong data was found" if problems else "[green]all data was verified")
        )
        for problem in problems:
            self._console.print(f"    {problem}", style="red", markup=False)
        return problems

    async def _inject(self, injector: Injector, run: Run) -> list[str]:
        async with active_bank(self._bank, rate_per_s=RATE_PER_S):
            await injector.inject(run)
        return []


async def _bounded(work: Coroutine[Any, Any, list[str]], name: str) -> list[str]:
    """Do work within RUN_S_MAX and return its problems; an error is a problem too."""
    try:
        async with asyncio.timeout(RUN_S_MAX):
            return await work
    except TimeoutError:
        return [f"{name} did not end within {RUN_S_MAX:g} s"]
    except ExceptionGroup as group:
        return [f"{name}: {type(error).__name__}: {error}" for error in group.exceptions]
    except (TartanError, aiohttp.ClientError, *POSTGRES_ERRORS) as error:
        return [f"{name}: {type(error).__name__}: {error}"]


async def _bank_failures(bank: Bank) -> dict[str, int]:
    """Return the bank's counts of its own failures."""
    stats = await bank.stats()
    failures = {f"webhook.{name}": count for name in ("lost", "failed") if (count := stats["webhooks"].get(name))}
    requests = stats["requests"].get("/transactions/sync", {})
    return failures | {f"plaid.{code.lower()}": count for code, count in requests.items() if code != "OK"}
