"""Real processes killed, stopped and cut off under load: all data becomes correct by itself, and no process is left."""

import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from sandbox.chaos.run_chaos import ChaosOptions, run_chaos
from tests.support.processes import is_alive

KILLS = 10
SEED = 7
"""Kills Kafka and Postgres, swallows the answer of a COMMIT, and resumes zombies of three stages."""
START_S_MAX = 120.0
STOP_S_MAX = 60.0
COMMAND = "from cli.prove.sandbox import run_until_stopped; from sandbox.chaos.run_chaos import *; run_until_stopped(run_chaos(ChaosOptions(kills=8)))"  # noqa: E501


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


@pytest.mark.timeout(600)
async def test_ten_kills_lose_and_double_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    children_before = children()

    code = await run_chaos(ChaosOptions(kills=KILLS, seed=SEED, as_json=True))

    output = capsys.readouterr()
    result = json.loads(output.out.splitlines()[-1])
    assert (code, result["failures"]) == (0, 0), output.err
    assert result["kills"] >= KILLS
    assert (result["runs"], result["seed"]) == (2, SEED)
    died = sum(count for name, count in result["faults"].items() if name.startswith("kill."))
    assert 0 < died <= result["kills"]
    assert children() == children_before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(300)
async def test_a_sigterm_leaves_no_process_and_no_folder(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", COMMAND, stderr=asyncio.subprocess.DEVNULL, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    try:
        started = await family(process.pid, at_least=6)
        os.kill(process.pid, signal.SIGTERM)

        assert await asyncio.wait_for(process.wait(), STOP_S_MAX) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert [child for child in started if is_alive(child)] == []
    assert list(tmp_path.iterdir()) == []


async def family(pid: int, *, at_least: int) -> list[psutil.Process]:
    """Wait until a process has started so many others, and return them."""
    deadline = time.monotonic() + START_S_MAX
    while len(started := psutil.Process(pid).children(recursive=True)) < at_least:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
    return started
