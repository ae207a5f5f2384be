"""`tartan rebuild --demo`: a short run of the whole way, rebuilt and swapped while the bank goes on, there and back."""

import asyncio
import contextlib
from typing import Any

from rich.console import Console

from projections.verify import digests
from runtime.postgres.pool import borrowed
from sandbox.demo.demo import QUIET_S_MAX, RATE_PER_S, USERS, link_users, quiet_bank
from sandbox.infra.clients import Application, Bank
from sandbox.infra.stack import Stack, StackOptions
from sandbox.observe import log_replay
from sandbox.observe.listeners import Browsers, due, missed
from sandbox.observe.observer import Observer, observing
from sandbox.observe.read_load import MonotonicReads, ReadLoad, of_user
from sandbox.observe.rebuild_process import RebuildProcess

CHANGES_S = 3.0
"""Of changes at the bank before the rebuild; they go on until the last swap is done."""
READS_PER_S = 40.0


async def run_rebuild_demo() -> tuple[dict[str, Any], bool]:
    """Run it, tell people how it goes, and give what came of it and whether all was right.

    Raises: Halt, where the world does not start or a command fails.
    """
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    async with (
        Stack(StackOptions(), progress=lambda what: console.print(f"starting {what}")) as world,
        contextlib.AsyncExitStack() as stack,
    ):
        observer = await stack.enter_async_context(observing(world.settings()))
        bank = await stack.enter_async_context(Bank(world.simulator_url))
        application = await stack.enter_async_context(Application(world.gateway_url, world.secrets.api_key))
        users = [f"user-{number + 1}" for number in range(USERS)]
        await link_users(bank, application, users)
        await observer.until_quiet(bank, timeout_s=QUIET_S_MAX)
        listeners = await stack.enter_async_context(Browsers(application, world.gateway_url, users))
        readers = ReadLoad(
            world.gateway_url,
            world.secrets.api_key,
            reads=[read for user in users for read in of_user(user)],
            rate_per_s=READS_PER_S,
            begun=MonotonicReads().begun,
        )
        await bank.live(RATE_PER_S)
        console.print(
            f"{READS_PER_S:g} reads a second, {USERS} browsers that listen, and changes at the bank, which go on"
        )
        async with readers:
            await asyncio.sleep(CHANGES_S)
            told = await _there_and_back(world, observer, console)
        await quiet_bank(observer, bank)
        told |= await _proved(observer, bank, listeners, users)
    told |= {"reads": readers.answered, "failed_reads": readers.failed, "contradictory_reads": readers.wrong}
    for problem in [*readers.failures, *readers.contradictions]:
        console.print(problem, style="red", markup=False)
    return told, _account(told, console)


async def _there_and_back(world: Stack, observer: Observer, console: Console) -> dict[str, Any]:
    async def run(*arguments: str) -> Any:
        console.print(" ".join(["tartan rebuild", *arguments]))
        running = RebuildProcess(*arguments, environment=world.environment(), folder=world.folder)
        result = await running.result()
        numbers.append(await observer.pool.fetchval(_LIVE))
        return result

    numbers = [await observer.pool.fetchval(_LIVE)]
    result = await run()
    await run("--back")
    await run("--back")
    before, rebuilt, back, forward = numbers
    return {
        **{name: result[name] for name in _OF_RESULT},
        "swapped": rebuilt > before,
        "back": (back, forward) == (before, rebuilt),
    }


async def _proved(observer: Observer, bank: Bank, listeners: Browsers, users: list[str]) -> dict[str, Any]:
    """Compare tables with the bank's truth, and what browsers were told with the log folded again."""
    async with borrowed(observer.pool) as connection:
        is_true = await digests.state_digest(connection) == await bank.digest()
        positions = {row["partition"]: row["position"] for row in await connection.fetch(_POSITIONS)}
        numbers = {row["user_id"]: row["user_number"] for row in await connection.fetch(_USERS)}
    async with log_replay.replayed(observer.settings, positions) as again:
        gaps = [missed(listeners.heard[user], await due(again, numbers[user])) for user in users]
    return {
        "pushes": listeners.messages,
        "pushes_during_swap_duplicate": listeners.duplicates,
        "pushes_wrong": sum(map(len, gaps)),
        "tables_equal_the_banks_truth": is_true,
    }


def _account(told: dict[str, Any], console: Console) -> bool:
    """Say what came of it. Gives whether all was right."""
    console.print(f"{told['events_replayed']:,} events were replayed in {told['seconds']:.1f} s.")
    sentences = [
        (told["digest_equal"], "The rebuilt version equals the live one", "The rebuilt version differs from the other"),
        (told["swapped"], "It was put in its place", "It was not put in its place"),
        (told["back"], "The swap went back and forth again", "The swap did not go back and forth again"),
        (
            not told["failed_reads"] and not told["contradictory_reads"],
            f"None of {told['reads']:,} reads failed, and none went back",
            f"Of {told['reads']:,} reads {told['failed_reads']} failed, and {told['contradictory_reads']} went back",
        ),
        (
            not told["pushes_during_swap_duplicate"] and not told["pushes_wrong"],
            f"Of {told['pushes']:,} pushes none came twice and none is missing",
            f"Of {told['pushes']:,} pushes {told['pushes_during_swap_duplicate']} came twice, or some are missing",
        ),
        (
            told["tables_equal_the_banks_truth"],
            "The tables equal the bank's truth",
            "The tables differ from the bank's truth",
        ),
    ]
    for holds, good, bad in sentences:
        console.print(f"{good}." if holds else f"[red]{bad}.")
    return all(holds for holds, _, _ in sentences)


_OF_RESULT = ("digest_equal", "events_replayed", "transactions_replayed", "transactions_per_s", "seconds")
_LIVE = "SELECT number FROM projection.version"
_POSITIONS = "SELECT partition, position FROM reads.positions"
_USERS = "SELECT user_id, user_number FROM tartan.users"
