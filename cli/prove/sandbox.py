"""Commands of the sandbox: simulated Plaid, demo, link, benchmarks, simulation and chaos.

The fields of a command's options in the sandbox have the names of its parameters, so it passes them on by name.
Each command imports its package of the sandbox itself: `tartan --help` stays fast, and a production image runs the
stages without the sandbox's packages.
"""

import asyncio
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.output import Json
from runtime import settings

bench_app = typer.Typer(help="Measure on this machine, with real Kafka and Postgres.", no_args_is_help=True)

BankSeed = Annotated[int, typer.Option(help="Seed of the simulated bank; the same seed gives the same data.")]
Items = Annotated[int, typer.Option(min=1, max=10_000, help="Number of Items, each of its own user.")]
Transactions = Annotated[int, typer.Option(min=1, help="Number of transactions in the histories of all Items.")]


def plaid_simulator(
    port: Annotated[int, typer.Option(help="Port on the loopback address; 0 chooses a free one.")] = 8090,
    seed: BankSeed = 1,
    webhook_url: Annotated[
        str | None, typer.Option(help="Address for webhooks of Items that were linked without an address.")
    ] = None,
    validate_requests: Annotated[bool, typer.Option(help="Validate each request with plaid-python's models.")] = True,
    rate_limits: Annotated[
        str, typer.Option(help="Rate limits: off, sandbox or production, per minute as Plaid's.")
    ] = "sandbox",
    time_scale: Annotated[
        float, typer.Option(min=0.0001, help="Factor of Plaid's own waits: 0.1 retries webhooks after 3 s, not 30.")
    ] = 1.0,
    ready: Annotated[
        bool, typer.Option(help="Give Items their whole history at once, without a not-ready phase.")
    ] = False,
    latency_s: Annotated[float, typer.Option(min=0, max=60, help="Delay of each answer, in seconds.")] = 0.0,
) -> None:
    """Run a simulated Plaid: a seeded bank behind Plaid's API, signed webhooks included."""
    options = {name: option for name, option in locals().items() if name != "ready"}
    from sandbox.simulator.api.server import serve
    from sandbox.simulator.options import Options

    if ready:
        options |= {"initial_update_delay_s": 0.0, "historical_update_delay_s": 0.0}
    run_until_stopped(serve(Options(**options)))


def demo(
    seconds: Annotated[
        float | None, typer.Option("--for", min=1, help="Duration of the live phase, in seconds; else until Ctrl-C.")
    ] = None,
    seed: BankSeed = 1,
    as_json: Json = False,
) -> None:
    """Run everything on this machine, live: a simulated bank, every stage, a page in the browser."""
    options = {**locals()}
    from sandbox.demo.demo import DemoOptions, run_demo

    raise typer.Exit(run_until_stopped(run_demo(DemoOptions(**options))))


def up(
    folder: Annotated[Path, typer.Option(help="Folder that keeps the data between runs.")] = Path(".tartan"),
    seed: BankSeed = 1,
) -> None:
    """Run a lasting sandbox: Kafka, Postgres, the Plaid simulator and every stage, until Ctrl-C."""
    from sandbox.demo.up import run_up

    raise typer.Exit(run_until_stopped(run_up(folder, seed)))


def link(
    gateway_url: Annotated[
        str, typer.Option(envvar="TARTAN_GATEWAY_URL", help="Address of the gateway.")
    ] = "http://127.0.0.1:8080",
    api_key: Annotated[str, typer.Option(envvar="TARTAN_API_KEY", help="API key, one of TARTAN_API_KEYS.")] = "",
    user: Annotated[str, typer.Option(help="Your application's own id of the user.")] = "first-user",
    institution: Annotated[str, typer.Option(help="Plaid's id of a non-OAuth bank in Sandbox.")] = "ins_109508",
    as_json: Json = False,
) -> None:
    """Link a first Item in Plaid's Sandbox (or the simulator) and show its data as it arrives."""
    from sandbox.demo.link import run_link

    work = run_link(settings.load(), gateway_url, api_key, user, institution, as_json=as_json)
    raise typer.Exit(run_until_stopped(work))


@bench_app.command("end-to-end")
def bench_end_to_end(
    items: Items = 40,
    transactions: Transactions = 100_000,
    rate: Annotated[float, typer.Option(help="Webhooks a second after the backfill, five transactions each.")] = 100.0,
    seconds: Annotated[float, typer.Option(help="Duration of the webhook phase, in seconds.")] = 10.0,
    projectors: Annotated[int, typer.Option(min=1, max=12, help="Number of processes of the stage projections.")] = 2,
    peer: Annotated[
        Path | None, typer.Option(help="Folder of the installed peer's benchmark, to measure it in turns with ours.")
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, max=100, help="Number of backfills, each of ours and of the peer's.")
    ] = 1,
    as_json: Json = False,
) -> None:
    """Measure backfill and latency: link Items with history, then send webhooks at a steady rate."""
    options = {**locals()}
    from sandbox.bench.end_to_end import BenchOptions, run_end_to_end

    raise typer.Exit(run_until_stopped(run_end_to_end(BenchOptions(**options))))


@bench_app.command("project")
def bench_project(
    items: Items = 40,
    transactions: Transactions = 100_000,
    updates: Annotated[
        int, typer.Option(min=1, help="Number of updates of five transactions, each in its own database transaction.")
    ] = 500,
    as_json: Json = False,
) -> None:
    """Measure the projection of changesets: fold, rows, ledger, balances, position; with Postgres alone."""
    options = {**locals()}
    from sandbox.bench.project import ProjectOptions, run_project

    raise typer.Exit(run_until_stopped(run_project(ProjectOptions(**options))))


@bench_app.command("replay")
def bench_replay(
    items: Items = 80,
    transactions: Transactions = 400_000,
    updates: Annotated[
        int, typer.Option(min=0, help="Number of updates of five transactions after the histories.")
    ] = 800,
    processes: Annotated[
        int, typer.Option(min=1, max=12, help="Number of processes of the rebuild, and of live projectors.")
    ] = 2,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Number of replays and backfills, in turns.")] = 3,
    compares: Annotated[
        bool,
        typer.Option(
            "--compare-end-to-end/--no-compare-end-to-end",
            help="Also measure the whole way from Plaid, for comparison.",
        ),
    ] = True,
    as_json: Json = False,
) -> None:
    """Measure a rebuild: a log replayed into the next version, compared with a backfill and a full resync."""
    options = {**locals()}
    from sandbox.bench.replay import ReplayOptions, run_replay

    raise typer.Exit(run_until_stopped(run_replay(ReplayOptions(**options))))


def simulate(
    seeds: Annotated[int, typer.Option(min=1, help="Number of simulations to run, one a seed.")] = 100,
    first: Annotated[int, typer.Option(min=0, help="Number of the first seed.")] = 1,
    seed: Annotated[int | None, typer.Option(min=0, help="Run only this seed, the one that a failure prints.")] = None,
    trace: Annotated[bool, typer.Option(help="Print each step of the simulation.")] = False,
    day: Annotated[
        bool, typer.Option(help="Simulate instead 24 hours at twice the demand that Plaid's quota allows.")
    ] = False,
    items: Annotated[
        int, typer.Option(min=10, help="Number of Items with --day; quotas shrink in proportion.")
    ] = 1_000,
    as_json: Json = False,
) -> None:
    """Run the real code in virtual time, through faults that the seed draws, and compare it with the bank's truth."""
    from sandbox.simulation.run_seeds import SimulateOptions, run_simulate

    options = SimulateOptions(seeds=seeds, first=first, seed=seed, trace=trace, json=as_json, day=day, items=items)
    raise typer.Exit(run_simulate(options))


def chaos(
    kills: Annotated[
        int | None,
        typer.Option(
            min=1, max=10_000, help="Number of kill -9s: 20 by default, 10 with --rebuild.", show_default=False
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed that chooses the faults; by default one is drawn and printed.")
    ] = None,
    verbose: Annotated[bool, typer.Option(help="Print a timeline of each run.")] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Kill `tartan rebuild` and projectors, while the log grows and is read.")
    ] = False,
    transactions: Annotated[
        int, typer.Option(min=1_000, help="Number of transactions in the log that --rebuild reads.")
    ] = 50_000,
    changesets_per_s: Annotated[
        float, typer.Option(min=1, max=2_000, help="Changesets a second by which that log grows.")
    ] = 200.0,
    reads_per_s: Annotated[
        float, typer.Option(min=1, max=5_000, help="Reads a second at the gateway during a rebuild.")
    ] = 500.0,
    as_json: Json = False,
) -> None:
    """Kill, stop and cut off real processes under load, then compare tables, ledger and topics with the truth."""
    from sandbox.chaos.rebuild.scenario import RebuildOptions, run_rebuild
    from sandbox.chaos.run_chaos import ChaosOptions, run_chaos

    if not rebuild:
        options = ChaosOptions(kills=kills or 20, seed=seed, as_json=as_json, verbose=verbose)
        raise typer.Exit(run_until_stopped(run_chaos(options)))
    rebuild_options = RebuildOptions(
        transactions=transactions,
        kills=kills or 10,
        changesets_per_s=changesets_per_s,
        reads_per_s=reads_per_s,
        seed=seed,
        as_json=as_json,
    )
    raise typer.Exit(run_until_stopped(run_rebuild(rebuild_options)))


def run_until_stopped(work: Coroutine[Any, Any, Any]) -> Any:
    """Run work on uvloop; return its result, or exit code 130 after Ctrl-C or SIGTERM."""
    import uvloop

    async def cancel_on_sigterm() -> Any:
        # As Ctrl-C does, so that the work stops its child processes and removes its folders.
        task = asyncio.ensure_future(work)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await task

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(cancel_on_sigterm())
        except (KeyboardInterrupt, asyncio.CancelledError):
            return 130
