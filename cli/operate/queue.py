"""The command `tartan queue`: print the state of the queue in the whole installation."""

import asyncio
from collections.abc import Iterable
from operator import attrgetter
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cli.output import Json, connected, count_of, print_result, run, span, span_between, table, time_text, wide_console
from runtime import settings
from runtime.scheduler.queue import status as read_status
from runtime.scheduler.queue_status import QueueState, QueueStatus

WATCH_S = 2.0
"""Interval of --watch: one read of 100,000 Items takes about a second of one of Postgres' processes."""
REASON_CHARACTERS_MAX = 120
FAILURES_SHOWN = 10
"""Last failures in the table; JSON has all that are stored."""
_IDS = frozenset({"about", "last failures", "removals wait for a decision", *QueueState})
"""Headings of columns that hold ids; they are shown whole, because the next command needs them."""


def queue(
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh every two seconds, until Ctrl-C.")] = False,
) -> None:
    """Show which Items are ready, running, delayed, quarantined, stopped or failing, in the whole installation."""
    run(_print_queue(as_json=as_json, watch=watch))


async def _print_queue(*, as_json: bool, watch: bool) -> None:
    loaded = settings.load()
    async with connected(loaded) as connection:
        while True:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                status = await read_status(connection, loaded)
            if watch and not as_json:
                wide_console().clear()
            print_result(status, format_status(status), as_json=as_json)
            if not watch:
                return
            await asyncio.sleep(WATCH_S)


def format_status(status: QueueStatus) -> RenderableType:
    """Format the queue, the sums first; empty parts are left out."""
    counts = status.states
    states = (
        f"{counts.ready} ready, {counts.running} running, {counts.delayed} delayed, {counts.quarantined} quarantined, "
        f"{counts.stopped} stopped, {counts.idle} idle"
    )
    parts: list[RenderableType] = [Text(f"{count_of(status.items, 'Item')}: {states}", style="bold")]
    if counts.ready + counts.running + counts.delayed == 0:
        parts.append(Text("Nothing waits."))
    parts += [*_sums(status), *_items(status), *_problems(status), *_plaid(status)]
    health = status.schedule
    tick = "never" if health.last_tick_age_s is None else f"{span(health.last_tick_age_s)} ago"
    verdict = Text("schedule: healthy", "green") if health.healthy else Text("schedule: NOT HEALTHY", "red")
    details = f", last tick {tick}, {health.overdue} overdue, backlog {health.backlog}"
    parts.append(Text.assemble("\n", verdict, details))
    parts += [Text(f"  {reason}", style="red") for reason in health.reasons]
    return Group(*(line for part in parts for line in ((Text(""), part) if isinstance(part, Table) else (part,))))


def _sums(status: QueueStatus) -> Iterable[RenderableType]:
    if lanes := [lane for lane in status.lanes if lane.ready + lane.running + lane.delayed]:
        counts = attrgetter("lane", "ready", "running", "delayed")
        rows = [(*counts(lane), span(lane.oldest_wait_s)) for lane in lanes]
        yield table(("lane", "ready", "running", "delayed", "oldest wait"), rows)
    for name, reasons in (("delayed by", status.delayed_by), ("stopped by", status.stopped_by)):
        if reasons:
            yield Text(f"{name}: " + ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items())))
    if status.banks:
        columns = ("ready", "running", "delayed", "quarantined", "stopped")
        rows = [
            (bank.institution_name or bank.institution_id, *attrgetter(*columns)(bank), span(bank.oldest_wait_s))
            for bank in status.banks
        ]
        yield table(("bank", *columns, "oldest wait"), rows)


def _items(status: QueueStatus) -> Iterable[RenderableType]:
    for state in (QueueState.QUARANTINED, QueueState.READY, QueueState.RUNNING, QueueState.DELAYED, QueueState.STOPPED):
        rows = [
            (
                *(row.item_id, row.tenant, row.lane, row.cause, (row.why or "")[:REASON_CHARACTERS_MAX], row.code),
                *(row.attempts or "", span_between(row.since, status.at), span_between(status.at, row.until)),
            )
            for row in status.listed
            if row.state is state
        ]
        if not rows:
            continue
        headings = (state.value, "tenant", "lane", "cause", "reason", "error", "failures", "since", "until")
        yield table(headings, rows, ids=_IDS)
        if (more := getattr(status.states, state.value) - len(rows)) > 0:
            yield Text(f"… and {more} more", style="dim")


def _problems(status: QueueStatus) -> Iterable[RenderableType]:
    rows: list[tuple[object, ...]]
    if status.breakers:
        rows = [(row.institution_id, row.code, row.trips, time_text(row.open_until)) for row in status.breakers]
        yield table(("bank does not answer", "code", "outages in a row", "next attempt of one Item after"), rows)
    if status.incidents:
        rows = [
            (
                row.kind,
                row.subject,
                row.detail[:REASON_CHARACTERS_MAX],
                row.count,
                span_between(row.opened_at, status.at),
            )
            for row in status.incidents
        ]
        yield table(("incident", "about", "detail", "reports", "since"), rows, ids=_IDS)
        for kind, remedy in {row.kind: row.remedy for row in status.incidents}.items():
            yield Text(f"{kind}: {remedy}", style="dim")
    if status.removals_withheld:
        rows = [(row.item_id, row.tenant, row.transactions) for row in status.removals_withheld]
        yield table(("removals wait for a decision", "tenant", "transactions"), rows, ids=_IDS)
    if status.failures:
        rows = [
            (
                *(row.item_id, row.cause, row.code, (row.detail or "")[:REASON_CHARACTERS_MAX]),
                *(row.attempts, span_between(row.at, status.at)),
            )
            for row in status.failures[:FAILURES_SHOWN]
        ]
        yield table(("last failures", "cause", "error", "detail", "in a row", "ago"), rows, ids=_IDS)
    if len(status.failures) > FAILURES_SHOWN:
        yield Text(f"… and {len(status.failures) - FAILURES_SHOWN} more: --json", style="dim")


def _plaid(status: QueueStatus) -> Iterable[RenderableType]:
    rows = [
        (row.endpoint, f"{row.left} of {row.burst}", row.per_minute, span(row.next_in_s or None))
        for row in status.buckets
        if row.left < row.burst
    ]
    if rows:
        yield table(("Plaid's quota", "left now", "a minute", "next in"), rows)
    loss = status.webhook_loss or {}
    if loss.get("sent"):
        share = 100 * loss["missed"] / loss["sent"]
        yield Text(f"webhooks: {loss['missed']} of {loss['sent']} that were checked did not arrive ({share:.1f} %)")
