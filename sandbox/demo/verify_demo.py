"""`tartan verify --demo`: a short run of the whole installation, with a check of every invariant."""

import asyncio

from rich.console import Console

from projections.verify import verify_log, verify_tables
from projections.verify.verify_tables import Finding
from runtime.postgres.pool import borrowed
from sandbox.demo.demo import QUIET_S_MAX, RATE_PER_S, link_users, quiet_bank
from sandbox.infra.stack import Stack
from sandbox.observe.observer import open_session

TRUTH = "tables_equal_the_banks_truth"


async def run_verify_demo(*, seconds: float) -> dict[str, Finding]:
    """Run it and return the findings: invariants of tables and log, and the comparison with the bank's truth."""
    console = Console(stderr=True)
    async with Stack(progress=lambda step: console.print(f"starting {step}")) as stack, open_session(stack) as session:
        observer, bank = session.observer, session.bank
        await link_users(session)
        await observer.until_quiet(bank, timeout_s=QUIET_S_MAX)
        console.print(f"{seconds:g} s of changes at the bank")
        await bank.live(RATE_PER_S)
        await asyncio.sleep(seconds)
        await quiet_bank(session)
        truth = Finding()
        truth.count("digest", holds=await observer.equals_truth(bank))
        async with borrowed(observer.pool) as connection:
            findings = await verify_tables.verify(connection)
            return {
                **findings,
                **await verify_log.verify_log(stack.settings(), connection, is_settled=True),
                TRUTH: truth,
            }
