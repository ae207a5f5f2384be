"""The data folder of a server, locked by one sandbox at a time."""

import asyncio
import contextlib
import fcntl
import os
import shutil
import time
from pathlib import Path

import psutil

from schemas.errors import Halt

# A server whose parent was killed ends within a second or two; after this it is stuck, and a person must act.
ORPHAN_TIMEOUT_S = 15.0
RETRY_INTERVAL_S = 0.05

# A new folder is not locked yet for a moment, so a younger one does not count as abandoned.
ABANDONED_AGE_S = 60.0
LOCK = "lock"


class DataFolder:
    """Folder with a lock and a few small values that outlive a run.

    The lock is an flock on the file `lock`. A child inherits the descriptor, so the folder stays locked until
    the last of its processes is gone, even where this process was killed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock: int | None = None

    @property
    def lock(self) -> int:
        """Descriptor that a child must inherit."""
        assert self._lock is not None, "the folder is not locked"
        return self._lock

    async def acquire(self) -> None:
        """Create the folder where it is new, and lock it, once the servers of a dead sandbox have ended.

        Raises: Halt, where it cannot be written or another running sandbox has locked it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as problem:
            raise Halt(f"The data folder {self.path} cannot be used: {problem.strerror}.") from problem
        try:
            await self._wait_for_lock(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        self._lock = descriptor

    def release(self) -> None:
        """Unlock the folder; its processes have ended by now."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def read(self, name: str) -> str | None:
        """Return a value of an earlier run, or None."""
        try:
            return (self.path / name).read_text().strip()
        except FileNotFoundError:
            return None

    def keep(self, name: str, value: str) -> None:
        """Store a value for later runs, atomically, and readable by its owner only."""
        unfinished = self.path / f"{name}.new"
        with contextlib.suppress(FileNotFoundError):
            unfinished.unlink()
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{value}\n")
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self.path / name)

    async def _wait_for_lock(self, descriptor: int) -> None:
        deadline = time.monotonic() + ORPHAN_TIMEOUT_S
        while not _try_lock(descriptor):
            holder = _holder(descriptor)
            if (holder is not None and psutil.pid_exists(holder)) or time.monotonic() > deadline:
                raise Halt(
                    f"The data folder {self.path} is locked by another running sandbox "
                    f"(process {holder or 'unknown'}). Stop that one, or choose another folder."
                )
            await asyncio.sleep(RETRY_INTERVAL_S)


def remove_abandoned(parent: Path, *, prefix: str) -> None:
    """Remove temporary folders of killed sandboxes: those of this user with data folders that nobody locks."""
    for folder in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            status = folder.lstat()
            old = time.time() - status.st_mtime > ABANDONED_AGE_S
            locks = list(folder.glob(f"*/{LOCK}"))
            if status.st_uid == os.geteuid() and old and locks and not any(map(_is_locked, locks)):
                shutil.rmtree(folder, ignore_errors=True)


def _is_locked(lock: Path) -> bool:
    descriptor = os.open(lock, os.O_RDWR)
    try:
        return not _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(descriptor: int) -> int | None:
    text = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
    return int(text) if text.isdecimal() else None
