"""What is reported of accounts, against what the same source reported before. Pure.

A sync repeats Plaid's cached balance, which may be a day old, after each real-time one: judged against what is shown
the two would flap. So a cached report is news only where it differs from the last cached one, and takes the account
over only then. A real-time one is the bank's word of now, which somebody asked for: it is news where it differs from
the last real-time one, or from the cached one that is shown.

What is no news may still bring a newer time of the bank's: the payload are replaced, and nobody is told.
"""

from collections.abc import Sequence

from projections.decode.changeset import CACHED, REALTIME, BalanceReport
from projections.events import public_events
from projections.events.field_diff import changed_fields
from projections.events.public_events import CommonFields, public_schema
from projections.model.record_context import RecordContext
from projections.model.unit_of_work import AccountRow, AccountVersion, ItemRow, NetEvent, UnitOfWork
from schemas import events

_BANK_TIME = "last_updated_datetime"
"""When the bank looked: kept, and by itself no news."""


def fold_balances(
    working: UnitOfWork,
    item: ItemRow,
    place: RecordContext,
    said: Sequence[BalanceReport],
    common: CommonFields,
    net: list[NetEvent],
) -> None:
    """Apply what a record reports; of several reports about one account and source the last one counts."""
    last = {(reported.account.account_id, reported.source): reported for reported in said}
    for (account_id, source), reported in last.items():
        account = item.accounts.get(account_id) or AccountRow(account_id, item.item_id, place.user)
        before, schema = _words(account, source)
        is_news = _is_news(account, reported)
        if not is_news and source == CACHED and (before, schema) == (reported.payload, reported.schema):
            continue
        _keep(account, reported, place, is_news=is_news)
        item.accounts[account_id] = account
        working.changed_accounts[item.item_id, account_id] = account
        if is_news:
            _count(working, account, reported, place)
            event = public_events.balance_event(common, source, reported.payload, before)
            entity = public_events.balance_entity(account_id, source)
            net.append(NetEvent(events.BALANCE_UPDATED, public_schema(reported.schema), entity, event))


def _words(account: AccountRow, source: str) -> tuple[bytes | None, int]:
    if source == CACHED:
        return account.cached_payload, account.cached_payload_schema
    return account.realtime_payload, account.realtime_payload_schema


def _is_news(account: AccountRow, reported: BalanceReport) -> bool:
    if _differs(account, reported.source, reported):
        return True
    takes_over = reported.source == REALTIME and account.source == CACHED
    return takes_over and _differs(account, CACHED, reported)


def _differs(account: AccountRow, source: str, reported: BalanceReport) -> bool:
    payload, schema = _words(account, source)
    if payload is None:
        return True
    return any(name != _BANK_TIME for name in changed_fields(payload, schema, reported.payload, reported.schema))


def _keep(account: AccountRow, reported: BalanceReport, place: RecordContext, *, is_news: bool) -> None:
    if is_news:
        account.source = reported.source
    if reported.source == REALTIME:
        account.realtime_payload, account.realtime_payload_schema = reported.payload, reported.schema
        account.realtime_at = place.known_at
        return
    account.cached_payload, account.cached_payload_schema = reported.payload, reported.schema
    if is_news:
        account.cached_at = place.known_at


def _count(working: UnitOfWork, account: AccountRow, reported: BalanceReport, place: RecordContext) -> None:
    account.version += 1
    account.last_changeset, account.known_at = place.offset, place.known_at
    working.account_versions.append(
        AccountVersion(
            account.item_id,
            account.account_id,
            account.version,
            place.user,
            reported.source,
            reported.payload,
            reported.schema,
            place.offset,
            place.known_at,
        )
    )
