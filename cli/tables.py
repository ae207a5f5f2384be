"""What the operator's commands print for people. Ids are shown whole: they are what the next command needs."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from runtime.incidents.dead_letters import StoredDeadLetter
from runtime.scheduler.item_status import ItemStatus, QuarantinedSince
from runtime.scheduler.queue_status import QueuedItem, QueueState, QueueStatus
from runtime.scheduler.runs import FinishedRun

REASON_CHARACTERS_MAX = 120
_IDS = frozenset({"Item", "about", "last failures", "removals wait for a decision", "transaction", *QueueState})
"""Columns that hold ids."""
FAILURES_SHOWN = 10
"""Of the last failures; programs are given all that are known."""
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400


def queue(status: QueueStatus) -> RenderableType:
    """The queue, the sums first; parts of which there is nothing are left out."""
    counts = status.states
    states = (
        f"{counts.ready} ready, {counts.running} running, {counts.delayed} delayed, {counts.quarantined} quarantined, "
        f"{counts.stopped} stopped, {counts.idle} idle"
    )
    parts: list[RenderableType] = [Text(f"{_items(status.items)}: {states}", style="bold")]
    if counts.ready + counts.running + counts.delayed == 0:
        parts.append(Text("Nothing waits."))
    parts += _sums(status)
    for state in (QueueState.QUARANTINED, QueueState.READY, QueueState.RUNNING, QueueState.DELAYED, QueueState.STOPPED):
        parts += _listed(state, [row for row in status.listed if row.state is state], status)
    parts += _troubles(status)
    parts += _client(status)
    health = status.schedule
    tick = "never" if health.last_tick_age_s is None else f"{span(health.last_tick_age_s)} ago"
    told = Text("schedule: healthy", "green") if health.healthy else Text("schedule: NOT HEALTHY", "red")
    parts.append(Text.assemble("\n", told, f", last tick {tick}, {health.overdue} overdue, backlog {health.backlog}"))
    parts += [Text(f"  {reason}", style="red") for reason in health.reasons]
    return Group(*(each for part in parts for each in ((Text(""), part) if isinstance(part, Table) else (part,))))


def items(found: Sequence[ItemStatus]) -> RenderableType:
    """Items, one a line."""
    if not found:
        return Text("No Items.")
    rows = (
        (
            one.item_id,
            one.tenant,
            one.institution_name or one.institution_id,
            one.stopped or one.state,
            one.attempts,
            one.withheld,
            one.missing_rows,
            _ago(one.last_synced_at),
        )
        for one in found
    )
    names = ("Item", "tenant", "bank", "state", "failures", "withheld", "removals waiting", "last synced")
    return _table(names, rows)


def item(one: ItemStatus, passes: Sequence[FinishedRun]) -> RenderableType:
    """All about an Item."""
    table = Table(box=None, show_header=False, pad_edge=False)
    bank = f"{one.institution_name or ''} ({one.institution_id})"
    error = one.last_error or {}
    lines = (
        ("Item", one.item_id),
        ("tenant", one.tenant),
        ("bank", bank),
        ("state", " ".join(filter(None, (one.state, one.code)))),
        ("history", one.history_status),
        ("stopped", one.stopped),
        ("remedy", one.remedy),
        ("failures in a row", str(one.attempts)),
        ("last error", ": ".join(str(error[name]) for name in ("code", "detail") if error.get(name))),
        ("due at", _moment(one.due_at)),
        ("held until", _moment(one.not_before)),
        ("last webhook", _moment(one.last_webhook_at)),
        ("last synced", _moment(one.last_synced_at)),
        ("bank updated", _moment(one.bank_updated_at)),
        ("partition", str(one.partition)),
        ("records withheld", str(one.withheld) if one.withheld else None),
        ("removals waiting", _removals(one)),
    )
    for name, value in lines:
        if value:
            table.add_row(Text(name, style="dim"), value)
    quarantines = (
        Text(
            f"quarantined {_ago(quarantined.quarantined_at)} {_quarantined_by(quarantined)}: {quarantined.reason}",
            style="red",
        )
        for quarantined in one.quarantines
    )
    parts: list[RenderableType] = [table, *quarantines]
    rows = (
        (
            _moment(row.started_at),
            f"{row.duration_s:.1f} s",
            row.cause,
            row.outcome,
            row.pages,
            f"+{row.added} ~{row.modified} -{row.removed}",
            (row.error or {}).get("code"),
        )
        for row in passes
    )
    if passes:
        parts.append(_table(("pass at", "took", "cause", "outcome", "pages", "fetched", "error"), rows))
    return Group(*parts)


def letters(found: Sequence[StoredDeadLetter]) -> RenderableType:
    """Dead letters, one a line."""
    if not found:
        return Text("No dead letters.")
    rows = (
        (
            one.number,
            one.stage,
            one.item_id,
            place(one),
            one.attempts,
            _ago(one.quarantined_at),
            "redriven" if one.redriven_at else "quarantined" if one.is_quarantined else "open",
            one.code_version,
            one.reason[:REASON_CHARACTERS_MAX],
        )
        for one in found
    )
    names = ("letter", "stage", "Item", "place", "attempts", "since", "state", "code", "reason")
    return _table(names, rows)


def removals(found: Sequence[dict[str, Any]]) -> RenderableType:
    """Transactions whose removal waits for a decision, one a line."""
    names = ("date", "amount", "currency", "name", "account", "transaction")
    rows = (
        (
            row["date"],
            row["amount"],
            row["currency"],
            row["merchant_name"] or row["name"],
            row["account_id"],
            row["transaction_id"],
        )
        for row in found
    )
    return _table(names, rows)


def count_of(number: int, noun: str) -> str:
    """A number with its noun."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def moment(at: datetime | None) -> str | None:
    """A time for people, to the second."""
    return _moment(at)


def place(one: StoredDeadLetter) -> str:
    """Where a letter's record stands: topic, partition and offset."""
    return f"{one.topic}/{one.partition}@{'-' if one.source_offset is None else one.source_offset}"


def span(seconds: float) -> str:
    """A duration in its largest unit."""
    for unit, size in (("d", _DAY_S), ("h", _HOUR_S), ("min", _MINUTE_S)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _sums(status: QueueStatus) -> Iterable[RenderableType]:
    lanes = [lane for lane in status.lanes if lane.ready + lane.running + lane.delayed]
    if lanes:
        rows = ((lane.lane, lane.ready, lane.running, lane.delayed, _wait(lane.oldest_wait_s)) for lane in lanes)
        yield _table(("lane", "ready", "running", "delayed", "oldest wait"), rows)
    for name, reasons in (("delayed by", status.delayed_by), ("stopped by", status.stopped_by)):
        if reasons:
            yield Text(f"{name}: " + ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items())))
    if status.banks:
        rows_of_banks = (
            (
                bank.institution_name or bank.institution_id,
                bank.ready,
                bank.running,
                bank.delayed,
                bank.quarantined,
                bank.stopped,
                _wait(bank.oldest_wait_s),
            )
            for bank in status.banks
        )
        yield _table(("bank", "ready", "running", "delayed", "quarantined", "stopped", "oldest wait"), rows_of_banks)


def _listed(state: QueueState, rows: Sequence[QueuedItem], status: QueueStatus) -> Iterable[RenderableType]:
    if not rows:
        return
    table = _table(
        (state.value, "tenant", "lane", "cause", "why", "error", "failures", "since", "until"),
        (
            (
                row.item_id,
                row.tenant,
                row.lane,
                row.cause,
                (row.why or "")[:REASON_CHARACTERS_MAX],
                row.code,
                row.attempts or "",
                _span_between(row.since, status.at),
                _span_between(status.at, row.until),
            )
            for row in rows
        ),
    )
    yield table
    total = getattr(status.states, state.value)
    if total > len(rows):
        yield Text(f"… and {total - len(rows)} more", style="dim")


def _troubles(status: QueueStatus) -> Iterable[RenderableType]:
    if status.breakers:
        rows = ((one.institution_id, one.code, one.trips, _moment(one.open_until)) for one in status.breakers)
        yield _table(("bank is down", "code", "outages in a row", "one Item tries after"), rows)
    if status.incidents:
        yield _table(
            ("incident", "about", "what", "seen", "since"),
            (
                (
                    one.kind,
                    one.subject,
                    one.detail[:REASON_CHARACTERS_MAX],
                    one.count,
                    _span_between(one.opened_at, status.at),
                )
                for one in status.incidents
            ),
        )
        for kind, remedy in {one.kind: one.remedy for one in status.incidents}.items():
            yield Text(f"{kind}: {remedy}", style="dim")
    if status.removals_withheld:
        yield _table(
            ("removals wait for a decision", "tenant", "transactions"),
            ((one.item_id, one.tenant, one.transactions) for one in status.removals_withheld),
        )
    if status.failures:
        yield _table(
            ("last failures", "cause", "error", "detail", "in a row", "ago"),
            (
                (
                    one.item_id,
                    one.cause,
                    one.code,
                    (one.detail or "")[:REASON_CHARACTERS_MAX],
                    one.attempts,
                    _span_between(one.at, status.at),
                )
                for one in status.failures[:FAILURES_SHOWN]
            ),
        )
    if len(status.failures) > FAILURES_SHOWN:
        yield Text(f"… and {len(status.failures) - FAILURES_SHOWN} more: --json", style="dim")


def _client(status: QueueStatus) -> Iterable[RenderableType]:
    used = [one for one in status.buckets if one.left < one.burst]
    if used:
        rows = (
            (one.endpoint, f"{one.left} of {one.burst}", one.per_minute, _wait(one.next_in_s or None)) for one in used
        )
        yield _table(("Plaid's quota", "left now", "a minute", "next in"), rows)
    loss = status.webhook_loss or {}
    if loss.get("sent"):
        share = 100 * loss["missed"] / loss["sent"]
        yield Text(f"webhooks: {loss['missed']} of {loss['sent']} that were looked into did not come ({share:.1f} %)")


def _removals(one: ItemStatus) -> str | None:
    if not one.missing_rows:
        return None
    return f"{one.missing_rows}, by changeset {one.missing_changeset_id}; look at them: tartan items approve --dry-run"


def _quarantined_by(quarantined: QuarantinedSince) -> str:
    if quarantined.first_offset < 0:
        return "without a record of the log"
    return f"from offset {quarantined.first_offset} on, by {quarantined.reader}"


def _table(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """A table whose ids stay on one line, whole: they are what the next command is given."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(name, overflow="fold", no_wrap=name in _IDS)
    for row in rows:
        table.add_row(*(Text("" if value is None else str(value)) for value in row))
    return table


def _items(count: int) -> str:
    return count_of(count, "Item")


def _wait(seconds: float | None) -> str | None:
    return None if seconds is None else span(seconds)


def _span_between(begin: datetime | None, end: datetime | None) -> str | None:
    return None if begin is None or end is None else span(max((end - begin).total_seconds(), 0.0))


def _ago(at: datetime | None) -> str | None:
    return None if at is None else f"{span(max((datetime.now(at.tzinfo) - at).total_seconds(), 0.0))} ago"


def _moment(at: datetime | None) -> str | None:
    return None if at is None else at.strftime("%Y-%m-%d %H:%M:%S UTC")
