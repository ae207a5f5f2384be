"""Values that the scheduler's tables and the stages exchange: marks, hints, claims and releases."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from enum import IntEnum
from typing import Any, NamedTuple, Self

from msgspec import Struct

from schemas.log.records import Cause


class Lane(IntEnum):
    """The lanes of due Items, most urgent first."""

    WEBHOOK = 0
    MANUAL = 1
    SCHEDULE = 2
    BACKFILL = 3


CURSOR_LOST = "cursor_lost"
"""`code` of an Item after a full resync in place of a lost cursor: until a sync with the new cursor succeeds, only time
makes the Item due."""


class Mark(NamedTuple):
    """A mark that a webhook sets: its Item may have changed.

    `accounts`: its accounts as well. `unread_only`: counts only while nothing of its history was read (the legacy
    codes, which arrive beside the others). `stale`: arrived too late, counts at most once in STALE_RUN_S.
    """

    item_id: str
    cause: Cause
    received_at: datetime
    accounts: bool = False
    unread_only: bool = False
    stale: bool = False


class Hint(NamedTuple):
    """A webhook about an Item's state, which a sync run has to ask Plaid about. `fields`: a few of its body."""

    item_id: str
    partition: int
    offset: int
    code: str
    fields: dict[str, Any]
    received_at: datetime


class KnownHead(Struct, frozen=True):
    """An Item's head as follow_heads read it from the log."""

    id: bytes
    offset: int
    at: datetime
    unlinked: bool
    cursor: str | None
    state: str | None
    code: str | None
    history_status: str | None
    fingerprints: dict[str, bytes]


class KnownHint(Struct, frozen=True):
    """A hint as a claim returns it."""

    offset: int
    code: str
    fields: dict[str, Any]


class Claimed(Struct, frozen=True):
    """An Item under a lease, with everything that its sync run needs.

    `expired`: the lease before this one was never released, so its work may be in the log, or still on the way.
    `history_incomplete`: the last full resync lacked an account, so it concluded no removals. `bank_failing`: other
    Items of the bank got an outage lately, so a success must be recorded. `last_code`: the error code of the last
    attempt; None where it succeeded.
    """

    item_id: str
    tenant: str
    user: int
    partition: int
    institution_id: str | None
    institution_name: str | None
    sealed_token: bytes | None
    lease: bytes
    expired: bool
    generation: int
    lane: int
    cause: Cause
    unlink_requested: bool
    accounts_wanted: bool
    accounts_at: datetime | None
    attempts: int
    not_ready: int
    head: KnownHead | None
    hints: tuple[KnownHint, ...]
    refresh_wanted: bool = False
    history_incomplete: bool = False
    bank_failing: bool = False
    last_code: str | None = None


class Claims(tuple[Claimed, ...]):
    """Items claimed at once, in the order of the fair queue.

    `more_in_s`: seconds until another claim can return more: 0 at once, above 0 until the client's quota has its next
    token, None where nothing else is ready before a mark or a due time.
    """

    more_in_s: float | None

    def __new__(cls, claimed: Iterable[Claimed] = (), *, more_in_s: float | None = None) -> Self:
        """Return the claims in their order."""
        self = super().__new__(cls, tuple(claimed))
        self.more_in_s = more_in_s
        return self


class FairQueueState(NamedTuple):
    """One worker's state of the weighted fair queue: the turns that flows were served ahead of others, and weights.

    Shape: `tenants`, `lanes`, `ahead` are columns, as are `weighted`, `weights`; an absent tenant is not ahead, or has
    weight 1. `lanes_ahead` and `lane_weights` are indexed by lane. Units: turns of a flow of weight 1.
    """

    tenants: Sequence[str] = ()
    lanes: Sequence[int] = ()
    ahead: Sequence[float] = ()
    weighted: Sequence[str] = ()
    weights: Sequence[float] = ()
    lanes_ahead: Sequence[float] = (0.0,) * len(Lane)
    lane_weights: Sequence[float] = (1.0,) * len(Lane)


NOBODY_AHEAD = FairQueueState()


class Released(Struct, frozen=True, kw_only=True):
    """The outcome of a sync run, and when the Item is due again.

    `done`: the claim's generation is synced. `due_in_s` None: not due by itself. `wait_offset`: the last append, which
    follow_heads has to read first. `hints_until`: hints up to this offset are done although nothing was appended.
    `bank_asked`, `bank_updated_at`: /item/get was called, and its time of Plaid's last successful read of the bank.
    `refreshed`: Plaid accepted /transactions/refresh.
    """

    outcome: str
    done: bool
    due_in_s: float | None = None
    not_before_s: float | None = None
    wait_offset: int | None = None
    accounts_read: bool = False
    synced: bool = False
    attempts: int = 0
    not_ready: int = 0
    stopped: str | None = None
    error: dict[str, Any] | None = None
    hints_until: int | None = None
    bank_asked: bool = False
    bank_updated_at: datetime | None = None
    refreshed: bool = False
    duration_s: float = 0.0
    pages: int = 0
    added: int = 0
    modified: int = 0
    removed: int = 0
