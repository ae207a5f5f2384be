"""The command `tartan rebuild`: the projections anew from the log, beside the live ones, and then in their place."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from cli import versions
from cli.output import console_of_lines, finish, say
from projections.rebuild import rebuild as rebuilding
from projections.rebuild.differences import Comparison
from projections.rebuild.rebuild import Options, Result, Shown
from runtime import logs, settings

LINE_EVERY_S = 5.0
"""Between two lines of progress where no terminal shows a bar."""
DIFFERENCES_SHOWN = 50
"""Lines of a table; `--json` has all that are kept."""

Json = Annotated[bool, typer.Option("--json", help="The last line of the output is one JSON object.")]


def rebuild(
    processes: Annotated[
        int | None, typer.Option(min=1, max=256, help="Workers that load, by default one a core.", show_default=False)
    ] = None,
    expect_changes: Annotated[
        bool, typer.Option("--expect-changes", help="Differences are listed, and the swap goes on.")
    ] = False,
    no_swap: Annotated[
        bool, typer.Option("--no-swap", help="Fill and compare, and leave the live version live.")
    ] = False,
    with_events: Annotated[
        bool, typer.Option("--with-events", help="Encode published events again too, for `tartan republish`.")
    ] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Drop a version that is begun, and begin anew.")] = False,
    back: Annotated[
        bool, typer.Option("--back", help="Only make the version live again that was live before.")
    ] = False,
    drop_old: Annotated[bool, typer.Option("--drop-old", help="Only drop the version that was live before.")] = False,
    status: Annotated[bool, typer.Option("--status", help="Only show the versions that there are.")] = False,
    demo: Annotated[
        bool, typer.Option("--demo", help="Run a short demo first, and rebuild that: needs nothing that runs.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Build the projections anew from the log beside the live ones, compare, and swap. Run again, it goes on.

    Exit code 1 where the two differ and no changes were expected: nothing is swapped then.
    """
    others = [
        work
        for is_wanted, work in (
            (back, versions.back),
            (drop_old, versions.drop_old),
            (status, versions.status),
            (demo, _demo),
        )
        if is_wanted
    ]
    if len(others) > 1:
        raise typer.BadParameter("--back, --drop-old, --status and --demo are given one at a time")
    if others:
        others[0](as_json=as_json)
        return
    options = Options(
        processes, expect_changes=expect_changes, restart=restart, swaps=not no_swap, with_events=with_events
    )
    loaded = settings.load()
    logs.configure(loaded, "rebuild")
    with _shown() as shown:
        result = finish(rebuilding.rebuild(loaded, options, shown))
    console = console_of_lines()
    if as_json:
        say(console, result.told())
    else:
        _show(console, result)
    raise typer.Exit(0 if result.digest_equal or expect_changes else 1)


def _demo(*, as_json: bool) -> None:
    from sandbox.demo.rebuild_demo import run_rebuild_demo

    told, is_right = finish(run_rebuild_demo())
    if as_json:
        say(console_of_lines(), told)
    raise typer.Exit(0 if is_right else 1)


class _Bar:
    """A bar with the rate and the estimated end."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("load", total=None, rate="")
        self._began = time.monotonic()

    def say(self, sentence: str) -> None:
        self._progress.console.print(sentence, markup=False, highlight=False)

    def replayed(self, done: int, of: int, transactions: int) -> None:
        rate = transactions / max(time.monotonic() - self._began, 0.001)
        self._progress.update(self._task, completed=done, total=of, rate=f"{rate:,.0f} transactions/s")


class _Lines:
    """A line every few seconds, for logs."""

    def __init__(self) -> None:
        self._began = self._said_at = time.monotonic()
        self._first: int | None = None

    def say(self, sentence: str) -> None:
        typer.echo(sentence, err=True)

    def replayed(self, done: int, of: int, transactions: int) -> None:
        now = time.monotonic()
        self._first = done if self._first is None else self._first
        if now - self._said_at < LINE_EVERY_S:
            return
        self._said_at = now
        elapsed = now - self._began
        left_s = (of - done) * elapsed / max(done - self._first, 1)
        self.say(
            f"{done:,} of {of:,} records ({done / max(of, 1):.1%}), {transactions / elapsed:,.0f} transactions/s, "
            f"about {left_s:,.0f} s left"
        )


@contextmanager
def _shown() -> Iterator[Shown]:
    if not sys.stderr.isatty():
        yield _Lines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield _Bar(progress)


def _show(console: Console, result: Result) -> None:
    seconds = ", ".join(f"{name} {spent:,.1f} s" for name, spent in result.seconds_by_phase.items())
    compared = result.comparison
    say(
        console,
        f"Version {result.version}: {result.transactions_replayed:,} transactions in {result.events_replayed:,} events "
        f"replayed, {result.transactions_per_s:,} transactions/s ({seconds}).",
    )
    if compared.new_columns:
        say(console, f"New columns: {', '.join(compared.new_columns)}.")
    if compared.gone_columns:
        say(console, f"Columns that are gone: {', '.join(compared.gone_columns)}.")
    if result.digest_equal:
        say(
            console,
            f"It equals the live version: {compared.accounts_compared:,} accounts, {compared.rows_compared:,} rows.",
        )
    else:
        say(console, f"It differs from the live version in {compared.subjects_different:,} accounts, Items and users:")
        say(console, _differences(compared))
        for note in compared.notes:
            say(console, note)
    say(console, "It is live now." if result.swapped else "The live version stays live.")


def _differences(compared: Comparison) -> Table:
    table = Table(
        "user", "Item", "account", "table", "only live", "only next", "different", "in", "for example", box=None
    )
    lines = [(one, name, found) for one in compared.differences for name, found in one.tables.items()]
    for one, name, found in lines[:DIFFERENCES_SHOWN]:
        table.add_row(
            str(one.user),
            one.item_id,
            one.account_id,
            name,
            f"{found.only_live:,}",
            f"{found.only_next:,}",
            f"{found.different:,}",
            ", ".join(found.columns),
            "; ".join(found.examples),
        )
    if len(lines) > DIFFERENCES_SHOWN:
        table.add_row("…", "", "", f"{len(lines) - DIFFERENCES_SHOWN:,} more with --json")
    return table
