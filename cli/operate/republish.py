"""The command `tartan republish`: fill a new or emptied public topic from the log."""

import time
from typing import Annotated

import typer

from cli.operate.commands import names, topic_of
from cli.output import Json, connected, print_result, run
from projections.publish.republish import Progress, Republisher
from runtime import settings
from runtime.kafka.clients import Appender, LogEnds
from runtime.kafka.schema_ids import SchemaIds
from schemas.contract import subjects
from schemas.topics import PUBLIC, Topic

PROGRESS_EVERY_S = 2.0


def republish(
    name: Annotated[str, typer.Argument(metavar="TOPIC", help=f"Public topic to fill: {names(PUBLIC)}.")],
    partitions: Annotated[
        str | None, typer.Option(help="Partitions to fill, numbers separated by commas.", show_default="all")
    ] = None,
    empty: Annotated[
        bool, typer.Option("--empty", help="Delete the partitions' records first; readers see all events again.")
    ] = False,
    skip_expired: Annotated[
        bool, typer.Option("--skip-expired", help="Skip changesets whose events are expired and not stored any more.")
    ] = False,
    old_skip_expired: Annotated[bool, typer.Option("--kept", hidden=True, help="Old name of --skip-expired.")] = False,
    abandon: Annotated[
        bool, typer.Option("--abandon", help="Give up a started run; send only the events that came since then.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Fill a public topic from the log; new events follow. The same command continues an interrupted run."""
    topic = topic_of(name, PUBLIC)
    skip_expired = skip_expired or old_skip_expired
    if abandon and (empty or skip_expired):
        raise typer.BadParameter("--abandon goes without --empty and --skip-expired")
    run(_republish(topic, partitions, empty=empty, skip_expired=skip_expired, abandon=abandon, as_json=as_json))


async def _republish(
    topic: Topic, chosen: str | None, *, empty: bool, skip_expired: bool, abandon: bool, as_json: bool
) -> None:
    loaded = settings.load()
    partitions = _numbers(chosen, loaded.partitions)
    started_at = time.monotonic()
    appender, log = Appender(loaded, client="republish"), LogEnds(loaded)
    async with connected(loaded) as database:
        prefixes = subjects.wire_prefixes(await SchemaIds(loaded, database).ids())
        next_at = time.monotonic() + PROGRESS_EVERY_S

        def print_progress(progress: Progress) -> None:
            nonlocal next_at
            if time.monotonic() < next_at:
                return
            next_at = time.monotonic() + PROGRESS_EVERY_S
            position = f"changeset {progress.position:,} of {progress.end:,}"
            typer.echo(f"{topic.name} {progress.partition}: {progress.events:,} events, {position}", err=True)

        republisher = Republisher(
            database,
            appender,
            log,
            loaded,
            topic,
            prefixes=prefixes,
            on_progress=print_progress,
            skips_expired=skip_expired,
        )
        await republisher.lock_topic()
        try:
            await log.start()
            if abandon:
                partitions = [number for number in await republisher.held_partitions() if number in partitions]
                sent = sum([await republisher.abandon(number) for number in partitions])
            else:
                partitions = await republisher.hold(partitions, empties=empty)
                sent = sum([await republisher.fill(number, empties=empty) for number in partitions])
        finally:
            await log.stop()
            await appender.stop()
    seconds = time.monotonic() - started_at
    document = {"topic": topic.name, "partitions": partitions, "events": sent, "seconds": round(seconds, 3)}
    text = f"{sent:,} events of {len(partitions)} partitions sent to {topic.name} in {seconds:.1f} s."
    print_result(document, text, as_json=as_json)


def _numbers(chosen: str | None, count: int) -> list[int]:
    if chosen is None:
        return list(range(count))
    numbers = [number.strip() for number in chosen.split(",")]
    if not all(number.isdigit() and int(number) < count for number in numbers):
        raise typer.BadParameter(f"--partitions {chosen}: are numbers from 0 to {count - 1}, by commas")
    return sorted({int(number) for number in numbers})
