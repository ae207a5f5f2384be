"""WebSocket transport, `GET /v1/stream`: send a user's snapshot and then every change.

Steps: upgrade; read the token; check the user; join the hub; send the snapshot; send messages until one side ends.
"""

import asyncio
import contextlib
import time
from http import HTTPStatus

import asyncpg
import msgspec
from aiohttp import WSMsgType, web

from gateway import metrics
from gateway.http.auth import StreamTokens, Viewer, is_user
from gateway.http.database import connected
from gateway.http.problems import Problem
from gateway.live.hub import GOING_AWAY, POLICY, TRY_LATER, Hub, StreamEnd, StreamRefused, Subscriber
from gateway.live.snapshot import initial_messages, read_snapshot, token_message
from runtime import logs
from runtime.postgres.errors import AWAY

TOKEN_S_MAX = 10.0
"""Longest time that a browser without a token in the address may take to send it."""
HEARTBEAT_S = 30.0
"""Interval of pings; no pong within half of it ends the connection."""
CLOSE_S_MAX = 5.0
"""Longest time that a browser may take to answer a close before the connection is cut."""
MESSAGE_BYTES_MAX = 4096
"""Browsers send a token and requests for a new one, nothing else."""
RENEW_S_MIN = 10.0
"""Shortest interval of new tokens; requests in between get no answer."""
BROWSER_LEFT = StreamEnd(GOING_AWAY, "the browser is gone")

_log = logs.logger(__name__)


class WebSocketStreams:
    """The WebSocket handler."""

    def __init__(self, *, pool: asyncpg.Pool, hub: Hub, tokens: StreamTokens, partitions: int) -> None:
        self._pool = pool
        self._hub = hub
        self._tokens = tokens
        self._partitions = partitions

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one browser until one side ends the stream."""
        socket = web.WebSocketResponse(
            heartbeat=HEARTBEAT_S, timeout=CLOSE_S_MAX, max_msg_size=MESSAGE_BYTES_MAX, compress=False
        )
        if not socket.can_prepare(request).ok:
            raise Problem(HTTPStatus.UPGRADE_REQUIRED, "websocket_only", headers={"Upgrade": "websocket"})
        await socket.prepare(request)
        viewer = await self._authenticate(request, socket)
        if viewer is None:
            end = StreamEnd(POLICY, "a valid stream token is needed")
        else:
            end = await self._serve(socket, viewer)
        await _close(request, socket, end)
        return socket

    async def _authenticate(self, request: web.Request, socket: web.WebSocketResponse) -> Viewer | None:
        token = request.query.get("token")
        if token is None:
            token = await _receive_token(socket)
        viewer = self._tokens.read(token) if token else None
        if viewer is None:
            return None
        with contextlib.suppress(*AWAY):  # the snapshot needs the tables too, and ends the stream then
            async with connected(self._pool) as connection:
                return viewer if await is_user(connection, viewer) else None
        return viewer

    async def _serve(self, socket: web.WebSocketResponse, viewer: Viewer) -> StreamEnd:
        """Send, receive and wait for the hub's end, until the first of these ends."""
        try:
            subscriber = self._hub.join(viewer.user)
        except StreamRefused as refused:
            return refused.end
        tasks = (
            asyncio.create_task(subscriber.ended()),
            asyncio.create_task(self._send(socket, viewer, subscriber)),
            asyncio.create_task(self._receive(socket, viewer)),
        )
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return next(task for task in tasks if task in done).result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._hub.leave(subscriber)

    async def _send(self, socket: web.WebSocketResponse, viewer: Viewer, subscriber: Subscriber) -> StreamEnd:
        try:
            snapshot = await read_snapshot(self._pool, viewer.user, partitions=self._partitions)
        except AWAY as error:
            _log.warning("no snapshot", reason=type(error).__name__)
            return StreamEnd(TRY_LATER, "the tables cannot be read now")
        try:
            for message in initial_messages(snapshot):
                await socket.send_str(message)
            subscriber.begin(snapshot.position)
            while True:
                await socket.send_str(await subscriber.next())
        except ConnectionError:
            return BROWSER_LEFT

    async def _receive(self, socket: web.WebSocketResponse, viewer: Viewer) -> StreamEnd:
        """Read the browser's messages: pongs, `{"renew": true}` and its close."""
        renewed_at = -RENEW_S_MIN
        async for message in socket:
            now = time.monotonic()
            is_renewal = message.type is WSMsgType.TEXT and _json(message.data) == {"renew": True}
            if is_renewal and now - renewed_at >= RENEW_S_MIN:
                renewed_at = now
                await socket.send_str(token_message(self._tokens, viewer))
        return BROWSER_LEFT


async def _receive_token(socket: web.WebSocketResponse) -> str | None:
    """Return the token of a first message `{"token": …}`."""
    try:
        first = await socket.receive(timeout=TOKEN_S_MAX)
    except TimeoutError:
        return None
    message = _json(first.data) if first.type is WSMsgType.TEXT else None
    if isinstance(message, dict) and all(isinstance(value, str) for value in message.values()):
        return message.get("token")
    return None


def _json(text: str) -> object:
    with contextlib.suppress(msgspec.DecodeError):
        return msgspec.json.decode(text)
    return None


async def _close(request: web.Request, socket: web.WebSocketResponse, end: StreamEnd) -> None:
    if socket.closed:
        return
    metrics.STREAM_CLOSES.labels(str(end.code)).inc()
    with contextlib.suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(CLOSE_S_MAX):
            await socket.close(code=end.code, message=end.reason.encode())
    if request.transport is not None and not request.transport.is_closing():
        # A reader that takes nothing would hold its buffers until its network gives up.
        request.transport.abort()
