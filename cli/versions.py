"""What `tartan rebuild` does with versions that are there: swap back, drop the old one, show them."""

from collections.abc import Sequence

import typer
from rich.table import Table

from cli.output import console_of_lines, finish, say, with_postgres
from projections.rebuild import swap, versions
from projections.rebuild.versions import Status
from runtime import logs, settings


def back(*, as_json: bool) -> None:
    """Make the version that was live before the live one again; it stays fed, and so does the other one."""
    loaded = settings.load()
    logs.configure(loaded, "rebuild")
    swapped = finish(swap.back(loaded, tell=_tell))
    told = f"Version {swapped.live} is live, version {swapped.old} is kept; writers waited {swapped.waited_s:.2f} s."
    say(console_of_lines(), swapped._asdict() if as_json else told)


def drop_old(*, as_json: bool) -> None:
    """Drop the version that is kept after a swap: from then on nobody can go back to it."""
    dropped = finish(versions.drop_old(settings.load()))
    told = {"dropped": dropped.number, "fold": dropped.fold}
    say(console_of_lines(), told if as_json else f"Version {dropped.number} is dropped.")


def status(*, as_json: bool) -> None:
    """Show the versions that there are."""
    found = with_postgres(versions.status)
    say(console_of_lines(), {"versions": [one.told() for one in found]} if as_json else _table(found))


def _tell(sentence: str) -> None:
    typer.echo(sentence, err=True)


def _table(found: Sequence[Status]) -> Table:
    table = Table("version", "fold", "schema", "state", "since", "records", "behind", "", box=None)
    for one in found:
        told = one.told()
        table.add_row(
            str(told["number"]),
            str(told["fold"]),
            told["schema"],
            told["state"],
            told["since"],
            f"{one.records:,}",
            f"{one.behind:,}",
            f"not fed: {told['not_fed']}" if told["not_fed"] else "",
        )
    return table
