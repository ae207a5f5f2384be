"""Snapshot: the first messages of a stream, the same for every transport."""

import datetime

import asyncpg
import msgspec

from gateway.http.auth import StreamTokens, Viewer
from gateway.http.database import connected
from projections.read import queries
from projections.read.queries import Snapshot
from runtime.kafka.clients import partition_of
from schemas.topics import user_key

FIRST_TRANSACTIONS = 50


async def read_snapshot(pool: asyncpg.Pool, user: int, *, partitions: int) -> Snapshot:
    """Read a user's accounts, Items and latest transactions with the position of their partition, at one moment."""
    async with connected(pool) as connection:
        partition = partition_of(user_key(user), partitions)
        return await queries.snapshot(connection, user, partition, limit=FIRST_TRANSACTIONS)


def initial_messages(snapshot: Snapshot) -> list[str]:
    """Encode a snapshot as the messages `initial.balances` and `initial.transactions`."""
    position = f"{snapshot.partition}:{snapshot.position}"
    balances = {"accounts": snapshot.accounts, "items": snapshot.items}
    transactions = {"transactions": snapshot.transactions.rows}
    return [
        _message("initial.balances", balances, position=position),
        _message("initial.transactions", transactions, position=position),
    ]


def token_message(tokens: StreamTokens, viewer: Viewer) -> str:
    """Encode a new token as the message `stream.token`, so that a browser can connect again after this one ends."""
    token, ends_at = tokens.renew(viewer) or (None, None)
    expires_at = ends_at and datetime.datetime.fromtimestamp(ends_at, datetime.UTC)
    return _message("stream.token", {"token": token, "expires_at": expires_at})


def _message(event: str, data: object, **position: str) -> str:
    now = datetime.datetime.now(datetime.UTC)
    return msgspec.json.encode({"event": event, "data": data, "timestamp": now, **position}).decode()
