"""Measure CPU time and memory of processes, as the kernel counts them."""

import asyncio
import contextlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import psutil

from sandbox.infra.processes import Child
from schemas.errors import Halt

SAMPLE_S = 0.2
EDGE = 0.25
"""Share of the samples that count as the beginning, and as the end."""
WORKERS = "workers"


@dataclass(slots=True)
class Samples:
    """Resource usage of a command's workers and of servers.

    Units: `cpu_s` CPU seconds by kind; memory of the largest process in MiB: in all, and in the first and last quarter.
    """

    cpu_s: dict[str, float] = field(default_factory=dict)
    rss_mib: int = 0
    rss_mib_begin: int = 0
    rss_mib_end: int = 0


async def sample_until_end(child: Child, servers: Mapping[str, int], *, timeout_s: float) -> Samples:
    """Wait for the end of a command and sample its workers and servers (name to pid) meanwhile.

    The workers are the processes that it starts, as long as there are any; a command that starts none is its own.
    Raises: Halt, where it does not end within the bound; it is killed then.
    """
    before = {name: cpu_s(pid) for name, pid in servers.items()}
    workers = _Workers()
    samples = Samples()
    deadline = time.monotonic() + timeout_s
    while child.running():
        if time.monotonic() > deadline:
            child.kill()
            raise Halt(f"a command was not done after {timeout_s:g} s")
        if workers.sample(child.pid):
            samples.cpu_s = {name: cpu_s(pid) - before[name] for name, pid in servers.items()}
        await asyncio.sleep(SAMPLE_S)
    sizes, edge = workers.largest_mib, max(1, int(len(workers.largest_mib) * EDGE))
    samples.cpu_s[WORKERS] = sum(workers.cpu_s.values())
    samples.rss_mib = max(sizes, default=0)
    samples.rss_mib_begin, samples.rss_mib_end = max(sizes[:edge], default=0), max(sizes[-edge:], default=0)
    return samples


class _Workers:
    """CPU seconds of workers by pid, and the size of the largest worker at each sample."""

    def __init__(self) -> None:
        self.cpu_s: dict[int, float] = {}
        self.largest_mib: list[int] = []
        self._had_workers = False

    def sample(self, pid: int) -> bool:
        """Sample the workers of a command; return False where it has none any more."""
        workers: dict[int, tuple[float, int]] = {}
        with contextlib.suppress(psutil.NoSuchProcess):
            workers = _usage(psutil.Process(pid).children(recursive=True))
        if workers and not self._had_workers:
            self._had_workers = True
            self.cpu_s, self.largest_mib = {}, []
        if not self._had_workers:
            workers = _usage([psutil.Process(pid)])
        if not workers:
            return False
        self.cpu_s.update({worker: used for worker, (used, _) in workers.items()})
        self.largest_mib.append(max(size for _, size in workers.values()))
        return True


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process and its descendants; those that it has reaped are counted with it."""
    head = psutil.Process(pid)
    times = head.cpu_times()
    used = times.user + times.system + times.children_user + times.children_system
    for process in head.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            used += times.user + times.system
    return float(used)


def _usage(processes: Iterable[psutil.Process]) -> dict[int, tuple[float, int]]:
    """Return CPU seconds and MiB of processes, by pid; ended ones are left out."""
    usage: dict[int, tuple[float, int]] = {}
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            usage[process.pid] = (times.user + times.system, process.memory_info().rss // 2**20)
    return usage
