"""A browser's place: WebSockets of some users, what they got and when."""

import asyncio
import json
import time
from collections import deque
from typing import Any

import aiohttp

from sandbox.infra.clients import Application

LAST_MAX = 12
"""Messages kept for the live view; the counts are kept for all."""
RECONNECT_S = 0.3
INITIAL = ("initial.balances", "initial.transactions")


class Watch:
    """Holds a WebSocket open for each user and notes each message; reconnects as a browser does."""

    def __init__(self, application: Application, gateway_url: str, users: list[str]) -> None:
        self._application = application
        self._url = gateway_url.replace("http", "ws", 1) + "/v1/stream"
        self._users = users
        self._tasks: list[asyncio.Task[None]] = []
        self.arrived: dict[tuple[int, int], float] = {}
        """(partition, source offset) of a changeset to when its first message arrived, seconds since 1970."""
        self.messages = 0
        self.last: deque[tuple[str, dict[str, Any]]] = deque(maxlen=LAST_MAX)

    async def __aenter__(self) -> "Watch":
        self._tasks = [asyncio.create_task(self._follow(user)) for user in self._users]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _follow(self, user: str) -> None:
        async with aiohttp.ClientSession() as session:
            while True:
                try:
                    token = await self._application.stream_token(user)
                    async with session.ws_connect(self._url, params={"token": token}, heartbeat=30) as socket:
                        async for message in socket:
                            if message.type is aiohttp.WSMsgType.TEXT:
                                self._note(user, json.loads(message.data))
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(RECONNECT_S)

    def _note(self, user: str, message: dict[str, Any]) -> None:
        now = time.time()
        if message["event"] in INITIAL:
            return
        self.messages += 1
        self.last.appendleft((user, message))
        partition, _, position = message["position"].partition(":")
        self.arrived.setdefault((int(partition), int(position.partition(".")[0])), now)
