"""A TCP proxy between a process and its neighbour, which can cut, hold back and swallow what passes through it."""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress

from sandbox.infra.machine import LOOPBACK

CHUNK_BYTES = 64 * 1024
CONNECT_S_MAX = 5.0
"""The neighbours are on the loopback: one that does not take a connection within this time is not there."""
UNANSWERED_S = 0.1
"""What was asked is done before its answer leaves: after the answer's first byte so long, and nothing is undone."""

Matching = Callable[[bytes], bool]
"""Whether a chunk that a client sends asks what is to stay without an answer."""


class Trap:
    """Takes the answer away from the next client that asks something: done, and nobody is told."""

    def __init__(self, matching: Matching) -> None:
        self.matching = matching
        self.sprung = asyncio.Event()


class Proxy:
    """Passes connections on to `target`, which is asked for its address at each of them, as it may have moved."""

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
        """Listen."""
        self._server = await asyncio.start_server(self._accept, LOOPBACK, self.port, limit=CHUNK_BYTES)

    async def stop(self) -> None:
        """Stop listening and cut what is open."""
        if self._server is not None:
            self._server.close()
        self.flowing.set()
        self.cut()
        await asyncio.gather(*(link.ended for link in self._links), return_exceptions=True)

    def cut(self, *, chooses: random.Random | None = None) -> int:
        """Reset every open connection, or about half of them. Gives how many."""
        chosen = [link for link in self._links if chooses is None or chooses.random() < 0.5]
        for link in chosen:
            link.abort()
        return len(chosen)

    def stall(self) -> None:
        """Hold everything back, in both directions, until `resume`; connections stay open."""
        self.flowing.clear()

    def resume(self) -> None:
        """Let everything flow again."""
        self.flowing.set()

    def set_trap(self, matching: Matching) -> Trap:
        """Take the answer from the next client that asks what matches."""
        trap = Trap(matching)
        self._traps.append(trap)
        return trap

    def withdraw(self, trap: Trap) -> None:
        """Forget a trap that nobody stepped into."""
        with suppress(ValueError):
            self._traps.remove(trap)

    def caught(self, chunk: bytes) -> Trap | None:
        """The trap that this chunk springs; it catches one client only."""
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
    """One connection of a client and the one to its neighbour: when one ends, both do."""

    def __init__(
        self,
        proxy: Proxy,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._proxy = proxy
        self._client, self._server = client, server
        self._trap: Trap | None = None
        self.ended = asyncio.create_task(self._pass())

    def abort(self) -> None:
        """Reset both connections; what is on its way is lost."""
        for _, writer in (self._client, self._server):
            writer.transport.abort()

    async def _pass(self) -> None:
        ways = {asyncio.create_task(self._ask()), asyncio.create_task(self._answer())}
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self.abort()

    async def _ask(self) -> None:
        """From the client to its neighbour."""
        with suppress(OSError):
            while chunk := await self._client[0].read(CHUNK_BYTES):
                await self._proxy.flowing.wait()
                self._trap = self._trap or self._proxy.caught(chunk)
                self._server[1].write(chunk)
                await self._server[1].drain()

    async def _answer(self) -> None:
        """From the neighbour to the client."""
        with suppress(OSError):
            while chunk := await self._server[0].read(CHUNK_BYTES):
                await self._proxy.flowing.wait()
                if self._trap is not None:
                    await asyncio.sleep(UNANSWERED_S)
                    self._trap.sprung.set()
                    return
                self._client[1].write(chunk)
                await self._client[1].drain()
