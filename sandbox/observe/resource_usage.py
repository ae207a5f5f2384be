"""What processes spend: CPU time and memory, as the kernel counts them."""

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
    """What the workers of a command and the servers cost.

    Units: `cpu_s` CPU seconds by kind; memory of the largest process in MiB: in all, and in the first and last quarter.
    """

    cpu_s: dict[str, float] = field(default_factory=dict)
    rss_mib: int = 0
    rss_mib_begin: int = 0
    rss_mib_end: int = 0


async def sampled(child: Child, servers: Mapping[str, int], *, timeout_s: float) -> Samples:
    """Wait for the end of a command, looking at its workers and at servers (name to pid).

    The workers are the processes that it starts, as long as there are any; a command that starts none is its own.
    Raises: Halt, where it does not end within the bound; it is killed then.
    """
    before = {name: cpu_s(pid) for name, pid in servers.items()}
    watch = _Watch()
    samples = Samples()
    deadline = time.monotonic() + timeout_s
    while child.running():
        if time.monotonic() > deadline:
            child.kill()
            raise Halt(f"a command was not done after {timeout_s:g} s")
        if watch.look(child.pid):
            samples.cpu_s = {name: cpu_s(pid) - before[name] for name, pid in servers.items()}
        await asyncio.sleep(SAMPLE_S)
    sizes, edge = watch.sizes, max(1, int(len(watch.sizes) * EDGE))
    samples.cpu_s[WORKERS] = sum(watch.spent.values())
    samples.rss_mib = max(sizes, default=0)
    samples.rss_mib_begin, samples.rss_mib_end = max(sizes[:edge], default=0), max(sizes[-edge:], default=0)
    return samples


class _Watch:
    """What was seen of workers: CPU seconds by pid, and the size of the largest one at each look, in MiB."""

    def __init__(self) -> None:
        self.spent: dict[int, float] = {}
        self.sizes: list[int] = []
        self._had_workers = False

    def look(self, pid: int) -> bool:
        """Look at the workers of a command once more; False where it has none any more."""
        workers = _seen(_children(pid))
        if workers and not self._had_workers:
            self._had_workers = True
            self.spent, self.sizes = {}, []
        if not self._had_workers:
            workers = _seen([psutil.Process(pid)])
        if not workers:
            return False
        self.spent.update({worker: used for worker, (used, _) in workers.items()})
        self.sizes.append(max(size for _, size in workers.values()))
        return True


def cpu_s(pid: int) -> float:
    """CPU seconds of a process and all that it started: those that it has reaped are counted with it."""
    head = psutil.Process(pid)
    times = head.cpu_times()
    used = times.user + times.system + times.children_user + times.children_system
    for process in head.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            used += times.user + times.system
    return float(used)


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _seen(processes: Iterable[psutil.Process]) -> dict[int, tuple[float, int]]:
    """CPU seconds and MiB of processes, by pid; what has ended is left out."""
    found: dict[int, tuple[float, int]] = {}
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            found[process.pid] = (times.user + times.system, process.memory_info().rss // 2**20)
    return found
