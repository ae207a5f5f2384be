"""Postgres behind this stage's ports. Shell.

Postgres's errors are translated here and nowhere else: all of them are Retry, except what our own mistakes cause.
"""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import cast

import asyncpg
import msgspec

from runtime import incidents, leases, quotas, sync_state
from runtime.dues import Claimed, Claims, Hint, Mark, Released
from runtime.leases import FOLLOWER
from runtime.reader import Position
from runtime.settings import Settings
from runtime.users import Destroyed, Keyring
from runtime.vault import Vault
from schemas.changesets import UserKeys
from schemas.errors import Quarantine, Retry
from streams.following import Followed, ItemHead
from streams.mark_due import READER as MARKER
from streams.turns import Turns

_LATE = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.exceptions.OperatorInterventionError,
    asyncpg.exceptions.TransactionRollbackError,
    asyncpg.exceptions.InsufficientResourcesError,
    asyncpg.exceptions.ObjectInUseError,
    asyncpg.exceptions.LockNotAvailableError,
    asyncpg.exceptions.IdleInTransactionSessionTimeoutError,
)
"""What Postgres says when it is away, restarting, or others hold a lock."""


@asynccontextmanager
async def session(pool: asyncpg.Pool) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the pool. Raises: Retry, where Postgres is away or a lock was not given in time."""
    try:
        async with pool.acquire() as connection:
            yield cast("asyncpg.Connection", connection)
    except _LATE as error:
        raise Retry(f"Postgres: {type(error).__name__}") from error


async def load_positions(pool: asyncpg.Pool, reader: str, partitions: Collection[int]) -> dict[int, Position]:
    """Where a reader stands. Raises: Retry."""
    async with session(pool) as connection:
        rows = await connection.fetch(_POSITIONS, reader, list(partitions))
    return {row["partition"]: Position(row["position"], row["last_checksum"]) for row in rows}


class PostgresStore:
    """The scheduler, for passes over Items."""

    def __init__(self, pool: asyncpg.Pool, keyring: Keyring, vault: Vault, settings: Settings) -> None:
        self._pool = pool
        self._keyring = keyring
        self._vault = vault
        self._lease_s = settings.lease_s
        self._holder = settings.instance_id
        self._limit = settings.limits().get(quotas.SYNC)
        self._turns = Turns(settings.weights())

    async def claim(self, slots: int) -> Claims:
        """Lease what is ready, as the turns of lanes and tenants and Plaid's quota allow."""
        async with session(self._pool) as connection:
            claims = await leases.claim(
                connection,
                slots=slots,
                lease_s=self._lease_s,
                holder=self._holder,
                standing=self._turns.standing(),
                limit=self._limit,
            )
        self._turns.served(claims)
        return claims

    async def inherit(self) -> int:
        """End the leases that a dead process with this instance id left. Gives how many."""
        async with session(self._pool) as connection:
            return await leases.expire_all(connection, holder=self._holder)

    async def renew(self, claimed: Claimed) -> bool:
        """Prolong a lease; False where it was lost."""
        async with session(self._pool) as connection:
            return await leases.renew(connection, claimed, lease_s=self._lease_s)

    async def release(self, claimed: Claimed, result: Released) -> bool:
        """Give an Item back; False where the lease was lost."""
        async with session(self._pool) as connection:
            held = await leases.release(connection, claimed, result)
            if result.outcome == "failed" or result.stopped is not None or claimed.attempts:
                await incidents.after_pass(connection, claimed, result)
            return held

    async def let_go(self, claimed: Claimed, *, wait_offset: int) -> None:
        """Give an Item back untouched, to wait for the follower."""
        async with session(self._pool) as connection:
            await leases.let_go(connection, claimed, wait_offset=wait_offset)

    async def expire(self, claimed: Claimed) -> None:
        """End a lease as if time had."""
        async with session(self._pool) as connection:
            await leases.expire(connection, claimed)

    async def finish_unlink(self, claimed: Claimed) -> None:
        """Delete token and schedule."""
        async with session(self._pool) as connection:
            await leases.finish_unlink(connection, claimed)

    async def park(self, claimed: Claimed, reason: str) -> None:
        """Set an Item aside until it is redriven."""
        async with session(self._pool) as connection:
            await leases.park(connection, claimed, reason=reason)

    async def keys(self, user: int) -> UserKeys | None:
        """A user's keys; None where they were destroyed. Raises: Quarantine, where there never were any."""
        async with session(self._pool) as connection:
            found = (await self._keyring.of(connection, [user])).get(user)
        if found is None:
            raise Quarantine(f"user {user} has no key")
        return None if isinstance(found, Destroyed) else found

    def token(self, claimed: Claimed) -> str | None:
        """The Item's access token; None where there is none. Raises: Halt, where it does not open."""
        if claimed.sealed_token is None:
            return None
        return self._vault.open_token(claimed.sealed_token, item_id=claimed.item_id)

    async def gone_lately(self) -> tuple[int, int]:
        """How many Items Plaid called gone within the hour, of how many."""
        async with session(self._pool) as connection:
            return await leases.gone_lately(connection)


class _Positioned:
    """A transaction that has locked its reader's positions, and moves them."""

    def __init__(self, connection: asyncpg.Connection, reader: str, positions: Mapping[int, Position]) -> None:
        self._connection = connection
        self._reader = reader
        self.positions = positions

    async def advance(self, positions: Mapping[int, Position]) -> None:
        """Move the positions."""
        await self._connection.execute(
            _ADVANCE,
            self._reader,
            list(positions),
            [position.next for position in positions.values()],
            [position.last_checksum for position in positions.values()],
        )


class MarkingTransaction(_Positioned):
    """One transaction of mark_due."""

    async def new_keys(self, keys: Sequence[bytes]) -> set[bytes]:
        """Remember repeat keys and give those that were not known."""
        return await sync_state.new_keys(self._connection, keys)

    async def mark(self, marks: Sequence[Mark], hints: Sequence[Hint]) -> int:
        """Make Items due; how many there were."""
        marked = await sync_state.mark_webhooks(self._connection, marks) if marks else 0
        if hints:
            await sync_state.add_hints(self._connection, hints)
        return marked


class FollowingTransaction(_Positioned):
    """One transaction of follow_heads."""

    async def heads(self, items: Collection[str]) -> dict[str, ItemHead]:
        """The heads that are known."""
        rows = await self._connection.fetch(_HEADS, list(items))
        return {row["item_id"]: _item_head(row) for row in rows}

    async def erased(self, users: Collection[int]) -> set[int]:
        """Users whose key is destroyed."""
        rows = await self._connection.fetch(_ERASED, list(users))
        return {row["user_number"] for row in rows}

    async def apply(self, followed: Followed) -> None:
        """Write heads, make due again what was skipped or redriven, erase."""
        if followed.redriven:
            await self._connection.execute(_REDRIVEN, list(followed.redriven), list(followed.redriven.values()))
        if followed.again or followed.redriven:
            await sync_state.mark_again(self._connection, list(followed.again), redriven=list(followed.redriven))
        if followed.heads:
            items, untils = _hints_dealt_with(followed.heads)
            if items:
                await self._connection.execute(_DEALT_WITH, items, untils)
            await self._connection.executemany(_PUT_HEAD, [_row(*entry) for entry in followed.heads.items()])
        for user in followed.erased:
            for statement in _ERASE:
                await self._connection.execute(statement, user)


@asynccontextmanager
async def marking(pool: asyncpg.Pool, partitions: Collection[int]) -> AsyncIterator[MarkingTransaction]:
    """Begin a transaction of mark_due. Raises: Retry."""
    async with session(pool) as connection, connection.transaction():
        yield MarkingTransaction(connection, MARKER, await _locked(connection, MARKER, partitions))


@asynccontextmanager
async def following(pool: asyncpg.Pool, partitions: Collection[int]) -> AsyncIterator[FollowingTransaction]:
    """Begin a transaction of follow_heads. Raises: Retry."""
    async with session(pool) as connection, connection.transaction():
        yield FollowingTransaction(connection, FOLLOWER, await _locked(connection, FOLLOWER, partitions))


async def _locked(connection: asyncpg.Connection, reader: str, partitions: Collection[int]) -> dict[int, Position]:
    """Lock a reader's positions before anything is read, so that of two processes one waits for the other."""
    rows = await connection.fetch(_LOCK, reader, list(partitions))
    if len(rows) < len(partitions):
        await connection.execute(_FIRST_POSITIONS, reader, list(partitions))
        rows = await connection.fetch(_LOCK, reader, list(partitions))
    return {row["partition"]: Position(row["position"], row["last_checksum"]) for row in rows}


def _item_head(row: asyncpg.Record) -> ItemHead:
    return ItemHead(row["user_number"], row["partition"], leases.known_head(row), row["hints_until"])


def _row(item_id: str, item: ItemHead) -> tuple[object, ...]:
    head = item.head
    prints = msgspec.json.encode({account: value.hex() for account, value in head.fingerprints.items()}).decode()
    return (
        item_id, item.user, item.partition, head.id, head.offset, head.at, head.unlinked, head.cursor, head.state,
        head.code, head.history_status, prints, item.hints_until,
    )  # fmt: skip


def _hints_dealt_with(heads: Mapping[str, ItemHead]) -> tuple[list[str], list[int]]:
    dealt = {item: found.hints_until for item, found in heads.items() if found.hints_until is not None}
    return list(dealt), list(dealt.values())


_POSITIONS = """
    SELECT partition, position, last_checksum FROM tartan.positions WHERE reader = $1 AND partition = ANY($2::int[])"""

# The commit need not reach the disk: a crash of Postgres takes marks, heads and position back together.
_LOCK = """
    SELECT partition, position, last_checksum, set_config('synchronous_commit', 'off', true)
    FROM tartan.positions WHERE reader = $1 AND partition = ANY($2::int[]) ORDER BY partition FOR UPDATE"""

_FIRST_POSITIONS = """
    INSERT INTO tartan.positions (reader, partition, position) SELECT $1, unnest($2::int[]), 0 ON CONFLICT DO NOTHING"""

_ADVANCE = """
    UPDATE tartan.positions p SET position = n.position, last_checksum = n.checksum
    FROM unnest($2::int[], $3::bigint[], $4::bytea[]) AS n (partition, position, checksum)
    WHERE p.reader = $1 AND p.partition = n.partition"""

_HEADS = "SELECT * FROM tartan.heads WHERE item_id = ANY($1::text[])"

_ERASED = "SELECT user_number FROM tartan.user_keys WHERE user_number = ANY($1::bigint[]) AND state = 'destroyed'"

_PUT_HEAD = """
    INSERT INTO tartan.heads (item_id, user_number, partition, head, head_offset, head_at, unlinked, cursor, state,
        code, history_status, fingerprints, hints_until)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12::text::jsonb, $13)
    ON CONFLICT (item_id) DO UPDATE
    SET head = excluded.head, head_offset = excluded.head_offset, head_at = excluded.head_at,
        unlinked = excluded.unlinked, cursor = excluded.cursor, state = excluded.state, code = excluded.code,
        history_status = excluded.history_status, fingerprints = excluded.fingerprints,
        hints_until = excluded.hints_until"""

_DEALT_WITH = """
    DELETE FROM tartan.hints h USING unnest($1::text[], $2::bigint[]) AS d (item_id, until)
    WHERE h.item_id = d.item_id AND h.webhook_offset <= d.until"""

# A redrive frees what streams itself set aside; the others are the projections' to free.
_REDRIVEN = """
    UPDATE tartan.parkings p SET redrive_offset = r.redrive_offset
    FROM unnest($1::text[], $2::bigint[]) AS r (item_id, redrive_offset)
    WHERE p.item_id = r.item_id AND p.reader = 'streams' AND p.redrive_offset IS NULL"""

# The key first: with it all that is sealed under it is gone, whatever else may fail. Its row stays as a tombstone.
_ERASE = (
    """UPDATE tartan.user_keys SET wrapped = NULL, state = 'destroyed', destroyed_at = clock_timestamp()
       WHERE user_number = $1 AND state = 'active'""",
    "DELETE FROM tartan.credentials WHERE user_number = $1",
    "DELETE FROM tartan.hints WHERE item_id IN (SELECT item_id FROM tartan.sync_state WHERE user_number = $1)",
    "DELETE FROM tartan.sync_state WHERE user_number = $1",
    "DELETE FROM tartan.heads WHERE user_number = $1",
    "DELETE FROM tartan.users WHERE user_number = $1",
)
