"""`tartan rebuild`: build the next version of the projections beside the live one, and put it in its place. Shell.

Steps: check that it can succeed; begin the next version, or continue it; load it in worker processes until it is close
to the live one; create indexes and load the rest; compare both versions at the same positions; swap them.

Live traffic goes on meanwhile. After a kill at any moment the next run continues this one.
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
from projections.rebuild.load import Loader, Replayed, Version, open_loader
from projections.rebuild.schema import owner
from projections.rebuild.versions import positions
from projections.rebuild.worker import CLOSE_ENOUGH
from projections.store.tables import NEXT, SCHEMA
from runtime.settings import Settings
from schemas.errors import Halt

FOLLOWED_MAX = 500
"""Records that this process replays itself, beside those that each worker leaves: starting workers takes as long."""
ROUNDS_MAX = 1_000
"""Times that workers are started again because the live version went on; each round is shorter than the last one."""

LOAD, FINISH, COMPARE, SWAP = "load", "finish", "compare", "swap"


class Options(NamedTuple):
    """Options of a rebuild. `expect_changes`: differences do not end it. `worker`: the command of a process."""

    processes: int | None = None
    expect_changes: bool = False
    restart: bool = False
    swaps: bool = True
    with_events: bool = False
    worker: Sequence[str] = workers.COMMAND


class Result(Struct):
    """Result of a rebuild: counts and rates of this run alone."""

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

    def to_json(self) -> dict[str, Any]:
        """Return the result and its comparison as one document, with the seconds of all phases."""
        document = msgspec.to_builtins(self)
        comparison = document.pop("comparison")
        return {**document, "seconds": round(sum(self.seconds_by_phase.values()), 3), **comparison}


class ProgressListener(Protocol):
    """Output of a rebuild's progress."""

    def message(self, sentence: str) -> None:
        """Print a sentence, for example the step that begins."""

    def progress(self, done: int, total: int, transactions: int) -> None:
        """Print the records replayed, of all, and the transactions that this run has replayed."""


async def rebuild(settings: Settings, options: Options, listener: ProgressListener) -> Result:
    """Fill the next version, compare it with the live one, and swap the two.

    A difference ends it before the swap, and the next version stays for inspection, unless `expect_changes`.
    Raises: Halt, with each reason, where it cannot begin; Diverged, where a record cannot be replayed as it was first
    read; NotSwapped, with the obstacle; Retry, where Kafka or Postgres stay away. The next run continues this one.
    """
    async with rebuild_schema.exclusive_owner(settings) as connection:
        return await _Rebuild(settings, options, listener, connection).run()


class _Rebuild:
    def __init__(
        self, settings: Settings, options: Options, listener: ProgressListener, connection: asyncpg.Connection
    ) -> None:
        self._settings = settings
        self._options = options
        self._listener = listener
        self._connection = connection
        self._result = Result()
        self._replayed = Replayed()
        self._total = self._before = 0

    async def run(self) -> Result:
        result, version = self._result, await self._begin()
        result.version = version.number
        async with open_loader(self._settings, version, self._add_progress) as loader:
            with self._phase(LOAD):
                await self._load(version, loader)
            with self._phase(FINISH):
                self._listener.message("indexes and statistics")
                await rebuild_schema.finish(self._connection, self._settings)
                await self._load(version, loader)
            self._count()
            with self._phase(COMPARE):
                self._listener.message("comparison with the live version")
                result.comparison = await self._compare(loader)
            result.digest_equal = result.comparison.digest_equal
            await rebuild_schema.store_result(self._connection, version.number, result.to_json())
            if self._options.swaps and (result.digest_equal or self._options.expect_changes):
                with self._phase(SWAP):
                    self._listener.message("swap")
                    # What came meanwhile is replayed before the live version's writers have to wait.
                    await self._load(version, loader)
                    differs, tell = not result.digest_equal, self._listener.message
                    await swap.swap(self._settings, catch_up=loader.load, differs=differs, tell=tell)
                result.swapped = True
        return result

    async def _begin(self) -> Version:
        options = self._options
        await checks.require(self._connection, self._settings, restart=options.restart, swaps=options.swaps)
        is_begun = NEXT in await versions.load_versions(self._connection)
        if is_begun and options.restart:
            await rebuild_schema.drop(self._connection)
        self._result.resumed = is_begun and not options.restart
        size_mib = await rebuild_schema.size_bytes(self._connection) / 2**20
        self._listener.message(
            f"{'goes on with' if self._result.resumed else 'begins'} the next version; it needs about as much room as "
            f"the live one, {size_mib:,.0f} MiB, and whether the disk has it is not looked at"
        )
        return await rebuild_schema.begin(self._connection, self._settings, with_events=options.with_events)

    async def _load(self, version: Version, loader: Loader) -> None:
        """Replay until the live version is close: many records in worker processes, few here."""
        processes = self._options.processes or os.cpu_count() or 1
        for _ in range(ROUNDS_MAX):
            spans = await loader.remaining()
            records = {number: span.end - span.start for number, span in spans.items()}
            remaining = sum(records.values())
            live = await positions(self._connection, SCHEMA)
            self._total = sum(position.next for position in live.values())
            self._before = self._total - remaining - self._replayed.records
            if remaining <= FOLLOWED_MAX + processes * CLOSE_ENOUGH:
                await loader.load({number: span.end for number, span in spans.items()})
                return
            assignments = workers.assign_partitions(records, processes)
            command = self._options.worker
            await workers.run_workers(self._settings, version, assignments, self._add_progress, command=command)
        raise Halt("the rebuild does not come close to the live version, which is faster: give it more processes")

    async def _compare(self, loader: Loader) -> Comparison:
        async with _snapshot(self._settings, SCHEMA) as live:
            targets = await positions(live.connection, SCHEMA)
            await loader.load({number: position.next for number, position in targets.items()})
            async with _snapshot(self._settings, NEXT) as following:
                return await compare(live, following)

    def _add_progress(self, replayed: Replayed) -> None:
        self._replayed.add(replayed)
        done = self._before + self._replayed.records
        # The live version goes on, and with it the total.
        self._listener.progress(done, max(done, self._total), self._replayed.transactions)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        started_at = time.monotonic()
        yield
        self._result.seconds_by_phase[name] = round(time.monotonic() - started_at, 3)

    def _count(self) -> None:
        result, replayed = self._result, self._replayed
        result.records_replayed, result.events_replayed = replayed.records, replayed.events
        result.transactions_replayed = replayed.transactions
        spent_s = result.seconds_by_phase[LOAD] + result.seconds_by_phase[FINISH]
        result.transactions_per_s = round(replayed.transactions / spent_s)


@asynccontextmanager
async def _snapshot(settings: Settings, schema: str) -> AsyncIterator[Side]:
    """Open a version's tables as they are at one moment."""
    async with (
        owner(settings, schema=schema) as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        yield Side(connection, schema)
