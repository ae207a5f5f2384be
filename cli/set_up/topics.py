"""The commands `tartan topics`: compare Kafka's topics with the table in schemas/topics.py, and change them."""

import asyncio
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from msgspec.structs import replace

from cli.output import Json, connected, print_json, print_result, run
from runtime import settings
from runtime.kafka import topics
from runtime.kafka.topics_plan import Plan
from runtime.settings import Settings
from schemas.errors import Halt, Retry
from schemas.topics import TOPICS, full_name

CHANGES = 2
"""Exit code of a plan with changes, as of `terraform plan -detailed-exitcode`."""
AS_IT_IS = "The cluster has every topic as the table says."

topics_app = typer.Typer(
    help="Kafka's topics: compare them with the table in schemas/topics.py, and change them.", no_args_is_help=True
)


@topics_app.command("plan")
def plan(as_json: Json = False) -> None:
    """Show what `apply` would do. Exit code 0: nothing, 2: changes, 1: something is refused."""
    planned = _plan(settings.load())
    _print(planned, as_json=as_json)
    raise typer.Exit(1 if planned.of("refuse") else CHANGES if planned.steps else 0)


@topics_app.command("apply")
def apply(
    yes: Annotated[bool, typer.Option("--yes", help="Change settings of existing topics too, without asking.")] = False,
    allow_deletion: Annotated[
        list[str] | None,
        typer.Option(metavar="TOPIC", help="Topic whose new retention may delete records; may be repeated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Create the topics that are missing and, with --yes, give the others the table's settings.

    A change that would break the order by key is refused, and nothing is changed then.
    """
    loaded = settings.load()
    allowed = _full_names(loaded, allow_deletion or [])
    planned = _plan(loaded)
    if not as_json:
        _print_steps(planned)
    refused = planned.of("refuse")
    # A wrong number of partitions stops the whole run: every other change would build on it.
    if unsafe := [step for step in refused if step.setting == "partitions"]:
        raise Halt("nothing was done. " + "; ".join(f"{step.topic}: {step.why}" for step in unsafe))
    not_allowed = [step for step in planned.of("change") if step.deletes and step.topic not in allowed]
    changes = [step for step in planned.of("change") if step not in not_allowed]
    can_ask = bool(changes) and not as_json and sys.stdin.isatty()
    is_confirmed = yes or (can_ask and typer.confirm("Change these settings?"))
    created = [step.topic for step in planned.of("create")]
    asyncio.run(topics.create(loaded, created))
    asyncio.run(topics.change(loaded, changes if is_confirmed else []))
    changed, left = (changes, not_allowed) if is_confirmed else ([], [*changes, *not_allowed])
    lines = []
    for step in left:
        options = f"--yes --allow-deletion {step.topic}" if step.deletes else "--yes"
        lines.append(f"unchanged: {step.topic} {step.setting} {step.old}; `tartan topics apply {options}` changes it")
    if created or changed:
        lines.append(f"Created {len(created)} topics, changed {len(changed)} settings.")
    else:
        lines.append("Nothing was done." if left else "Nothing to do.")
    document = {"created": created, "changed": changed, "left": left, "refused": refused}
    print_result(document, *lines, as_json=as_json)
    raise typer.Exit(1 if refused or (is_confirmed and not_allowed) else 0)


@topics_app.command("verify")
def verify(as_json: Json = False) -> None:
    """Compare the cluster with the table and with the offsets in Postgres. Exit code 1 where they differ."""
    planned = _plan(settings.load())
    _print(planned, as_json=as_json)
    raise typer.Exit(1 if planned.steps else 0)


def _plan(loaded: Settings) -> Plan:
    """Plan with the offsets in Postgres where it answers: a first `apply` may come before the tables."""

    async def work() -> Plan:
        try:
            async with connected(loaded) as postgres:
                progress = await topics.read_progress(postgres)
        except Retry as error:
            planned = await topics.planned(loaded)
            return replace(planned, warnings=[*planned.warnings, f"not compared with what was read: {error}"])
        return await topics.planned(loaded, progress)

    return run(work())


def _print(planned: Plan, *, as_json: bool) -> None:
    if not as_json:
        _print_steps(planned)
        return
    document = {
        "violations": len(planned.steps),
        "create": planned.of("create"),
        "change": planned.of("change"),
        "refused": planned.of("refuse"),
        "warnings": planned.warnings,
        "strangers": planned.unknown_topics,
    }
    print_json(document)


def _print_steps(planned: Plan) -> None:
    for line in planned.warnings:
        typer.secho(f"WARNING: {line}", fg="red", err=True)
    for step in planned.steps:
        typer.echo(step.line)
    for name in planned.unknown_topics:
        typer.echo(f"  {name}: not in the table; it is left alone")
    if not planned.steps:
        typer.echo(AS_IT_IS)


def _full_names(loaded: Settings, names: Sequence[str]) -> set[str]:
    """Return the full names of topics that are named in full or as in the table."""
    full_names = {topic.name: full_name(topic, loaded.topic_prefix) for topic in TOPICS}
    full_names |= {full: full for full in full_names.values()}
    for name in names:
        if name not in full_names:
            known = ", ".join(topic.name for topic in TOPICS)
            raise typer.BadParameter(f"{name} is no topic; the topics are {known}", param_hint="--allow-deletion")
    return {full_names[name] for name in names}
