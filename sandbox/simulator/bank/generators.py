"""Generate transactions for an Item, and its history."""

import datetime as dt
import random
from bisect import bisect
from dataclasses import dataclass
from itertools import accumulate

import msgspec

from sandbox.simulator.bank.bank import Account, Item
from sandbox.simulator.bank.patterns import PATTERNS, Movement
from sandbox.simulator.bank.randomness import plaid_id
from sandbox.simulator.bank.transactions import Change, Confidence, Merchant, Transaction

PENDING_DAYS = 3
"""Newest days of a history whose rows may still be pending; banks take one to five."""

_ACCOUNT_WEIGHTS = {"checking": 6, "savings": 1, "money market": 1, "credit card": 7, "student": 1}
CONFIDENCES: tuple[Confidence | None, ...] = ("VERY_HIGH", "HIGH", "MEDIUM", "LOW", "UNKNOWN", None)
_CONFIDENCE_SHARES = (0.58, 0.80, 0.89, 0.95, 0.985)


@dataclass(frozen=True, slots=True)
class GeneratorSettings:
    """The catalogue, and the share of transactions with fields that no published schema has."""

    merchants: tuple[Merchant, ...]
    novelty: float = 0.0


class TransactionGenerator:
    """Generate the transactions of one update of an Item from one random stream."""

    def __init__(self, rng: random.Random, item: Item, settings: GeneratorSettings, now: dt.datetime) -> None:
        self.rng = rng
        self.item = item
        self.merchants = settings.merchants
        self.now = now
        self.accounts = item.transaction_accounts
        self._novelty = settings.novelty
        self._weights = list(accumulate(_ACCOUNT_WEIGHTS.get(a.plan.subtype, 3) for a in self.accounts))
        self._has_codes = item.institution.country != "US"

    def account(self) -> Account:
        """Draw an account, everyday accounts more often."""
        return self.accounts[bisect(self._weights, self.rng.random() * self._weights[-1])]

    def movement(self, account: Account) -> Movement:
        """Draw a movement of an account."""
        patterns, weights = PATTERNS[account.plan.type]
        return patterns[bisect(weights, self.rng.random() * 100)](self.rng, account, self.merchants)

    def transaction(self, account: Account, movement: Movement, day: dt.date, *, pending: bool) -> Transaction:
        """Create the transaction of a movement on a day."""
        rng = self.rng
        lag = 0 if pending else int(rng.random() * rng.random() * 4)
        authorized = day - dt.timedelta(lag) if lag else day
        has_authorized = pending or rng.random() < 0.85
        confidence = CONFIDENCES[bisect(_CONFIDENCE_SHARES, rng.random())]
        return Transaction(
            transaction_id=plaid_id(rng),
            account_id=account.account_id,
            amount=movement.amount,
            currency=account.plan.currency,
            date=day,
            authorized_date=authorized if has_authorized else None,
            datetime=self._moment(day),
            authorized_datetime=self._moment(authorized) if has_authorized else None,
            name=movement.name,
            original_description=movement.description,
            merchant=movement.merchant,
            counterparties=movement.counterparties,
            category=movement.category if rng.random() < 0.985 else None,
            confidence=confidence,
            place=movement.place,
            pending=pending,
            pending_transaction_id=None,
            payment_channel=movement.channel,
            transaction_code=movement.code if self._has_codes or movement.merchant is None else None,
            check_number=movement.check_number,
            account_owner=account.mask if rng.random() < 0.02 else None,
            payment_meta=movement.meta,
            novelty=1 + int(rng.random() * 1_000_000) if rng.random() < self._novelty else 0,
        )

    def _moment(self, day: dt.date) -> str | None:
        # Some banks report the second, some send midnight for every row, most send no time.
        drawn = self.rng.random()
        if drawn > 0.3:
            return None
        if drawn > 0.2:
            return f"{day.isoformat()}T00:00:00Z"
        second = int(drawn / 0.2 * 86_400)
        return f"{day.isoformat()}T{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}Z"


def history(generator: TransactionGenerator, *, transactions: int, days: int) -> list[Change]:
    """Generate an Item's past, oldest first; the newest rows may still be pending.

    Shape: `transactions` changes of kind `added` over `days` days that end today.
    """
    rng = generator.rng
    today = generator.now.date()
    ages = sorted((int(rng.random() * days) for _ in range(transactions)), reverse=True)
    shows_pendings = generator.item.institution.shows_pendings
    linked_share = generator.item.institution.links_pendings * 0.7
    changes = []
    for age in ages:
        account = generator.account()
        movement = generator.movement(account)
        pending = shows_pendings and age < PENDING_DAYS and not movement.settles_at_once and rng.random() < 0.7
        row = generator.transaction(account, movement, today - dt.timedelta(age), pending=pending)
        if not pending and not movement.settles_at_once and rng.random() < linked_share:
            # Its pending row was removed before the Item was linked, so the id is of a row that no client has seen.
            row = msgspec.structs.replace(row, pending_transaction_id=plaid_id(rng))
        changes.append(Change("added", row))
    return changes
