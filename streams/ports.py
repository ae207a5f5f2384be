"""What this stage's agents need of the world. Postgres, Kafka and Plaid are one implementation, memory another."""

import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import NamedTuple, Protocol

from runtime.kafka.reader import Position
from runtime.plaid.models import AccountsAnswer, ItemAnswer, SyncPage
from runtime.scheduler.types import Claimed, Claims, Hint, Mark, Released
from schemas.log.changesets import RECORD_BYTES_MAX, UserKeys
from streams.heads import HeadChanges, ItemHead

MARKER = "mark_due"
"""Reader name of the agent mark_due in `positions`; that of follow_heads is runtime.scheduler.leases.FOLLOWER."""

Clock = Callable[[], datetime]
Sleep = Callable[[float], Awaitable[None]]
Random = Callable[[], float]
"""A number in [0, 1)."""
Nonce = Callable[[], bytes]


class Bank(Protocol):
    """Plaid. Each raises PlaidRefused, Retry or Quarantine; runtime.plaid.client.Plaid is one."""

    async def sync_page(self, token: str, cursor: str | None) -> SyncPage:
        """One page of what changed after a cursor."""

    async def accounts(self, token: str) -> AccountsAnswer:
        """The accounts with their cached balances."""

    async def item(self, token: str) -> ItemAnswer:
        """The Item's state."""

    async def refresh(self, token: str) -> None:
        """Have the bank itself asked; what it says is told by webhook and read by a later sync."""

    async def remove(self, token: str) -> None:
        """End the Item."""


class Limits(Protocol):
    """Plaid's quotas and the banks' breakers, shared by all workers. Each raises Retry where Postgres is away."""

    async def take(self, endpoint: str, item_id: str) -> None:
        """Wait until the Item's bucket and the client's both give a token. `endpoint`: of runtime.scheduler.quotas.

        Raises: Retry too, where that would take longer than a pass may wait.
        """

    async def exceeded(self, endpoint: str, item_id: str, *, error_code: str) -> None:
        """Plaid counted otherwise and answered 429: move the bucket that it speaks of."""

    async def institution_failed(self, institution_id: str, *, error_code: str) -> None:
        """A bank answered with an outage; as many in a row as are set make all its Items wait."""

    async def institution_answered(self, institution_id: str) -> None:
        """A bank answered otherwise: its Items go on."""


class Log(Protocol):
    """The topic `changesets`."""

    async def append(self, partition: int, key: bytes, value: bytes) -> int:
        """Append a record and give its offset. Raises: InDoubt, Retry."""

    async def end(self, partition: int) -> int:
        """The next offset of a partition. Raises: Retry."""


class Store(Protocol):
    """What a pass needs of the scheduler. Each raises Retry where Postgres is away."""

    async def claim(self, slots: int) -> Claims:
        """Lease what is ready, at most so many Items."""

    async def renew(self, claimed: Claimed) -> bool:
        """Prolong a lease; False where it was lost."""

    async def release(self, claimed: Claimed, result: Released) -> bool:
        """Give an Item back; False where the lease was lost."""

    async def release_untouched(self, claimed: Claimed, *, wait_offset: int) -> None:
        """Give an Item back untouched, to wait for the follower."""

    async def expire(self, claimed: Claimed) -> None:
        """End a lease as if time had."""

    async def finish_unlink(self, claimed: Claimed) -> None:
        """Delete token and schedule."""

    async def quarantine(self, claimed: Claimed, reason: str) -> None:
        """Set an Item aside until it is redriven."""

    async def keys(self, user: int) -> UserKeys | None:
        """A user's keys; None where they were destroyed. Raises: Quarantine, where there never were any."""

    def token(self, claimed: Claimed) -> str | None:
        """The Item's access token; None where there is none. Raises: Halt, where it does not open."""

    async def count_gone(self) -> tuple[int, int]:
        """How many Items Plaid called gone within the hour, of how many."""


class SyncContext(NamedTuple):
    """What passes are made in.

    Units: `monotonic` in seconds of a clock that never goes back, the same that `asyncio.sleep` waits by;
    `days_requested`: history asked for at an Item's first sync; `removals_share_max`: of what is known.
    """

    bank: Bank
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


class Marking(Protocol):
    """One transaction of mark_due, its positions locked."""

    positions: Mapping[int, Position]

    async def new_keys(self, keys: Sequence[bytes]) -> set[bytes]:
        """Remember repeat keys and give those that were not known."""

    async def mark(self, marks: Sequence[Mark], hints: Sequence[Hint]) -> int:
        """Make Items due; how many there were."""

    async def advance(self, positions: Mapping[int, Position]) -> None:
        """Move the positions."""


class Following(Protocol):
    """One transaction of follow_heads, its positions locked."""

    positions: Mapping[int, Position]

    async def heads(self, items: Collection[str]) -> dict[str, ItemHead]:
        """The heads that are known."""

    async def erased(self, users: Collection[int]) -> set[int]:
        """Users whose key is destroyed."""

    async def apply(self, followed: HeadChanges) -> None:
        """Write heads and what histories lacked, make due again what was skipped or redriven, erase."""

    async def advance(self, positions: Mapping[int, Position]) -> None:
        """Move the positions."""


Begin = Callable[[Collection[int]], AbstractAsyncContextManager[Marking]]
BeginFollowing = Callable[[Collection[int]], AbstractAsyncContextManager[Following]]
