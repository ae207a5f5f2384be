"""`tartan rebuild`: the next version of the projections is filled beside the live one, compared with it, put in its
place. Shell.

Live traffic goes on all the while. Killed at any moment, the next run goes on where this one was.
"""

import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NamedTuple, Protocol

import asyncpg
import msgspec
from msgspec import Struct, field

from projections.rebuild import checks, swap, versions, workers
from projections.rebuild import schema as rebuild_schema
from projections.rebuild.compare_versions import Side, compare
from projections.rebuild.differences import Comparison
from projections.rebuild.load import Loader, Replayed, Version, loading
from projections.rebuild.schema import owner
from projections.rebuild.versions import positions
from projections.rebuild.worker import CLOSE_ENOUGH
from projections.store.tables import NEXT, SCHEMA
from runtime.settings import Settings
from schemas.errors import Halt

FOLLOWED_MAX = 500
"""Records that this process replays itself, beside what each worker leaves: starting workers takes as long."""
ROUNDS_MAX = 1_000
"""Times that workers are started again because the live version went on; each is shorter than the one before it."""

LOAD, FINISH, COMPARE, SWAP = "load", "finish", "compare", "swap"


class Options(NamedTuple):
    """What a rebuild is asked for. `expect_changes`: differences do not end it. `worker`: the command of a process."""

    processes: int | None = None
    expect_changes: bool = False
    restart: bool = False
    swaps: bool = True
    with_events: bool = False
    worker: Sequence[str] = workers.COMMAND


class Result(Struct):
    """What came of a rebuild: counts and rates of this run alone."""

    version: int = 0
    digest_equal: bool = False
    swapped: bool = False
    resumed: bool = False
    records_replayed: int = 0
    events_replayed: int = 0
    transactions_replayed: int = 0
    transactions_per_s: int = 0
    seconds_by_phase: dict[str, float] = field(default_factory=dict)
    comparison: Comparison = field(default_factory=Comparison)

    def told(self) -> dict[str, Any]:
        """The result as one document, its comparison in it, and the seconds of all phases."""
        told = msgspec.to_builtins(self)
        comparison = told.pop("comparison")
        return {**told, "seconds": round(sum(self.seconds_by_phase.values()), 3), **comparison}


class Shown(Protocol):
    """Who is shown how far a rebuild is."""

    def say(self, sentence: str) -> None:
        """Tell what begins."""

    def replayed(self, done: int, of: int, transactions: int) -> None:
        """Tell how many records are replayed, of how many, and how many transactions this run has replayed."""


async def rebuild(settings: Settings, options: Options, shown: Shown) -> Result:
    """Fill the next version, compare it with the live one, and put it in its place where it may be.

    A difference ends it, and the next version stays for a look, unless `expect_changes`.
    Raises: Halt, with each reason, where it cannot be begun; Diverged, where a record cannot be replayed as it was
    first read; NotSwapped, with who is in the way; Retry, where Kafka or Postgres stay away. The next run goes on where
    this one ended.
    """
    async with rebuild_schema.alone(settings) as connection:
        return await _Rebuild(settings, options, shown, connection).run()


class _Rebuild:
    def __init__(self, settings: Settings, options: Options, shown: Shown, connection: asyncpg.Connection) -> None:
        self._settings = settings
        self._options = options
        self._shown = shown
        self._connection = connection
        self._result = Result()
        self._replayed = Replayed()
        self._total = self._before = 0

    async def run(self) -> Result:
        result, version = self._result, await self._begun()
        result.version = version.number
        shown = self._shown
        async with loading(self._settings, version, self._tell) as loader:
            with self._phase(LOAD):
                await self._load(version, loader)
            with self._phase(FINISH):
                shown.say("indexes and statistics")
                await rebuild_schema.finish(self._connection, self._settings)
                await self._load(version, loader)
            self._count()
            with self._phase(COMPARE):
                shown.say("comparison with the live version")
                result.comparison = await self._compared(loader)
            result.digest_equal = result.comparison.digest_equal
            await rebuild_schema.note(self._connection, version.number, result.told())
            if self._options.swaps and (result.digest_equal or self._options.expect_changes):
                shown.say("swap")
                with self._phase(SWAP):
                    # What came meanwhile is replayed before the live version's writers have to wait.
                    await self._load(version, loader)
                    await swap.swap(
                        self._settings, catch_up=loader.load, differs=not result.digest_equal, tell=shown.say
                    )
                result.swapped = True
        return result

    async def _begun(self) -> Version:
        options = self._options
        await checks.require(self._connection, self._settings, restart=options.restart, swaps=options.swaps)
        is_there = NEXT in await versions.found(self._connection)
        if is_there and options.restart:
            await rebuild_schema.drop(self._connection)
        self._result.resumed = is_there and not options.restart
        size_mib = await rebuild_schema.size_bytes(self._connection) / 2**20
        self._shown.say(
            f"{'goes on with' if self._result.resumed else 'begins'} the next version; it needs about as much room as "
            f"the live one, {size_mib:,.0f} MiB, and whether the disk has it is not looked at"
        )
        return await rebuild_schema.begin(self._connection, self._settings, with_events=options.with_events)

    async def _load(self, version: Version, loader: Loader) -> None:
        """Replay until the live version is close: in processes what is much, here what is little."""
        processes = self._options.processes or os.cpu_count() or 1
        for _ in range(ROUNDS_MAX):
            spans = await loader.left()
            left = {number: span.end - span.start for number, span in spans.items()}
            await self._expect(sum(left.values()))
            if sum(left.values()) <= FOLLOWED_MAX + processes * CLOSE_ENOUGH:
                await loader.load({number: span.end for number, span in spans.items()})
                return
            hands = workers.dealt(left, processes)
            await workers.work(self._settings, version, hands, self._tell, command=self._options.worker)
        raise Halt("the rebuild does not come close to the live version, which is faster: give it more processes")

    async def _compared(self, loader: Loader) -> Comparison:
        async with _snapshot(self._settings, SCHEMA) as live:
            at = await positions(live.connection, SCHEMA)
            await loader.load({number: position.next for number, position in at.items()})
            async with _snapshot(self._settings, NEXT) as following:
                return await compare(live, following)

    async def _expect(self, left: int) -> None:
        at = await positions(self._connection, SCHEMA)
        self._total = sum(position.next for position in at.values())
        self._before = self._total - left - self._replayed.records

    def _tell(self, replayed: Replayed) -> None:
        self._replayed.add(replayed)
        done = self._before + self._replayed.records
        # The live version goes on, and with it what there is to replay.
        self._shown.replayed(done, max(done, self._total), self._replayed.transactions)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._result.seconds_by_phase[name] = round(time.monotonic() - began, 3)

    def _count(self) -> None:
        result, replayed = self._result, self._replayed
        result.records_replayed, result.events_replayed = replayed.records, replayed.events
        result.transactions_replayed = replayed.transactions
        spent_s = result.seconds_by_phase[LOAD] + result.seconds_by_phase[FINISH]
        result.transactions_per_s = round(replayed.transactions / spent_s)


@asynccontextmanager
async def _snapshot(settings: Settings, schema: str) -> AsyncIterator[Side]:
    """All of a version's tables as they are at one moment."""
    async with (
        owner(settings, schema=schema) as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        yield Side(connection, schema)
