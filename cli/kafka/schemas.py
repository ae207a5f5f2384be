"""The commands `tartan schemas`: the contract of the topics, shown, checked, documented, registered."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cli.output import console_of_lines, finish, say
from runtime import settings
from runtime.kafka import registration
from schemas.contract import asyncapi, reference, subjects
from schemas.encoding import catalogue, compatibility
from schemas.errors import Halt
from schemas.topics import TOPICS

schemas_app = typer.Typer(
    help="The schemas of the topics: show, check, document, and register in a schema registry.", no_args_is_help=True
)

Json = Annotated[bool, typer.Option("--json", help="The last line of the output is one JSON object.")]
Named = Annotated[str, typer.Argument(help="Its number, or its file's name: 16 or transaction_event.v2.")]
Page = Annotated[Path | None, typer.Option("--write", help="Make the parts of this page anew, in place.")]


@schemas_app.command("list")
def list_schemas(as_json: Json = False) -> None:
    """List every version of every schema, with its number and the topics that hold it."""
    rows = [
        {"number": number, "name": name, "topics": [topic.name for topic in TOPICS if number in topic.schemas]}
        for number, name in catalogue.FILES.items()
    ]
    table = Table("number", "schema", "in topics", box=None)
    for row in rows:
        table.add_row(str(row["number"]), str(row["name"]), ", ".join(row["topics"]))  # type: ignore[arg-type]
    say(console_of_lines(), {"schemas": rows} if as_json else table)


@schemas_app.command("show")
def show_schema(name: Named) -> None:
    """Print a schema as a registry keeps it, with the records that it nests."""
    number = subjects.schema_of_file(name)
    if number is None:
        raise typer.BadParameter(f"no schema is called {name}; `tartan schemas list` names them", param_hint="NAME")
    typer.echo(json.dumps(catalogue.full_schema(number), indent=2, ensure_ascii=False))


@schemas_app.command("check")
def check_schemas(as_json: Json = False) -> None:
    """Check that all versions of every schema read each other, and that a registry, where one is set, holds them.

    Exit code 1 where something is not so.
    """
    broken = [str(pair) for pair in compatibility.incompatible_families()]
    loaded = settings.load()
    differ = finish(registration.differences(loaded)) if loaded.schema_registry_url else []
    told = {
        "schemas": len(catalogue.FILES),
        "incompatible": broken,
        "registry": loaded.schema_registry_url or None,
        "registry_differs": differ,
    }
    of_registry = f", and {loaded.schema_registry_url} holds them" if loaded.schema_registry_url else ""
    lines = [*broken, *differ] or [f"{len(catalogue.FILES)} schemas: all versions read each other{of_registry}"]
    say(console_of_lines(), told if as_json else "\n".join(lines))
    raise typer.Exit(1 if broken or differ else 0)


@schemas_app.command("register")
def register_schemas(as_json: Json = False) -> None:
    """Register the schemas of the public topics in TARTAN_SCHEMA_REGISTRY_URL. Safe to run again.

    It is run before code is deployed that writes a new version: a publisher waits for ids that are not there.
    """
    loaded = settings.load()
    outcomes = finish(registration.register(loaded))
    told = {
        "registry": loaded.schema_registry_url,
        "registered": sum(one.is_new for one in outcomes),
        "schemas": [one._asdict() for one in outcomes],
    }
    table = Table("subject", "schema", "id", "", box=None)
    for one in outcomes:
        table.add_row(one.subject, one.schema, str(one.id), "new" if one.is_new else "was there")
    say(console_of_lines(), told if as_json else table)


@schemas_app.command("docs")
def document_events(page: Page = None) -> None:
    """Print the page of events for other teams, its tables made from this code; or write them into a file."""
    found = page or Path("docs/events.md")
    try:
        text = found.read_text("utf-8")
    except FileNotFoundError as error:
        raise Halt(f"there is no page {found}: run this in the repository, or name it with --write") from error
    if page is None:
        typer.echo(reference.fill_page(text), nl=False)
    else:
        page.write_text(reference.fill_page(text), "utf-8")


@schemas_app.command("asyncapi")
def document_asyncapi(
    path: Annotated[Path | None, typer.Option("--write", help="Write it into this file instead.")] = None,
    prefix: Annotated[str, typer.Option(help="Of the topics' names.")] = reference.PREFIX,
) -> None:
    """Print the AsyncAPI 3 document of the public topics."""
    text = json.dumps(asyncapi.document(prefix), indent=1, ensure_ascii=False)
    if path is None:
        typer.echo(text)
    else:
        path.write_text(f"{text}\n", "utf-8")
