"""One worker of a rebuild: `python -m projections.rebuild.worker`, a process that replays some partitions.

Standard input: the task as one line of JSON, then nothing until the rebuild ends; its end ends the worker, so none
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

from projections.rebuild.load import Replayed, Version, loading
from runtime import logs, settings
from runtime.lifecycle import GC_THRESHOLD
from runtime.settings import Settings
from schemas.errors import TartanError

REPORT_EVERY_S = 0.2
PASSES_MAX = 1_000
"""Each pass goes to where the live version was at its beginning, and takes less than the one before it."""
CLOSE_ENOUGH = 100
"""Records behind the live version at which the rest is left to the process that compares and swaps."""


class Task(Struct):
    """What a worker does: these partitions of this version."""

    number: int
    published: dict[int, int]
    partitions: list[int]


class Report(Struct):
    """What a worker has replayed since its last report, or why it stops."""

    replayed: Replayed = msgspec.field(default_factory=Replayed)
    error: str | None = None


async def work(given: Settings, task: Task, out: IO[bytes]) -> None:
    """Replay the task's partitions until the live version is close. Raises: Halt, Retry, as Loader.load does."""
    reporter = _Reporter(out)
    async with loading(given, Version(task.number, task.published), reporter.add) as loader:
        for _ in range(PASSES_MAX):
            spans = {number: span for number, span in (await loader.left()).items() if number in task.partitions}
            if sum(span.end - span.start for span in spans.values()) <= CLOSE_ENOUGH:
                break
            await loader.load({number: span.end for number, span in spans.items()})
    reporter.tell()


class _Reporter:
    """Tells what was replayed, a few times a second."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._gathered = Replayed()
        self._told_at = time.monotonic()

    def add(self, replayed: Replayed) -> None:
        self._gathered.add(replayed)
        if time.monotonic() - self._told_at >= REPORT_EVERY_S:
            self.tell()

    def tell(self) -> None:
        say(self._out, Report(self._gathered))
        self._gathered, self._told_at = Replayed(), time.monotonic()


def say(out: IO[bytes], report: Report) -> None:
    """Write one report."""
    out.write(msgspec.json.encode(report) + b"\n")
    out.flush()


async def _until_left(given: Settings, task: Task, out: IO[bytes]) -> None:
    working = asyncio.create_task(work(given, task, out))
    left = asyncio.create_task(_end_of_input())
    await asyncio.wait((working, left), return_when=asyncio.FIRST_COMPLETED)
    if not working.done():
        os._exit(1)  # whoever started it is gone: what is not committed is replayed by the next rebuild
    left.cancel()
    working.result()


async def _end_of_input() -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


def main() -> None:
    """Run the worker; the exit code is 1 where it could not do its task."""
    task = msgspec.json.decode(sys.stdin.readline(), type=Task)
    out = sys.stdout.buffer
    given = settings.load()
    logs.configure(given, "rebuild")
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_until_left(given, task, out))
    except TartanError as error:
        say(out, Report(error=str(error)))
        sys.exit(1)


if __name__ == "__main__":
    main()
