"""The commands `tartan schemas`: show, check, document and register the schemas of the topics."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cli.output import Json, print_result, run, table
from runtime import settings
from runtime.kafka import registration
from schemas.contract import asyncapi, reference, subjects
from schemas.encoding import catalogue, compatibility
from schemas.errors import Halt
from schemas.topics import TOPICS

schemas_app = typer.Typer(
    help="The schemas of the topics: show, check, document, and register in a schema registry.", no_args_is_help=True
)


@schemas_app.command("list")
def list_schemas(as_json: Json = False) -> None:
    """List every version of every schema, with its number and the topics that use it."""
    topics = {number: [topic.name for topic in TOPICS if number in topic.schemas] for number in catalogue.FILES}
    rows = [{"number": number, "name": name, "topics": topics[number]} for number, name in catalogue.FILES.items()]
    cells = ((number, name, ", ".join(topics[number])) for number, name in catalogue.FILES.items())
    print_result({"schemas": rows}, table(("number", "schema", "in topics"), cells), as_json=as_json)


@schemas_app.command("show")
def show_schema(
    name: Annotated[
        str, typer.Argument(help="Number of the schema, or the name of its file: 16 or transaction_event.v2.")
    ],
) -> None:
    """Print a schema as a registry stores it, with its nested records."""
    number = subjects.schema_of_file(name)
    if number is None:
        raise typer.BadParameter(f"no schema is called {name}; `tartan schemas list` names them", param_hint="NAME")
    typer.echo(json.dumps(catalogue.full_schema(number), indent=2, ensure_ascii=False))


@schemas_app.command("check")
def check_schemas(as_json: Json = False) -> None:
    """Check that all versions of every schema read each other, and that the configured registry has them.

    Exit code 1 where a version is incompatible, or missing in the registry.
    """
    incompatible = [str(pair) for pair in compatibility.incompatible_families()]
    loaded = settings.load()
    registry = loaded.schema_registry_url
    differences = run(registration.differences(loaded)) if registry else []
    document = {
        "schemas": len(catalogue.FILES),
        "incompatible": incompatible,
        "registry": registry or None,
        "registry_differs": differences,
    }
    suffix = f", and {registry} holds them" if registry else ""
    summary = f"{len(catalogue.FILES)} schemas: all versions read each other{suffix}"
    print_result(document, "\n".join([*incompatible, *differences] or [summary]), as_json=as_json)
    raise typer.Exit(1 if incompatible or differences else 0)


@schemas_app.command("register")
def register_schemas(as_json: Json = False) -> None:
    """Register the schemas of the public topics in TARTAN_SCHEMA_REGISTRY_URL. Safe to run again.

    Run it before you deploy code that writes a new version: a publisher waits until its ids are registered.
    """
    loaded = settings.load()
    outcomes = run(registration.register(loaded))
    document = {
        "registry": loaded.schema_registry_url,
        "registered": sum(outcome.is_new for outcome in outcomes),
        "schemas": [outcome._asdict() for outcome in outcomes],
    }
    rows = ((row.subject, row.schema, row.id, "new" if row.is_new else "was there") for row in outcomes)
    print_result(document, table(("subject", "schema", "id", ""), rows), as_json=as_json)


@schemas_app.command("docs")
def document_events(
    page: Annotated[
        Path | None, typer.Option("--write", help="Page whose generated parts are updated in place.")
    ] = None,
) -> None:
    """Print the page of events for other teams with its generated tables, or update the page in place."""
    source = page or Path("docs/events.md")
    try:
        text = source.read_text("utf-8")
    except FileNotFoundError as error:
        raise Halt(f"there is no page {source}: run this in the repository, or name it with --write") from error
    if page is None:
        typer.echo(reference.fill_page(text), nl=False)
    else:
        page.write_text(reference.fill_page(text), "utf-8")


@schemas_app.command("asyncapi")
def document_asyncapi(
    path: Annotated[
        Path | None, typer.Option("--write", help="File to write the document to, instead of standard output.")
    ] = None,
    prefix: Annotated[str, typer.Option(help="Prefix of the topics' names in the document.")] = reference.PREFIX,
) -> None:
    """Print the AsyncAPI 3 document of the public topics."""
    text = json.dumps(asyncapi.document(prefix), indent=1, ensure_ascii=False)
    if path is None:
        typer.echo(text)
    else:
        path.write_text(f"{text}\n", "utf-8")
