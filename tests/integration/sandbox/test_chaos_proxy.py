"""The proxy between a process and its neighbour: what passes, what is cut, what is done and never answered."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from sandbox.chaos.proxy import Proxy
from sandbox.infra.machine import LOOPBACK, free_port
from sandbox.infra.stages import STAGE_PORTS

WAIT_S_MAX = 10.0
SHORT_S = 0.3
"""Within which what is not held back arrives a thousand times over."""


@dataclass
class Echo:
    """A neighbour that does what it is asked and says it back."""

    proxy: Proxy
    server: asyncio.Server
    done: list[bytes]
    opened: list[asyncio.StreamWriter] = field(default_factory=list)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(LOOPBACK, self.proxy.port)
        self.opened.append(writer)
        return reader, writer


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    done: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while asked := await reader.read(1024):
            done.append(asked)
            writer.write(asked)
        writer.close()

    server = await asyncio.start_server(answer, LOOPBACK, 0)
    port = server.sockets[0].getsockname()[1]
    proxy = Proxy(lambda: f"{LOOPBACK}:{port}", port=free_port(STAGE_PORTS))
    await proxy.start()
    echo = Echo(proxy, server, done)
    yield echo
    for writer in echo.opened:
        writer.close()
    await proxy.stop()
    server.close()


async def said_back(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(WAIT_S_MAX):
        return await reader.read(1024)


async def test_what_is_said_passes_in_both_directions(echo: Echo) -> None:
    reader, writer = await echo.connect()

    writer.write(b"one")

    assert await said_back(reader) == b"one"


async def test_a_cut_ends_open_connections_and_lets_new_ones_in(echo: Echo) -> None:
    reader, writer = await echo.connect()
    writer.write(b"one")
    await said_back(reader)

    assert echo.proxy.cut() == 1

    assert await ended(reader)
    reader, writer = await echo.connect()
    writer.write(b"two")
    assert await said_back(reader) == b"two"


async def test_what_is_held_back_comes_later_and_whole(echo: Echo) -> None:
    reader, writer = await echo.connect()
    echo.proxy.stall()
    writer.write(b"one")

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(SHORT_S):
            await reader.read(1024)
    assert echo.done == []

    echo.proxy.resume()
    assert await said_back(reader) == b"one"


async def test_a_trap_lets_the_work_be_done_and_takes_the_answer(echo: Echo) -> None:
    trap = echo.proxy.set_trap(lambda chunk: chunk == b"COMMIT")
    reader, writer = await echo.connect()
    writer.write(b"BEGIN")
    assert await said_back(reader) == b"BEGIN"

    writer.write(b"COMMIT")

    assert await ended(reader)
    assert trap.sprung.is_set()
    assert echo.done == [b"BEGIN", b"COMMIT"]


async def test_a_trap_catches_one_client_only(echo: Echo) -> None:
    echo.proxy.set_trap(lambda chunk: chunk == b"COMMIT")
    first, asking = await echo.connect()
    asking.write(b"COMMIT")
    assert await ended(first)

    reader, writer = await echo.connect()
    writer.write(b"COMMIT")

    assert await said_back(reader) == b"COMMIT"


async def test_a_neighbour_that_is_away_ends_the_connection(echo: Echo) -> None:
    echo.server.close()
    await echo.server.wait_closed()

    reader, _ = await echo.connect()

    assert await ended(reader)


async def ended(reader: asyncio.StreamReader) -> bool:
    try:
        return await said_back(reader) == b""
    except ConnectionError:
        return True
