"""`tartan demo`: the whole installation on this machine, live, and at the end a proof that its tables are correct."""

import asyncio
import json
import time
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.live import Live

from projections.verify import digests
from runtime.postgres.pool import borrowed
from runtime.scheduler import enqueue
from sandbox.demo.live_view import LiveView
from sandbox.infra.stack import Stack, StackOptions
from sandbox.observe.browsers import Browsers
from sandbox.observe.observer import Session, open_session

USERS = [f"user-{number + 1}" for number in range(3)]
ITEMS_A_USER = 2
HISTORY_TRANSACTIONS = 150
RATE_PER_S = 4.0
"""Updates at the bank: frequent enough that the view always moves, slow enough to read."""
QUIET_S_MAX = 60.0
REFRESH_S = 0.5


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """Options of the demo; `seconds` None runs it until Ctrl-C."""

    seconds: float | None
    seed: int
    as_json: bool


async def run_demo(options: DemoOptions) -> int:
    """Run the demo and return the exit code: 0 only if the tables equal the bank's truth and the ledger balances."""
    console = Console(stderr=True, soft_wrap=True)
    with console.status("Starting …") as status:
        stack = Stack(
            StackOptions(simulator=("--seed", str(options.seed))),
            progress=lambda step: status.update(f"Starting {step} …"),
        )
        started = time.monotonic()
        await stack.start()
    console.print(f"Everything runs after {time.monotonic() - started:.1f} s.")
    try:
        async with open_session(stack) as session:
            await link_users(session)
            async with Browsers(session.application, stack.gateway_url, USERS) as browsers:
                await session.observer.until_quiet(session.bank, timeout_s=QUIET_S_MAX)
                await session.bank.live(RATE_PER_S)
                token = await session.application.stream_token(USERS[0])
                console.print(f"See it in a browser: {stack.gateway_url}/#token={token}", soft_wrap=True)
                await _show(LiveView(stack, session, browsers), options, console)
                return await _prove(session, browsers, options, console)
    finally:
        with console.status("Stopping …"):
            await stack.stop()
        console.print("Stopped; nothing is left running.")


async def link_users(session: Session) -> None:
    """Link Items with a history for each user."""
    for user in USERS:
        for _ in range(ITEMS_A_USER):
            [item] = await session.bank.make_items(user, transactions=HISTORY_TRANSACTIONS)
            await session.application.link(user, item["public_token"])


async def quiet_bank(session: Session) -> None:
    """Stop the bank, run one schedule tick, and wait until all is quiet: the tables then equal the bank's truth."""
    observer, bank = session.observer, session.bank
    await bank.live(0)
    await observer.until_quiet(bank, timeout_s=QUIET_S_MAX)
    async with borrowed(observer.pool) as connection:
        # One tick of the schedule that marks every Item as overdue, with all its accounts.
        items_max = len(USERS) * ITEMS_A_USER
        await enqueue.mark_scheduled(connection, interval_s=0, recheck_s=0, spread_s=0, items_max=items_max)
    await observer.until_quiet(bank, timeout_s=QUIET_S_MAX)


async def _show(view: LiveView, options: DemoOptions, console: Console) -> None:
    """Draw the live view until the time is over, or until Ctrl-C."""
    until = None if options.seconds is None else time.monotonic() + options.seconds
    if not console.is_terminal:
        await asyncio.sleep(options.seconds or 365 * 24 * 3600)
        return
    with Live(await view.draw(), console=console, refresh_per_second=4) as live:
        while until is None or time.monotonic() < until:
            await asyncio.sleep(REFRESH_S)
            live.update(await view.draw())


async def _prove(session: Session, browsers: Browsers, options: DemoOptions, console: Console) -> int:
    """Compare the tables with the bank's truth, print the result and return the exit code."""
    observer = session.observer
    await quiet_bank(session)
    deliveries = await session.bank.deliveries()
    counts = await observer.counts()
    async with borrowed(observer.pool) as connection:
        problems = await digests.ledger_problems(connection)
    equal = await observer.equals_truth(session.bank)
    result = {
        **{name: counts[name] for name in ("webhooks", "changesets", "transactions", "items")},
        "ledger_transfers": counts["transfers"],
        "events_published": counts["events"],
        "pushes": browsers.messages,
        "webhook_to_row_ms": asdict(await observer.webhook_to_row(deliveries)),
        "webhook_to_push_ms": asdict(await observer.webhook_to_push(deliveries, browsers.arrived_at)),
        "digest_equal": equal,
        "ledger_balanced": not problems,
    }
    if options.as_json:
        print(json.dumps(result))
    else:
        console.print(f"{'The tables equal' if equal else '[red]The tables differ from'} the bank's truth.")
        console.print("The ledger balances." if not problems else f"[red]The ledger does not balance: {problems}")
    return 0 if equal and not problems else 1
