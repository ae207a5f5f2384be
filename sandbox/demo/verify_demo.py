"""`tartan verify --demo`: a short run of the whole way, of which every invariant is checked."""

import asyncio
import contextlib

from rich.console import Console

from projections.verify import digests, verify_log, verify_tables
from projections.verify.verify_tables import Finding
from runtime.postgres.pool import borrowed
from sandbox.demo.demo import QUIET_S_MAX, RATE_PER_S, USERS, link_users, quiet_bank
from sandbox.infra.clients import Application, Bank
from sandbox.infra.stack import Stack, StackOptions
from sandbox.observe.observer import observing

TRUTH = "tables_equal_the_banks_truth"


async def run_verify_demo(*, seconds: float) -> dict[str, Finding]:
    """Run it, and give what was found: invariants of tables and log, and whether the tables are the bank's truth."""
    console = Console(stderr=True)
    async with (
        Stack(StackOptions(), progress=lambda what: console.print(f"starting {what}")) as world,
        contextlib.AsyncExitStack() as stack,
    ):
        observer = await stack.enter_async_context(observing(world.settings()))
        bank = await stack.enter_async_context(Bank(world.simulator_url))
        application = await stack.enter_async_context(Application(world.gateway_url, world.secrets.api_key))
        await link_users(bank, application, [f"user-{number + 1}" for number in range(USERS)])
        await observer.until_quiet(bank, timeout_s=QUIET_S_MAX)
        console.print(f"{seconds:g} s of changes at the bank")
        await bank.live(RATE_PER_S)
        await asyncio.sleep(seconds)
        await quiet_bank(observer, bank)
        async with borrowed(observer.pool) as connection:
            found = await verify_tables.verify(connection)
            found |= await verify_log.verify_log(world.settings(), connection, is_settled=True)
            truth = Finding()
            truth.count("digest", holds=await digests.state_digest(connection) == await bank.digest())
            return {**found, TRUTH: truth}
