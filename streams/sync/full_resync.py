"""A whole history as one record: after a lost cursor it says what there is, and readers conclude what is not. Core.

Source: docs/architecture.md, A lost cursor; PLAID.md 1.2, points 7 to 9: a read without a cursor tells no removals.
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

PERMILLE = 1000


def is_whole(update: Update) -> bool:
    """Whether Plaid says that it has read all of the history: before that, what is missing may still come."""
    return update.status == HISTORY_COMPLETE


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
    """What a whole history covers.

    `named`: ids of the accounts that Plaid names now; `known`: pseudonyms of those that the chain knows.
    `pseudonyms`: of `named`. The window begins at the oldest transaction read, and at the latest where a history
    begins that is asked for today: what is older was perhaps only not sent. It has no end.
    """
    because = _incomplete_because(update, len(set(known) - {pseudonyms[name] for name in named}), len(known))
    dates = [change.record.date for change in update.changes if isinstance(change.record, Transaction)]
    return History(
        account_ids=sorted(named),
        since=min([*dates, (today - timedelta(days=days_requested)).isoformat()]),
        until=None,
        complete=because is None,
        removals_permille_max=round(removals_share_max * PERMILLE),
        incomplete_because=because,
    )


def _incomplete_because(update: Update, missing: int, known: int) -> str | None:
    if not is_whole(update):
        return f"Plaid has not said that it is complete: {update.status}"
    return f"{missing} of {known} known accounts are not named" if missing else None


def events(covered: History, update: Update) -> Events:
    """Encode a whole history: first what it covers, then each transaction as added.

    A removal that is told all the same stays one: it may be older than the window.
    """
    changes = [
        Change(TRANSACTION_ADDED if change.type == TRANSACTION_MODIFIED else change.type, change.record)
        for change in update.changes
    ]
    opening = (HISTORY_RESTATED, catalogue.HISTORY, codec.encode(covered))
    return [opening, *changeset.transactions(changes)]
