"""A TCP proxy between a process and its neighbour, which can cut connections, stall them and swallow answers."""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress

from sandbox.infra.machine import LOOPBACK

CHUNK_BYTES = 64 * 1024
CONNECT_S_MAX = 5.0
"""The neighbours are on the loopback: one that does not accept within this time is not running."""
UNANSWERED_S = 0.1
"""A request is done when its answer begins; this much longer, and no later step of it is cut off."""

Matching = Callable[[bytes], bool]
"""Returns True for a chunk of a client whose answer is to be swallowed."""


class Trap:
    """Swallow the answer to the next matching request: it is done, and its client gets no answer."""

    def __init__(self, matching: Matching) -> None:
        self.matching = matching
        self.sprung = asyncio.Event()


class Proxy:
    """Pass connections on to `target`, whose address is read at each connection, since a restart may change it."""

    def __init__(self, target: Callable[[], str], *, port: int) -> None:
        self._target = target
        self.port = port
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._traps: list[Trap] = []
        self.flowing = asyncio.Event()
        self.flowing.set()

    @property
    def address(self) -> str:
        """Host and port."""
        return f"{LOOPBACK}:{self.port}"

    async def start(self) -> None:
        """Start listening."""
        self._server = await asyncio.start_server(self._accept, LOOPBACK, self.port, limit=CHUNK_BYTES)

    async def stop(self) -> None:
        """Stop listening and cut all connections."""
        if self._server is not None:
            self._server.close()
        self.flowing.set()
        self.cut()
        await asyncio.gather(*(link.ended for link in self._links), return_exceptions=True)

    def cut(self, *, rng: random.Random | None = None) -> int:
        """Reset every open connection, with `rng` about half of them, and return their number."""
        chosen = [link for link in self._links if rng is None or rng.random() < 0.5]
        for link in chosen:
            link.abort()
        return len(chosen)

    def stall(self) -> None:
        """Pass no bytes on, in both directions, until `resume`; connections stay open."""
        self.flowing.clear()

    def resume(self) -> None:
        """Pass bytes on again."""
        self.flowing.set()

    def set_trap(self, matching: Matching) -> Trap:
        """Swallow the answer to the next request that matches."""
        trap = Trap(matching)
        self._traps.append(trap)
        return trap

    def withdraw(self, trap: Trap) -> None:
        """Remove a trap, if no request has matched it."""
        with suppress(ValueError):
            self._traps.remove(trap)

    def caught(self, chunk: bytes) -> Trap | None:
        """Remove and return the trap that matches a chunk, if any."""
        for trap in self._traps:
            if trap.matching(chunk):
                self._traps.remove(trap)
                return trap
        return None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.flowing.wait()
        host, _, port = self._target().rpartition(":")
        try:
            async with asyncio.timeout(CONNECT_S_MAX):
                upstream = await asyncio.open_connection(host, int(port), limit=CHUNK_BYTES)
        except (OSError, TimeoutError):
            writer.transport.abort()
            return
        link = _Link(self, (reader, writer), upstream)
        self._links.add(link)
        try:
            await link.ended
        finally:
            self._links.discard(link)


class _Link:
    """Connection of a client and the one to its neighbour: when one ends, both do."""

    def __init__(
        self,
        proxy: Proxy,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._proxy = proxy
        self._client, self._server = client, server
        self._trap: Trap | None = None
        self.ended = asyncio.create_task(self._run())

    def abort(self) -> None:
        """Reset both connections; bytes in flight are lost."""
        for _, writer in (self._client, self._server):
            writer.transport.abort()

    async def _run(self) -> None:
        directions = {asyncio.create_task(self._pass_requests()), asyncio.create_task(self._pass_answers())}
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)
            self.abort()

    async def _pass_requests(self) -> None:
        with suppress(OSError):
            while chunk := await self._client[0].read(CHUNK_BYTES):
                await self._proxy.flowing.wait()
                self._trap = self._trap or self._proxy.caught(chunk)
                self._server[1].write(chunk)
                await self._server[1].drain()

    async def _pass_answers(self) -> None:
        with suppress(OSError):
            while chunk := await self._server[0].read(CHUNK_BYTES):
                await self._proxy.flowing.wait()
                if self._trap is not None:
                    await asyncio.sleep(UNANSWERED_S)
                    self._trap.sprung.set()
                    return
                self._client[1].write(chunk)
                await self._client[1].drain()
