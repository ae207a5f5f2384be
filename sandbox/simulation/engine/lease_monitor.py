"""Monitor leases: two live leases of an Item, and requests under an ended lease, are failures of the run."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from runtime.scheduler.types import Claimed
from sandbox.simulation.engine.loop import Process
from sandbox.simulation.trace import Trace

IN_FLIGHT_MAX = 1
"""Requests that a woken process may make under a lease that ended while it was frozen: the one in flight."""


@dataclass(slots=True)
class MonitoredLease:
    """A lease as its process sees it."""

    claimed: Claimed
    process: Process
    until: datetime
    late_requests: int = 0


class LeaseMonitor:
    """Record every lease and every request to Plaid; append violations to `failures`.

    `sound`: partition and offset of records that were answered to a process with the Item's lease.
    """

    def __init__(self, now: Callable[[], datetime], failures: list[str], trace: Trace) -> None:
        self._trace = trace
        self._now = now
        self._failures = failures
        self._live: dict[str, MonitoredLease] = {}
        self._by_process: dict[tuple[Process, str], MonitoredLease] = {}
        self._item_ids: dict[str, str] = {}
        self.sound: set[tuple[int, int]] = set()
        self.claims = 0

    def register_token(self, token: str, item_id: str) -> None:
        """Record the Item of an access token."""
        self._item_ids[token] = item_id

    def record_claim(self, process: Process, claimed: Claimed, *, lease_s: float) -> None:
        """Record a new lease; no other lease of the Item may be live."""
        self.claims += 1
        now = self._now()
        self._trace.note(f"{process.name} claims {claimed.item_id} for {claimed.cause.kind}, expired {claimed.expired}")
        before = self._live.get(claimed.item_id)
        if before is not None and before.until > now:
            self._failures.append(
                f"two live leases of {claimed.item_id}: {before.process.name} until {before.until:%X}, "
                f"{process.name} at {now:%X}"
            )
        lease = MonitoredLease(claimed, process, now + timedelta(seconds=lease_s))
        self._live[claimed.item_id] = self._by_process[process, claimed.item_id] = lease

    def record_renewal(self, claimed: Claimed, *, lease_s: float) -> None:
        """Record a renewal; the lease must be the last one of its Item."""
        lease = self._live.get(claimed.item_id)
        if lease is not None and lease.claimed.lease == claimed.lease:
            lease.until = self._now() + timedelta(seconds=lease_s)
        elif lease is not None:
            self._failures.append(f"a lease of {claimed.item_id} was prolonged after another one was given")

    def record_end(self, claimed: Claimed, reason: str) -> None:
        """Record the end of a lease."""
        self._trace.note(f"{claimed.item_id}: {reason}")
        lease = self._live.get(claimed.item_id)
        if lease is not None and lease.claimed.lease == claimed.lease:
            lease.until = min(lease.until, self._now())

    def record_inherited(self, name: str) -> None:
        """Record the end of a dead process's leases."""
        for lease in self._live.values():
            if lease.process.name == name and lease.process.dead:
                lease.until = min(lease.until, self._now())

    def record_request(self, process: Process, token: str, endpoint: str) -> None:
        """Record a request to Plaid; under an ended lease only the one in flight is allowed."""
        item_id = self._item_ids.get(token, "")
        self._trace.note(f"{process.name} asks for {item_id} {endpoint}")
        lease = self._by_process.get((process, item_id))
        if lease is None or lease.until > self._now():
            return
        lease.late_requests += 1
        if lease.late_requests > IN_FLIGHT_MAX:
            self._failures.append(
                f"{process.name} made {lease.late_requests} requests after its lease of {item_id} had ended"
            )

    def holds(self, process: Process, item_id: str) -> bool:
        """Return whether a process has the lease of an Item now."""
        lease = self._live.get(item_id)
        return lease is not None and lease.process is process and lease.until > self._now()
