"""Fold balance reports: compare each with the last report of its source.

A sync repeats Plaid's cached balance, which may be a day old, after each real-time one: compared with the shown balance
the two would flap. So a cached report is news only where it differs from the last cached one, and is shown only then. A
real-time one is the current value that somebody asked for: it is news where it differs from the last real-time one, or
from the cached one that is shown.

A report without news may still have a newer time of the bank: the payload is replaced, without an event.
"""

from collections.abc import Sequence

from projections.decode.changeset import BalanceReport
from projections.events import public_events
from projections.events.field_diff import changed_fields
from projections.events.public_events import CommonFields, public_schema
from projections.model.record_context import RecordContext
from projections.model.unit_of_work import CACHED, REALTIME, AccountRow, AccountVersion, ItemRow, NetEvent, UnitOfWork
from schemas import events

_BANK_TIME = "last_updated_datetime"
"""Time of the bank's value: stored, and by itself no news."""


def fold_balances(
    work: UnitOfWork,
    item: ItemRow,
    context: RecordContext,
    reports: Sequence[BalanceReport],
    common: CommonFields,
    net: list[NetEvent],
) -> None:
    """Apply the reports of a record; of several about one account and source the last one counts."""
    last = {(report.account.account_id, report.source): report for report in reports}
    for (account_id, source), report in last.items():
        account = item.accounts.get(account_id) or AccountRow(account_id, item.item_id, context.user)
        before, schema = account.reported(source)
        takes_over = source == REALTIME and account.source == CACHED
        is_news = _differs(account, source, report) or (takes_over and _differs(account, CACHED, report))
        if not is_news and source == CACHED and (before, schema) == (report.payload, report.schema):
            continue
        _store(work, account, report, context, is_news=is_news)
        item.accounts[account_id] = account
        if is_news:
            event = public_events.balance_event(common, source, report.payload, before)
            entity = public_events.balance_entity(account_id, source)
            net.append(NetEvent(events.BALANCE_UPDATED, public_schema(report.schema), entity, event))


def _differs(account: AccountRow, source: str, report: BalanceReport) -> bool:
    payload, schema = account.reported(source)
    if payload is None:
        return True
    return any(name != _BANK_TIME for name in changed_fields(payload, schema, report.payload, report.schema))


def _store(
    work: UnitOfWork, account: AccountRow, report: BalanceReport, context: RecordContext, *, is_news: bool
) -> None:
    if report.source == REALTIME:
        account.realtime_payload, account.realtime_payload_schema = report.payload, report.schema
        account.realtime_at = context.known_at
    else:
        account.cached_payload, account.cached_payload_schema = report.payload, report.schema
        if is_news:
            account.cached_at = context.known_at
    work.changed_accounts[account.item_id, account.account_id] = account
    if is_news:
        account.source = report.source
        account.version += 1
        account.last_changeset, account.known_at = context.offset, context.known_at
        key = (account.item_id, account.account_id, account.version, context.user)
        shown = (report.source, report.payload, report.schema)
        work.account_versions.append(AccountVersion(*key, *shown, context.offset, context.known_at))
