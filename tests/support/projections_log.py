"""Logs of changesets for the projections' tests, sealed as the real writers seal them."""

import itertools
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from projections.gate.check import Owners
from runtime.kafka.reader import Received
from schemas import events
from schemas.encoding import catalogue, codec
from schemas.ids import free_id
from schemas.log import changesets, gate
from schemas.log.changesets import UserKeys, user_keys
from schemas.log.records import Account, Cause, Decision, Edit, Head, History, Item, Removal, Transaction

START_US = 1_760_000_000_000_000

Event = tuple[str, int, bytes]


def keys_of(user: int) -> UserKeys:
    """Return the keys of a user."""
    return user_keys(user.to_bytes(32, "big"), 1)


def owners(users: Collection[int]) -> Owners:
    """Return keys and ids of users; each user below 1,000 has both."""
    known = [user for user in users if user < 1_000]
    return Owners({user: keys_of(user) for user in known}, {user: ("t", f"u{user}") for user in known})


def transaction(transaction_id: str, amount: str = "10", **fields: Any) -> Transaction:
    """Return a transaction with these fields and usual values of the others."""
    usual: dict[str, Any] = {
        "account_id": "checking",
        "iso_currency_code": "USD",
        "unofficial_currency_code": None,
        "pending": False,
        "pending_transaction_id": None,
        "date": "2026-03-01",
        "name": "Coffee Shop",
        "merchant_name": "Coffee",
        "category_primary": "FOOD_AND_DRINK",
        "category_detailed": "FOOD_AND_DRINK_COFFEE",
        "category_confidence": "HIGH",
    }
    return Transaction(transaction_id=transaction_id, amount=amount, **{**usual, **fields})


def account(account_id: str = "checking", current: str | None = "100", **fields: Any) -> Account:
    """Return an account with these fields and usual values of the others."""
    usual: dict[str, Any] = {"name": "Checking", "mask": "0000", "type": "depository", "iso_currency_code": "USD"}
    rest = {"persistent_account_id": None, "official_name": None, "subtype": "checking"}
    return Account(account_id=account_id, current=current, **{**usual, **rest, **fields})


def added(*rows: Transaction) -> list[Event]:
    """Return events transaction.added."""
    return [(events.TRANSACTION_ADDED, catalogue.TRANSACTION, codec.encode(row)) for row in rows]


def modified(*rows: Transaction) -> list[Event]:
    """Return events transaction.modified."""
    return [(events.TRANSACTION_MODIFIED, catalogue.TRANSACTION, codec.encode(row)) for row in rows]


def removed(*ids: str) -> list[Event]:
    """Return events transaction.removed."""
    return [(events.TRANSACTION_REMOVED, catalogue.REMOVAL, codec.encode(Removal(plaid_id))) for plaid_id in ids]


def balance(*accounts: Account, realtime: bool = False) -> list[Event]:
    """Return events balance.reported."""
    kind = events.BALANCE_REPORTED_REALTIME if realtime else events.BALANCE_REPORTED
    return [(kind, catalogue.ACCOUNT, codec.encode(reported)) for reported in accounts]


def restated(
    *rows: Transaction,
    accounts: Iterable[str] = ("checking", "card"),
    since: str | None = None,
    until: str | None = None,
    complete: bool = True,
    permille: int = 1000,
) -> list[Event]:
    """Return events history.restated and transaction.added of all rows of an Item."""
    history = History(list(accounts), since, until, complete, permille)
    return [(events.HISTORY_RESTATED, catalogue.HISTORY, codec.encode(history)), *added(*rows)]


def edited(own_id: bytes, transaction_id: str, **fields: Any) -> list[Event]:
    """Return an event transaction.edited of the transaction with this own id and, at that time, this Plaid id."""
    edit = Edit(own_id.hex(), transaction_id, json.dumps(fields))
    return [(events.TRANSACTION_EDITED, catalogue.EDIT, codec.encode(edit))]


def about_item(kind: str, item: Item) -> list[Event]:
    """Return an event about an Item."""
    return [(kind, catalogue.ITEM, codec.encode(item))]


@dataclass
class Log:
    """Log in memory: records by partition, each with its offset."""

    partitions: int = 1
    records: list[Received] = field(default_factory=list)
    heads: dict[str, bytes] = field(default_factory=dict)
    clock_us: int = START_US
    _nonces: Any = field(default_factory=itertools.count)

    def link(self, item_id: str, user: int = 1, *more: Event) -> Received:
        """Append an Item's root."""
        item = Item(item_id, "active", institution_id="ins_1", institution_name="Bank")
        return self.append(item_id, [*about_item(events.ITEM_LINKED, item), *more], user=user, type=gate.LINK)

    def sync(self, item_id: str, *block: Event, user: int = 1, **head: Any) -> Received:
        """Append a sync run's changeset."""
        return self.append(item_id, block, user=user, type=gate.SYNC, **head)

    def restate(self, item_id: str, *block: Event, user: int = 1, **head: Any) -> Received:
        """Append a full resync's changeset."""
        return self.append(item_id, block, user=user, type=gate.RESTATED, **head)

    def edit(self, item_id: str, own_id: bytes, transaction_id: str, user: int = 1, **fields: Any) -> Received:
        """Append an edit."""
        return self.free(item_id, edited(own_id, transaction_id, **fields), type=gate.EDIT, user=user)

    def decide(self, item_id: str, decision: str, subject: bytes | None = None, user: int = 1) -> Received:
        """Append a decision; without a subject it is about the Item's head."""
        payload = codec.encode(Decision((subject or self.heads[item_id]).hex(), decision))
        event = (events.DECISION_MADE, catalogue.DECISION, payload)
        return self.free(item_id, [event], type=gate.DECISION, user=user)

    def redrive(self, item_id: str, user: int = 1, **head: Any) -> Received:
        """Append a redrive."""
        return self.free(item_id, [], type=gate.REDRIVE, user=user, **head)

    def free(self, item_id: str | None, block: Iterable[Event], *, type: str, user: int = 1, **head: Any) -> Received:
        """Append a free record with an id of its own."""
        number = head.pop("id", None) or free_id(user, str(len(self.records)))
        return self.append(item_id, block, user=user, type=type, kind=gate.FREE, id=number, **head)

    def append(
        self,
        item_id: str | None,
        block: Iterable[Event],
        *,
        user: int = 1,
        type: str = gate.SYNC,
        kind: str = gate.CHAINED,
        keys: UserKeys | None = None,
        **head: Any,
    ) -> Received:
        """Append a record; a chained one has the Item's head as its parent, unless another one is given."""
        encoded = codec.encode_events(list(block))
        keys = keys or keys_of(user)
        parent = head.pop("parent", self.heads.get(item_id or "") if kind == gate.CHAINED else None)
        self.clock_us += 1_000_000
        number = changesets.changeset_id(
            keys_of(user), parent=parent, base_cursor=None, next_cursor=str(self.clock_us), state=type, events=encoded
        )
        head_record = Head(
            id=head.pop("id", number),
            kind=kind,
            type=type,
            parent=parent,
            item_id=item_id,
            user=user,
            at=head.pop("at", self.clock_us),
            cause=head.pop("cause", Cause("webhook")),
            key_generation=1,
            **head,
        )
        if kind == gate.CHAINED and item_id is not None:
            self.heads[item_id] = head_record.id
        value = changesets.seal(head_record, encoded, keys, nonce=next(self._nonces).to_bytes(12, "big"))
        return self.put(value, user)

    @staticmethod
    def stranger() -> UserKeys:
        """Return the keys of a user who has no records: what they seal does not open."""
        return keys_of(999_999)

    def put(self, value: bytes, user: int) -> Received:
        """Append a sealed value."""
        partition = user % self.partitions
        offset = sum(record.partition == partition for record in self.records)
        record = Received(partition, offset, str(user).encode(), value, {}, self.clock_us // 1000)
        self.records.append(record)
        return record
