"""Values that pass between the scheduler's tables and the stages: marks, hints, claims and what becomes of them."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from enum import IntEnum
from typing import Any, NamedTuple, Self

from msgspec import Struct

from schemas.log.records import Cause


class Lane(IntEnum):
    """Who goes first among those that are due."""

    WEBHOOK = 0
    MANUAL = 1
    SCHEDULE = 2
    BACKFILL = 3


CURSOR_LOST = "cursor_lost"
"""`code` of an Item whose whole history was read in place of its cursor: a sync has to show that the new one is good.
Until then nothing but time makes it due."""


class Mark(NamedTuple):
    """What a webhook says of an Item: that it may have changed.

    `accounts`: its accounts, too. `unread_only`: counts only while nothing of its history was read (the legacy
    codes, which come beside the others). `stale`: came too late, counts at most once in STALE_PASS_S.
    """

    item_id: str
    cause: Cause
    received_at: datetime
    accounts: bool = False
    unread_only: bool = False
    stale: bool = False


class Hint(NamedTuple):
    """A webhook that says something about an Item's state, to be asked of Plaid. `fields`: a few of its body's."""

    item_id: str
    partition: int
    offset: int
    code: str
    fields: dict[str, Any]
    received_at: datetime


class KnownHead(Struct, frozen=True):
    """An Item's head, as follow_heads read it from the log."""

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
    """A webhook that said something about the Item's state."""

    offset: int
    code: str
    fields: dict[str, Any]


class Claimed(Struct, frozen=True):
    """An Item under a lease, with everything that a pass over it needs.

    `expired`: the lease before this one was never given back, so its work may be in the log, or still on the way.
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
    # The last whole history that was read lacked an account, and so told no removals.
    history_incomplete: bool = False
    # Other Items of its bank were answered with an outage lately: an answer that is none has to be told.
    bank_failing: bool = False
    # Why the last attempt failed or waits; None where nothing did, or a store does not say.
    last_code: str | None = None


class Claims(tuple[Claimed, ...]):
    """Items claimed at once, in the order of their turns.

    `more_in_s`: seconds until another claim finds more, where that is known: 0 at once, above 0 when the client's
    quota gives its next token. None where nothing else is ready: what comes next is a mark or becomes ready by time.
    """

    more_in_s: float | None

    def __new__(cls, claimed: Iterable[Claimed] = (), *, more_in_s: float | None = None) -> Self:
        """Claims in their order."""
        self = super().__new__(cls, tuple(claimed))
        self.more_in_s = more_in_s
        return self


class FairQueueState(NamedTuple):
    """Whose turn it is, as one worker knows it: who was served ahead of the others, and who counts for how much.

    `tenants`, `lanes`, `ahead`: column by column; a tenant that is not named has weight 1 or is not ahead.
    `lanes_ahead`, `lane_weights`: by lane. Units: turns of a flow of weight 1.
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
    """What became of a pass, and when the Item is due again.

    `done`: the claim's generation is dealt with. `due_in_s` None: not by itself. `wait_offset`: the last append,
    which follow_heads has to read first. `hints_until`: hints up to it are dealt with although nothing was appended.
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
    # What /item/get said, where it was asked: when Plaid last read the bank with success.
    bank_asked: bool = False
    bank_updated_at: datetime | None = None
    # Whether /transactions/refresh was answered: the bank itself is being asked.
    refreshed: bool = False
    duration_s: float = 0.0
    pages: int = 0
    added: int = 0
    modified: int = 0
    removed: int = 0
