"""`tartan chaos --rebuild`: kill a rebuild again and again while the log grows and applications read.

Steps: write histories; connect browsers and readers; write updates while a rebuild is killed by plan, completes, is
swapped back and forward; stop the updates; compare gateway, tables, topics and browsers with the log.
"""

import asyncio
import json
import random
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
import asyncpg
from aiokafka.errors import KafkaError
from rich.console import Console

from runtime.postgres.errors import POSTGRES_ERRORS
from runtime.settings import Settings
from sandbox.chaos.failure_report import save_failure
from sandbox.chaos.rebuild import proof
from sandbox.chaos.rebuild.kills import Killer, plan_kills
from sandbox.chaos.rebuild.log_writer import LogWriter
from sandbox.chaos.rebuild.update_checker import UpdateChecker, update_of_transactions
from sandbox.infra.clients import Application
from sandbox.infra.generated_log import user_id_of
from sandbox.infra.stack import GATEWAY, PROJECTIONS, Stack, StackOptions
from sandbox.observe.browsers import Browsers
from sandbox.observe.read_load import ReadLoad
from schemas.errors import TartanError

TRANSACTIONS_A_USER, USERS_MIN = 500, 4
SHOWN_MAX = 20
BROWSERS_MAX = 10
PATIENCE_S = 3_600.0
"""Timeouts of the proof, which reads every row in one transaction."""
SEEDS = 2**31
PARTITIONS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildOptions:
    """A log of `transactions` in first sync runs, and `kills` while it is replayed, grows and is read.

    `stack` has options of the stack; by default it has a Kafka and a Postgres of its own.
    """

    transactions: int
    kills: int
    changesets_per_s: float
    reads_per_s: float
    seed: int | None = None
    as_json: bool = False
    stack: StackOptions = field(default_factory=StackOptions)


class _RebuildStack(Stack):
    """Run the projectors and the gateway alone: nothing is fetched from Plaid."""

    def __init__(self, options: StackOptions, *, progress: Callable[[str], None]) -> None:
        environment = {"TARTAN_PARTITIONS": str(PARTITIONS), **options.environment}
        super().__init__(replace(options, running=(PROJECTIONS, GATEWAY), environment=environment), progress=progress)

    def settings(self) -> Settings:
        """Return the settings of tools that observe the stack, with long timeouts."""
        limits = ("lock_timeout_s", "statement_timeout_s", "transaction_timeout_s")
        return super().settings().model_copy(update=dict.fromkeys(limits, PATIENCE_S))


async def run_rebuild(options: RebuildOptions) -> int:
    """Run it and return the exit code: 0 only where no problem was found.

    Raises: Halt, where the stack does not start.
    """
    seed = random.randrange(SEEDS) if options.seed is None else options.seed
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(f"seed {seed}: {options.transactions:,} transactions, {options.kills} kills")
    journal: list[str] = []
    started = time.monotonic()

    def note(event: str) -> None:
        journal.append(f"{time.monotonic() - started:7.1f} s  {event}")
        console.print(journal[-1], markup=False)

    async with _RebuildStack(options.stack, progress=lambda step: note(f"starting {step}")) as stack:
        scenario = _Scenario(stack, options, seed, note)
        try:
            problems = await scenario.run()
        except (TartanError, KafkaError, aiohttp.ClientError, *POSTGRES_ERRORS) as error:
            problems = [f"{type(error).__name__}: {error}"]
        seconds = round(time.monotonic() - started, 1)
        result = scenario.result | {"seconds": seconds, "seed": seed, "failures": len(problems)}
        for problem in problems:
            console.print(problem, style="red", markup=False)
        if problems:
            folder = await save_failure(stack, result, problems, journal)
            console.print(f"Saved: {folder}\nAgain: tartan chaos --rebuild --kills {options.kills} --seed {seed}")
        else:
            console.print("[green]Every version equals the log; no read failed or went back; no event or push twice.")
    if options.as_json:
        print(json.dumps(result))
    return 1 if problems else 0


class _Scenario:
    def __init__(self, stack: Stack, options: RebuildOptions, seed: int, note: Callable[[str], None]) -> None:
        self._stack, self._options, self._note = stack, options, note
        self._plan = plan_kills(seed=seed, kills=options.kills)
        users = max(USERS_MIN, options.transactions // TRANSACTIONS_A_USER)
        self._writer = LogWriter(stack.settings(), users=users, seed=seed)
        self.result: dict[str, Any] = {}

    async def run(self) -> list[str]:
        """Do all steps and return the problems."""
        writer, stack = self._writer, self._stack
        numbers = {user_id_of(user): user for user in writer.users}
        with_browser = dict(list(numbers.items())[:BROWSERS_MAX])
        async with AsyncExitStack() as exits:
            connection = await asyncpg.connect(stack.postgres_dsn)
            exits.push_async_callback(connection.close)
            killer = Killer(stack, connection, self._note)
            await writer.start()
            exits.push_async_callback(writer.stop)
            self._note("histories")
            await writer.write_histories(connection, self._options.transactions)
            self._note("the live version reads them")
            await proof.await_all_read(connection, records=writer.records)
            application = await exits.enter_async_context(stack.application())
            browsers = Browsers(application, stack.gateway_url, list(with_browser))
            await exits.enter_async_context(browsers)
            await browsers.connected()
            load = ReadLoad(
                stack.gateway_url,
                stack.secrets.api_key,
                users=list(numbers),
                rate_per_s=self._options.reads_per_s,
                begin=UpdateChecker().begin,
            )
            started = time.monotonic()
            async with load:
                await self._rebuild_under_writes(killer)
                await proof.await_all_read(connection, records=writer.records)
            duration_s = time.monotonic() - started
            self._note("proof")
            problems = [*load.failures, *load.contradictions, *await self._gateway_problems(application)]
            problems += await proof.find_problems(stack.settings(), browsers, with_browser)
            await killer.run("--drop-old")
        updates = sum(writer.written.values())
        self.result |= {
            "updates": updates,
            "updates_per_s": round(updates / duration_s, 1),
            **load.summary,
            "reads_per_s": round(load.answered / duration_s, 1),
            "pushes": browsers.messages,
            "duplicate_pushes": browsers.duplicates,
        }
        return problems

    async def _rebuild_under_writes(self, killer: Killer) -> None:
        """Rebuild under writes and kills, swap back, and forward again."""
        ended = asyncio.Event()
        writing = asyncio.create_task(self._writer.write_updates(self._options.changesets_per_s, ended))
        try:
            rebuilt = await killer.rebuild(self._plan)
            await killer.run("--back")
            await killer.run("--back")
        finally:
            ended.set()
            await writing
        self.result |= {
            "kills": killer.done.total(),
            "killed": dict(sorted(killer.done.items())),
            "rebuild": {name: rebuilt[name] for name in _REBUILD_FIELDS},
        }

    async def _gateway_problems(self, application: Application) -> list[str]:
        """Return the users to whom the gateway does not show the last update in the log."""
        problems = []
        for user, number in self._writer.written.items():
            page = await application.transactions(user_id_of(user), limit="50")
            shown, _ = update_of_transactions(page)
            if shown != number:
                problems.append(f"{user_id_of(user)} is shown update {shown} of {number}")
        return problems[:SHOWN_MAX]


_REBUILD_FIELDS = (
    "digest_equal",
    "resumed",
    "events_replayed",
    "transactions_replayed",
    "transactions_per_s",
    "seconds",
)
