"""Worker process of a rebuild, `python -m projections.rebuild.worker`: replay some partitions. Shell.

Standard input: the task as one line of JSON, then nothing until the rebuild ends; its end ends the worker, so no worker
outlives a rebuild that was killed. Standard output: one line of JSON a report, the last one with an error, if any.
Settings come from the environment.
"""

import asyncio
import gc
import os
import sys
import time
from typing import IO

import msgspec
import uvloop
from msgspec import Struct

from projections.rebuild.load import Replayed, Version, open_loader
from runtime import logs, settings
from runtime.lifecycle import GC_THRESHOLD
from runtime.settings import Settings
from schemas.errors import TartanError

REPORT_EVERY_S = 0.2
PASSES_MAX = 1_000
"""Each pass ends at the live version's position at its beginning, and takes less than the one before it."""
CLOSE_ENOUGH = 100
"""Records behind the live version at which the rest is left to the process that compares and swaps."""


class Task(Struct):
    """Partitions of a version that a worker replays."""

    number: int
    published: dict[int, int]
    partitions: list[int]


class Report(Struct):
    """Counts since the worker's last report, or the error that stops it."""

    replayed: Replayed = msgspec.field(default_factory=Replayed)
    error: str | None = None


async def replay(given: Settings, task: Task, out: IO[bytes]) -> None:
    """Replay the task's partitions until the live version is close. Raises: Halt, Retry, as Loader.load does."""
    reporter = _Reporter(out)
    async with open_loader(given, Version(task.number, task.published), reporter.add) as loader:
        for _ in range(PASSES_MAX):
            spans = {number: span for number, span in (await loader.remaining()).items() if number in task.partitions}
            if sum(span.end - span.start for span in spans.values()) <= CLOSE_ENOUGH:
                break
            await loader.load({number: span.end for number, span in spans.items()})
    reporter.write()


class _Reporter:
    """Sums up counts and writes them a few times a second."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._sum = Replayed()
        self._written_at = time.monotonic()

    def add(self, replayed: Replayed) -> None:
        self._sum.add(replayed)
        if time.monotonic() - self._written_at >= REPORT_EVERY_S:
            self.write()

    def write(self) -> None:
        _write(self._out, Report(self._sum))
        self._sum, self._written_at = Replayed(), time.monotonic()


def _write(out: IO[bytes], report: Report) -> None:
    out.write(msgspec.json.encode(report) + b"\n")
    out.flush()


async def _replay_until_input_ends(given: Settings, task: Task, out: IO[bytes]) -> None:
    replaying = asyncio.create_task(replay(given, task, out))
    input_end = asyncio.create_task(_end_of_input())
    await asyncio.wait((replaying, input_end), return_when=asyncio.FIRST_COMPLETED)
    if not replaying.done():
        os._exit(1)  # the rebuild is gone: what is not committed is replayed by the next one
    input_end.cancel()
    replaying.result()


async def _end_of_input() -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


def main() -> None:
    """Run the worker; the exit code is 1 where the task failed."""
    task = msgspec.json.decode(sys.stdin.readline(), type=Task)
    out = sys.stdout.buffer
    given = settings.load()
    logs.configure(given, "rebuild")
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_replay_until_input_ends(given, task, out))
    except TartanError as error:
        _write(out, Report(error=str(error)))
        sys.exit(1)


if __name__ == "__main__":
    main()
