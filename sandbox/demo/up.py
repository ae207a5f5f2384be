"""`tartan up`: a sandbox that stays, for developing against Tartan."""

import asyncio
import shlex
from pathlib import Path

from rich.console import Console

from sandbox.infra.stack import SIMULATOR, Stack, StackOptions

COMMANDS = (
    ("tartan link --user first-user", "link a first Item and show its transactions"),
    ("tartan queue --watch", "Items that are due, running, delayed, stopped or quarantined, and why"),
    ("tartan items list", "state of each Item; `tartan items show ITEM` explains why one gets no data"),
    ("tartan dead-letters list", "records that could not be processed"),
    ("tartan ledger first-user --tenant demo", "balances of the ledger; `tartan explain ID` explains one"),
    ("tartan reconcile", "compare the ledger with the bank; `tartan verify` checks it against itself"),
    ("curl -s $TARTAN_PLAID_URL/simulator/truth", "data of the simulated bank; faults: docs/operations.md"),
)
"""First commands in a new sandbox."""


async def run_up(folder: Path, seed: int) -> int:
    """Run every part with its data in `folder`, and print how to use it, until cancelled."""
    console = Console(stderr=True, soft_wrap=True)
    earlier_starts = count_start(folder)
    with console.status("Starting …") as status:
        stack = Stack(
            StackOptions(folder=folder.resolve(), simulator=("--seed", str(seed + earlier_starts))),
            progress=lambda step: status.update(f"Starting {step} …"),
        )
        await stack.start()
    try:
        await _print_usage(stack, folder, console)
        if earlier_starts:
            console.print(
                "The simulated bank starts empty each time: it has no Items of earlier starts, and Tartan marks those "
                "as gone at their next sync run."
            )
        await asyncio.Event().wait()
    finally:
        with console.status("Stopping …"):
            await stack.stop()
        console.print(f"Stopped; the data is in {folder}.")
    return 0


def count_start(folder: Path) -> int:
    """Count this start of a folder's sandbox, and return the number of earlier ones.

    Each start has a seed of its own: the same seed would give new Items the ids of Items that Tartan has already, and
    linking them would be refused.
    """
    file = folder / "starts"
    earlier = int(file.read_text("ascii")) if file.exists() else 0
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(str(earlier + 1), "ascii")
    return earlier


async def _print_usage(stack: Stack, folder: Path, console: Console) -> None:
    environment = folder / "environment"
    environment.touch(mode=0o600)
    environment.write_text(
        "".join(f"export {name}={shlex.quote(value)}\n" for name, value in stack.environment().items()), "utf-8"
    )
    console.print(f"gateway          {stack.gateway_url}   (API key: {stack.secrets.api_key})")
    console.print(f"webhooks         {stack.ingest_url}/webhooks/plaid")
    console.print(f"simulated Plaid  {stack.simulator_url}")
    console.print(f"Kafka            {stack.cluster.kafka_address}")
    console.print(f"Postgres         {stack.postgres_dsn}")
    for stage in (stage for stage in stack.stages.values() if stage.name != SIMULATOR):
        console.print(f"metrics of {stage.name:16} {stage.metrics_url}")
    async with stack.application() as application:
        await application.link_token("first-user")  # raises where the gateway does not reach Plaid
    console.print(f"logs             {folder}/*.log; a stage that dies is started again")
    console.print(f"\nIn another terminal:  . {environment}")
    for command, purpose in COMMANDS:
        console.print(f"  {command:45} {purpose}")
    console.print("Ctrl-C stops it; the data stays.")
