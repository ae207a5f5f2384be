"""`tartan rebuild --demo`: rebuild a short run and swap it in, back and forward, while the bank makes changes."""

import asyncio
from typing import Any

from rich.console import Console

from runtime.postgres.pool import borrowed
from sandbox.demo.demo import QUIET_S_MAX, RATE_PER_S, USERS, link_users, quiet_bank
from sandbox.infra.stack import Stack
from sandbox.observe import log_replay
from sandbox.observe.browsers import Browsers, delivery_problems
from sandbox.observe.observer import Observer, Session, open_session
from sandbox.observe.read_load import MonotonicReads, ReadLoad
from sandbox.observe.rebuild_process import RebuildProcess

CHANGES_S = 3.0
"""Of changes at the bank before the rebuild; they continue until the last swap is done."""
READS_PER_S = 40.0


async def run_rebuild_demo() -> tuple[dict[str, Any], bool]:
    """Run it, print its progress, and return its result and whether all checks passed.

    Raises: Halt, where the stack does not start or a command fails.
    """
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    async with Stack(progress=lambda step: console.print(f"starting {step}")) as stack, open_session(stack) as session:
        await link_users(session)
        await session.observer.until_quiet(session.bank, timeout_s=QUIET_S_MAX)
        async with Browsers(session.application, stack.gateway_url, USERS) as browsers:
            await browsers.connected()
            load = ReadLoad(
                stack.gateway_url,
                stack.secrets.api_key,
                users=USERS,
                rate_per_s=READS_PER_S,
                begin=MonotonicReads().begin,
            )
            await session.bank.live(RATE_PER_S)
            console.print(
                f"{READS_PER_S:g} reads a second, {len(USERS)} connected browsers, and continuous changes at the bank"
            )
            async with load:
                await asyncio.sleep(CHANGES_S)
                result = await _swap_there_and_back(stack, session.observer, console)
            await quiet_bank(session)
            result |= await _check(session, browsers)
    result |= load.summary
    for problem in [*load.failures, *load.contradictions]:
        console.print(problem, style="red", markup=False)
    return result, _print_checks(result, console)


async def _swap_there_and_back(stack: Stack, observer: Observer, console: Console) -> dict[str, Any]:
    async def run(*arguments: str) -> Any:
        console.print(" ".join(["tartan rebuild", *arguments]))
        result = await RebuildProcess(*arguments, environment=stack.environment(), folder=stack.folder).result()
        versions.append(await observer.pool.fetchval(_LIVE))
        return result

    versions = [await observer.pool.fetchval(_LIVE)]
    result = await run()
    await run("--back")
    await run("--back")
    before, rebuilt, back, forward = versions
    return {
        **{name: result[name] for name in _REBUILD_FIELDS},
        "swapped": rebuilt > before,
        "back": (back, forward) == (before, rebuilt),
    }


async def _check(session: Session, browsers: Browsers) -> dict[str, Any]:
    """Compare the tables with the bank's truth, and the browsers' messages with the log folded again."""
    observer = session.observer
    async with borrowed(observer.pool) as connection:
        positions = {row["partition"]: row["position"] for row in await connection.fetch(_POSITIONS)}
        numbers = {row["user_id"]: row["user_number"] for row in await connection.fetch(_USERS)}
    async with log_replay.replayed_tables(observer.settings, positions) as replayed:
        wrong = await delivery_problems(browsers, {user: numbers[user] for user in USERS}, replayed)
    return {
        "pushes": browsers.messages,
        "pushes_during_swap_duplicate": browsers.duplicates,
        "pushes_wrong": len(wrong),
        "tables_equal_the_banks_truth": await observer.equals_truth(session.bank),
    }


def _print_checks(result: dict[str, Any], console: Console) -> bool:
    """Print one sentence for each check and return True if all passed."""
    console.print(f"{result['events_replayed']:,} events were replayed in {result['seconds']:.1f} s.")
    failed, contradictory = result["failed_reads"], result["contradictory_reads"]
    duplicate, wrong = result["pushes_during_swap_duplicate"], result["pushes_wrong"]
    reads, pushes = f"{result['reads']:,} reads", f"{result['pushes']:,} pushes"
    checks = [
        (result["digest_equal"], "The rebuilt version equals the live one", "The rebuilt version differs"),
        (result["swapped"], "It was swapped in", "It was not swapped in"),
        (result["back"], "The swap went back and forward again", "The swap did not go back and forward again"),
        (
            not failed and not contradictory,
            f"None of {reads} failed, and none returned an older version",
            f"Of {reads} {failed} failed, and {contradictory} returned an older version",
        ),
        (
            not duplicate and not wrong,
            f"Of {pushes} none came twice and none is missing",
            f"Of {pushes} {duplicate} came twice, or some are missing",
        ),
        (
            result["tables_equal_the_banks_truth"],
            "The tables equal the bank's truth",
            "The tables differ from the bank's truth",
        ),
    ]
    for passed, sentence, failure in checks:
        console.print(f"{sentence}." if passed else f"[red]{failure}.")
    return all(passed for passed, _, _ in checks)


_REBUILD_FIELDS = ("digest_equal", "events_replayed", "transactions_replayed", "transactions_per_s", "seconds")
_LIVE = "SELECT number FROM projection.version"
_POSITIONS = "SELECT partition, position FROM reads.positions"
_USERS = "SELECT user_id, user_number FROM tartan.users"
