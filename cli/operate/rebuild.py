"""The command `tartan rebuild`: fill a second version of the projections from the log, and swap it in."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from cli.output import Json, print_json, print_result, run, table, with_postgres
from projections.rebuild import rebuild as rebuilding
from projections.rebuild import swap, versions
from projections.rebuild.rebuild import Options, ProgressListener, Result
from runtime import logs, settings

LINE_EVERY_S = 5.0
"""Interval of progress lines where no terminal shows a bar."""
DIFFERENCES_SHOWN = 50
"""Differences in the table; `--json` has all that are stored."""


def rebuild(
    processes: Annotated[
        int | None,
        typer.Option(min=1, max=256, help="Number of loading processes; by default one a core.", show_default=False),
    ] = None,
    expect_changes: Annotated[
        bool, typer.Option("--expect-changes", help="List differences and swap all the same.")
    ] = False,
    no_swap: Annotated[
        bool, typer.Option("--no-swap", help="Fill and compare the next version, and leave the live version live.")
    ] = False,
    with_events: Annotated[
        bool, typer.Option("--with-events", help="Encode published events again too, for `tartan republish`.")
    ] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Drop an unfinished version and begin a new one.")] = False,
    back: Annotated[
        bool, typer.Option("--back", help="Only swap back to the version that was live before the last swap.")
    ] = False,
    drop_old: Annotated[
        bool, typer.Option("--drop-old", help="Only drop the version that was live before the last swap.")
    ] = False,
    status: Annotated[bool, typer.Option("--status", help="Only show the existing versions.")] = False,
    demo: Annotated[
        bool, typer.Option("--demo", help="Run a short demo and rebuild its projections; no running stage is needed.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Build the projections again from the log beside the live ones, compare, and swap. Run again, it continues.

    Exit code 1 where the two differ and no changes were expected: nothing is swapped then.
    """
    choices = ((back, _swap_back), (drop_old, _drop_old), (status, _show_versions), (demo, _demo))
    chosen = [work for is_chosen, work in choices if is_chosen]
    if len(chosen) > 1:
        raise typer.BadParameter("--back, --drop-old, --status and --demo are given one at a time")
    if chosen:
        chosen[0](as_json=as_json)
        return
    options = Options(
        processes, expect_changes=expect_changes, restart=restart, swaps=not no_swap, with_events=with_events
    )
    loaded = settings.load()
    logs.configure(loaded, "rebuild")
    with _progress() as progress:
        result = run(rebuilding.rebuild(loaded, options, progress))
    print_result(result.to_json(), *_texts(result), as_json=as_json)
    raise typer.Exit(0 if result.digest_equal or expect_changes else 1)


def _swap_back(*, as_json: bool) -> None:
    loaded = settings.load()
    logs.configure(loaded, "rebuild")
    swapped = run(swap.swap_back(loaded, tell=lambda sentence: typer.echo(sentence, err=True)))
    text = f"Version {swapped.live} is live, version {swapped.old} is kept; writers waited {swapped.waited_s:.2f} s."
    print_result(swapped._asdict(), text, as_json=as_json)


def _drop_old(*, as_json: bool) -> None:
    dropped = run(versions.drop_old(settings.load()))
    document = {"dropped": dropped.number, "fold": dropped.fold}
    print_result(document, f"Version {dropped.number} is dropped.", as_json=as_json)


def _show_versions(*, as_json: bool) -> None:
    rows = [status.to_json() for status in with_postgres(versions.status)]
    cells = (
        (
            *(row[name] for name in ("number", "fold", "schema", "state", "since")),
            *(f"{row['records']:,}", f"{row['behind']:,}"),
            f"not fed: {row['not_fed']}" if row["not_fed"] else None,
        )
        for row in rows
    )
    headings = ("version", "fold", "schema", "state", "since", "records", "behind", "")
    print_result({"versions": rows}, table(headings, cells), as_json=as_json)


def _demo(*, as_json: bool) -> None:
    from sandbox.demo.rebuild_demo import run_rebuild_demo

    document, is_equal = run(run_rebuild_demo())
    if as_json:
        print_json(document)
    raise typer.Exit(0 if is_equal else 1)


class _Bar:
    """A progress bar with the rate and the estimated end."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("load", total=None, rate="")
        self._started_at = time.monotonic()

    def message(self, sentence: str) -> None:
        self._progress.console.print(sentence, markup=False, highlight=False)

    def progress(self, done: int, total: int, transactions: int) -> None:
        rate = transactions / max(time.monotonic() - self._started_at, 0.001)
        self._progress.update(self._task, completed=done, total=total, rate=f"{rate:,.0f} transactions/s")


class _Lines:
    """A progress line every few seconds, for logs."""

    def __init__(self) -> None:
        self._started_at = self._printed_at = time.monotonic()
        self._first: int | None = None

    def message(self, sentence: str) -> None:
        typer.echo(sentence, err=True)

    def progress(self, done: int, total: int, transactions: int) -> None:
        now = time.monotonic()
        self._first = done if self._first is None else self._first
        if now - self._printed_at < LINE_EVERY_S:
            return
        self._printed_at = now
        elapsed = now - self._started_at
        left_s = (total - done) * elapsed / max(done - self._first, 1)
        self.message(
            f"{done:,} of {total:,} records ({done / max(total, 1):.1%}), "
            f"{transactions / elapsed:,.0f} transactions/s, "
            f"about {left_s:,.0f} s left"
        )


@contextmanager
def _progress() -> Iterator[ProgressListener]:
    if not sys.stderr.isatty():
        yield _Lines()
        return
    rate = TextColumn("{task.fields[rate]}")
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), rate, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield _Bar(progress)


def _texts(result: Result) -> Iterator[RenderableType]:
    """Format a result: what was replayed, the comparison with the live version, and which version is live."""
    seconds = ", ".join(f"{name} {spent:,.1f} s" for name, spent in result.seconds_by_phase.items())
    comparison = result.comparison
    yield (
        f"Version {result.version}: {result.transactions_replayed:,} transactions in {result.events_replayed:,} events "
        f"replayed, {result.transactions_per_s:,} transactions/s ({seconds})."
    )
    if comparison.new_columns:
        yield f"New columns: {', '.join(comparison.new_columns)}."
    if comparison.gone_columns:
        yield f"Columns that are gone: {', '.join(comparison.gone_columns)}."
    if result.digest_equal:
        counts = f"{comparison.accounts_compared:,} accounts, {comparison.rows_compared:,} rows"
        yield f"It equals the live version: {counts}."
    else:
        yield f"It differs from the live version in {comparison.subjects_different:,} accounts, Items and users:"
        rows = [
            (
                *(subject.user, subject.item_id, subject.account_id, name),
                *(f"{count:,}" for count in (row.only_live, row.only_next, row.different)),
                *(", ".join(row.columns), "; ".join(row.examples)),
            )
            for subject in comparison.differences
            for name, row in subject.tables.items()
        ]
        if (more := len(rows) - DIFFERENCES_SHOWN) > 0:
            rows[DIFFERENCES_SHOWN:] = [("…", "", "", f"{more:,} more with --json")]
        yield table(
            ("user", "Item", "account", "table", "only live", "only next", "different", "in", "for example"), rows
        )
        yield from comparison.notes
    yield "It is live now." if result.swapped else "The live version stays live."
