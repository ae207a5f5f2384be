"""Tables: format the queue, Items and dead letters for people. Ids are shown whole: the next command needs them."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from operator import attrgetter
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from runtime.incidents.dead_letters import StoredDeadLetter
from runtime.scheduler.item_status import ItemStatus, QuarantinedSince
from runtime.scheduler.queue_status import QueuedItem, QueueState, QueueStatus
from runtime.scheduler.runs import FinishedRun

REASON_CHARACTERS_MAX = 120
FAILURES_SHOWN = 10
"""Last failures in the table; JSON has all that are stored."""
_IDS = frozenset({"Item", "about", "last failures", "removals wait for a decision", "transaction", *QueueState})
"""Columns that hold ids."""
_UNITS = (("d", 86400), ("h", 3600), ("min", 60))


def queue(status: QueueStatus) -> RenderableType:
    """Format the queue, the sums first; empty parts are left out."""
    counts = status.states
    states = (
        f"{counts.ready} ready, {counts.running} running, {counts.delayed} delayed, {counts.quarantined} quarantined, "
        f"{counts.stopped} stopped, {counts.idle} idle"
    )
    parts: list[RenderableType] = [Text(f"{count_of(status.items, 'Item')}: {states}", style="bold")]
    if counts.ready + counts.running + counts.delayed == 0:
        parts.append(Text("Nothing waits."))
    parts += _sums(status)
    for state in (QueueState.QUARANTINED, QueueState.READY, QueueState.RUNNING, QueueState.DELAYED, QueueState.STOPPED):
        parts += _listed(state, [row for row in status.listed if row.state is state], status)
    parts += _problems(status)
    parts += _plaid(status)
    health = status.schedule
    tick = "never" if health.last_tick_age_s is None else f"{span(health.last_tick_age_s)} ago"
    verdict = Text("schedule: healthy", "green") if health.healthy else Text("schedule: NOT HEALTHY", "red")
    details = f", last tick {tick}, {health.overdue} overdue, backlog {health.backlog}"
    parts.append(Text.assemble("\n", verdict, details))
    parts += [Text(f"  {reason}", style="red") for reason in health.reasons]
    return Group(*(line for part in parts for line in ((Text(""), part) if isinstance(part, Table) else (part,))))


def items(rows: Sequence[ItemStatus]) -> RenderableType:
    """Format Items, one a line."""
    if not rows:
        return Text("No Items.")
    names = ("Item", "tenant", "bank", "state", "failures", "withheld", "removals waiting", "last synced")
    counts = attrgetter("attempts", "withheld", "missing_rows")
    return _table(
        names,
        (
            (
                row.item_id,
                row.tenant,
                row.institution_name or row.institution_id,
                row.stopped or row.state,
                *counts(row),
                _ago(row.last_synced_at),
            )
            for row in rows
        ),
    )


def item(row: ItemStatus, runs: Sequence[FinishedRun]) -> RenderableType:
    """Format all fields of an Item and its last sync runs."""
    error = row.last_error or {}
    fields = {
        "Item": row.item_id,
        "tenant": row.tenant,
        "bank": f"{row.institution_name or ''} ({row.institution_id})",
        "state": " ".join(filter(None, (row.state, row.code))),
        "history": row.history_status,
        "stopped": row.stopped,
        "remedy": row.remedy,
        "failures in a row": str(row.attempts),
        "last error": ": ".join(str(error[name]) for name in ("code", "detail") if error.get(name)),
        "due at": time_text(row.due_at),
        "held until": time_text(row.not_before),
        "last webhook": time_text(row.last_webhook_at),
        "last synced": time_text(row.last_synced_at),
        "bank updated": time_text(row.bank_updated_at),
        "partition": str(row.partition),
        "records withheld": str(row.withheld) if row.withheld else None,
        "removals waiting": _removals(row),
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in fields.items():
        if value:
            table.add_row(Text(name, style="dim"), value)
    parts: list[RenderableType] = [table, *(Text(_quarantine(entry), style="red") for entry in row.quarantines)]
    if runs:
        names = ("pass at", "took", "cause", "outcome", "pages", "fetched", "error")
        parts.append(_table(names, map(_run, runs)))
    return Group(*parts)


def letters(rows: Sequence[StoredDeadLetter]) -> RenderableType:
    """Format dead letters, one a line."""
    if not rows:
        return Text("No dead letters.")
    names = ("letter", "stage", "Item", "place", "attempts", "since", "state", "code", "reason")
    return _table(
        names,
        (
            (
                *(row.number, row.stage, row.item_id),
                f"{row.topic}/{row.partition}@{'-' if row.source_offset is None else row.source_offset}",
                row.attempts,
                _ago(row.quarantined_at),
                "redriven" if row.redriven_at else "quarantined" if row.is_quarantined else "open",
                row.code_version,
                row.reason[:REASON_CHARACTERS_MAX],
            )
            for row in rows
        ),
    )


def removals(rows: Sequence[dict[str, Any]]) -> RenderableType:
    """Format transactions whose removal waits for a decision, one a line."""
    names = ("date", "amount", "currency", "name", "account", "transaction")
    named = ({**row, "name": row["merchant_name"] or row["name"]} for row in rows)
    fields = ("date", "amount", "currency", "name", "account_id", "transaction_id")
    return _table(names, ([row[field] for field in fields] for row in named))


def count_of(number: int, noun: str) -> str:
    """Format a number with its noun in singular or plural."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def time_text(time: datetime | None) -> str | None:
    """Format a time to the second."""
    return None if time is None else time.strftime("%Y-%m-%d %H:%M:%S UTC")


def span(seconds: float) -> str:
    """Format a duration in its largest unit."""
    for unit, size in _UNITS:
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _sums(status: QueueStatus) -> Iterable[RenderableType]:
    rows: Iterable[Sequence[Any]]
    lanes = [lane for lane in status.lanes if lane.ready + lane.running + lane.delayed]
    if lanes:
        counts = attrgetter("lane", "ready", "running", "delayed")
        rows = ((*counts(lane), _wait(lane.oldest_wait_s)) for lane in lanes)
        yield _table(("lane", "ready", "running", "delayed", "oldest wait"), rows)
    for name, reasons in (("delayed by", status.delayed_by), ("stopped by", status.stopped_by)):
        if reasons:
            yield Text(f"{name}: " + ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items())))
    if status.banks:
        counts = attrgetter("ready", "running", "delayed", "quarantined", "stopped")
        rows = (
            (bank.institution_name or bank.institution_id, *counts(bank), _wait(bank.oldest_wait_s))
            for bank in status.banks
        )
        yield _table(("bank", "ready", "running", "delayed", "quarantined", "stopped", "oldest wait"), rows)


def _listed(state: QueueState, rows: Sequence[QueuedItem], status: QueueStatus) -> Iterable[RenderableType]:
    if not rows:
        return
    names = (state.value, "tenant", "lane", "cause", "why", "error", "failures", "since", "until")
    cells = (
        (
            *(row.item_id, row.tenant, row.lane, row.cause),
            (row.why or "")[:REASON_CHARACTERS_MAX],
            row.code,
            row.attempts or "",
            _span_between(row.since, status.at),
            _span_between(status.at, row.until),
        )
        for row in rows
    )
    yield _table(names, cells)
    total = getattr(status.states, state.value)
    if total > len(rows):
        yield Text(f"… and {total - len(rows)} more", style="dim")


def _problems(status: QueueStatus) -> Iterable[RenderableType]:
    rows: Iterable[Sequence[Any]]
    if status.breakers:
        rows = ((row.institution_id, row.code, row.trips, time_text(row.open_until)) for row in status.breakers)
        yield _table(("bank is down", "code", "outages in a row", "one Item tries after"), rows)
    if status.incidents:
        rows = (
            (
                *(row.kind, row.subject, row.detail[:REASON_CHARACTERS_MAX], row.count),
                _span_between(row.opened_at, status.at),
            )
            for row in status.incidents
        )
        yield _table(("incident", "about", "what", "seen", "since"), rows)
        for kind, remedy in {row.kind: row.remedy for row in status.incidents}.items():
            yield Text(f"{kind}: {remedy}", style="dim")
    if status.removals_withheld:
        rows = ((row.item_id, row.tenant, row.transactions) for row in status.removals_withheld)
        yield _table(("removals wait for a decision", "tenant", "transactions"), rows)
    if status.failures:
        rows = (
            (
                *(row.item_id, row.cause, row.code, (row.detail or "")[:REASON_CHARACTERS_MAX], row.attempts),
                _span_between(row.at, status.at),
            )
            for row in status.failures[:FAILURES_SHOWN]
        )
        yield _table(("last failures", "cause", "error", "detail", "in a row", "ago"), rows)
    if len(status.failures) > FAILURES_SHOWN:
        yield Text(f"… and {len(status.failures) - FAILURES_SHOWN} more: --json", style="dim")


def _plaid(status: QueueStatus) -> Iterable[RenderableType]:
    used = [row for row in status.buckets if row.left < row.burst]
    if used:
        rows = (
            (row.endpoint, f"{row.left} of {row.burst}", row.per_minute, _wait(row.next_in_s or None)) for row in used
        )
        yield _table(("Plaid's quota", "left now", "a minute", "next in"), rows)
    loss = status.webhook_loss or {}
    if loss.get("sent"):
        share = 100 * loss["missed"] / loss["sent"]
        yield Text(f"webhooks: {loss['missed']} of {loss['sent']} that were looked into did not come ({share:.1f} %)")


def _removals(row: ItemStatus) -> str | None:
    if not row.missing_rows:
        return None
    return f"{row.missing_rows}, by changeset {row.missing_changeset_id}; look at them: tartan items approve --dry-run"


def _quarantine(entry: QuarantinedSince) -> str:
    source = f"from offset {entry.first_offset} on, by {entry.reader}"
    if entry.first_offset < 0:
        source = "without a record of the log"
    return f"quarantined {_ago(entry.quarantined_at)} {source}: {entry.reason}"


def _run(row: FinishedRun) -> Sequence[Any]:
    fetched, code = f"+{row.added} ~{row.modified} -{row.removed}", (row.error or {}).get("code")
    return (time_text(row.started_at), f"{row.duration_s:.1f} s", row.cause, row.outcome, row.pages, fetched, code)


def _table(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, overflow="fold", no_wrap=name in _IDS)
    for row in rows:
        table.add_row(*(Text("" if value is None else str(value)) for value in row))
    return table


def _wait(seconds: float | None) -> str | None:
    return None if seconds is None else span(seconds)


def _span_between(begin: datetime | None, end: datetime | None) -> str | None:
    return None if begin is None or end is None else span(max((end - begin).total_seconds(), 0.0))


def _ago(time: datetime | None) -> str | None:
    return None if time is None else f"{_span_between(time, datetime.now(time.tzinfo))} ago"
