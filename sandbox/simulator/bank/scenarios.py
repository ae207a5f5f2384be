"""What happens at the bank: each step of an Item's later life.

A step is one update: purchases that wait, pendings that post under a new id (with or without the link, with a
tip), holds that vanish, amendments, late enrichment, removals, churn, rows that come back, and `modified` rows
in which nothing changed. Within one update no id occurs twice, so its changes may stand in any order; they are
shuffled, and a pending row and its successor are seldom neighbours.
"""

import datetime as dt
import random
from bisect import bisect
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import accumulate

import msgspec

from sandbox.simulator.bank.bank import Item
from sandbox.simulator.bank.generators import CONFIDENCES, TransactionGenerator
from sandbox.simulator.bank.patterns import Sketch, money, refund, wages
from sandbox.simulator.bank.randomness import plaid_id
from sandbox.simulator.bank.transactions import Change, Transaction

PENDINGS_MAX = 60
"""Waiting rows of an Item above which a step posts instead of buying: an unposted row would wait for ever."""

DRAWS_MAX = 8
"""Tries to find a row that this update has not touched yet; then the event becomes a purchase."""


@dataclass(slots=True)
class Step:
    """One update in the making: its changes and the ids that it has touched."""

    drawing: TransactionGenerator
    changes: list[Change] = field(default_factory=list)
    touched: set[str] = field(default_factory=set)

    def add(self, row: Transaction) -> None:
        """Put a new or returning row into the update."""
        self.touched.add(row.transaction_id)
        self.changes.append(Change("added", row))

    def modify(self, row: Transaction) -> None:
        """Put a changed row into the update."""
        self.touched.add(row.transaction_id)
        self.changes.append(Change("modified", row))

    def remove(self, row: Transaction) -> None:
        """Take a row away with the update."""
        self.touched.add(row.transaction_id)
        self.changes.append(Change("removed", row))

    def untouched(self, *, pending: bool) -> Transaction | None:
        """Draw a live row that this update has not touched; None where a few tries find none."""
        item = self.drawing.item
        pool = item.pending if pending else item.posted
        if not len(pool):
            return None
        for _ in range(DRAWS_MAX):
            drawn = pool.draw(self.drawing.rng)
            row = item.live[drawn]
            if drawn not in self.touched and item.accounts[row.account_id].told:
                return row
        return None


def step(drawing: TransactionGenerator, *, changes: int) -> list[Change]:
    """Draw one update of at least `changes` changes, in shuffled order."""
    update = Step(drawing)
    while len(update.changes) < changes:
        event = _EVENTS[bisect(_EVENT_WEIGHTS, drawing.rng.random() * _EVENT_WEIGHTS[-1])]
        if len(drawing.item.pending) > PENDINGS_MAX:
            event = _post
        before = len(update.changes)
        event(update)
        if len(update.changes) == before:  # nothing was left that this event could happen to
            _buy(update)
    drawing.rng.shuffle(update.changes)
    return update.changes


def refreshed(drawing: TransactionGenerator) -> list[Change]:
    """Draw what a refresh brings for the sandbox's dynamic user.

    Source: Plaid documentation, Sandbox test credentials, user_transactions_dynamic: new pendings, all old pendings
    posted, one dollar more on an earlier transaction.
    """
    update = Step(drawing)
    for row in [drawing.item.live[waiting] for waiting in drawing.item.pending]:
        if drawing.item.accounts[row.account_id].told:
            _post_row(update, row)
    for _ in range(1 + int(drawing.rng.random() * 3)):
        _buy(update)
    earlier = update.untouched(pending=False)
    if earlier is not None:
        update.modify(_next_version(earlier, amount=earlier.amount + 1))
    return update.changes


def _buy(update: Step) -> None:
    drawing = update.drawing
    account = drawing.account()
    sketch = drawing.sketch(account)
    waits = drawing.item.institution.shows_pendings and not sketch.settles_at_once
    pending = waits and drawing.rng.random() < 0.85
    update.add(drawing.transaction(account, sketch, drawing.now.date(), pending=pending))


def _earn(update: Step) -> None:
    _of(update, "depository", wages)


def _give_back(update: Step) -> None:
    _of(update, "credit", refund)


def _of(update: Step, account_type: str, pattern: Callable[..., Sketch]) -> None:
    drawing = update.drawing
    account = next((a for a in drawing.accounts if a.plan.type == account_type), None)
    if account is None:
        return
    sketch = pattern(drawing.rng, account, drawing.around.merchants)
    update.add(drawing.transaction(account, sketch, drawing.now.date(), pending=False))


def _post(update: Step) -> None:
    for _ in range(1 + int(update.drawing.rng.random() * 3)):
        waiting = update.untouched(pending=True)
        if waiting is not None:
            _post_row(update, waiting)


def _post_row(update: Step, waiting: Transaction) -> None:
    drawing = update.drawing
    rng = drawing.rng
    linked = rng.random() < drawing.item.institution.links_pendings
    update.remove(waiting)
    update.add(
        msgspec.structs.replace(
            waiting,
            transaction_id=plaid_id(rng),
            amount=_settled_amount(rng, waiting, drawing.item),
            date=max(drawing.now.date(), waiting.date),
            name=waiting.merchant.name if waiting.merchant else waiting.name,
            pending=False,
            pending_transaction_id=waiting.transaction_id if linked else None,
            version=0,
        )
    )


def _settled_amount(rng: random.Random, waiting: Transaction, item: Item) -> Decimal:
    merchant = waiting.merchant
    if merchant is None or not (merchant.takes_tips or merchant.holds) or rng.random() < 0.25:
        return waiting.amount
    plan = item.accounts[waiting.account_id].plan
    # A tip is 10 to 25 percent; an estimate ends anywhere between half and double.
    factor = 0.1 + 0.15 * rng.random() if merchant.takes_tips else rng.random() * 1.5 - 0.5
    return waiting.amount + money(rng, round(float(waiting.amount) / plan.unit * 100 * factor), plan)


def _release(update: Step) -> None:
    waiting = update.untouched(pending=True)
    if waiting is None:
        return
    update.remove(waiting)


def _amend(update: Step) -> None:
    row = update.untouched(pending=False)
    if row is None:
        return
    rng = update.drawing.rng
    account = update.drawing.item.accounts[row.account_id]
    if rng.random() < 0.6:
        amended = _next_version(row, amount=row.amount + money(rng, 100, account.plan))
    else:
        day = min(row.date + dt.timedelta(1), update.drawing.now.date())
        amended = _next_version(row, name=row.original_description, date=max(day, row.date))
    update.modify(amended)


def _enrich(update: Step) -> None:
    row = update.untouched(pending=update.drawing.rng.random() < 0.3)
    if row is None:
        return
    rng = update.drawing.rng
    merchant = row.merchant or update.drawing.around.merchants[int(rng.random() * len(update.drawing.around.merchants))]
    update.modify(
        _next_version(
            row,
            merchant=merchant,
            counterparties=merchant.counterparties,
            category=merchant.category,
            confidence=CONFIDENCES[int(rng.random() * 5)],
        )
    )


def _touch(update: Step) -> None:
    row = update.untouched(pending=update.drawing.rng.random() < 0.3)
    if row is None:
        return
    update.modify(row)


def _withdraw(update: Step) -> None:
    row = update.untouched(pending=False)
    if row is None:
        return
    update.remove(row)


def _churn(update: Step) -> None:
    row = update.untouched(pending=False)
    if row is None:
        return
    update.remove(row)
    update.add(msgspec.structs.replace(row, transaction_id=plaid_id(update.drawing.rng), version=0))


def _return(update: Step) -> None:
    item = update.drawing.item
    back = [row for row in item.gone if row.transaction_id not in item.live]
    back = [row for row in back if row.transaction_id not in update.touched and item.accounts[row.account_id].told]
    if not back:
        return
    update.add(_next_version(back[int(update.drawing.rng.random() * len(back))]))


def _next_version(row: Transaction, **changes: object) -> Transaction:
    return msgspec.structs.replace(row, version=row.version + 1, **changes)


_WEIGHTED: tuple[tuple[Callable[[Step], None], int], ...] = (
    (_buy, 38),
    (_post, 24),
    (_amend, 7),
    (_enrich, 5),
    (_touch, 7),
    (_withdraw, 4),
    (_churn, 4),
    (_return, 3),
    (_release, 2),
    (_earn, 3),
    (_give_back, 3),
)
_EVENTS = tuple(event for event, _ in _WEIGHTED)
_EVENT_WEIGHTS = list(accumulate(weight for _, weight in _WEIGHTED))
