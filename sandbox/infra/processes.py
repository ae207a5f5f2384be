"""Child processes that never outlive the process that started them.

They end by `stop` or `kill`, by `atexit` when this process ends by an exception or Ctrl-C, and by the kernel's
parent-death signal (elsewhere by a watchdog) when it is killed outright.
"""

import asyncio
import atexit
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from sandbox.infra.privileges import before_exec, can_follow_parent
from schemas.errors import Halt

POLL_INTERVAL_S = 0.01
# The part of a log in an error message: a Java stack trace fits, a screen is not flooded.
TAIL_LINES_MAX = 30
TAIL_BYTES_MAX = 8192
# SIGKILL takes effect at once unless the kernel is busy for the process (a core dump, a stuck disk).
KILL_TIMEOUT_S = 10.0
# A clean stop takes 1-2 s; after this bound children are killed, which their data survives.
EXIT_TIMEOUT_S = 8.0

# Reads one byte: a byte means "released", the end of the pipe means that the parent has died.
_WATCHDOG = "import os,sys\nif not sys.stdin.buffer.read(1): os.kill(int(sys.argv[1]), int(sys.argv[2]))"

_running: "set[Child]" = set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Program to run as a child, and the signals that end it.

    `stop_signal` requests a clean end; `orphan_signal` is sent when this process dies.
    `keep_open` are descriptors that it inherits, so that a folder's lock lives as long as the child.
    """

    name: str
    arguments: Sequence[str]
    log: Path
    environment: Mapping[str, str] | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    orphan_signal: signal.Signals = signal.SIGKILL
    drop_root: bool = False
    keep_open: tuple[int, ...] = ()


class Child:
    """Running child process, in a session of its own so that Ctrl-C reaches only its parent."""

    def __init__(self, command: Command, process: subprocess.Popen[bytes]) -> None:
        self._command = command
        self._process = process
        self._watchdog = None if can_follow_parent() else watch(process.pid, command.orphan_signal)
        atexit.unregister(_end_all)
        atexit.register(_end_all)
        _running.add(self)

    @property
    def pid(self) -> int:
        """Process id, also after its end."""
        return self._process.pid

    def running(self) -> bool:
        """Return True while the process exists."""
        return self._process.poll() is None

    @property
    def code(self) -> int:
        """Exit code of the ended process; negative is the signal that killed it."""
        assert self._process.returncode is not None, "the process is running"
        return self._process.returncode

    async def ready(self, condition: Callable[[], bool], *, timeout_s: float) -> None:
        """Wait until `condition` holds; a child that fails to get there is killed.

        Raises: Halt with the tail of the log, where it ends or where the time is over.
        """
        deadline = time.monotonic() + timeout_s
        try:
            while not condition():
                self._require_progress(timeout_s, deadline)
                await asyncio.sleep(POLL_INTERVAL_S)
        except BaseException:
            self.kill()
            raise

    async def ended(self, *, timeout_s: float) -> int:
        """Wait for the process to end by itself and return its code; at the bound it is killed."""
        deadline = time.monotonic() + timeout_s
        try:
            while self.running() and time.monotonic() < deadline:
                await asyncio.sleep(POLL_INTERVAL_S)
        finally:
            self.kill()
        return self._process.returncode

    async def stop(self, *, timeout_s: float) -> None:
        """Request a clean end; at the bound kill the process and all its descendants."""
        self.request_stop()
        await self.ended(timeout_s=timeout_s)

    def request_stop(self) -> None:
        """Send the signal for a clean end, without waiting."""
        if self.running():
            self._process.send_signal(self._command.stop_signal)

    def kill(self) -> None:
        """Kill the process and all its descendants, and wait until all have ended."""
        family = _family(self.pid) if self.running() else []
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        self._process.wait(KILL_TIMEOUT_S)
        deadline = time.monotonic() + KILL_TIMEOUT_S
        while any(_alive(member) for member in family) and time.monotonic() < deadline:
            time.sleep(POLL_INTERVAL_S)
        _running.discard(self)
        if self._watchdog is not None:
            self._watchdog.communicate(b".", KILL_TIMEOUT_S)
            self._watchdog = None

    def _require_progress(self, timeout_s: float, deadline: float) -> None:
        if self.running() and time.monotonic() <= deadline:
            return
        reason = (
            f"was not ready after {timeout_s:g} s" if self.running() else f"ended with code {self.code} while starting"
        )
        raise Halt(f"{self._command.name} {reason}. The end of {self._command.log}:\n{tail(self._command.log)}")


def start(command: Command) -> Child:
    """Start a child whose output goes to its log.

    Call it from a thread that outlives the child: Linux sends the parent-death signal when that thread ends.
    Raises: Halt, where the program cannot be run.
    """
    prepare = before_exec(orphan_signal=command.orphan_signal, drop_root=command.drop_root)
    with command.log.open("ab") as log:
        try:
            process = subprocess.Popen(
                list(command.arguments),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=None if command.environment is None else dict(command.environment),
                start_new_session=True,
                pass_fds=command.keep_open,
                preexec_fn=prepare,
            )
        except (OSError, subprocess.SubprocessError) as problem:
            raise Halt(f"{command.name} cannot be run ({command.arguments[0]}): {problem}") from problem
    return Child(command, process)


async def run(command: Command, *, timeout_s: float) -> None:
    """Run a child to its end.

    Raises: Halt with the tail of the log, where it fails or is not done within the bound.
    """
    code = await start(command).ended(timeout_s=timeout_s)
    if code != 0:
        raise Halt(f"{command.name} failed with code {code}. The end of {command.log}:\n{tail(command.log)}")


def watch(pid: int, orphan_signal: signal.Signals) -> subprocess.Popen[bytes]:
    """Start the watchdog that signals `pid` when this process dies, for kernels that cannot."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _WATCHDOG, str(pid), str(int(orphan_signal))],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )


def tail(log: Path) -> str:
    """Return the last lines of a log, at most 30 lines and 8 KB."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL_BYTES_MAX))
            text = file.read().decode(errors="replace")
    except OSError as problem:
        return f"(unreadable: {problem})"
    return "\n".join(text.splitlines()[-TAIL_LINES_MAX:]) or "(empty)"


def _family(pid: int) -> list[psutil.Process]:
    """Return a process and its descendants; a database's workers are in sessions of their own."""
    try:
        head = psutil.Process(pid)
        return [head, *head.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _alive(process: psutil.Process) -> bool:
    """Return True if a process still holds resources; an unreaped zombie does not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _end_all() -> None:
    """Stop all children as this process ends: signal all of them first, then kill each at the bound."""
    children = list(_running)
    for child in children:
        child.request_stop()
    deadline = time.monotonic() + EXIT_TIMEOUT_S
    while any(child.running() for child in children) and time.monotonic() < deadline:
        time.sleep(POLL_INTERVAL_S)
    for child in children:
        child.kill()
