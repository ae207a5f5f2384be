"""`tartan demo`: the whole way on this machine, live, and at the end a proof that it was right."""

import asyncio
import contextlib
import json
import time
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live

from projections.verify import digests
from runtime.postgres.pool import borrowed
from runtime.scheduler import enqueue
from sandbox.demo.live_view import View
from sandbox.infra.clients import Application, Bank
from sandbox.infra.stack import Stack, StackOptions
from sandbox.observe.browsers import Watch
from sandbox.observe.observer import Observer, observing

USERS = 3
ITEMS_A_USER = 2
HISTORY_TRANSACTIONS = 150
RATE_PER_S = 4.0
"""Updates at the bank: quick enough that something always happens, slow enough to read."""
QUIET_S_MAX = 60.0
REFRESH_S = 0.5


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """`seconds` None: until Ctrl-C."""

    seconds: float | None
    seed: int
    as_json: bool


async def run_demo(options: DemoOptions) -> int:
    """Run it. Gives the exit code: 0 only if tables = the bank's truth and the ledger balances."""
    console = Console(stderr=True, soft_wrap=True)
    with console.status("Starting …") as status:
        world = Stack(
            StackOptions(simulator=("--seed", str(options.seed))),
            progress=lambda what: status.update(f"Starting {what} …"),
        )
        started = time.monotonic()
        await world.start()
    console.print(f"Everything runs after {time.monotonic() - started:.1f} s.")
    try:
        return await _show(world, options, console)
    finally:
        with console.status("Stopping …"):
            await world.stop()
        console.print("Stopped; nothing is left running.")


async def _show(world: Stack, options: DemoOptions, console: Console) -> int:
    settings = world.settings()
    users = [f"user-{number + 1}" for number in range(USERS)]
    async with contextlib.AsyncExitStack() as stack:
        observer = await stack.enter_async_context(observing(settings))
        bank = await stack.enter_async_context(Bank(world.simulator_url))
        application = await stack.enter_async_context(Application(world.gateway_url, world.secrets.api_key))
        await link_users(bank, application, users)
        watch = await stack.enter_async_context(Watch(application, world.gateway_url, users))
        await observer.until_quiet(bank, timeout_s=QUIET_S_MAX)
        await bank.live(RATE_PER_S)
        token = await application.stream_token(users[0])
        console.print(f"See it in a browser: {world.gateway_url}/#token={token}", soft_wrap=True)
        await _live(View(world, observer, bank, watch), options, console)
        return await _prove(observer, bank, watch, options, console)


async def link_users(bank: Bank, application: Application, users: list[str]) -> None:
    """Link Items with a history for each user."""
    for user in users:
        for _ in range(ITEMS_A_USER):
            [item] = await bank.make_items(user, transactions=HISTORY_TRANSACTIONS)
            await application.link(user, item["public_token"])


async def _live(view: "View", options: DemoOptions, console: Console) -> None:
    """Show the world until the time is over, or until Ctrl-C where there is no time."""
    until = None if options.seconds is None else time.monotonic() + options.seconds
    if not console.is_terminal:
        await asyncio.sleep(options.seconds or 365 * 24 * 3600)
        return
    with Live(await view.shown(), console=console, refresh_per_second=4) as live:
        while until is None or time.monotonic() < until:
            await asyncio.sleep(REFRESH_S)
            live.update(await view.shown())


async def quiet_bank(observer: Observer, bank: Bank) -> None:
    """Stop the bank, let one schedule tick run, and wait until all is quiet: the tables are the bank's truth then."""
    await bank.live(0)
    await observer.until_quiet(bank, timeout_s=QUIET_S_MAX)
    async with borrowed(observer.pool) as connection:
        # One tick of the schedule that finds every Item overdue, with all its accounts.
        await enqueue.mark_scheduled(connection, interval_s=0, recheck_s=0, spread_s=0, items_max=USERS * ITEMS_A_USER)
    await observer.until_quiet(bank, timeout_s=QUIET_S_MAX)


async def _prove(observer: Observer, bank: Bank, watch: Watch, options: DemoOptions, console: Console) -> int:
    """Compare with the bank's truth, once all of it has arrived."""
    await quiet_bank(observer, bank)
    deliveries = await bank.deliveries()
    counts = await observer.counts()
    async with borrowed(observer.pool) as connection:
        digest = await digests.state_digest(connection)
        problems = await digests.ledger_problems(connection)
    result = {
        **{name: counts[name] for name in ("webhooks", "changesets", "transactions", "items")},
        "ledger_transfers": counts["transfers"],
        "events_published": counts["events"],
        "pushes": watch.messages,
        "webhook_to_row_ms": (await observer.webhook_to_row(deliveries)).shown(),
        "webhook_to_push_ms": (await observer.webhook_to_push(deliveries, watch.arrived)).shown(),
        "digest_equal": digest == await bank.digest(),
        "ledger_balanced": not problems,
    }
    right = bool(result["digest_equal"] and result["ledger_balanced"])
    if options.as_json:
        print(json.dumps(result))
    else:
        equal = result["digest_equal"]
        console.print(
            "The tables equal the bank's truth." if equal else "[red]The tables differ from the bank's truth."
        )
        console.print("The ledger balances." if not problems else f"[red]The ledger does not balance: {problems}")
    return 0 if right else 1
