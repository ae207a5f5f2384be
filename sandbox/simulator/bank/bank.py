"""The bank: Items with their accounts, live transactions and the log of what changed.

An Item's log is append-only, and one call of `apply` is one update: all of it or nothing is visible to
`/transactions/sync`, because a pagination ends at the length that the log had when it began. Balances follow the
rows: what is posted moves `current`, what is pending moves `available` only.
"""

import datetime as dt
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

from sandbox.simulator.bank.institutions import AccountPlan, Institution
from sandbox.simulator.bank.randomness import plaid_id, token
from sandbox.simulator.bank.transactions import Change, Currency, Transaction

Phase = Literal["NOT_READY", "INITIAL_UPDATE_COMPLETE", "HISTORICAL_UPDATE_COMPLETE"]

GONE_MAX = 200
"""Removed rows that an Item remembers so that they may come back; older ones stay removed for ever."""

LOG_MAX = 2_000_000
"""Changes of one Item: a cursor stays valid for a year, so none is ever dropped; at 1 kB each this is 2 GB."""

DRAWS_MAX = 32
"""Tries to draw an Item at random; where nearly all are unfit, a look at each one is quicker than more tries."""


class Pool:
    """A set of ids from which one can be drawn in constant time."""

    __slots__ = ("_ids", "_places")

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._places: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def add(self, member: str) -> None:
        """Take an id in; it must not be there yet."""
        assert member not in self._places
        self._places[member] = len(self._ids)
        self._ids.append(member)

    def discard(self, member: str) -> None:
        """Let an id go, if it is there; the last one takes its place."""
        place = self._places.pop(member, None)
        if place is None:
            return
        last = self._ids.pop()
        if last != member:
            self._ids[place] = last
            self._places[last] = place

    def draw(self, rng: random.Random) -> str:
        """Draw any id of the pool, which must not be empty."""
        return self._ids[int(rng.random() * len(self._ids))]


@dataclass(slots=True)
class Account:
    """An account with its balances.

    Units: of its currency; `posted` and `held` are sums of amounts with Plaid's sign (positive leaves the account).
    """

    account_id: str
    persistent_id: str
    plan: AccountPlan
    mask: str
    opening: Decimal
    posted: Decimal = Decimal(0)
    held: Decimal = Decimal(0)
    revoked: bool = False
    closed: bool = False
    hidden: bool = False
    has_rows: bool = False

    @property
    def shown(self) -> bool:
        """Whether Plaid shows the account: the user did not withdraw it, and no other id replaced it."""
        return not (self.revoked or self.closed)

    @property
    def told(self) -> bool:
        """Whether answers name the account now: one that is hidden is there, and missing from them for a while."""
        return self.shown and not self.hidden

    @property
    def currency(self) -> Currency:
        """The one currency of all its transactions."""
        return self.plan.currency

    @property
    def current(self) -> Decimal:
        """Money held (depository, investment) or owed (credit, loan)."""
        if self.plan.type in ("credit", "loan"):
            return self.opening + self.posted
        return self.opening - self.posted

    @property
    def available(self) -> Decimal | None:
        """What could be spent now, pending rows counted; None where the bank does not say."""
        if not self.plan.reports_available:
            return None
        if self.plan.type == "credit":
            return None if self.plan.limit is None else self.limit_amount - self.current - self.held
        return self.current - self.held

    @property
    def limit_amount(self) -> Decimal:
        """The credit limit in the account's currency; zero where there is none."""
        return Decimal((self.plan.limit or 0) * self.plan.unit)

    def absorb(self, posted_before: Decimal) -> None:
        """Move the opening balance instead of `current` by what was posted since: the past was already in it."""
        moved = self.posted - posted_before
        self.opening += -moved if self.plan.type in ("credit", "loan") else moved


@dataclass(slots=True)
class Item:
    """A login at an institution: accounts, live rows, the log, and what Plaid knows of its state.

    `cursor_epoch` is raised when cursors given so far are refused, with `refused_cursor_code`. `arrangement` is raised
    when the same log reads otherwise from now on (an account is hidden, a history is read again): a pagination does
    not survive that. `reread` is how far a history that is read again from no cursor has come; None: as `phase` says.
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
    gone: list[Transaction] = field(default_factory=list)
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
        return [a for a in self.accounts.values() if a.plan.reports_transactions and a.told]

    def apply(self, changes: Sequence[Change]) -> None:
        """Append one update to the log and let live rows and balances follow.

        Idempotence: none; an `added` id must not be live, a `modified` or `removed` one must be.
        """
        assert len(self.log) + len(changes) <= LOG_MAX
        for change in changes:
            self._take(change)
        self.log.extend(changes)
        self.updates += 1

    def retell(self, changes: Sequence[Change]) -> None:
        """Tell what is so already, once more: it stands in the log, and rows and balances stay as they are."""
        assert len(self.log) + len(changes) <= LOG_MAX
        self.log.extend(changes)
        self.updates += 1

    def add_account(self, account: Account) -> None:
        """Show one more account."""
        self.accounts[account.account_id] = account

    def apply_history(self, changes: Sequence[Change]) -> None:
        """Append an update of past rows: they explain the balance that stands, they do not move it."""
        before = {account.account_id: account.posted for account in self.accounts.values()}
        self.apply(changes)
        for account in self.accounts.values():
            account.absorb(before[account.account_id])

    def _take(self, change: Change) -> None:
        row = change.transaction
        if change.kind == "added":
            assert row.transaction_id not in self.live
            self._move(row, 1)
            self.live[row.transaction_id] = row
            (self.pending if row.pending else self.posted).add(row.transaction_id)
            return
        # Taken out and put back at the end, so that `live` stays ordered by the time of the last change.
        before = self.live.pop(row.transaction_id)
        self._move(before, -1)
        if change.kind == "modified":
            assert before.pending == row.pending
            self._move(row, 1)
            self.live[row.transaction_id] = row
            return
        (self.pending if before.pending else self.posted).discard(row.transaction_id)
        if not before.pending:
            self.gone.append(before)
            del self.gone[:-GONE_MAX]

    def _move(self, row: Transaction, direction: int) -> None:
        account = self.accounts[row.account_id]
        account.has_rows = True
        if row.pending:
            account.held += row.amount * direction
        else:
            account.posted += row.amount * direction


@dataclass(slots=True)
class PublicToken:
    """A token that one exchange turns into the Item's access token.

    Source: Plaid API, /item/public_token/exchange: it expires after 30 minutes.
    """

    item_id: str
    expires_at: dt.datetime


PUBLIC_TOKEN_LIFE = dt.timedelta(minutes=30)
LINK_TOKEN_LIFE = dt.timedelta(hours=4)


class Bank:
    """Every Item, findable by its id and by its tokens."""

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
        """Open an Item without history: its accounts stand at their usual balances."""
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
        """Items that were not removed, in the order of their making."""
        return [item for item in self.items.values() if not item.removed]

    def draw(self, rng: random.Random, accepts: Callable[[Item], bool]) -> Item | None:
        """Draw an active Item that is accepted; None where there is none."""
        for _ in range(min(DRAWS_MAX, len(self._order))):
            item = self._order[int(rng.random() * len(self._order))]
            if not item.removed and accepts(item):
                return item
        accepted = [item for item in self.active_items() if accepts(item)]
        return rng.choice(accepted) if accepted else None

    def by_access_token(self, access_token: str) -> Item | None:
        """Find the Item of an access token that is still valid."""
        return self._by_access_token.get(access_token)

    def offer(self, item: Item, rng: random.Random, now: dt.datetime) -> str:
        """Make a public token for an Item."""
        public_token = token("public", rng)
        self._public_tokens[public_token] = PublicToken(item.item_id, now + PUBLIC_TOKEN_LIFE)
        return public_token

    def redeem(self, public_token: str) -> PublicToken | None:
        """Take a public token; it works once, so it is forgotten."""
        return self._public_tokens.pop(public_token, None)

    def remove(self, item: Item) -> None:
        """Remove an Item: its access token is unknown from now on."""
        item.removed = True
        self._by_access_token.pop(item.access_token, None)

    def rotate(self, item: Item, rng: random.Random) -> str:
        """Give the Item a new access token; the old one is unknown from now on."""
        self._by_access_token.pop(item.access_token, None)
        item.access_token = token("access", rng)
        self._by_access_token[item.access_token] = item
        return item.access_token


def open_account(rng: random.Random, plan: AccountPlan) -> Account:
    """Open an account near its usual balance."""
    # A usual balance is met within a factor of two, with cents where the currency has them.
    whole = int(plan.usual_balance * plan.unit * (0.5 + rng.random()))
    cents = Decimal(rng.randrange(100)).scaleb(-2) if plan.currency.decimals >= 2 else Decimal(0)
    return Account(
        account_id=plaid_id(rng),
        persistent_id=rng.randbytes(32).hex(),
        plan=plan,
        mask=f"{rng.randrange(10_000):04}",
        opening=whole + cents,
    )
