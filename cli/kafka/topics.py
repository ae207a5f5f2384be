"""The commands `tartan topics`: Kafka's topics against the table in schemas/topics.py, as Terraform does it."""

import asyncio
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from msgspec.structs import replace

from cli.output import connected, console_of_lines, finish, say
from runtime import settings
from runtime.kafka import topics
from runtime.kafka.topics_plan import Plan, Step
from runtime.settings import Settings
from schemas.errors import Halt, Retry
from schemas.topics import TOPICS, full_name

CHANGES = 2
"""Exit code of a plan that would change something, as of `terraform plan -detailed-exitcode`."""
AS_IT_IS = "The cluster has every topic as the table says."

Json = Annotated[bool, typer.Option("--json", help="The last line of the output is one JSON object.")]

topics_app = typer.Typer(help="The topics of Kafka against the table in schemas/topics.py.", no_args_is_help=True)


@topics_app.command("plan")
def plan(as_json: Json = False) -> None:
    """Show what `apply` would do. Exit code 0: nothing, 2: changes, 1: something is refused."""
    told = _planned(settings.load())
    _tell(told, as_json=as_json)
    raise typer.Exit(1 if told.of("refuse") else CHANGES if told.steps else 0)


@topics_app.command("apply")
def apply(
    yes: Annotated[
        bool, typer.Option("--yes", help="Change settings of topics that are there, too, without asking.")
    ] = False,
    allow_deletion: Annotated[
        list[str] | None, typer.Option(metavar="TOPIC", help="Where its new retention may delete records. Repeatable.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Create the topics that are missing and, with --yes, give the others the table's settings.

    What would break the order by key is refused, and nothing is done then.
    """
    loaded = settings.load()
    allowed = _named(loaded, allow_deletion or [])
    told = _planned(loaded)
    if not as_json:
        _show(told)
    _refuse_unsafe(told)
    kept, changes = _divided(told, allowed)
    confirmed = yes or (bool(changes) and _confirmed(as_json=as_json))
    created = [step.topic for step in told.of("create")]
    asyncio.run(_carry_out(loaded, created, changes if confirmed else []))
    changed, left = (changes, kept) if confirmed else ([], [*changes, *kept])
    refused = told.of("refuse")
    if as_json:
        say(console_of_lines(), {"created": created, "changed": changed, "left": left, "refused": refused})
    else:
        _say_done(created, changed, left)
    raise typer.Exit(1 if refused or (confirmed and kept) else 0)


@topics_app.command("verify")
def verify(as_json: Json = False) -> None:
    """Exit with 1 where the cluster is not as the table says, or not as Postgres has read it."""
    told = _planned(settings.load())
    _tell(told, as_json=as_json)
    raise typer.Exit(1 if told.steps else 0)


async def _carry_out(loaded: Settings, created: Sequence[str], changes: Sequence[Step]) -> None:
    await topics.create(loaded, created)
    await topics.change(loaded, changes)


def _planned(loaded: Settings) -> Plan:
    """The plan, with what Postgres knows where it can be asked: a first `apply` may come before the tables."""

    async def look() -> Plan:
        try:
            async with connected(loaded) as postgres:
                read = await topics.read_progress(postgres)
        except Retry as error:
            told = await topics.planned(loaded)
            return replace(told, warnings=[*told.warnings, f"not compared with what was read: {error}"])
        return await topics.planned(loaded, read)

    return finish(look())


def _tell(told: Plan, *, as_json: bool) -> None:
    if as_json:
        say(
            console_of_lines(),
            {
                "violations": len(told.steps),
                "create": told.of("create"),
                "change": told.of("change"),
                "refused": told.of("refuse"),
                "warnings": told.warnings,
                "strangers": told.unknown_topics,
            },
        )
    else:
        _show(told)


def _show(told: Plan) -> None:
    for line in told.warnings:
        typer.secho(f"WARNING: {line}", fg="red", err=True)
    for step in told.steps:
        typer.echo(step.line)
    for name in told.unknown_topics:
        typer.echo(f"  {name}: not in the table; it is left alone")
    if not told.steps:
        typer.echo(AS_IT_IS)


def _named(loaded: Settings, names: Sequence[str]) -> set[str]:
    """Full names of topics that were named in full or by the table's names."""
    full = {
        spelling: full_name(one, loaded.topic_prefix)
        for one in TOPICS
        for spelling in (one.name, full_name(one, loaded.topic_prefix))
    }
    for name in names:
        if name not in full:
            known = ", ".join(one.name for one in TOPICS)
            raise typer.BadParameter(f"{name} is no topic; the topics are {known}", param_hint="--allow-deletion")
    return {full[name] for name in names}


def _refuse_unsafe(told: Plan) -> None:
    """Raises: Halt, where a step that is refused concerns partitions: whatever else is done would build on it."""
    if unsafe := [step for step in told.of("refuse") if step.setting == "partitions"]:
        raise Halt("nothing was done. " + "; ".join(f"{step.topic}: {step.why}" for step in unsafe))


def _divided(told: Plan, allowed: set[str]) -> tuple[list[Step], list[Step]]:
    """The changes that are left alone because they delete records and nobody named their topics, and the others."""
    changes = told.of("change")
    kept = [step for step in changes if step.deletes and step.topic not in allowed]
    return kept, [step for step in changes if step not in kept]


def _confirmed(*, as_json: bool) -> bool:
    return not as_json and sys.stdin.isatty() and typer.confirm("Change these settings?")


def _say_done(created: Sequence[str], changed: Sequence[Step], left: Sequence[Step]) -> None:
    for step in left:
        way = f"--yes --allow-deletion {step.topic}" if step.deletes else "--yes"
        typer.echo(f"left as it is: {step.topic} {step.setting} {step.old}; `tartan topics apply {way}` changes it")
    typer.echo(
        f"Created {len(created)} topics, changed {len(changed)} settings."
        if created or changed
        else "Nothing was done."
        if left
        else "Nothing to do."
    )
