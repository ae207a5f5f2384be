"""A child never outlives its parent, and one that fails says why."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from sandbox.infra.folders import DataFolder, remove_abandoned
from sandbox.infra.machine import KAFKA_PORTS, free_port, require_disk, require_memory, require_port
from sandbox.infra.processes import Command, run, start, tail
from schemas.errors import Halt
from tests.support.paths import ROOT
from tests.support.processes import is_alive

WAIT_S = 20.0

# Starts one child, prints its pid, and does what is put in for "{then}".
PARENT = """
import asyncio, os, signal, subprocess, sys, time
from pathlib import Path
from sandbox.infra.processes import Command, start, watch
child = start(Command(name="child", arguments=["sleep", "300"], log=Path(sys.argv[1])))
print(child.pid, flush=True)
{then}
"""


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    try:
        return not is_alive(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return True


@contextmanager
def parent(log: Path, then: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run a parent that has started a child: itself and the pid of the child."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(then=then), str(log)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        with process.stdout as output:
            yield process, int(output.readline())
    finally:
        process.kill()
        process.wait(WAIT_S)


def shell(script: str, log: Path) -> Command:
    return Command(name="script", arguments=["sh", "-c", script], log=log)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_child_dies_with_its_parent(tmp_path: Path, sent: signal.Signals) -> None:
    with parent(tmp_path / "log", "time.sleep(300)") as (process, child):
        assert not gone(child)

        process.send_signal(sent)
        process.wait(WAIT_S)

        wait_for(lambda: gone(child))


def test_a_child_dies_when_its_parent_raises(tmp_path: Path) -> None:
    with parent(tmp_path / "log", "raise ValueError") as (process, child):
        process.wait(WAIT_S)

        assert gone(child)


def test_the_watchdog_does_it_where_the_kernel_cannot(tmp_path: Path) -> None:
    bare = "bare = subprocess.Popen(['sleep', '300']); dog = watch(bare.pid, signal.SIGKILL)"
    with parent(tmp_path / "log", f"{bare}; time.sleep(300)") as (process, _):
        wait_for(lambda: len(psutil.Process(process.pid).children()) == 3)
        family = psutil.Process(process.pid).children()

        process.kill()
        process.wait(WAIT_S)

        wait_for(lambda: all(gone(member.pid) for member in family))


async def test_a_child_that_ignores_sigterm_is_killed_with_all_it_started(tmp_path: Path) -> None:
    child = start(shell("trap '' TERM; sleep 300 & echo up; wait; sleep 300", tmp_path / "log"))
    await child.ready(lambda: "up" in tail(tmp_path / "log"), timeout_s=WAIT_S)
    family = psutil.Process(child.pid).children(recursive=True)

    await child.stop(timeout_s=0.2)

    assert gone(child.pid)
    assert family
    assert all(gone(member.pid) for member in family)


async def test_a_child_that_ends_while_starting_shows_the_end_of_its_log(tmp_path: Path) -> None:
    child = start(shell("echo no room for me; exit 3", tmp_path / "log"))

    with pytest.raises(Halt, match=r"script ended with code 3 while starting.*\n.*no room for me"):
        await child.ready(lambda: False, timeout_s=WAIT_S)


async def test_a_child_that_is_never_ready_is_killed_at_the_bound(tmp_path: Path) -> None:
    child = start(shell("echo still thinking; sleep 300", tmp_path / "log"))

    with pytest.raises(Halt, match=r"script was not ready after 0.2 s.*\nstill thinking"):
        await child.ready(lambda: False, timeout_s=0.2)

    assert gone(child.pid)


async def test_a_run_that_fails_shows_its_log_and_a_missing_program_its_name(tmp_path: Path) -> None:
    with pytest.raises(Halt, match=r"script failed with code 4.*\nbad input"):
        await run(shell("echo bad input; exit 4", tmp_path / "log"), timeout_s=WAIT_S)

    with pytest.raises(Halt, match=r"nothing cannot be run .*no-such-program"):
        start(Command(name="nothing", arguments=["/no-such-program"], log=tmp_path / "log"))


def test_a_tail_is_bounded(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {n} {'x' * 100}\n" for n in range(10_000)))

    assert tail(log).splitlines()[-1].startswith("line 9999 ")
    assert len(tail(log).splitlines()) == 30
    assert tail(tmp_path / "missing").startswith("(unreadable")


def test_a_taken_port_is_refused_with_the_name_of_who_has_it() -> None:
    port = free_port(KAFKA_PORTS)
    with socket.create_server(("127.0.0.1", port)):
        with pytest.raises(Halt, match=rf"Port {port} for Kafka is taken by .*\(process {os.getpid()}\)"):
            require_port("Kafka", port)
        assert free_port(KAFKA_PORTS, remembered=str(port)) != port

    assert require_port("Kafka", port) == port
    assert free_port(KAFKA_PORTS, remembered=str(port)) == port


def test_a_short_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Halt, match=r"Kafka needs 1073741824 MiB of memory; \d+ MiB are available"):
        require_memory("Kafka", 1 << 50)
    with pytest.raises(Halt, match=r"Kafka needs 1073741824 MiB of disk in .*; \d+ MiB are free"):
        require_disk("Kafka", tmp_path, 1 << 50)


async def test_a_folder_is_held_by_one_sandbox_and_again_after_it(tmp_path: Path) -> None:
    first, second = DataFolder(tmp_path / "data"), DataFolder(tmp_path / "data")
    await first.acquire()

    with pytest.raises(Halt, match=rf"locked by another running sandbox \(process {os.getpid()}\)"):
        await second.acquire()

    first.release()
    await second.acquire()
    second.release()


async def test_a_folder_stays_held_until_the_children_of_a_dead_sandbox_are_gone(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    await folder.acquire()
    orphan = await asyncio.create_subprocess_exec("sleep", "1", pass_fds=(folder.lock,))
    ended = subprocess.Popen(["true"])
    ended.wait()
    os.pwrite(folder.lock, f"{ended.pid}".encode().ljust(20), 0)
    folder.release()

    began = time.monotonic()
    await DataFolder(tmp_path).acquire()

    assert time.monotonic() - began > 0.5
    assert await orphan.wait() == 0


async def test_facts_of_a_folder_outlive_it_and_are_private(tmp_path: Path) -> None:
    DataFolder(tmp_path).keep("port", "20001")
    DataFolder(tmp_path).keep("port", "20002")

    assert DataFolder(tmp_path).read("port") == "20002"
    assert DataFolder(tmp_path).read("never-kept") is None
    assert (tmp_path / "port").stat().st_mode & 0o077 == 0


async def test_temporary_folders_of_killed_sandboxes_are_removed_and_no_others(tmp_path: Path) -> None:
    held, abandoned, new = (DataFolder(tmp_path / f"sandbox-{name}" / "kafka") for name in "abc")
    for folder in (held, abandoned, new):
        await folder.acquire()
    abandoned.release()
    new.release()
    (tmp_path / "sandbox-of-a-person").mkdir()
    for name in ("a", "b", "of-a-person"):
        os.utime(tmp_path / f"sandbox-{name}", (0, 0))

    remove_abandoned(tmp_path, prefix="sandbox-")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["sandbox-a", "sandbox-c", "sandbox-of-a-person"]
    held.release()


async def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(Halt, match=r"data folder .*file/data cannot be used: Not a directory"):
        await DataFolder(tmp_path / "file" / "data").acquire()
