"""Which accounts are one account at the bank, told under several of Plaid's ids. Pure.

Source: Plaid, Duplicate Items: match by institution, name and mask, or by persistent_account_id where a bank has one.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from projections.reading import Reported
from projections.state import AccountKey, AccountRow, ItemRow, WorkingSet
from schemas import codec
from schemas.records import Account, Item


class Portrait(NamedTuple):
    """What an account looks like, whatever its id: `name` is normalised, None is what the bank did not say."""

    key: AccountKey
    institution_id: str | None
    persistent_id: str | None
    mask: str | None
    name: str | None
    type: str
    subtype: str | None
    currency: str


def normalised(text: str | None) -> str:
    """A text without what banks change at will: letter case, and white space around and between words."""
    return " ".join((text or "").split()).casefold()


def portrait(item: ItemRow, account: Account) -> Portrait:
    """The portrait of a reported account of an Item."""
    return Portrait(
        (item.item_id, account.account_id), _institution(item), account.persistent_account_id, account.mask,
        normalised(account.name) or None, account.type, account.subtype, account.currency,
    )  # fmt: skip


def portraits(item: ItemRow) -> list[tuple[AccountRow, Portrait]]:
    """The known accounts of an Item with their portraits, by the source that spoke last."""
    found = []
    for row in item.accounts.values():
        by_sync = row.source == "cached"
        said = row.cached_words if by_sync else row.realtime_words
        if said is not None:
            schema = row.cached_schema if by_sync else row.realtime_schema
            found.append((row, portrait(item, codec.decoder(schema)(said, 0)[0])))
    return found


def same(one: Portrait, other: Portrait) -> bool:
    """Whether two accounts look like one: by the bank's lasting id, else by all that an account looks like.

    Two lasting ids that differ are two accounts, however alike the rest is.
    """
    if one.persistent_id is not None and other.persistent_id is not None:
        return one.persistent_id == other.persistent_id
    if None in (one.institution_id, one.mask, one.name):
        return False
    return one[1:2] + one[3:] == other[1:2] + other[3:]


def pairs(
    new: Iterable[Portrait], peers: Sequence[Portrait], known: Sequence[Portrait]
) -> list[tuple[Portrait, Portrait]]:
    """New accounts with the known ones that they are, where there is exactly one such on each side.

    `peers` are all accounts, the new ones too, that could be the known one as well.
    """
    found = []
    for one in new:
        alike = [other for other in known if same(one, other)]
        if len(alike) == 1 and sum(same(peer, alike[0]) for peer in peers) == 1:
            found.append((one, alike[0]))
    return found


def join(working: WorkingSet, item: ItemRow, balances: Sequence[Reported]) -> None:
    """Join the accounts that a record tells of for the first time to the ones that they go on from, or that go on
    from them: an account of an Item that was linked earlier is the older one, within an Item the one known earlier.
    """
    told = {one.account.account_id: one.account for one in balances}
    new = [portrait(item, account) for name, account in told.items() if name not in item.accounts]
    if not new:
        return
    known: dict[AccountKey, tuple[ItemRow, AccountRow]] = {}
    candidates, peers = [], list(new)
    for other in [one for one in working.items.values() if one.user == item.user]:
        for row, seen in portraits(other):
            known[seen.key] = (other, row)
            if other is item and row.account_id in told:
                peers.append(seen)
            elif (row.continues if _is_older(item, other) else row.continued_by) is None:
                candidates.append(seen)
    for one, found in pairs(new, peers, candidates):
        row = item.accounts[one.key[1]] = AccountRow(one.key[1], item.item_id, item.user)
        other, twin = known[found.key]
        older, younger = (row, twin) if _is_older(item, other) else (twin, row)
        older.continued_by, younger.continues = _key(younger), _key(older)
        working.changed_accounts[found.key] = twin
        if other is not item:
            item.has_twins = other.has_twins = True
            working.changed_items |= {item.item_id: item, other.item_id: other}


def _is_older(one: ItemRow, other: ItemRow) -> bool:
    """Whether an Item was linked before another one. Links of one moment go by their ids."""
    if one is other or one.linked_at is None or other.linked_at is None:
        return one is not other and one.linked_at is not None
    return (one.linked_at, one.item_id) < (other.linked_at, other.item_id)


def _key(row: AccountRow) -> AccountKey:
    return (row.item_id, row.account_id)


def _institution(item: ItemRow) -> str | None:
    if item.words is None:
        return None
    said: Item = codec.decoder(item.schema)(item.words, 0)[0]
    return said.institution_id
