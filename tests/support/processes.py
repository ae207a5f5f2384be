"""Processes that a test has started."""

import psutil


def is_alive(process: psutil.Process) -> bool:
    """Return True if a process still holds resources; an unreaped zombie does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
