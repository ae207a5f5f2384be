"""Worker processes of a rebuild: assign partitions, start the processes, read their reports, end them. Shell."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import msgspec
from pydantic import SecretStr

from projections.rebuild.load import OnReplayed, Version
from projections.rebuild.worker import Report, Task
from runtime.settings import Settings
from schemas.errors import Halt

COMMAND = (sys.executable, "-m", "projections.rebuild.worker")
END_S_MAX = 5.0
"""A worker whose input ended exits at once."""
_PREFIX = "TARTAN_"


def assign_partitions(records: Mapping[int, int], workers: int) -> list[list[int]]:
    """Assign partitions so that each worker has about as many records, the largest first.

    Shape: `records` by partition; at most as many lists as workers, none of them empty.
    """
    assignments: list[tuple[int, list[int]]] = [(0, []) for _ in range(min(workers, len(records)))]
    for number in sorted(records, key=lambda number: (-records[number], number)):
        index = min(range(len(assignments)), key=lambda index: assignments[index][0])
        total, partitions = assignments[index]
        assignments[index] = (total + records[number], [*partitions, number])
    return [sorted(partitions) for _, partitions in assignments]


async def run_workers(
    settings: Settings,
    version: Version,
    assignments: Sequence[Sequence[int]],
    on_replayed: OnReplayed,
    *,
    command: Sequence[str] = COMMAND,
) -> None:
    """Run one process for each assignment, until the live version is close.

    Raises: Halt, with the reason, where one of them failed; the others are ended.
    """
    published = dict(version.published)
    running = [
        asyncio.create_task(_run(settings, Task(version.number, published, list(partitions)), on_replayed, command))
        for partitions in assignments
    ]
    try:
        await asyncio.gather(*running)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _run(settings: Settings, task: Task, on_replayed: OnReplayed, command: Sequence[str]) -> None:
    async with _started(settings, command) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(msgspec.json.encode(task) + b"\n")
        error = None
        async for line in process.stdout:
            report = msgspec.json.decode(line, type=Report)
            on_replayed(report.replayed)
            error = report.error or error
        code = await process.wait()
    if code:
        how = error or (f"it ended with {code}" if code > 0 else f"it was ended by signal {-code}")
        raise Halt(f"a worker of partitions {task.partitions} stopped: {how}; `tartan rebuild` goes on where it was")


@asynccontextmanager
async def _started(settings: Settings, command: Sequence[str]) -> AsyncIterator[asyncio.subprocess.Process]:
    # In a session of its own: Ctrl-C is for the rebuild, which ends its workers.
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=_environment(settings),
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await asyncio.wait_for(process.wait(), END_S_MAX)


def _environment(settings: Settings) -> dict[str, str]:
    """Return this process's environment, with these settings in place of its own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_PREFIX)}
    return inherited | {
        f"{_PREFIX}{name.upper()}": value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        for name, value in settings
        if value is not None
    }
