"""A log for benchmarks: sealed changesets of transactions about as varied as a bank's, same seed, same words."""

import random
import string
from collections.abc import Collection, Iterator, Sequence

from projections.fold.opening_balances import COMPLETE
from projections.gate.check import Owners
from runtime.kafka.reader import Received
from schemas import events
from schemas.encoding import catalogue, codec
from schemas.log import changesets, gate
from schemas.log.changesets import UserKeys
from schemas.log.records import Account, Cause, Head, Item, Transaction

PER_CHANGESET = 2_500
"""About what a first synchronisation of an Item brings."""

START_US = 1_760_000_000_000_000

TENANT = "bench"

Said = tuple[str, int, bytes]


def keys_of(user: int) -> UserKeys:
    """The keys of a user of benchmarks."""
    return changesets.user_keys(data_key(user), 1)


def data_key(user: int) -> bytes:
    """The key of a user of benchmarks from which the others are derived."""
    return user.to_bytes(32, "big")


def name_of(user: int) -> str:
    """What the application calls a user of benchmarks."""
    return f"user-{user}"


def owners(users: Collection[int]) -> Owners:
    """Keys and names of users."""
    return Owners({user: keys_of(user) for user in users}, {user: (TENANT, name_of(user)) for user in users})


def transactions(count: int, seed: int) -> list[Transaction]:
    """Transactions of about 400 bytes each."""
    chosen = random.Random(seed)

    def plaid_id() -> str:
        return "".join(chosen.choices(string.ascii_letters + string.digits, k=37))

    merchants = [(f"Merchant {number}", plaid_id(), f"https://logos.example/{number}.png") for number in range(300)]
    said = []
    for _ in range(count):
        name, entity, logo = chosen.choice(merchants)
        said.append(
            Transaction(
                plaid_id(),
                "checking",
                f"{chosen.randrange(100, 20_000) / 100:g}",
                "USD",
                None,
                False,
                None,
                f"2026-{chosen.randrange(1, 13):02d}-11",
                authorized_date="2026-01-02",
                name=name.upper() + " #1234",
                merchant_name=name,
                merchant_entity_id=entity,
                logo_url=logo,
                website="merchant.example",
                payment_channel="in store",
                category_primary="FOOD_AND_DRINK",
                category_detailed="FOOD_AND_DRINK_COFFEE",
                category_confidence="HIGH",
                category_version="v2",
                location_json='{"city":"Springfield","country":"US"}',
                counterparties_json=f'[{{"name":"{name}","type":"merchant","entity_id":"{entity}"}}]',
            )
        )
    return said


class GeneratedLog:
    """One partition with Items, each of a user of its own."""

    def __init__(self) -> None:
        self.records: list[Received] = []
        self._heads: dict[int, bytes] = {}

    def link(self, user: int) -> None:
        """The root of a user's Item."""
        item = (events.ITEM_LINKED, catalogue.ITEM, codec.encode(Item(_item(user), events.ACTIVE)))
        self._append(user, gate.LINK, [item], {})

    def history(self, user: int, said: Sequence[Transaction]) -> None:
        """A first synchronisation: all transactions, and at its end the balance that the account is opened with."""
        for begin, end in _pieces(len(said)):
            whole = [(events.TRANSACTION_ADDED, catalogue.TRANSACTION, codec.encode(one)) for one in said[begin:end]]
            if end == len(said):
                whole.append((events.BALANCE_REPORTED, catalogue.ACCOUNT, codec.encode(_account("1000"))))
            self._append(user, gate.SYNC, whole, {events.TRANSACTION_ADDED: end - begin})

    def update(self, user: int, added: Sequence[Transaction], modified: Sequence[Transaction], current: str) -> None:
        """A later synchronisation, with a new balance."""
        said = [
            *((events.TRANSACTION_ADDED, catalogue.TRANSACTION, codec.encode(one)) for one in added),
            *((events.TRANSACTION_MODIFIED, catalogue.TRANSACTION, codec.encode(one)) for one in modified),
            (events.BALANCE_REPORTED, catalogue.ACCOUNT, codec.encode(_account(current))),
        ]
        counts = {events.TRANSACTION_ADDED: len(added), events.TRANSACTION_MODIFIED: len(modified)}
        self._append(user, gate.SYNC, said, counts)

    def _append(self, user: int, kind: str, said: list[Said], counts: dict[str, int]) -> None:
        offset, parent, keys = len(self.records), self._heads.get(user), keys_of(user)
        block = codec.encode_events(said)
        number = changesets.changeset_id(
            keys, parent=parent, base_cursor=None, next_cursor=str(offset), state=kind, events=block
        )
        head = Head(
            number,
            gate.CHAINED,
            kind,
            parent,
            _item(user),
            user,
            START_US + offset * 1_000,
            Cause("webhook"),
            1,
            counts=counts,
            history_status=None if kind == gate.LINK else COMPLETE,
        )
        self._heads[user] = number
        value = changesets.seal(head, block, keys, nonce=offset.to_bytes(12, "big"))
        self.records.append(Received(0, offset, str(user).encode(), value, {}, 0))


def _item(user: int) -> str:
    return f"item-{user}"


def _account(current: str) -> Account:
    return Account(
        "checking", None, "Checking", None, "0000", "depository", "checking", current=current, iso_currency_code="USD"
    )


def _pieces(count: int) -> Iterator[tuple[int, int]]:
    for begin in range(0, count, PER_CHANGESET):
        yield begin, min(begin + PER_CHANGESET, count)
