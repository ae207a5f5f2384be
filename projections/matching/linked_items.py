"""Which users may have one account under several ids, and what of them a batch has to look at. Pure.

What is named here is a superset of what the fold decides by, so a batch and its records one by one decide the same.
"""

import datetime
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from projections.decode import transaction
from projections.gate.check import AcceptedRecord
from projections.matching import accounts
from projections.matching.accounts import Portrait
from projections.matching.rules import DAYS_MAX
from projections.model import pg_copy
from projections.model.transaction_payload import TransactionPayload
from projections.model.unit_of_work import ItemRow, UnitOfWork


class Window(NamedTuple):
    """The dates of a user's transactions that new ones may turn out to be."""

    user: int
    since: datetime.date
    until: datetime.date


def users_to_load(records: Iterable[AcceptedRecord]) -> set[int]:
    """The users all of whose Items have to be known: an account is told under several ids, or one is new."""
    found = set[int]()
    for record in records:
        item = record.item
        if item is not None and (has_linked_accounts(item) or has_new_accounts(record)):
            found.add(item.user)
    return found


def related_users(working: UnitOfWork, records: Sequence[AcceptedRecord], users_known: set[int]) -> set[int]:
    """Those of these users that have accounts that are one, or look so much alike that the fold may find it."""
    found = {item.user for item in working.items.values() if item.user in users_known and has_linked_accounts(item)}
    alike: dict[int, set[Portrait]] = defaultdict(set)
    for item in working.items.values():
        if item.user in users_known - found:
            alike[item.user].update(_loose(one) for _, one in accounts.portraits(item))
    for record in records:
        if record.item is not None and record.item.user in users_known - found:
            told = (accounts.portrait(record.item, reported.account) for reported in record.changeset.balances)
            alike[record.item.user].update(map(_loose, told))
    for user, portraits in alike.items():
        several = list(portraits)
        if any(
            one.key != other.key and accounts.same(one, other)
            for at, one in enumerate(several)
            for other in several[at + 1 :]
        ):
            found.add(user)
    return found


def date_windows(working: UnitOfWork, records: Iterable[AcceptedRecord], of_users: set[int]) -> list[Window]:
    """The windows of these users, around all dates that the records say, and of all users who have an open review."""
    dates: dict[int, set[bytes]] = defaultdict(set)
    for record in records:
        if record.item is not None and record.item.user in of_users:
            dates[record.item.user].update(
                one.date for one in record.changeset.transactions if type(one) is TransactionPayload
            )
    held = {review.own_id for review in working.reviews.values()}
    for item in working.items.values() if held else ():
        for row in item.by_id.values():
            if row.own_id in held:
                dates[row.user].add(transaction.reader(row.schema)(row.payload, 0, len(row.payload)).date)
    found = []
    for user, said in dates.items():
        days = [pg_copy.read_date(one).toordinal() for one in said]
        if days:
            found.append(Window(user, _date(min(days) - DAYS_MAX), _date(max(days) + DAYS_MAX)))
    return found


def has_linked_accounts(item: ItemRow) -> bool:
    """Whether an Item tells, or told, of an account that another id stands for too."""
    return item.has_linked_items or any(account.continues or account.continued_by for account in item.accounts.values())


def has_new_accounts(record: AcceptedRecord) -> bool:
    """Whether a record tells of an account that its Item did not have."""
    item = record.item
    return item is not None and any(one.account.account_id not in item.accounts for one in record.changeset.balances)


def _loose(one: Portrait) -> Portrait:
    # An Item that the batch itself links has no payload yet that would name its bank.
    return one._replace(institution_id="")


def _date(ordinal: int) -> datetime.date:
    return datetime.date.fromordinal(max(1, min(ordinal, datetime.date.max.toordinal())))
