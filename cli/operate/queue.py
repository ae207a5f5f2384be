"""The command `tartan queue`: print the state of the queue in the whole installation."""

import asyncio
from typing import Annotated

import typer

from cli.operate import tables
from cli.output import Json, connected, print_result, run, wide_console
from runtime import settings
from runtime.scheduler import queue

WATCH_S = 2.0
"""Interval of --watch: one read of 100,000 Items takes about a second of one of Postgres' processes."""


def show_queue(
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh every two seconds, until Ctrl-C.")] = False,
) -> None:
    """Show which Items are ready, running, delayed, quarantined, stopped or failing, in the whole installation."""
    run(_show_queue(as_json=as_json, watch=watch))


async def _show_queue(*, as_json: bool, watch: bool) -> None:
    console = wide_console()
    loaded = settings.load()
    async with connected(loaded) as connection:
        while True:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                status = await queue.status(connection, loaded)
            if watch and not as_json:
                console.clear()
            print_result(status, tables.queue(status), as_json=as_json)
            if not watch:
                return
            await asyncio.sleep(WATCH_S)
