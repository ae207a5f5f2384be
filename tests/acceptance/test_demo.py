"""`tartan demo`, as a newcomer runs it."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support.processes import is_alive

FIELDS = {
    "webhooks",
    "changesets",
    "transactions",
    "events_published",
    "pushes",
    "webhook_to_row_ms",
    "webhook_to_push_ms",
    "digest_equal",
    "ledger_balanced",
}
START_S_MAX = 120.0
STOP_S_MAX = 60.0


def demo(*arguments: str, output: Path) -> subprocess.Popen[bytes]:
    with output.open("wb") as log:
        return subprocess.Popen([sys.executable, "-m", "cli", "demo", *arguments], stdout=subprocess.PIPE, stderr=log)


@pytest.mark.timeout(300)
def test_the_demo_proves_itself_and_leaves_nothing_behind(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = demo("--for", "8", "--json", output=log)

    answer, _ = process.communicate(timeout=START_S_MAX + STOP_S_MAX)

    assert process.returncode == 0, log.read_text()
    result = json.loads(answer.decode().strip().splitlines()[-1])
    assert result.keys() >= FIELDS
    assert result["digest_equal"] is True
    assert result["ledger_balanced"] is True
    assert result["webhooks"] > 0
    assert result["pushes"] > 0
    assert result["webhook_to_row_ms"]["count"] > 0
    assert result["webhook_to_push_ms"]["p50"] > 0
    assert processes_of(process.pid) == []


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_the_demo_ends_nothing_is_left_running(tmp_path: Path, how: signal.Signals) -> None:
    log = tmp_path / "log"
    process = demo(output=log)
    deadline = time.monotonic() + START_S_MAX
    while "See it in a browser" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 7  # Kafka, Postgres, the simulator and four stages

    process.send_signal(how)
    process.communicate(timeout=STOP_S_MAX)

    deadline = time.monotonic() + STOP_S_MAX
    while (left := [child.pid for child in children if is_alive(child)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


def processes_of(pid: int) -> list[psutil.Process]:
    """Return the children of a demo that has ended."""
    return [process for process in psutil.process_iter(["ppid"]) if process.info["ppid"] == pid]
