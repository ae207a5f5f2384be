"""`GET /v1/stream`: a user's snapshot and then every change, over WebSocket."""

import asyncio
import contextlib
import datetime
import time
from http import HTTPStatus
from typing import Any

import asyncpg
import msgspec
from aiohttp import WSMsgType, web

from gateway import metrics
from gateway.handlers import item_control
from gateway.http.auth import StreamTokens, Viewer
from gateway.http.database import connected
from gateway.http.problems import Problem
from gateway.live.hub import GOING_AWAY, POLICY, TRY_LATER, Ending, Full, Hub, Subscriber
from projections.read import queries
from runtime import logs
from runtime.kafka.clients import partition_of
from runtime.postgres.errors import AWAY
from schemas.topics import user_key

TOKEN_S_MAX = 10.0
"""How long a browser that sent no token in the address may take to send it."""

HEARTBEAT_S = 30.0
"""A ping this often; no answer within half of it ends the connection."""

CLOSE_S_MAX = 5.0
"""How long a browser may take to say goodbye before the connection is cut."""

MESSAGE_BYTES_MAX = 4096
"""Browsers send a token, and ask for a new one, and nothing else."""

RENEW_S_MIN = 10.0
"""A browser that asks for a new token more often than this is not answered."""

FIRST_TRANSACTIONS = 50

_log = logs.logger(__name__)


class Streams:
    """The WebSocket handler."""

    def __init__(self, *, pool: asyncpg.Pool, hub: Hub, tokens: StreamTokens, partitions: int) -> None:
        self._pool = pool
        self._hub = hub
        self._tokens = tokens
        self._partitions = partitions

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one browser until one side has enough."""
        socket = web.WebSocketResponse(
            heartbeat=HEARTBEAT_S, timeout=CLOSE_S_MAX, max_msg_size=MESSAGE_BYTES_MAX, compress=False
        )
        if not socket.can_prepare(request).ok:
            raise Problem(HTTPStatus.UPGRADE_REQUIRED, "websocket_only", headers={"Upgrade": "websocket"})
        await socket.prepare(request)
        ending = await self._serve(request, socket)
        await _close(request, socket, ending)
        return socket

    async def _serve(self, request: web.Request, socket: web.WebSocketResponse) -> Ending:
        viewer = await self._viewer(request, socket)
        if viewer is None:
            return Ending(POLICY, "a valid stream token is needed")
        try:
            subscriber = self._hub.join(viewer.user)
        except Full as full:
            return full.ending
        try:
            return await self._follow(socket, viewer, subscriber)
        finally:
            self._hub.leave(subscriber)

    async def _viewer(self, request: web.Request, socket: web.WebSocketResponse) -> Viewer | None:
        token = request.query.get("token")
        if token is None:
            token = await _sent_token(socket)
        viewer = self._tokens.read(token) if token else None
        if viewer is None:
            return None
        with contextlib.suppress(*AWAY):  # the snapshot needs the tables too, and says then what is wrong
            async with connected(self._pool) as connection:
                # A token outlives its user by some minutes where the user was erased.
                return viewer if await item_control.is_user(connection, viewer.tenant, viewer.user) else None
        return viewer

    async def _follow(self, socket: web.WebSocketResponse, viewer: Viewer, subscriber: Subscriber) -> Ending:
        """Send, listen and watch for the end, until the first of these is over."""
        sending = asyncio.create_task(self._send(socket, viewer, subscriber))
        listening = asyncio.create_task(self._listen(socket, viewer))
        ended = asyncio.create_task(subscriber.ended())
        tasks = (ended, sending, listening)
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return next(task for task in tasks if task in done).result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, socket: web.WebSocketResponse, viewer: Viewer, subscriber: Subscriber) -> Ending:
        try:
            shown = await self._snapshot(viewer)
        except AWAY as error:
            _log.warning("no snapshot", reason=type(error).__name__)
            return Ending(TRY_LATER, "the tables cannot be read now")
        try:
            for message in _initial(shown):
                await socket.send_str(message)
            subscriber.begin(shown.position)
            while True:
                await socket.send_str(await subscriber.next())
        except ConnectionError:
            return Ending(GOING_AWAY, "the browser is gone")

    async def _listen(self, socket: web.WebSocketResponse, viewer: Viewer) -> Ending:
        """Take what the browser sends: pongs, `{"renew": true}`, its goodbye."""
        answered_at = -RENEW_S_MIN
        async for message in socket:
            now = time.monotonic()
            if message.type is WSMsgType.TEXT and _asks_to_renew(message.data) and now - answered_at >= RENEW_S_MIN:
                answered_at = now
                await socket.send_str(self._renewal(viewer))
        return Ending(GOING_AWAY, "the browser is gone")

    def _renewal(self, viewer: Viewer) -> str:
        """A token that outlives this one, so that a browser which loses its connection can come back."""
        renewed = self._tokens.renewed(viewer)
        token, ends_at = renewed or (None, None)
        now = datetime.datetime.now(datetime.UTC)
        data = {"token": token, "expires_at": ends_at and datetime.datetime.fromtimestamp(ends_at, datetime.UTC)}
        return msgspec.json.encode({"event": "stream.token", "data": data, "timestamp": now}).decode()

    async def _snapshot(self, viewer: Viewer) -> queries.Snapshot:
        partition = partition_of(user_key(viewer.user), self._partitions)
        async with connected(self._pool) as connection:
            return await queries.snapshot(connection, viewer.user, partition, limit=FIRST_TRANSACTIONS)


def _initial(shown: queries.Snapshot) -> list[str]:
    position = f"{shown.partition}:{shown.position}"
    now = datetime.datetime.now(datetime.UTC)
    data: dict[str, dict[str, Any]] = {
        "initial.balances": {"accounts": shown.accounts, "items": shown.items},
        "initial.transactions": {"transactions": shown.transactions.rows},
    }
    return [
        msgspec.json.encode({"event": event, "data": value, "timestamp": now, "position": position}).decode()
        for event, value in data.items()
    ]


async def _sent_token(socket: web.WebSocketResponse) -> str | None:
    """The token of a first message `{"token": …}`."""
    try:
        first = await socket.receive(timeout=TOKEN_S_MAX)
    except TimeoutError:
        return None
    if first.type is not WSMsgType.TEXT:
        return None
    with contextlib.suppress(msgspec.DecodeError, msgspec.ValidationError):
        return msgspec.json.decode(first.data, type=dict[str, str]).get("token")
    return None


def _asks_to_renew(text: str) -> bool:
    with contextlib.suppress(msgspec.DecodeError):
        return bool(msgspec.json.decode(text) == {"renew": True})
    return False


async def _close(request: web.Request, socket: web.WebSocketResponse, ending: Ending) -> None:
    if socket.closed:
        return
    metrics.STREAM_CLOSES.labels(str(ending.code)).inc()
    with contextlib.suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(CLOSE_S_MAX):
            await socket.close(code=ending.code, message=ending.reason.encode())
    if request.transport is not None and not request.transport.is_closing():
        # A reader that takes nothing would hold its buffers until its network gives up.
        request.transport.abort()
