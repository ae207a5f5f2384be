"""`tartan chaos --rebuild`: a rebuild that is killed again and again while the log grows and applications read."""

import asyncio
import json
import random
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp
import asyncpg
from aiokafka.errors import KafkaError
from rich.console import Console

from runtime.postgres.errors import POSTGRES_ERRORS
from runtime.settings import Settings
from sandbox.chaos.failure_report import keep
from sandbox.chaos.rebuild import proof
from sandbox.chaos.rebuild.kills import Killer, planned
from sandbox.chaos.rebuild.update_checker import UpdateChecker, of_transactions
from sandbox.chaos.rebuild.writer import Writer
from sandbox.infra.clients import Application
from sandbox.infra.generated_log import name_of
from sandbox.infra.stack import GATEWAY, PROJECTIONS, Stack, StackOptions
from sandbox.observe.listeners import Browsers
from sandbox.observe.read_load import ReadLoad, of_user
from schemas.errors import TartanError

TRANSACTIONS_A_USER, USERS_MIN = 500, 4
SHOWN_MAX = 20
LISTENERS_MAX = 10
"""Users whose browser listens too."""
PATIENCE_S = 3_600.0
"""Of the proof, which reads every row in one transaction."""
SEEDS = 2**31
PARTITIONS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildOptions:
    """A log of `transactions` in first synchronisations, and `kills` while it is replayed, grows and is read.

    `world` is where it happens; by default Kafka and Postgres of its own.
    """

    transactions: int
    kills: int
    changesets_per_s: float
    reads_per_s: float
    seed: int | None = None
    as_json: bool = False
    world: StackOptions = field(default_factory=StackOptions)


class _RebuildStack(Stack):
    """Only what takes part: nothing is fetched from Plaid."""

    def __init__(self, options: StackOptions, *, progress: Callable[[str], None]) -> None:
        environment = {"TARTAN_PARTITIONS": str(PARTITIONS), **options.environment}
        super().__init__(replace(options, running=(PROJECTIONS, GATEWAY), environment=environment), progress=progress)

    def settings(self) -> Settings:
        """The settings of tools that look at this world, and take their time."""
        limits = ("lock_timeout_s", "statement_timeout_s", "transaction_timeout_s")
        return super().settings().model_copy(update=dict.fromkeys(limits, PATIENCE_S))


async def run_rebuild(options: RebuildOptions) -> int:
    """Run it. Gives the exit code: 0 only where nothing was found wrong.

    Raises: Halt, where the world does not start.
    """
    seed = random.randrange(SEEDS) if options.seed is None else options.seed
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(f"seed {seed}: {options.transactions:,} transactions, {options.kills} kills")
    journal: list[str] = []
    began = time.monotonic()

    def say(what: str) -> None:
        journal.append(f"{time.monotonic() - began:7.1f} s  {what}")
        console.print(journal[-1], markup=False)

    async with _RebuildStack(options.world, progress=lambda what: say(f"starting {what}")) as world:
        told: dict[str, Any] = {}
        problems = await _done(_Rebuilt(world, options, seed, say, told))
        told |= {"seconds": round(time.monotonic() - began, 1), "seed": seed, "failures": len(problems)}
        for problem in problems:
            console.print(problem, style="red", markup=False)
        if problems:
            folder = await keep(world, told, problems, journal)
            console.print(f"Kept: {folder}\nAgain: tartan chaos --rebuild --kills {options.kills} --seed {seed}")
        else:
            console.print("[green]Every version equals the log; no read failed or went back; no event or push twice.")
    if options.as_json:
        print(json.dumps(told))
    return 1 if problems else 0


async def _done(rebuilt: "_Rebuilt") -> list[str]:
    """Do it; an error of it is a problem like any other."""
    try:
        return await rebuilt.run()
    except (TartanError, KafkaError, aiohttp.ClientError, *POSTGRES_ERRORS) as error:
        return [f"{type(error).__name__}: {error}"]


class _Rebuilt:
    def __init__(
        self, world: Stack, options: RebuildOptions, seed: int, say: Callable[[str], None], told: dict[str, Any]
    ) -> None:
        self._world, self._options, self._say, self._told = world, options, say, told
        self._plan = planned(seed=seed, kills=options.kills)
        users = max(USERS_MIN, options.transactions // TRANSACTIONS_A_USER)
        self._writer = Writer(world.settings(), users=users, seed=seed)

    async def run(self) -> list[str]:
        """All of it, and what is wrong in the end."""
        writer, world = self._writer, self._world
        names = {name_of(user): user for user in writer.users}
        listening = dict(list(names.items())[:LISTENERS_MAX])
        consistency = UpdateChecker()
        readers = ReadLoad(
            world.gateway_url,
            world.secrets.api_key,
            reads=[read for name in names for read in of_user(name)],
            rate_per_s=self._options.reads_per_s,
            begun=consistency.begun,
        )
        async with AsyncExitStack() as stack:
            connection = await asyncpg.connect(world.postgres_dsn)
            stack.push_async_callback(connection.close)
            killer = Killer(world, connection, self._say)
            await writer.start()
            stack.push_async_callback(writer.stop)
            self._say("histories")
            await writer.histories(connection, self._options.transactions)
            self._say("the live version reads them")
            await proof.all_read(connection, records=writer.records)
            application = await stack.enter_async_context(Application(world.gateway_url, world.secrets.api_key))
            listeners = await stack.enter_async_context(Browsers(application, world.gateway_url, list(listening)))
            began = time.monotonic()
            async with readers:
                await self._live(killer)
                await proof.all_read(connection, records=writer.records)
            spent_s = time.monotonic() - began
            self._say("proof")
            found = [*readers.failures, *readers.contradictions]
            found += await _unshown(application, {name: writer.written[user] for name, user in names.items()})
            found += await proof.problems(world.settings(), listeners, listening)
            await killer.run("--drop-old")
        self._told |= {
            "updates": sum(writer.written.values()),
            "updates_per_s": round(sum(writer.written.values()) / spent_s, 1),
            "reads": readers.answered,
            "reads_per_s": round(readers.answered / spent_s, 1),
            "failed_reads": readers.failed,
            "contradictory_reads": readers.wrong,
            "pushes": listeners.messages,
            "duplicate_pushes": listeners.duplicates,
        }
        return found

    async def _live(self, killer: Killer) -> None:
        """Rebuild under writes and kills, go back, and forward again."""
        ended = asyncio.Event()
        writing = asyncio.create_task(self._writer.live(self._options.changesets_per_s, ended))
        try:
            result = await killer.rebuilt(self._plan)
            await killer.run("--back")
            await killer.run("--back")
        finally:
            ended.set()
            await writing
        self._told |= {
            "kills": killer.done.total(),
            "killed": dict(sorted(killer.done.items())),
            "rebuild": {name: result[name] for name in _OF_RESULT},
        }


async def _unshown(application: Application, written: Mapping[str, int]) -> list[str]:
    """Whether the gateway shows each user the last update that is in the log."""
    found = []
    for user, number in written.items():
        shown, _ = of_transactions(await application.transactions(user, limit="50"))
        if shown != number:
            found.append(f"{user} is shown update {shown} of {number}")
    return found[:SHOWN_MAX]


_OF_RESULT = ("digest_equal", "resumed", "events_replayed", "transactions_replayed", "transactions_per_s", "seconds")
