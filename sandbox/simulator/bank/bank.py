"""Hold Items with their accounts, live transactions and change logs.

An Item's log is append-only, and one call of `apply` is one update. An update is visible to `/transactions/sync` as a
whole or not at all, because a pagination ends at the length that the log had when it began. Balances follow the rows:
posted rows change `current`, pending rows change `available` only.
"""

import datetime as dt
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal, NamedTuple

from sandbox.simulator.bank.institutions import AccountPlan, Institution
from sandbox.simulator.bank.randomness import plaid_id, token
from sandbox.simulator.bank.transactions import Change, Transaction

Phase = Literal["NOT_READY", "INITIAL_UPDATE_COMPLETE", "HISTORICAL_UPDATE_COMPLETE"]

REMOVED_ROWS_MAX = 200
"""Removed rows of an Item that may return; older ones stay removed."""

LOG_MAX = 2_000_000
"""Changes of one Item: a cursor stays valid for a year, so none is ever dropped; at 1 kB each this is 2 GB."""

DRAWS_MAX = 32
"""Random tries to find an accepted Item; where nearly all are rejected, a scan of all is faster."""


class Pool:
    """A set of ids with a random draw in constant time."""

    __slots__ = ("_ids", "_indexes")

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._indexes: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def add(self, member: str) -> None:
        """Add an id that is not in the pool."""
        assert member not in self._indexes
        self._indexes[member] = len(self._ids)
        self._ids.append(member)

    def discard(self, member: str) -> None:
        """Remove an id, if it is in the pool; the last one moves to its index."""
        index = self._indexes.pop(member, None)
        if index is None:
            return
        last = self._ids.pop()
        if last != member:
            self._ids[index] = last
            self._indexes[last] = index

    def draw(self, rng: random.Random) -> str:
        """Draw an id of the pool, which must not be empty."""
        return self._ids[int(rng.random() * len(self._ids))]


@dataclass(slots=True)
class Account:
    """An account with its balances.

    Units: of its currency; `posted_sum` and `pending_sum` have Plaid's sign (positive leaves the account).
    `revoked`: by the user. `closed`: another id replaced it. `hidden`: missing from all answers for a while.
    """

    account_id: str
    persistent_id: str
    plan: AccountPlan
    mask: str
    opening: Decimal
    posted_sum: Decimal = Decimal(0)
    pending_sum: Decimal = Decimal(0)
    revoked: bool = False
    closed: bool = False
    hidden: bool = False
    has_rows: bool = False

    @property
    def is_open(self) -> bool:
        """Neither revoked nor closed."""
        return not (self.revoked or self.closed)

    @property
    def is_listed(self) -> bool:
        """In answers now."""
        return self.is_open and not self.hidden

    @property
    def is_debt(self) -> bool:
        """Of a type whose balance is owed: credit or loan."""
        return self.plan.type in ("credit", "loan")

    @property
    def current(self) -> Decimal:
        """Money on the account (depository, investment) or owed (credit, loan)."""
        return self.opening + self.posted_sum if self.is_debt else self.opening - self.posted_sum

    @property
    def available(self) -> Decimal | None:
        """Money to spend, pending rows included; None where the bank does not report it."""
        if not self.plan.reports_available:
            return None
        if self.plan.type == "credit":
            return None if self.plan.limit is None else self.limit_amount - self.current - self.pending_sum
        return self.current - self.pending_sum

    @property
    def limit_amount(self) -> Decimal:
        """The credit limit in the account's currency; zero without one."""
        return Decimal((self.plan.limit or 0) * self.plan.unit)

    def absorb(self, posted: Decimal) -> None:
        """Change the opening balance so that these posted rows do not change `current`: it already contains them."""
        self.opening += -posted if self.is_debt else posted


@dataclass(slots=True)
class Item:
    """A login at an institution: accounts, live rows, the log, and Plaid's state of it.

    `cursor_epoch` rises when all earlier cursors become invalid, with `refused_cursor_code`. `arrangement` rises when
    the same log is paged otherwise (an account is hidden, a history is read again), which ends paginations. `reread`
    is the phase of a history that is read again from an empty cursor; None: that of `phase`.
    """

    ordinal: int
    item_id: str
    access_token: str
    user: str
    institution: Institution
    created_at: dt.datetime
    webhook_url: str | None
    products: tuple[str, ...]
    accounts: dict[str, Account]
    phase: Phase = "NOT_READY"
    log: list[Change] = field(default_factory=list)
    live: dict[str, Transaction] = field(default_factory=dict)
    pending: Pool = field(default_factory=Pool)
    posted: Pool = field(default_factory=Pool)
    removed_rows: list[Transaction] = field(default_factory=list)
    recent_history: list[Change] = field(default_factory=list)
    older_history: list[Change] = field(default_factory=list)
    updates: int = 0
    reread: Phase | None = None
    arrangement: int = 0
    cursor_epoch: int = 0
    refused_cursor_code: str = "INVALID_FIELD"
    cursor_requests: int = 0
    other_requests: int = 0
    withheld_changes: int = 0
    offered_accounts: int = 0
    error_code: str | None = None
    error_reason: str | None = None
    removed: bool = False
    synced_once: bool = False
    last_successful_update: dt.datetime | None = None
    last_failed_update: dt.datetime | None = None
    last_webhook_at: dt.datetime | None = None
    last_webhook_code: str | None = None

    @property
    def transaction_accounts(self) -> list[Account]:
        """The accounts whose transactions the institution reports."""
        return [a for a in self.accounts.values() if a.plan.reports_transactions and a.is_listed]

    def is_listed(self, row: Transaction) -> bool:
        """Return whether the row's account is in answers now."""
        return self.accounts[row.account_id].is_listed

    def apply(self, changes: Sequence[Change]) -> None:
        """Apply one update to live rows and balances, and append it to the log.

        Idempotence: none; an `added` id must not be live, a `modified` or `removed` one must be.
        """
        for change in changes:
            self._apply_change(change)
        self.append(changes)

    def append(self, changes: Sequence[Change]) -> None:
        """Append one update to the log only; rows and balances do not change."""
        assert len(self.log) + len(changes) <= LOG_MAX
        self.log.extend(changes)
        self.updates += 1

    def apply_history(self, changes: Sequence[Change]) -> None:
        """Apply an update of past rows: they explain the current balance and do not change it."""
        before = {account.account_id: account.posted_sum for account in self.accounts.values()}
        self.apply(changes)
        for account in self.accounts.values():
            account.absorb(account.posted_sum - before[account.account_id])

    def _apply_change(self, change: Change) -> None:
        row = change.transaction
        if change.kind == "added":
            assert row.transaction_id not in self.live
            self._count(row, 1)
            self.live[row.transaction_id] = row
            (self.pending if row.pending else self.posted).add(row.transaction_id)
            return
        # Removed and inserted again at the end, so that `live` stays ordered by the time of the last change.
        before = self.live.pop(row.transaction_id)
        self._count(before, -1)
        if change.kind == "modified":
            assert before.pending == row.pending
            self._count(row, 1)
            self.live[row.transaction_id] = row
            return
        (self.pending if before.pending else self.posted).discard(row.transaction_id)
        if not before.pending:
            self.removed_rows.append(before)
            del self.removed_rows[:-REMOVED_ROWS_MAX]

    def _count(self, row: Transaction, direction: int) -> None:
        account = self.accounts[row.account_id]
        account.has_rows = True
        if row.pending:
            account.pending_sum += row.amount * direction
        else:
            account.posted_sum += row.amount * direction


class PublicToken(NamedTuple):
    """A token that one exchange turns into the Item's access token.

    Source: Plaid API, /item/public_token/exchange: it expires after 30 minutes.
    """

    item_id: str
    expires_at: dt.datetime


PUBLIC_TOKEN_LIFE = dt.timedelta(minutes=30)
LINK_TOKEN_LIFE = dt.timedelta(hours=4)


class Bank:
    """Hold every Item, by its id and by its tokens."""

    def __init__(self, institutions: Iterable[Institution]) -> None:
        self.institutions = {institution.institution_id: institution for institution in institutions}
        self.items: dict[str, Item] = {}
        self._order: list[Item] = []
        self._by_access_token: dict[str, Item] = {}
        self._public_tokens: dict[str, PublicToken] = {}

    def open_item(
        self,
        rng: random.Random,
        *,
        user: str,
        institution: Institution,
        created_at: dt.datetime,
        webhook_url: str | None,
        products: tuple[str, ...],
    ) -> Item:
        """Open an Item without history; its accounts have usual balances."""
        accounts = [open_account(rng, plan) for plan in institution.plans]
        item = Item(
            ordinal=len(self.items),
            item_id=plaid_id(rng),
            access_token=token("access", rng),
            user=user,
            institution=institution,
            created_at=created_at,
            webhook_url=webhook_url,
            products=products,
            accounts={account.account_id: account for account in accounts},
        )
        self.items[item.item_id] = item
        self._order.append(item)
        self._by_access_token[item.access_token] = item
        return item

    def active_items(self) -> list[Item]:
        """Return the Items that are not removed, in the order of creation."""
        return [item for item in self.items.values() if not item.removed]

    def draw(self, rng: random.Random, accepts: Callable[[Item], bool]) -> Item | None:
        """Draw an active Item that `accepts`; None where there is none."""
        for _ in range(min(DRAWS_MAX, len(self._order))):
            item = self._order[int(rng.random() * len(self._order))]
            if not item.removed and accepts(item):
                return item
        accepted = [item for item in self.active_items() if accepts(item)]
        return rng.choice(accepted) if accepted else None

    def by_access_token(self, access_token: str) -> Item | None:
        """Return the Item of a valid access token."""
        return self._by_access_token.get(access_token)

    def offer(self, item: Item, rng: random.Random, now: dt.datetime) -> str:
        """Create a public token of an Item."""
        public_token = token("public", rng)
        self._public_tokens[public_token] = PublicToken(item.item_id, now + PUBLIC_TOKEN_LIFE)
        return public_token

    def redeem(self, public_token: str) -> PublicToken | None:
        """Return and delete a public token: it works once."""
        return self._public_tokens.pop(public_token, None)

    def remove(self, item: Item) -> None:
        """Remove an Item; its access token becomes unknown."""
        item.removed = True
        self._by_access_token.pop(item.access_token, None)

    def rotate(self, item: Item, rng: random.Random) -> str:
        """Replace the Item's access token; the old one becomes unknown."""
        self._by_access_token.pop(item.access_token, None)
        item.access_token = token("access", rng)
        self._by_access_token[item.access_token] = item
        return item.access_token


def open_account(rng: random.Random, plan: AccountPlan) -> Account:
    """Open an account with 0.5 to 1.5 times its usual balance, with cents where the currency has them."""
    whole = int(plan.usual_balance * plan.unit * (0.5 + rng.random()))
    cents = Decimal(rng.randrange(100)).scaleb(-2) if plan.currency.decimals >= 2 else Decimal(0)
    return Account(
        account_id=plaid_id(rng),
        persistent_id=rng.randbytes(32).hex(),
        plan=plan,
        mask=f"{rng.randrange(10_000):04}",
        opening=whole + cents,
    )
