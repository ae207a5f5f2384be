"""The commands `tartan archive` and `tartan archive verify`: the log beyond what Kafka keeps."""

import asyncio
import time
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cli.output import console_of_lines, finish, say
from runtime import logs, settings
from runtime.archive import store as archive_store
from runtime.archive.seal import Archived, Sealed, archive
from runtime.archive.verify import Verified, verify, verify_chains
from runtime.settings import Settings
from schemas.errors import Retry

archive_app = typer.Typer(
    help="Seal webhooks and changesets into files with a hash chain, from cron or with --follow, and check these.",
    invoke_without_command=True,
)

HOUR_MS = 3_600_000

Json = Annotated[bool, typer.Option("--json", help="The last line of the output is one JSON object.")]


@archive_app.callback()
def seal(
    context: typer.Context,
    everything: Annotated[
        bool, typer.Option("--all", help="Up to the end, however small the last segments are.")
    ] = False,
    older_than_h: Annotated[
        float, typer.Option(min=0, help="A segment that is not full is sealed when its first record is so old.")
    ] = 24.0,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until it is told to stop.")] = False,
    every_min: Annotated[float, typer.Option(min=0.01, help="With --follow: minutes between runs.")] = 10.0,
    as_json: Json = False,
) -> None:
    """Seal closed ranges of webhooks and changesets into TARTAN_ARCHIVE_URL. Exit code 1 where records are lost."""
    if context.invoked_subcommand is not None:
        return
    loaded = settings.load()
    age_h = None if everything else older_than_h
    if not follow:
        raise typer.Exit(finish(_once(loaded, age_h, as_json=as_json)))
    raise typer.Exit(finish(_follow(loaded, age_h, every_min * 60, as_json=as_json)))


@archive_app.command("verify")
def verify_archive(
    quick: Annotated[bool, typer.Option("--quick", help="Chains and sizes alone: no byte is hashed again.")] = False,
    as_json: Json = False,
) -> None:
    """Hash every sealed byte again and compare it with the topics. Exit code 1 where anything is wrong."""
    raise typer.Exit(finish(_verify(settings.load(), quick=quick, as_json=as_json)))


async def _once(loaded: Settings, age_h: float | None, *, as_json: bool) -> int:
    store = archive_store.connect(loaded)
    before_ms = None if age_h is None else int(time.time() * 1000 - age_h * HOUR_MS)
    with Console(stderr=True).status("sealing") as status:

        def told(sealed: Sealed) -> None:
            status.update(f"sealed {sealed.topic} {sealed.partition}, offsets {sealed.first}..{sealed.last}")

        done = await archive(loaded, store, sealed_before_ms=before_ms, told=told)
    say(console_of_lines(), _told(done) if as_json else _lines(done))
    return 1 if done.faults else 0


async def _follow(loaded: Settings, age_h: float | None, every_s: float, *, as_json: bool) -> int:
    while True:
        try:
            code = await _once(loaded, age_h, as_json=as_json)
        except Retry as error:
            typer.secho(f"tartan: {logs.mask(str(error))}", err=True, fg="yellow")
        else:
            if code:
                return code
        await asyncio.sleep(every_s)


async def _verify(loaded: Settings, *, quick: bool, as_json: bool) -> int:
    store = archive_store.connect(loaded)
    partitions = []
    with Console(stderr=True).status("verifying") as status:
        async for found in (verify_chains if quick else verify)(loaded, store):
            partitions.append(found)
            status.update(f"verified {found.topic} {found.partition}, {found.records} records")
    faults = sum(len(found.faults) for found in partitions)
    say(console_of_lines(), _verified(partitions) if as_json else _verified_lines(partitions))
    return 1 if faults else 0


def _told(done: Archived) -> dict[str, Any]:
    return {
        "segments": len(done.sealed),
        "records": sum(sealed.last - sealed.first + 1 for sealed in done.sealed),
        "bytes": sum(sealed.bytes for sealed in done.sealed),
        "partitions": [row._asdict() for row in done.reached],
        "sealed": [row._asdict() for row in done.sealed],
        "faults": [fault._asdict() for fault in done.faults],
    }


def _lines(done: Archived) -> str:
    told = _told(done)
    waiting = sum(row.topic_end - row.archived_end for row in done.reached)
    lines = [
        f"Sealed {told['records']:,} records in {told['segments']:,} segments, {told['bytes']:,} bytes; "
        f"{waiting:,} records wait for a full segment or their age."
    ]
    return "\n".join([*lines, *map(str, done.faults)])


def _verified(partitions: Iterable[Verified]) -> dict[str, Any]:
    rows = list(partitions)
    return {
        "violations": sum(len(row.faults) for row in rows),
        "segments": sum(row.segments for row in rows),
        "records": sum(row.records for row in rows),
        "bytes": sum(row.bytes for row in rows),
        "compared": sum(row.compared for row in rows),
        "unnamed": sum(row.unnamed for row in rows),
        "faults": [fault._asdict() for row in rows for fault in row.faults],
    }


def _verified_lines(partitions: list[Verified]) -> Any:
    faults = [str(fault) for row in partitions for fault in row.faults]
    if faults:
        return "\n".join(faults)
    table = Table("topic", "partition", "segments", "records", "bytes", "compared with the topic", box=None)
    for row in partitions:
        if row.segments:
            table.add_row(
                row.topic,
                str(row.partition),
                f"{row.segments:,}",
                f"{row.records:,}",
                f"{row.bytes:,}",
                f"{row.compared:,}",
            )
    return table if table.rows else "Nothing is archived."
