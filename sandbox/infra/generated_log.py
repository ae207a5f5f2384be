"""Generate sealed changesets about as varied as a bank's, and fill the log with them; the same seed gives the same."""

import asyncio
import random
import string
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

import asyncpg

from projections.fold.opening_balances import COMPLETE
from projections.gate.check import Owners
from runtime.kafka.clients import Appender, Outgoing, partition_of
from runtime.kafka.reader import Received
from runtime.settings import Settings
from runtime.users.keys import FIRST_GENERATION
from runtime.users.vault import Vault
from schemas import events
from schemas.encoding import catalogue, codec
from schemas.log import changesets, gate
from schemas.log.changesets import UserKeys
from schemas.log.records import Account, Cause, Head, Item, Transaction
from schemas.topics import CHANGESETS, full_name

PER_CHANGESET = 2_500
"""Transactions of a changeset: about what a first sync run of an Item brings."""
START_US = 1_760_000_000_000_000
TENANT = "bench"

Event = tuple[str, int, bytes]
"""Type, schema id and payload."""


class GeneratedLog:
    """Changesets of one partition, with Items that each belong to a user of their own."""

    def __init__(self) -> None:
        self.records: list[Received] = []
        self._heads: dict[int, bytes] = {}

    def link(self, user: int) -> None:
        """Add the root record of a user's Item."""
        item = (events.ITEM_LINKED, catalogue.ITEM, codec.encode(Item(f"item-{user}", events.ACTIVE)))
        self._append(user, gate.LINK, [item], {})

    def history(self, user: int, transactions: Sequence[Transaction]) -> None:
        """Add a first sync run: all transactions, and at its end the balance that the account is opened with."""
        for begin in range(0, len(transactions), PER_CHANGESET):
            chunk = transactions[begin : begin + PER_CHANGESET]
            block = _transaction_events(events.TRANSACTION_ADDED, chunk)
            if begin + PER_CHANGESET >= len(transactions):
                block.append(_balance_event("1000"))
            self._append(user, gate.SYNC, block, {events.TRANSACTION_ADDED: len(chunk)})

    def update(self, user: int, added: Sequence[Transaction], modified: Sequence[Transaction], current: str) -> None:
        """Add a later sync run, with a new current balance."""
        block = [
            *_transaction_events(events.TRANSACTION_ADDED, added),
            *_transaction_events(events.TRANSACTION_MODIFIED, modified),
            _balance_event(current),
        ]
        counts = {events.TRANSACTION_ADDED: len(added), events.TRANSACTION_MODIFIED: len(modified)}
        self._append(user, gate.SYNC, block, counts)

    def _append(self, user: int, kind: str, block: list[Event], counts: dict[str, int]) -> None:
        offset, parent, keys = len(self.records), self._heads.get(user), keys_of(user)
        encoded = codec.encode_events(block)
        changeset_id = changesets.changeset_id(
            keys, parent=parent, base_cursor=None, next_cursor=str(offset), state=kind, events=encoded
        )
        head = Head(
            changeset_id,
            gate.CHAINED,
            kind,
            parent,
            f"item-{user}",
            user,
            START_US + offset * 1_000,
            Cause("webhook"),
            1,
            counts=counts,
            history_status=None if kind == gate.LINK else COMPLETE,
        )
        self._heads[user] = changeset_id
        value = changesets.seal(head, encoded, keys, nonce=offset.to_bytes(12, "big"))
        self.records.append(Received(0, offset, str(user).encode(), value, {}, 0))


def transactions(count: int, seed: int) -> list[Transaction]:
    """Return transactions of about 400 bytes each."""
    rng = random.Random(seed)

    def plaid_id() -> str:
        return "".join(rng.choices(string.ascii_letters + string.digits, k=37))

    merchants = [(f"Merchant {number}", plaid_id(), f"https://logos.example/{number}.png") for number in range(300)]
    drawn = []
    for _ in range(count):
        name, entity, logo = rng.choice(merchants)
        drawn.append(
            Transaction(
                plaid_id(),
                "checking",
                f"{rng.randrange(100, 20_000) / 100:g}",
                "USD",
                None,
                False,
                None,
                f"2026-{rng.randrange(1, 13):02d}-11",
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
    return drawn


def user_id_of(user: int) -> str:
    """Return the application's id of a generated user."""
    return f"user-{user}"


def keys_of(user: int) -> UserKeys:
    """Return the keys of a generated user."""
    return changesets.user_keys(_data_key(user), FIRST_GENERATION)


def owners(users: Collection[int]) -> Owners:
    """Return the keys and ids of generated users, as the gate reads them."""
    return Owners({user: keys_of(user) for user in users}, {user: (TENANT, user_id_of(user)) for user in users})


async def create_users(
    connection: asyncpg.Connection, settings: Settings, users: Iterable[int], *, tenant: str = TENANT
) -> None:
    """Insert generated users with their keys, so that projectors open the log's changesets."""
    vault, numbers = Vault(settings.master_key()), list(users)
    await connection.executemany(_USER, [(user, tenant, user_id_of(user)) for user in numbers])
    keys = [vault.wrap_data_key(_data_key(user), user=user, generation=FIRST_GENERATION) for user in numbers]
    await connection.executemany(_KEY, [(*row, FIRST_GENERATION) for row in zip(numbers, keys, strict=True)])


async def append_records(appender: Appender, settings: Settings, records: Iterable[Received]) -> None:
    """Append generated records to the log, each to the partition of its user, and wait until all are in it."""
    topic = full_name(CHANGESETS, settings.topic_prefix)
    by_partition: dict[int, list[Outgoing]] = defaultdict(list)
    for record in records:
        assert record.key is not None
        by_partition[partition_of(record.key, settings.partitions)].append(Outgoing(record.key, record.value))
    await asyncio.gather(
        *(appender.append_many(topic, partition, outgoing) for partition, outgoing in by_partition.items())
    )


def _data_key(user: int) -> bytes:
    return user.to_bytes(32, "big")


def _transaction_events(kind: str, transactions: Sequence[Transaction]) -> list[Event]:
    return [(kind, catalogue.TRANSACTION, codec.encode(transaction)) for transaction in transactions]


def _balance_event(current: str) -> Event:
    account = Account(
        "checking", None, "Checking", None, "0000", "depository", "checking", current=current, iso_currency_code="USD"
    )
    return events.BALANCE_REPORTED, catalogue.ACCOUNT, codec.encode(account)


_USER = "INSERT INTO tartan.users (user_number, tenant, user_id) VALUES ($1, $2, $3)"
_KEY = "INSERT INTO tartan.user_keys (user_number, wrapped, generation, state) VALUES ($1, $2, $3, 'active')"
