"""Browsers that listen all the time, and hold what they are told against the rule of positions."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

import aiohttp
import asyncpg

from projections.events import public_events
from projections.publish import browser_messages
from projections.store import rows
from sandbox.infra.clients import Application
from sandbox.observe.browsers import INITIAL
from schemas.errors import Halt

RECONNECT_S = 0.3
BEGIN_S_MAX = 60.0

Position = tuple[int, int]
"""Source offset, and index within its changeset."""


class Connection(NamedTuple):
    """What one connection told: from which offset on, and the positions of its messages as they came."""

    begins: int
    positions: list[Position]


class Browsers:
    """Holds a WebSocket open for each user; reconnects as a browser does."""

    def __init__(self, application: Application, gateway_url: str, users: Sequence[str]) -> None:
        self._application = application
        self._url = gateway_url.replace("http", "ws", 1) + "/v1/stream"
        self._tasks: list[asyncio.Task[None]] = []
        self.heard: dict[str, list[Connection]] = {user: [] for user in users}
        """By user, one connection after the other."""

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._follow(user)) for user in self.heard]
        try:
            async with asyncio.timeout(BEGIN_S_MAX):
                while not all(self.heard.values()):
                    await asyncio.sleep(0.05)
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def messages(self) -> int:
        """How many came."""
        return sum(len(one.positions) for connections in self.heard.values() for one in connections)

    @property
    def duplicates(self) -> int:
        """How many came that are not above what the same user was told before."""
        count = 0
        for connections in self.heard.values():
            last: Position = (-1, -1)
            for position in (position for one in connections for position in one.positions):
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
                                self._note(user, json.loads(message.data))
                except (aiohttp.ClientError, Halt):
                    pass  # it asks again, as a browser does
                await asyncio.sleep(RECONNECT_S)

    def _note(self, user: str, message: Mapping[str, Any]) -> None:
        _, _, position = message["position"].partition(":")
        if message["event"] == INITIAL[0]:
            self.heard[user].append(Connection(int(position), []))
        elif message["event"] != INITIAL[1]:
            offset, _, index = position.partition(".")
            self.heard[user][-1].positions.append((int(offset), int(index)))


async def due(connection: asyncpg.Connection, user: int) -> list[Position]:
    """The positions of all messages of a user, from tables that hold the net events of all changesets."""
    positions = []
    for row in await connection.fetch(_NET_EVENTS, user):
        net = public_events.decode_block(rows.decompress(row["events"]))
        told = browser_messages.build_messages(net, item_id=row["item_id"], known_at=0)
        positions += [(row["source_offset"], message.event_index) for message in told]
    return positions


def missed(connections: Sequence[Connection], wanted: Sequence[Position]) -> list[str]:
    """What is wrong with what a user was told, who should have been told `wanted`, in order.

    A connection tells all from where it begins up to its end, the last one all there is; what lies between two
    connections is in the snapshot of the second.
    """
    found = []
    for number, one in enumerate(connections):
        due = [position for position in wanted if position[0] >= one.begins]
        if number < len(connections) - 1:
            due = due[: len(one.positions)]
        if one.positions != due:
            place = next(
                (p for p, pair in enumerate(zip(one.positions, due, strict=False)) if pair[0] != pair[1]),
                min(len(one.positions), len(due)),
            )
            found.append(
                f"connection {number + 1} told {len(one.positions)} of {len(due)} messages; "
                f"message {place} is {one.positions[place : place + 1]}, expected {due[place : place + 1]}"
            )
    return found


_NET_EVENTS = """
SELECT source_offset, item_id, events FROM changesets
 WHERE user_number = $1 AND net_events > 0 ORDER BY source_offset"""
