"""A process's life, on a stage of a few lines in a process of its own."""

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from sandbox.infra.machine import LOOPBACK, free_port
from sandbox.infra.processes import Child, Command, start
from sandbox.infra.stages import STAGE_PORTS
from tests.support.paths import ROOT

PROGRAM = ROOT / "tests" / "support" / "runtime_tiny_stage.py"
START_S_MAX = 20.0
END_S_MAX = 20.0


class Process:
    """A running process, its internal port and its log."""

    def __init__(self, child: Child, port: int, log: Path) -> None:
        self.child, self.port, self.log = child, port, log

    async def get(self, path: str) -> tuple[int, str]:
        """Status and body of the internal port; 0 where it does not answer."""
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session,
                session.get(f"http://{LOOPBACK}:{self.port}{path}") as answer,
            ):
                return answer.status, await answer.text()
        except (aiohttp.ClientError, TimeoutError):
            return 0, ""

    async def until(self, path: str, status: int) -> str:
        async with asyncio.timeout(START_S_MAX):
            while True:
                seen, body = await self.get(path)
                if seen == status:
                    return body
                await asyncio.sleep(0.02)

    async def until_logged(self, event: str) -> None:
        async with asyncio.timeout(START_S_MAX):
            while event not in self.log.read_text():
                await asyncio.sleep(0.02)

    async def ended(self) -> int:
        return await self.child.ended(timeout_s=END_S_MAX)

    def logged(self) -> list[dict[str, Any]]:
        """The lines of the log; each must be JSON."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@asynccontextmanager
async def running(behaviour: str, folder: Path, **environment: str) -> AsyncIterator[Process]:
    port, log = free_port(STAGE_PORTS), folder / "log"
    given = {"TARTAN_INTERNAL_PORT": str(port), "TINY_FOLDER": str(folder), "PATH": os.defpath, **environment}
    child = start(
        Command(name=behaviour, arguments=[sys.executable, str(PROGRAM), behaviour], log=log, environment=given)
    )
    try:
        yield Process(child, port, log)
    finally:
        child.kill()


async def test_a_process_is_healthy_then_ready_and_has_metrics(tmp_path: Path) -> None:
    async with running("works", tmp_path) as process:
        not_yet = json.loads(await process.until("/readyz", 503))
        healthy = await process.get("/healthz")
        (tmp_path / "ready").touch()
        ready = json.loads(await process.until("/readyz", 200))
        metrics = await process.get("/metrics")

    assert not_yet == {"ready": False, "reasons": ["tiny: still reading"]}
    assert healthy[0] == 200
    assert ready == {"ready": True, "reasons": []}
    assert metrics[0] == 200
    assert "process_resident_memory_bytes" in metrics[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_stop_finishes_what_is_in_flight_and_is_not_ready_meanwhile(
    tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "ready").touch()
    async with running("works", tmp_path) as process:
        await process.until("/readyz", 200)

        os.kill(process.child.pid, number)
        stopping = json.loads(await process.until("/readyz", 503))
        os.kill(process.child.pid, number)  # an impatient second one changes nothing
        (tmp_path / "finish").touch()
        code = await process.ended()

    assert code == 0
    assert stopping["reasons"] == ["stopping"]
    assert [line["event"] for line in process.logged()] == ["ready", "stopping", "finished what was in flight"]


async def test_a_stop_ends_a_process_that_is_still_starting(tmp_path: Path) -> None:
    async with running("starts_for_ever", tmp_path) as process:
        assert json.loads(await process.until("/readyz", 503)) == {"ready": False, "reasons": ["starting"]}

        process.child.request_stop()
        code = await process.ended()

    assert code == 0
    assert [line["event"] for line in process.logged()] == ["stopping", "cleared away"]


async def test_a_stop_that_hangs_ends_at_its_bound_and_shows_where(tmp_path: Path) -> None:
    async with running("stops_for_ever", tmp_path) as process:
        await process.until("/readyz", 200)

        began = time.monotonic()
        process.child.request_stop()
        code = await process.ended()

    assert code == 1
    assert time.monotonic() - began < 10
    assert "runtime_tiny_stage.py" in process.log.read_text()


async def test_a_stage_that_fails_ends_the_process_with_its_reason(tmp_path: Path) -> None:
    async with running("fails", tmp_path) as process:
        code = await process.ended()

    assert code == 1
    failed = next(line for line in process.logged() if line["event"] == "stage failed")
    assert failed["failed"] == "tiny"
    assert (failed["kind"], failed["reason"]) == ("Halt", "partition 3 continues at 7, expected 6: a gap")
    assert "exception" not in failed


async def test_a_stage_that_breaks_ends_the_process_with_the_trace_and_without_the_token(tmp_path: Path) -> None:
    async with running("breaks", tmp_path) as process:
        code = await process.ended()

    assert code == 1
    failed = next(line for line in process.logged() if line["event"] == "stage failed")
    assert failed["kind"] == "KeyError"
    assert "runtime_tiny_stage.py" in failed["exception"]
    assert "1234" not in process.log.read_text()


async def test_a_stage_that_ends_by_itself_is_a_failure(tmp_path: Path) -> None:
    async with running("ends", tmp_path) as process:
        code = await process.ended()

    assert code == 1
    assert any(line.get("reason") == "it ended by itself" for line in process.logged())


async def test_a_stage_that_cannot_start_says_why_in_one_line(tmp_path: Path) -> None:
    async with running("refuses", tmp_path, TARTAN_KAFKA_ADDRESS="broker.example:9092") as process:
        code = await process.ended()

    assert code == 1
    (line,) = process.logged()
    assert (line["event"], line["kind"], line["level"]) == ("stopped", "Retry", "error")
    assert line["reason"] == "no Kafka at broker.example:9092"


async def test_an_internal_port_that_is_taken_is_one_line_that_names_the_setting(tmp_path: Path) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        async with running("works", tmp_path, TARTAN_INTERNAL_PORT=str(port)) as process:
            code = await process.ended()

    assert code == 1
    (line,) = process.logged()
    assert f"internal port {LOOPBACK}:{port} cannot be used" in line["reason"]
    assert "set TARTAN_INTERNAL_PORT" in line["reason"]


async def test_a_setting_that_is_wrong_is_one_line_that_names_the_variable(tmp_path: Path) -> None:
    async with running("works", tmp_path, TARTAN_PARTITIONS="none") as process:
        code = await process.ended()

    assert code == 1
    (line,) = process.log.read_text().splitlines()
    assert line.startswith("tartan: settings: TARTAN_PARTITIONS: ")
