"""Declare the ports of this stage's agents: Postgres, Kafka and Plaid implement them, and so does memory."""

import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import NamedTuple, Protocol

from runtime.kafka.reader import Position
from runtime.plaid.item_models import ItemAnswer
from runtime.plaid.models import AccountsAnswer, SyncPage
from runtime.scheduler.types import Claimed, Claims, FairQueueState, Hint, Mark, Released
from schemas.errors import Retry
from schemas.log.changesets import RECORD_BYTES_MAX, UserKeys
from streams.heads import HeadChanges, ItemHead

MARKER = "mark_due"
"""Reader name of the agent mark_due in `positions`; that of follow_heads is runtime.scheduler.leases.FOLLOWER."""

Clock = Callable[[], datetime]
Sleep = Callable[[float], Awaitable[None]]
Random = Callable[[], float]
"""A number in [0, 1)."""
Nonce = Callable[[], bytes]


class LeaseLost(Retry):
    """The lease ended, so another worker may sync the Item: this one sends no further request for it."""


class PlaidApi(Protocol):
    """Plaid. Each method raises PlaidRefused, Retry or Quarantine; runtime.plaid.client.Plaid is one."""

    async def sync_page(self, token: str, cursor: str | None) -> SyncPage:
        """Return one page of the changes after a cursor."""

    async def accounts(self, token: str) -> AccountsAnswer:
        """Return the accounts with their cached balances."""

    async def item(self, token: str) -> ItemAnswer:
        """Return the Item's state."""

    async def refresh(self, token: str) -> None:
        """Have Plaid refresh from the bank; a webhook reports the result, and a later sync reads it."""

    async def remove(self, token: str) -> None:
        """Remove the Item."""


class Limits(Protocol):
    """Plaid's quotas and the banks' breakers, shared by all workers. Each method raises Retry if Postgres is away."""

    async def take(self, endpoint: str, item_id: str) -> None:
        """Wait until the Item's bucket and the client's both give a token. `endpoint`: of runtime.scheduler.quotas.

        Raises: Retry too, where that would take longer than a sync run may wait.
        """

    async def exceeded(self, endpoint: str, item_id: str, *, error_code: str) -> None:
        """Move the bucket that a 429 of Plaid's is about: Plaid counted otherwise."""

    async def institution_failed(self, institution_id: str, *, error_code: str) -> None:
        """Count an outage of a bank; where a set number follow each other, all its Items wait."""

    async def institution_answered(self, institution_id: str) -> None:
        """End the outage of a bank: its Items go on."""


class Log(Protocol):
    """The topic `changesets`."""

    async def append(self, partition: int, key: bytes, value: bytes) -> int:
        """Append a record and return its offset. Raises: InDoubt, Retry."""

    async def end(self, partition: int) -> int:
        """Return the next offset of a partition. Raises: Retry."""


class Store(Protocol):
    """The scheduler's tables, for sync runs. Each method raises Retry where Postgres is away."""

    async def claim(self, slots: int) -> Claims:
        """Lease Items that are ready, at most as many as there are slots."""

    async def renew(self, claimed: Claimed) -> bool:
        """Prolong a lease; False where it was lost."""

    async def release(self, claimed: Claimed, result: Released) -> bool:
        """Give an Item back; False where the lease was lost."""

    async def release_untouched(self, claimed: Claimed, *, wait_offset: int) -> None:
        """Give an Item back unchanged, to wait until follow_heads has read an offset."""

    async def expire(self, claimed: Claimed) -> None:
        """End a lease as if its time were over."""

    async def finish_unlink(self, claimed: Claimed) -> None:
        """Delete token and schedule."""

    async def quarantine(self, claimed: Claimed, reason: str) -> None:
        """Quarantine an Item until it is redriven."""

    async def keys(self, user: int) -> UserKeys | None:
        """Return a user's keys; None where they were destroyed. Raises: Quarantine, where there never were any."""

    def token(self, claimed: Claimed) -> str | None:
        """Return the Item's access token; None where there is none. Raises: Halt, where it does not open."""

    async def count_gone(self) -> tuple[int, int]:
        """Return the number of Items that Plaid called gone within the hour, and the number of all Items."""


class ClaimOrder(Protocol):
    """Order in which lanes and tenants are claimed; streams.schedule.fair_queue.FairQueue is one."""

    def state(self) -> FairQueueState:
        """Return the state that the next claim is ordered by."""

    def advance(self, claims: Iterable[Claimed]) -> None:
        """Advance the lanes and tenants of claimed Items."""


class SyncContext(NamedTuple):
    """Ports and settings of sync runs.

    Units: `monotonic` in seconds of a clock that never goes back, the same that `asyncio.sleep` waits by;
    `days_requested`: of history at an Item's first sync; `removals_share_max`: share of the known transactions.
    """

    bank: PlaidApi
    log: Log
    store: Store
    clock: Clock
    sleep: Sleep
    random: Random
    nonce: Nonce
    accounts_interval_s: float
    days_requested: int = 730
    removals_share_max: float = 0.2
    record_bytes_max: int = RECORD_BYTES_MAX
    limits: Limits | None = None
    monotonic: Callable[[], float] = time.monotonic


class ReaderTransaction(Protocol):
    """One transaction of a reader, its positions locked; they are known after its first read."""

    positions: Mapping[int, Position]

    async def advance(self, positions: Mapping[int, Position]) -> None:
        """Move the positions."""


class Marking(ReaderTransaction, Protocol):
    """One transaction of mark_due."""

    async def new_keys(self, keys: Sequence[bytes]) -> set[bytes]:
        """Store repeat keys and return those that were new. Reads the positions."""

    async def mark(self, marks: Sequence[Mark], hints: Sequence[Hint]) -> int:
        """Make Items due and return their number."""


class Following(ReaderTransaction, Protocol):
    """One transaction of follow_heads."""

    async def heads(self, items: Collection[str]) -> dict[str, ItemHead]:
        """Return the heads that are known. Reads the positions."""

    async def erased(self, users: Collection[int]) -> set[int]:
        """Return the users whose key is destroyed."""

    async def apply(self, changes: HeadChanges) -> None:
        """Write heads and incomplete histories, make Items due again that were skipped or redriven, erase users."""


BeginMarking = Callable[[Collection[int]], AbstractAsyncContextManager[Marking]]
BeginFollowing = Callable[[Collection[int]], AbstractAsyncContextManager[Following]]
