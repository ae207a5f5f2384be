"""`tartan up`: a sandbox that stays, for developing against Tartan."""

import asyncio
import shlex
from pathlib import Path

from rich.console import Console

from sandbox.infra.clients import Application
from sandbox.infra.stack import SIMULATOR, Stack, StackOptions

COMMANDS = (
    ("tartan link --user first-user", "a first Item, and what arrives"),
    ("tartan queue --watch", "what waits, runs, is held back, stopped or quarantined, and why"),
    ("tartan items list", "how each Item stands; `tartan items show ITEM` says why one is silent"),
    ("tartan dead-letters list", "what could not be processed"),
    ("tartan ledger first-user --tenant demo", "balances of the ledger; `tartan explain ID` says why they are so"),
    ("tartan reconcile", "the ledger against the bank; `tartan verify` checks it against itself"),
    ("curl -s $TARTAN_PLAID_URL/simulator/truth", "what the simulated bank knows; faults: docs/operations.md"),
)
"""What one does with a sandbox first."""


async def run_up(folder: Path, seed: int) -> int:
    """Run every part with its data in `folder`, and print how to use it, until cancelled."""
    console = Console(stderr=True, soft_wrap=True)
    start = count_start(folder)
    with console.status("Starting …") as status:
        world = Stack(
            StackOptions(folder=folder.resolve(), simulator=("--seed", str(seed + start))),
            progress=lambda what: status.update(f"Starting {what} …"),
        )
        await world.start()
    try:
        await _tell(world, folder, console)
        if start:
            console.print(
                "The simulated bank begins anew at each start: it does not know the Items of earlier ones, and they "
                "are marked as gone once they are asked about."
            )
        await asyncio.Event().wait()
    finally:
        with console.status("Stopping …"):
            await world.stop()
        console.print(f"Stopped; the data is in {folder}.")
    return 0


def count_start(folder: Path) -> int:
    """How many starts a folder has seen before this one.

    Each start has a seed of its own: the same one would give new Items the ids of those that Tartan knows already, and
    refuses to link again.
    """
    counted = folder / "starts"
    before = int(counted.read_text("ascii")) if counted.exists() else 0
    folder.mkdir(parents=True, exist_ok=True)
    counted.write_text(str(before + 1), "ascii")
    return before


async def _tell(world: Stack, folder: Path, console: Console) -> None:
    environment = folder / "environment"
    environment.touch(mode=0o600)
    environment.write_text(
        "".join(f"export {name}={shlex.quote(value)}\n" for name, value in world.environment().items()), "utf-8"
    )
    console.print(f"gateway          {world.gateway_url}   (API key: {world.secrets.api_key})")
    console.print(f"webhooks         {world.ingest_url}/webhooks/plaid")
    console.print(f"simulated Plaid  {world.simulator_url}")
    console.print(f"Kafka            {world.cluster.kafka_address}")
    console.print(f"Postgres         {world.postgres_dsn}")
    for stage in (stage for stage in world.stages.values() if stage.name != SIMULATOR):
        console.print(f"metrics of {stage.name:16} {stage.metrics_url}")
    async with Application(world.gateway_url, world.secrets.api_key) as application:
        await application.link_token("first-user")  # the way to Plaid is open, or this says why not
    console.print(f"logs             {folder}/*.log; a stage that dies is started again")
    console.print(f"\nIn another terminal:  . {environment}")
    for command, what in COMMANDS:
        console.print(f"  {command:45} {what}")
    console.print("Ctrl-C stops it; the data stays.")
