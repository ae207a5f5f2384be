"""The commands `tartan archive` and `tartan archive verify`: keep the log longer than Kafka does."""

import asyncio
import time
from typing import Annotated

import typer
from rich.console import Console, RenderableType

from cli.output import Json, print_result, run, table
from runtime import logs, settings
from runtime.archive import store as archive_store
from runtime.archive.seal import archive
from runtime.archive.verify import verify, verify_chains
from runtime.settings import Settings
from schemas.errors import Retry

archive_app = typer.Typer(
    help="Seal webhooks and changesets into files with a hash chain, from cron or with --follow, and check these.",
    invoke_without_command=True,
)

HOUR_MS = 3_600_000
_COUNTS = ("segments", "records", "bytes", "compared")


@archive_app.callback()
def seal(
    context: typer.Context,
    everything: Annotated[
        bool, typer.Option("--all", help="Seal up to the end of the log, however small the last segments are.")
    ] = False,
    older_than_h: Annotated[
        float, typer.Option(min=0, help="Age of a segment's first record that seals it before it is full, in hours.")
    ] = 24.0,
    follow: Annotated[bool, typer.Option("--follow", help="Repeat the run until the process is stopped.")] = False,
    every_min: Annotated[float, typer.Option(min=0.01, help="Pause between two runs of --follow, in minutes.")] = 10.0,
    as_json: Json = False,
) -> None:
    """Seal closed ranges of webhooks and changesets into TARTAN_ARCHIVE_URL. Exit code 1 where records are lost."""
    if context.invoked_subcommand is not None:
        return
    loaded = settings.load()
    age_h = None if everything else older_than_h
    work = _follow(loaded, age_h, every_min * 60, as_json=as_json) if follow else _once(loaded, age_h, as_json=as_json)
    raise typer.Exit(run(work))


@archive_app.command("verify")
def verify_archive(
    quick: Annotated[
        bool, typer.Option("--quick", help="Check only hash chains and sizes; hash no byte again.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Hash every sealed byte again and compare it with the topics. Exit code 1 where anything is wrong."""
    raise typer.Exit(run(_verify(settings.load(), quick=quick, as_json=as_json)))


async def _once(loaded: Settings, age_h: float | None, *, as_json: bool) -> int:
    store = archive_store.connect(loaded)
    before_ms = None if age_h is None else int(time.time() * 1000 - age_h * HOUR_MS)
    with Console(stderr=True).status("sealing") as status:
        archived = await archive(
            loaded,
            store,
            sealed_before_ms=before_ms,
            on_sealed=lambda row: status.update(f"sealed {row.topic} {row.partition}, offsets {row.first}..{row.last}"),
        )
    document = {
        "segments": len(archived.sealed),
        "records": sum(sealed.last - sealed.first + 1 for sealed in archived.sealed),
        "bytes": sum(sealed.bytes for sealed in archived.sealed),
        "partitions": [row._asdict() for row in archived.reached],
        "sealed": [row._asdict() for row in archived.sealed],
        "faults": [fault._asdict() for fault in archived.faults],
    }
    waiting = sum(row.topic_end - row.archived_end for row in archived.reached)
    summary = (
        f"Sealed {document['records']:,} records in {document['segments']:,} segments, {document['bytes']:,} bytes; "
        f"{waiting:,} records wait for a full segment or their age."
    )
    print_result(document, "\n".join([summary, *map(str, archived.faults)]), as_json=as_json)
    return 1 if archived.faults else 0


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
        async for partition in (verify_chains if quick else verify)(loaded, store):
            partitions.append(partition)
            status.update(f"verified {partition.topic} {partition.partition}, {partition.records} records")
    faults = [fault for row in partitions for fault in row.faults]
    sums = {name: sum(getattr(row, name) for row in partitions) for name in (*_COUNTS, "unnamed")}
    text: RenderableType = "\n".join(map(str, faults)) or "Nothing is archived."
    rows = [
        (row.topic, row.partition, *(f"{getattr(row, name):,}" for name in _COUNTS))
        for row in partitions
        if row.segments
    ]
    if rows and not faults:
        text = table(("topic", "partition", "segments", "records", "bytes", "compared with the topic"), rows)
    document = {"violations": len(faults), **sums, "faults": [fault._asdict() for fault in faults]}
    print_result(document, text, as_json=as_json)
    return 1 if faults else 0
