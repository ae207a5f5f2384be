"""The command `tartan republish`: fills a new or emptied public topic from the log."""

import time
from typing import Annotated

import typer

from cli.output import connected, console_of_lines, finish, say
from projections.publish.republish import Progress, Republisher
from runtime import settings
from runtime.kafka.clients import Appender, LogEnds
from runtime.kafka.schema_ids import SchemaIds
from schemas.contract import subjects
from schemas.topics import PUBLIC, Topic

TOLD_EVERY_S = 2.0


def republish(
    topic: Annotated[str, typer.Argument(help=f"One of {', '.join(one.name for one in PUBLIC)}.")],
    partitions: Annotated[str | None, typer.Option(help="These only, by commas.", show_default="all")] = None,
    empty: Annotated[
        bool, typer.Option("--empty", help="Delete first what the partitions hold; readers see it again.")
    ] = False,
    kept: Annotated[
        bool, typer.Option("--kept", help="Leave out changesets whose events are not kept any more.")
    ] = False,
    abandon: Annotated[
        bool, typer.Option("--abandon", help="Give up what was begun: only what came since then is sent.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The last line of the output is one JSON object.")] = False,
) -> None:
    """Fill a public topic from the log; new events come behind. Interrupted, the same command goes on."""
    found = next((one for one in PUBLIC if one.name == topic), None)
    if found is None:
        raise typer.BadParameter(f"{topic} is no public topic; they are {', '.join(one.name for one in PUBLIC)}")
    if abandon and (empty or kept):
        raise typer.BadParameter("--abandon goes without --empty and --kept")
    finish(_republish(found, partitions, empty=empty, kept=kept, abandon=abandon, as_json=as_json))


async def _republish(
    topic: Topic, chosen: str | None, *, empty: bool, kept: bool, abandon: bool, as_json: bool
) -> None:
    loaded = settings.load()
    partitions = _numbers(chosen, loaded.partitions)
    began = time.monotonic()
    appender, log = Appender(loaded, client="republish"), LogEnds(loaded)
    async with connected(loaded) as database:
        wire = subjects.wire_prefixes(await SchemaIds(loaded, database).ids())
        republisher = Republisher(
            database, appender, log, loaded, topic, prefixes=wire, on_progress=_Teller(topic), skips_expired=kept
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
    seconds = time.monotonic() - began
    told = {"topic": topic.name, "partitions": partitions, "events": sent, "seconds": round(seconds, 3)}
    text = f"{sent:,} events of {len(partitions)} partitions sent to {topic.name} in {seconds:.1f} s."
    say(console_of_lines(), told if as_json else text)


def _numbers(chosen: str | None, count: int) -> list[int]:
    """The partitions that were named. Raises: typer.BadParameter, where one is none of the topics'."""
    if chosen is None:
        return list(range(count))
    words = [word.strip() for word in chosen.split(",")]
    if not all(word.isdigit() and int(word) < count for word in words):
        raise typer.BadParameter(f"--partitions {chosen}: are numbers from 0 to {count - 1}, by commas")
    return sorted({int(word) for word in words})


class _Teller:
    """Says on standard error how far a partition is, from time to time."""

    def __init__(self, topic: Topic) -> None:
        self._topic = topic.name
        self._next = time.monotonic() + TOLD_EVERY_S

    def __call__(self, progress: Progress) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + TOLD_EVERY_S
        where = f"{self._topic} {progress.partition}"
        typer.echo(
            f"{where}: {progress.events:,} events, changeset {progress.position:,} of {progress.end:,}", err=True
        )
