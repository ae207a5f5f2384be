"""Transactions drawn for an Item: what one looks like, and a history of them."""

import datetime as dt
import random
from bisect import bisect
from dataclasses import dataclass
from itertools import accumulate

import msgspec

from sandbox.simulator.bank.bank import Account, Item
from sandbox.simulator.bank.patterns import PATTERNS, Sketch
from sandbox.simulator.bank.randomness import plaid_id
from sandbox.simulator.bank.transactions import Change, Confidence, Merchant, Transaction

PENDING_DAYS = 3
"""Youngest days of a history whose rows may still be pending; banks take one to five."""

_ACCOUNT_WEIGHTS = {"checking": 6, "savings": 1, "money market": 1, "credit card": 7, "student": 1}
CONFIDENCES: tuple[Confidence | None, ...] = ("VERY_HIGH", "HIGH", "MEDIUM", "LOW", "UNKNOWN", None)
_CONFIDENCE_SHARES = (0.58, 0.80, 0.89, 0.95, 0.985)


@dataclass(frozen=True, slots=True)
class GeneratorSettings:
    """What every scenario is drawn from."""

    merchants: tuple[Merchant, ...]
    novelty: float = 0.0


class TransactionGenerator:
    """One drawing of transactions for one Item: its random stream, its accounts and the time."""

    def __init__(self, rng: random.Random, item: Item, around: GeneratorSettings, now: dt.datetime) -> None:
        self.rng = rng
        self.item = item
        self.around = around
        self.now = now
        self.accounts = item.transaction_accounts
        self._weights = list(accumulate(_ACCOUNT_WEIGHTS.get(a.plan.subtype, 3) for a in self.accounts))
        self._speaks_codes = item.institution.country != "US"

    def account(self) -> Account:
        """Draw an account, the everyday ones more often."""
        return self.accounts[bisect(self._weights, self.rng.random() * self._weights[-1])]

    def sketch(self, account: Account) -> Sketch:
        """Draw what happens on an account."""
        patterns, weights = PATTERNS[account.plan.type]
        return patterns[bisect(weights, self.rng.random() * 100)](self.rng, account, self.around.merchants)

    def transaction(self, account: Account, sketch: Sketch, day: dt.date, *, pending: bool) -> Transaction:
        """Make a sketch a transaction of a day."""
        rng = self.rng
        lag = 0 if pending else int(rng.random() * rng.random() * 4)
        authorized = day - dt.timedelta(lag) if lag else day
        knows_authorized = pending or rng.random() < 0.85
        confidence = CONFIDENCES[bisect(_CONFIDENCE_SHARES, rng.random())]
        return Transaction(
            transaction_id=plaid_id(rng),
            account_id=account.account_id,
            amount=sketch.amount,
            currency=account.plan.currency,
            date=day,
            authorized_date=authorized if knows_authorized else None,
            datetime=self._moment(day),
            authorized_datetime=self._moment(authorized) if knows_authorized else None,
            name=sketch.name,
            original_description=sketch.raw,
            merchant=sketch.merchant,
            counterparties=sketch.counterparties,
            category=sketch.category if rng.random() < 0.985 else None,
            confidence=confidence,
            place=sketch.place,
            pending=pending,
            pending_transaction_id=None,
            payment_channel=sketch.channel,
            transaction_code=sketch.code if self._speaks_codes or sketch.merchant is None else None,
            check_number=sketch.check_number,
            account_owner=account.mask if rng.random() < 0.02 else None,
            payment_meta=sketch.meta,
            novelty=1 + int(rng.random() * 1_000_000) if rng.random() < self.around.novelty else 0,
        )

    def _moment(self, day: dt.date) -> str | None:
        # Some banks say the minute, some send midnight for every row, most say nothing.
        drawn = self.rng.random()
        if drawn > 0.3:
            return None
        if drawn > 0.2:
            return f"{day.isoformat()}T00:00:00Z"
        second = int(drawn / 0.2 * 86_400)
        return f"{day.isoformat()}T{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}Z"


def history(drawing: TransactionGenerator, *, transactions: int, days: int) -> list[Change]:
    """Draw an Item's past, oldest first; the youngest rows may still be pending.

    Shape: `transactions` changes of kind `added` over `days` days that end today.
    """
    rng = drawing.rng
    today = drawing.now.date()
    ages = sorted((int(rng.random() * days) for _ in range(transactions)), reverse=True)
    dates = [today - dt.timedelta(age) for age in range(days + 1)]
    shows = drawing.item.institution.shows_pendings
    links = drawing.item.institution.links_pendings * 0.7
    changes = []
    for age in ages:
        account = drawing.account()
        sketch = drawing.sketch(account)
        pending = shows and age < PENDING_DAYS and not sketch.settles_at_once and rng.random() < 0.7
        row = drawing.transaction(account, sketch, dates[age], pending=pending)
        if not pending and not sketch.settles_at_once and rng.random() < links:
            # Its pending row was gone before the Item was linked: a link to an id that nobody has seen.
            row = msgspec.structs.replace(row, pending_transaction_id=plaid_id(rng))
        changes.append(Change("added", row))
    return changes
