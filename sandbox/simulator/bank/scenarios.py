"""Create the events of an Item's later life; one step is one update.

Events: purchases that stay pending, pending rows that post under a new id (with or without the link, with a tip),
released holds, amendments, late enrichment, removals, churn, rows that return, and `modified` rows without a change.
Within one update no id occurs twice, so its changes may have any order; they are shuffled.
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
from sandbox.simulator.bank.patterns import Movement, money, refund, wages
from sandbox.simulator.bank.randomness import plaid_id
from sandbox.simulator.bank.transactions import Change, ChangeKind, Transaction

PENDINGS_MAX = 60
"""Pending rows of an Item above which every event posts: an unposted row would wait for ever."""

DRAWS_MAX = 8
"""Tries to find a row that this update has not changed yet; then the event becomes a purchase."""


@dataclass(slots=True)
class Step:
    """One update under construction: its changes and the ids that they change."""

    generator: TransactionGenerator
    changes: list[Change] = field(default_factory=list)
    changed_ids: set[str] = field(default_factory=set)

    @property
    def rng(self) -> random.Random:
        """The random stream of the update."""
        return self.generator.rng

    def add(self, kind: ChangeKind, row: Transaction) -> None:
        """Add a change to the update."""
        self.changed_ids.add(row.transaction_id)
        self.changes.append(Change(kind, row))

    def draw(self, *, pending: bool) -> Transaction | None:
        """Draw a live row that this update has not changed; None where a few tries find none."""
        item = self.generator.item
        pool = item.pending if pending else item.posted
        if not len(pool):
            return None
        for _ in range(DRAWS_MAX):
            row = item.live[pool.draw(self.rng)]
            if row.transaction_id not in self.changed_ids and item.is_listed(row):
                return row
        return None


def step(generator: TransactionGenerator, *, changes: int) -> list[Change]:
    """Generate one update of at least `changes` changes, in shuffled order."""
    update = Step(generator)
    while len(update.changes) < changes:
        event = _EVENTS[bisect(_EVENT_WEIGHTS, generator.rng.random() * _EVENT_WEIGHTS[-1])]
        if len(generator.item.pending) > PENDINGS_MAX:
            event = _post
        before = len(update.changes)
        event(update)
        if len(update.changes) == before:  # no row was left for this event
            _buy(update)
    generator.rng.shuffle(update.changes)
    return update.changes


def refreshed(generator: TransactionGenerator) -> list[Change]:
    """Generate the update of a refresh for the sandbox's dynamic user.

    Source: Plaid documentation, Sandbox test credentials, user_transactions_dynamic: new pendings, all old pendings
    posted, one dollar more on an earlier transaction.
    """
    update = Step(generator)
    for row in [generator.item.live[pending_id] for pending_id in generator.item.pending]:
        if generator.item.is_listed(row):
            _post_row(update, row)
    for _ in range(1 + int(generator.rng.random() * 3)):
        _buy(update)
    earlier = update.draw(pending=False)
    if earlier is not None:
        update.add("modified", _next_version(earlier, amount=earlier.amount + 1))
    return update.changes


def _buy(update: Step) -> None:
    generator = update.generator
    account = generator.account()
    movement = generator.movement(account)
    can_wait = generator.item.institution.shows_pendings and not movement.settles_at_once
    pending = can_wait and update.rng.random() < 0.85
    update.add("added", generator.transaction(account, movement, generator.now.date(), pending=pending))


def _earn(update: Step) -> None:
    _add_movement(update, "depository", wages)


def _refund(update: Step) -> None:
    _add_movement(update, "credit", refund)


def _add_movement(update: Step, account_type: str, pattern: Callable[..., Movement]) -> None:
    generator = update.generator
    account = next((a for a in generator.accounts if a.plan.type == account_type), None)
    if account is not None:
        movement = pattern(generator.rng, account, generator.merchants)
        update.add("added", generator.transaction(account, movement, generator.now.date(), pending=False))


def _post(update: Step) -> None:
    for _ in range(1 + int(update.rng.random() * 3)):
        row = update.draw(pending=True)
        if row is not None:
            _post_row(update, row)


def _post_row(update: Step, pending: Transaction) -> None:
    generator, rng = update.generator, update.rng
    is_linked = rng.random() < generator.item.institution.links_pendings
    update.add("removed", pending)
    posted = msgspec.structs.replace(
        pending,
        transaction_id=plaid_id(rng),
        amount=_settled_amount(rng, pending, generator.item),
        date=max(generator.now.date(), pending.date),
        name=pending.merchant.name if pending.merchant else pending.name,
        pending=False,
        pending_transaction_id=pending.transaction_id if is_linked else None,
        version=0,
    )
    update.add("added", posted)


def _settled_amount(rng: random.Random, pending: Transaction, item: Item) -> Decimal:
    merchant = pending.merchant
    if merchant is None or not (merchant.takes_tips or merchant.holds) or rng.random() < 0.25:
        return pending.amount
    plan = item.accounts[pending.account_id].plan
    # A tip is 10 to 25 percent; an estimate ends anywhere between half and double.
    factor = 0.1 + 0.15 * rng.random() if merchant.takes_tips else rng.random() * 1.5 - 0.5
    return pending.amount + money(rng, round(float(pending.amount) / plan.unit * 100 * factor), plan)


def _amend(update: Step) -> None:
    row = update.draw(pending=False)
    if row is None:
        return
    if update.rng.random() < 0.6:
        plan = update.generator.item.accounts[row.account_id].plan
        amended = _next_version(row, amount=row.amount + money(update.rng, 100, plan))
    else:
        day = min(row.date + dt.timedelta(1), update.generator.now.date())
        amended = _next_version(row, name=row.original_description, date=max(day, row.date))
    update.add("modified", amended)


def _enrich(update: Step) -> None:
    rng, merchants = update.rng, update.generator.merchants
    row = update.draw(pending=rng.random() < 0.3)
    if row is None:
        return
    merchant = row.merchant or merchants[int(rng.random() * len(merchants))]
    enriched = _next_version(
        row,
        merchant=merchant,
        counterparties=merchant.counterparties,
        category=merchant.category,
        confidence=CONFIDENCES[int(rng.random() * 5)],
    )
    update.add("modified", enriched)


def _touch(update: Step) -> None:
    row = update.draw(pending=update.rng.random() < 0.3)
    if row is not None:
        update.add("modified", row)


def _release(update: Step) -> None:
    row = update.draw(pending=True)
    if row is not None:
        update.add("removed", row)


def _withdraw(update: Step) -> None:
    row = update.draw(pending=False)
    if row is not None:
        update.add("removed", row)


def _churn(update: Step) -> None:
    row = update.draw(pending=False)
    if row is not None:
        update.add("removed", row)
        update.add("added", msgspec.structs.replace(row, transaction_id=plaid_id(update.rng), version=0))


def _return(update: Step) -> None:
    item = update.generator.item
    removed = [row for row in item.removed_rows if row.transaction_id not in item.live and item.is_listed(row)]
    rows = [row for row in removed if row.transaction_id not in update.changed_ids]
    if rows:
        update.add("added", _next_version(rows[int(update.rng.random() * len(rows))]))


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
    (_refund, 3),
)
_EVENTS = tuple(event for event, _ in _WEIGHTED)
_EVENT_WEIGHTS = list(accumulate(weight for _, weight in _WEIGHTED))
