"""Which accounts are one account at the bank, told under several of Plaid's ids. Pure.

Source: Plaid, Duplicate Items: match by institution, name and mask, or by persistent_account_id where a bank has one.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from projections.decode.changeset import BalanceReport
from projections.model.unit_of_work import AccountKey, AccountRow, ItemRow, UnitOfWork
from schemas.encoding import codec
from schemas.log.records import Account, Item


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
    """A text without what banks change at will: letter case, and white space around and between payload."""
    return " ".join((text or "").split()).casefold()


def portrait(item: ItemRow, account: Account) -> Portrait:
    """The portrait of a reported account of an Item."""
    return Portrait(
        (item.item_id, account.account_id),
        _institution(item),
        account.persistent_account_id,
        account.mask,
        normalised(account.name) or None,
        account.type,
        account.subtype,
        account.currency,
    )


def portraits(item: ItemRow) -> list[tuple[AccountRow, Portrait]]:
    """The known accounts of an Item with their portraits, by the source that spoke last."""
    found = []
    for row in item.accounts.values():
        by_sync = row.source == "cached"
        said = row.cached_payload if by_sync else row.realtime_payload
        if said is not None:
            schema = row.cached_payload_schema if by_sync else row.realtime_payload_schema
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


def join(working: UnitOfWork, item: ItemRow, balances: Sequence[BalanceReport]) -> None:
    """Put the accounts that a record tells of for the first time among those that they are at the bank, by age: an
    account of an Item that was linked earlier is older, within an Item the one known earlier.
    """
    told = {one.account.account_id: one.account for one in balances}
    new = [portrait(item, account) for name, account in told.items() if name not in item.accounts]
    if not new:
        return
    candidates: list[Portrait] = []
    peers = list(new)
    for other in [one for one in working.items.values() if one.user == item.user]:
        for row, seen in portraits(other):
            if row.continued_by is None:
                family = [seen.key, *walk(working, seen.key, "continues")]
                is_told = any(name == item.item_id and account_id in told for name, account_id in family)
                (peers if is_told else candidates).append(seen)
    for one, found in pairs(new, peers, candidates):
        account_id = one.key[1]
        row = item.accounts[account_id] = AccountRow(account_id, item.item_id, item.user)
        _insert(working, item, row, [found.key, *walk(working, found.key, "continues")])


def walk(working: UnitOfWork, key: AccountKey, way: str) -> Iterator[AccountKey]:
    """The accounts that lie behind one: all older ones (`continues`) or younger ones (`continued_by`)."""
    seen = {key}
    while True:
        account = _account(working, key)
        behind: AccountKey | None = None if account is None else getattr(account, way)
        if behind is None or behind in seen:
            return
        seen.add(behind)
        yield behind
        key = behind


def _insert(working: UnitOfWork, item: ItemRow, row: AccountRow, family: Sequence[AccountKey]) -> None:
    younger = [key for key in family if key[0] != item.item_id and _is_older(item, working.items[key[0]])]
    older = [key for key in family if key not in younger]
    key = (row.item_id, row.account_id)
    for at, way in ((younger[-1:], "continued_by"), (older[:1], "continues")):
        for neighbour in at:
            setattr(row, way, neighbour)
            twin = working.items[neighbour[0]].accounts[neighbour[1]]
            setattr(twin, "continues" if way == "continued_by" else "continued_by", key)
            working.changed_accounts[neighbour] = twin
    twins = {name for name, _ in family} - {item.item_id}
    for name in twins | {item.item_id} if twins else ():
        working.items[name].has_linked_items = True
        working.changed_items[name] = working.items[name]


def _account(working: UnitOfWork, key: AccountKey) -> AccountRow | None:
    item = working.items.get(key[0])
    return None if item is None else item.accounts.get(key[1])


def _is_older(one: ItemRow, other: ItemRow) -> bool:
    """Whether an Item was linked before another one. Links of one moment go by their ids."""
    if one.linked_at is None or other.linked_at is None:
        return one.linked_at is not None
    return (one.linked_at, one.item_id) < (other.linked_at, other.item_id)


def _institution(item: ItemRow) -> str | None:
    if item.payload is None:
        return None
    said: Item = codec.decoder(item.schema)(item.payload, 0)[0]
    return said.institution_id
