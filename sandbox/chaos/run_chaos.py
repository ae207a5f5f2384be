"""`tartan chaos`: runs of faults on one living world, and after each a comparison with the truth."""

import asyncio
import json
import logging
import random
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import aiohttp
from rich.console import Console

from runtime.postgres.errors import POSTGRES_ERRORS
from sandbox.chaos.failure_report import keep
from sandbox.chaos.injection import Injector, living
from sandbox.chaos.proxied_stack import ProxiedStack
from sandbox.chaos.schedule import Run, schedule
from sandbox.chaos.verifier import Verifier
from sandbox.infra.clients import Application, Bank
from sandbox.observe.observer import observing
from schemas.errors import TartanError

USERS = 6
ITEMS_A_USER = 2
HISTORY_TRANSACTIONS = 60
RATE_PER_S = 6.0
"""Updates at the bank: enough that every point is passed every second, and few enough for two cores with faults."""
FIRST_QUIET_S_MAX = 90.0
RUN_S_MAX = 240.0
"""A run's faults take 20 to 60 s; one that does not end says so rather than hang."""
SEEDS = 2**31
FAILURES = ["INTERNAL_SERVER_ERROR", "HTML", "RESET", "TRUNCATED"]
"""What goes wrong at the bank by itself. A rate limit or an outage holds an Item back for minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosOptions:
    """`kills`: SIGKILLs in all. `seed` None draws one; it is printed, and the same one chooses the same faults.

    `verbose` shows after each run what happened when in it.
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

    def shown(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "kills": self.kills,
            "runs": self.runs,
            "failures": self.failures,
            "faults": dict(sorted(self.faults.items())),
            "seconds": round(time.monotonic() - self.started, 1),
            "seed": self.seed,
        }


async def run_chaos(options: ChaosOptions) -> int:
    """Run it. Gives the exit code: 0 only if the world was true after every run.

    Raises: Halt, where the world does not start.
    """
    # Clients of ours say each time that a server is away, which is what this is about.
    logging.getLogger().addHandler(logging.NullHandler())
    seed = random.randrange(SEEDS) if options.seed is None else options.seed
    console = Console(stderr=True, soft_wrap=True)
    runs = schedule(seed=seed, kills=options.kills)
    console.print(f"seed {seed}: {options.kills} kills in {len(runs)} runs")
    outcome = _Outcome(seed)
    with console.status("Starting …") as status:
        world = ProxiedStack(seed=seed, progress=lambda what: status.update(f"Starting {what} …"))
        try:
            await world.start()
            status.update("Linking …")
            async with AsyncExitStack() as stack:
                command = await _Command.begun(world, outcome, console, stack)
                await command.all(runs, verbose=options.verbose)
        finally:
            status.update("Stopping …")
            await world.stop()
    done = outcome.shown()
    console.print(f"{done['kills']} kills in {done['runs']} runs, {done['failures']} failures, {done['seconds']:g} s")
    if outcome.failures:
        console.print(f"Again: tartan chaos --kills {options.kills} --seed {seed}")
    if options.as_json:
        print(json.dumps(done))
    return 1 if outcome.failures else 0


class _Command:
    """A world with linked Items, and the means to harm and to judge it."""

    def __init__(self, world: ProxiedStack, bank: Bank, oracle: Verifier, outcome: _Outcome, console: Console) -> None:
        self._world, self._bank, self._oracle = world, bank, oracle
        self._outcome, self._console = outcome, console

    @classmethod
    async def begun(cls, world: ProxiedStack, outcome: _Outcome, console: Console, stack: AsyncExitStack) -> "_Command":
        """Link the Items of all users, and wait until all they have is there."""
        observer = await stack.enter_async_context(observing(world.settings()))
        bank = await stack.enter_async_context(Bank(world.simulator_url))
        application = await stack.enter_async_context(Application(world.gateway_url, world.secrets.api_key))
        await bank.rates(sync_failures=FAILURES)  # type: ignore[arg-type] # the one that is no share
        for user in range(USERS):
            for _ in range(ITEMS_A_USER):
                [item] = await bank.make_items(f"user-{user + 1}", transactions=HISTORY_TRANSACTIONS)
                await application.link(f"user-{user + 1}", item["public_token"])
        await observer.until_quiet(bank, timeout_s=FIRST_QUIET_S_MAX)
        return cls(world, bank, Verifier(world, observer, bank, application), outcome, console)

    async def all(self, runs: Sequence[Run], *, verbose: bool) -> None:
        """Do one run after the other, up to the first that leaves the world untrue: what follows it proves nothing."""
        for run in runs:
            injector = Injector(self._world, self._bank)
            problems = await self._one(run, len(runs), injector)
            if verbose:
                self._console.print("\n".join(injector.journal), markup=False, highlight=False)
            if problems:
                folder = await keep(self._world, asdict(run), problems, injector.journal)
                self._console.print(f"Kept: {folder}")
                break
        self._outcome.faults.update(await _of_the_bank(self._bank))

    async def _one(self, run: Run, count: int, injector: Injector) -> list[str]:
        """Do a run's faults; what is wrong afterwards."""
        started = time.monotonic()
        problems = await self._done(self._injected(injector, run), "the faults")
        injected = time.monotonic()
        problems = problems or await self._done(self._oracle.problems(injector.say), "the proof")
        outcome, settled = self._outcome, time.monotonic()
        outcome.runs += 1
        outcome.kills += injector.kills
        outcome.faults += injector.faults
        outcome.failures += bool(problems)
        others = sum(injector.faults.values()) - injector.kills
        self._console.print(
            f"run {run.number:2}/{count}  {injector.kills:2} kills  {others:2} other faults  "
            f"{injected - started:5.1f} s, then {settled - injected:5.1f} s until "
            + ("[red]found wrong" if problems else "[green]proved true")
        )
        for problem in problems:
            self._console.print(f"    {problem}", style="red", markup=False)
        return problems

    async def _injected(self, injector: Injector, run: Run) -> list[str]:
        async with living(self._bank, rate_per_s=RATE_PER_S):
            await injector.inject(run)
        return []

    async def _done(self, work: Coroutine[Any, Any, list[str]], what: str) -> list[str]:
        """Do work within RUN_S_MAX; an error of it is a problem like any other."""
        try:
            async with asyncio.timeout(RUN_S_MAX):
                return await work
        except TimeoutError:
            return [f"{what} did not end within {RUN_S_MAX:g} s"]
        except ExceptionGroup as group:
            return [f"{what}: {type(error).__name__}: {error}" for error in group.exceptions]
        except (TartanError, aiohttp.ClientError, *POSTGRES_ERRORS) as error:
            return [f"{what}: {type(error).__name__}: {error}"]


async def _of_the_bank(bank: Bank) -> dict[str, int]:
    """What went wrong at the bank, by its own count."""
    stats = await bank.stats()
    found = {f"webhook.{name}": count for name in ("lost", "failed") if (count := stats["webhooks"].get(name))}
    for code, count in stats["requests"].get("/transactions/sync", {}).items():
        if code != "OK":
            found[f"plaid.{code.lower()}"] = count
    return found
