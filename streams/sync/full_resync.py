"""Describe a whole history as one record, from which readers conclude removals after a lost cursor. Core.

Source: docs/architecture.md, A lost cursor; PLAID.md 1.2, points 7 to 9: a read without a cursor reports no removals.
"""

from collections.abc import Collection, Mapping
from datetime import date, timedelta

from runtime.plaid.models import HISTORY_COMPLETE
from schemas.encoding import catalogue, codec
from schemas.events import HISTORY_RESTATED, TRANSACTION_ADDED, TRANSACTION_MODIFIED
from schemas.log.records import History, Transaction
from streams.sync import changeset
from streams.sync.changeset import Events
from streams.sync.pages import Change, Update


def history(
    update: Update,
    named: Collection[str],
    *,
    known: Collection[str],
    pseudonyms: Mapping[str, str],
    today: date,
    days_requested: int,
    removals_share_max: float,
) -> History:
    """Return the range that a whole history covers.

    The window begins at the oldest transaction read, and at the latest where a history requested today begins: older
    rows were perhaps only not sent. It has no end. `named`: ids of the accounts that Plaid named before and after the
    read, with their `pseudonyms`; `known`: pseudonyms of the accounts in the chain.
    """
    missing = len(set(known) - {pseudonyms[name] for name in named})
    because = f"{missing} of {len(known)} known accounts are not named" if missing else None
    if update.status != HISTORY_COMPLETE:
        because = f"Plaid has not said that it is complete: {update.status}"
    dates = [change.record.date for change in update.changes if isinstance(change.record, Transaction)]
    return History(
        account_ids=sorted(named),
        since=min([*dates, (today - timedelta(days=days_requested)).isoformat()]),
        until=None,
        complete=because is None,
        removals_permille_max=round(removals_share_max * 1000),
        incomplete_because=because,
    )


def encode(covered: History, update: Update) -> Events:
    """Encode a whole history: first its range, then each transaction as added.

    A removal in the update stays one: it may be older than the window.
    """
    changes = [
        Change(TRANSACTION_ADDED if change.type == TRANSACTION_MODIFIED else change.type, change.record)
        for change in update.changes
    ]
    return [(HISTORY_RESTATED, catalogue.HISTORY, codec.encode(covered)), *changeset.encode_transactions(changes)]
