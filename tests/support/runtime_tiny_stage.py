"""A stage of a few lines, run as a process: `python runtime_tiny_stage.py BEHAVIOUR`, settings from the environment.

What a test lets happen it says by files in TINY_FOLDER, so that nothing depends on how fast the machine is.
"""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from runtime import lifecycle, logs, settings
from runtime.lifecycle import Running
from runtime.settings import Settings
from schemas.errors import Halt, Retry, TartanError

_log = logs.logger(__name__)


def allowed(what: str) -> bool:
    return (Path(os.environ["TINY_FOLDER"]) / what).exists()


@asynccontextmanager
async def works(given: Settings) -> AsyncIterator[Running]:
    """Is ready once it may be, and on its way out finishes what is in flight."""
    try:
        yield Running(
            "tiny", lambda: [] if allowed("ready") else ["still reading"], asyncio.get_running_loop().create_future()
        )
    finally:
        while not allowed("finish"):
            await asyncio.sleep(0.01)
        _log.info("finished what was in flight")


@asynccontextmanager
async def fails(given: Settings) -> AsyncIterator[Running]:
    async def ended() -> None:
        await asyncio.sleep(0.1)
        raise Halt("partition 3 continues at 7, expected 6: a gap")

    yield Running("tiny", list, ended())


@asynccontextmanager
async def breaks(given: Settings) -> AsyncIterator[Running]:
    async def ended() -> None:
        raise KeyError("access-sandbox-1234")

    yield Running("tiny", list, ended())


@asynccontextmanager
async def ends(given: Settings) -> AsyncIterator[Running]:
    yield Running("tiny", list, asyncio.sleep(0.1))


@asynccontextmanager
async def refuses(given: Settings) -> AsyncIterator[Running]:
    raise Retry(f"no Kafka at {given.kafka_address}")
    yield


@asynccontextmanager
async def starts_for_ever(given: Settings) -> AsyncIterator[Running]:
    try:
        await asyncio.Event().wait()
        yield Running("tiny", list, asyncio.sleep(0))
    finally:
        await asyncio.sleep(0.1)
        _log.info("cleared away")


@asynccontextmanager
async def stops_for_ever(given: Settings) -> AsyncIterator[Running]:
    lifecycle.STOP_S_MAX = 1.0
    yield Running("tiny", list, asyncio.get_running_loop().create_future())
    time.sleep(600)  # not even the event loop runs


def main() -> None:
    stages = {"tiny": globals()[sys.argv[1]]}
    try:
        os._exit(lifecycle.run(stages, settings.load()))
    except TartanError as error:
        sys.exit(f"tartan: {error}")


if __name__ == "__main__":
    main()
