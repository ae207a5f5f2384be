"""WebSocket clients that record the messages of users, as browsers do, and compare them with the log."""

import asyncio
import json
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import aiohttp
import asyncpg

from projections.events import public_events
from projections.publish import browser_messages
from projections.store import rows
from sandbox.infra.clients import Application
from schemas.errors import Halt

RECONNECT_S = 0.3
CONNECT_S_MAX = 60.0
LAST_MAX = 12
"""Messages kept for the live view."""
INITIAL_BALANCES, INITIAL_TRANSACTIONS = "initial.balances", "initial.transactions"
"""The two messages of a snapshot, in this order."""

Position = tuple[int, int]
"""Source offset, and index within its changeset."""


class Connection(NamedTuple):
    """Source offset of a connection's snapshot, and the positions of its later messages in order of arrival."""

    begins: int
    positions: list[Position]


class Browsers:
    """Hold a WebSocket open for each user, reconnect as a browser does, and record each message."""

    def __init__(self, application: Application, gateway_url: str, users: Sequence[str]) -> None:
        self._application = application
        self._url = gateway_url.replace("http", "ws", 1) + "/v1/stream"
        self._tasks: list[asyncio.Task[None]] = []
        self.connections: dict[str, list[Connection]] = {user: [] for user in users}
        """Connections of each user, in order."""
        self.arrived_at: dict[tuple[int, int], float] = {}
        """Arrival of a changeset's first message, by (partition, source offset), in seconds since 1970."""
        self.messages = 0
        self.last: deque[tuple[str, dict[str, Any]]] = deque(maxlen=LAST_MAX)

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._follow(user)) for user in self.connections]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def connected(self) -> None:
        """Wait until each user has a snapshot.

        Raises: TimeoutError, where one has none within CONNECT_S_MAX.
        """
        async with asyncio.timeout(CONNECT_S_MAX):
            while not all(self.connections.values()):
                await asyncio.sleep(0.05)

    @property
    def duplicates(self) -> int:
        """Number of messages whose position is not above the earlier ones of the same user."""
        count = 0
        for connections in self.connections.values():
            last: Position = (-1, -1)
            for position in (position for connection in connections for position in connection.positions):
                count += position <= last
                last = max(last, position)
        return count

    async def _follow(self, user: str) -> None:
        async with aiohttp.ClientSession() as session:
            while True:
                try:
                    token = await self._application.stream_token(user)
                    async with session.ws_connect(self._url, params={"token": token}, heartbeat=30) as socket:
                        async for message in socket:
                            if message.type is aiohttp.WSMsgType.TEXT:
                                self._record(user, json.loads(message.data))
                except (aiohttp.ClientError, Halt):
                    pass  # connect again, as a browser does
                await asyncio.sleep(RECONNECT_S)

    def _record(self, user: str, message: dict[str, Any]) -> None:
        partition, _, position = message["position"].partition(":")
        offset, _, index = position.partition(".")
        if message["event"] == INITIAL_BALANCES:
            self.connections[user].append(Connection(int(offset), []))
        elif message["event"] != INITIAL_TRANSACTIONS:
            self.connections[user][-1].positions.append((int(offset), int(index)))
            self.messages += 1
            self.last.appendleft((user, message))
            self.arrived_at.setdefault((int(partition), int(offset)), time.time())


async def expected_positions(connection: asyncpg.Connection, user: int) -> list[Position]:
    """Return the positions of all messages of a user, from tables that hold the net events of all changesets."""
    positions = []
    for row in await connection.fetch(_NET_EVENTS, user):
        net_events = public_events.decode_block(rows.decompress(row["events"]))
        messages = browser_messages.build_messages(net_events, item_id=row["item_id"], known_at=0)
        positions += [(row["source_offset"], message.event_index) for message in messages]
    return positions


async def delivery_problems(browsers: Browsers, users: Mapping[str, int], connection: asyncpg.Connection) -> list[str]:
    """Return the deviations of all users' messages from those that the tables give; `users` maps id to number."""
    return [
        f"the browser of {user}: {problem}"
        for user, number in users.items()
        for problem in position_gaps(browsers.connections[user], await expected_positions(connection, number))
    ]


def position_gaps(connections: Sequence[Connection], expected: Sequence[Position]) -> list[str]:
    """Return one problem for each connection of a user whose messages differ from the expected ones, in order.

    A connection has all messages from its snapshot to its end, the last connection all there are; the snapshot of the
    next connection contains those between two connections.
    """
    problems = []
    for number, (begins, positions) in enumerate(connections, 1):
        due = [position for position in expected if position[0] >= begins]
        if number < len(connections):
            due = due[: len(positions)]
        if positions != due:
            pairs = enumerate(zip(positions, due, strict=False))
            first = next((index for index, (got, want) in pairs if got != want), min(len(positions), len(due)))
            problems.append(
                f"connection {number} received {len(positions)} of {len(due)} messages; "
                f"message {first} is {positions[first : first + 1]}, expected {due[first : first + 1]}"
            )
    return problems


_NET_EVENTS = """
SELECT source_offset, item_id, events FROM changesets
 WHERE user_number = $1 AND net_events > 0 ORDER BY source_offset"""
