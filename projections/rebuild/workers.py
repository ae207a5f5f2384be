"""The worker processes of a rebuild: partitions dealt out, started, listened to, ended. Shell."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import msgspec
from pydantic import SecretStr

from projections.rebuild.load import Tell, Version
from projections.rebuild.worker import Report, Task
from runtime.settings import Settings
from schemas.errors import Halt

COMMAND = (sys.executable, "-m", "projections.rebuild.worker")
END_S_MAX = 5.0
"""A worker whose input ended exits at once."""
_PREFIX = "TARTAN_"


def dealt(left: Mapping[int, int], workers: int) -> list[list[int]]:
    """Deal partitions out so that each worker has about as much to do, the largest first.

    Shape: `left` has the records of each partition; at most as many lists as workers, none of them empty.
    """
    hands: list[tuple[int, list[int]]] = [(0, []) for _ in range(min(workers, len(left)))]
    for number in sorted(left, key=lambda number: (-left[number], number)):
        place = min(range(len(hands)), key=lambda place: hands[place][0])
        load, hand = hands[place]
        hands[place] = (load + left[number], [*hand, number])
    return [sorted(hand) for _, hand in hands]


async def work(
    settings: Settings,
    version: Version,
    hands: Sequence[Sequence[int]],
    tell: Tell,
    *,
    command: Sequence[str] = COMMAND,
) -> None:
    """Let one process a hand replay its partitions, until the live version is close.

    Raises: Halt, with the reason, where one of them could not go on; the others are ended.
    """
    published = dict(version.published)
    working = [
        asyncio.create_task(_one(settings, Task(version.number, published, list(hand)), tell, command))
        for hand in hands
    ]
    try:
        await asyncio.gather(*working)
    finally:
        for one in working:
            one.cancel()
        await asyncio.gather(*working, return_exceptions=True)


async def _one(settings: Settings, task: Task, tell: Tell, command: Sequence[str]) -> None:
    async with _started(settings, command) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(msgspec.json.encode(task) + b"\n")
        error = None
        async for line in process.stdout:
            report = msgspec.json.decode(line, type=Report)
            tell(report.replayed)
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
    """This process's environment, with these settings in place of its own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_PREFIX)}
    return inherited | {
        f"{_PREFIX}{name.upper()}": value.get_secret_value() if isinstance(value, SecretStr) else str(value)
        for name, value in settings
        if value is not None
    }
