"""Who looks on: leases that live at the same time, and requests under a lease that has ended."""

from collections.abc import Callable
from datetime import datetime, timedelta

from runtime.scheduler.types import Claimed
from sandbox.simulation.engine.loop import Process
from sandbox.simulation.trace import Trace

IN_FLIGHT_MAX = 1
"""Requests that a woken process may still make under a lease that ended while it stood: the one in flight."""


class Lease:
    """What one process believes about its lease."""

    def __init__(self, claimed: Claimed, process: Process, until: datetime) -> None:
        self.claimed = claimed
        self.process = process
        self.until = until
        self.asked_late = 0


class LeaseMonitor:
    """Notes every lease and every request to Plaid; what must not be goes to `failures`.

    `sound`: partition and offset of records that were answered to a process that held the Item's lease.
    """

    def __init__(self, now: Callable[[], datetime], failures: list[str], trace: Trace) -> None:
        self._trace = trace
        self._now = now
        self._failures = failures
        self._live: dict[str, Lease] = {}
        self._of_process: dict[tuple[Process, str], Lease] = {}
        self._items: dict[str, str] = {}
        self.late_requests = 0
        self.sound: set[tuple[int, int]] = set()
        self.claims = 0

    def knows(self, token: str, item_id: str) -> None:
        """Note whose token it is."""
        self._items[token] = item_id

    def leased(self, process: Process, claimed: Claimed, *, lease_s: float) -> None:
        """A lease was given; no other one of the Item may live."""
        self.claims += 1
        now = self._now()
        self._trace.note(f"{process.name} claims {claimed.item_id} for {claimed.cause.kind}, expired {claimed.expired}")
        before = self._live.get(claimed.item_id)
        if before is not None and before.until > now:
            self._failures.append(
                f"two live leases of {claimed.item_id}: {before.process.name} until {before.until:%X}, "
                f"{process.name} at {now:%X}"
            )
        lease = Lease(claimed, process, now + timedelta(seconds=lease_s))
        self._live[claimed.item_id] = self._of_process[process, claimed.item_id] = lease

    def renewed(self, claimed: Claimed, *, lease_s: float) -> None:
        """A lease was prolonged."""
        lease = self._live.get(claimed.item_id)
        if lease is not None and lease.claimed.lease == claimed.lease:
            lease.until = self._now() + timedelta(seconds=lease_s)
        elif lease is not None:
            self._failures.append(f"a lease of {claimed.item_id} was prolonged after another one was given")

    def given_back(self, claimed: Claimed, how: str) -> None:
        """A lease ended."""
        self._trace.note(f"{claimed.item_id}: {how}")
        lease = self._live.get(claimed.item_id)
        if lease is not None and lease.claimed.lease == claimed.lease:
            lease.until = min(lease.until, self._now())

    def inherited(self, name: str) -> None:
        """The leases of a dead process ended."""
        for lease in self._live.values():
            if lease.process.name == name and lease.process.dead:
                lease.until = min(lease.until, self._now())

    def asked(self, process: Process, token: str, what: str) -> None:
        """A request reached Plaid. Under a lease that another one followed, only the one in flight may."""
        item_id = self._items.get(token, "")
        self._trace.note(f"{process.name} asks for {item_id} {what}")
        lease = self._of_process.get((process, item_id))
        if lease is None or lease.until > self._now():
            return
        lease.asked_late += 1
        self.late_requests += 1
        if lease.asked_late > IN_FLIGHT_MAX:
            self._failures.append(
                f"{process.name} made {lease.asked_late} requests after its lease of {lease.claimed.item_id} had ended"
            )

    def holds(self, process: Process, item_id: str) -> bool:
        """Whether a process has the lease of an Item now."""
        lease = self._live.get(item_id)
        return lease is not None and lease.process is process and lease.until > self._now()
