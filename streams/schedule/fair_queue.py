"""Order claims by start-time fair queueing over lanes, and within each lane over tenants. Core.

A flow (a lane, or a tenant in a lane) of weight w advances by 1 / w with each Item that is claimed of it. Virtual time
advances with whichever flow is served; a flow that was idle begins at the virtual time, so it neither waits for the
others' backlogs nor catches up on claims that it did not need.
Source: Goyal, Vin, Cheng, Start-time Fair Queuing (SIGCOMM 1996), section 2.
"""

from collections.abc import Hashable, Iterable, Mapping
from typing import Generic, TypeVar

from runtime.scheduler.types import Claimed, FairQueueState, Lane

LANE_WEIGHTS: Mapping[Lane, float] = {Lane.WEBHOOK: 8.0, Lane.MANUAL: 4.0, Lane.SCHEDULE: 2.0, Lane.BACKFILL: 1.0}
"""Shares of lanes with a backlog: a flood of webhooks leaves 7 of 15 to the others, one of 15 to backfills alone."""

Flow = TypeVar("Flow", bound=Hashable)


class FairQueue:
    """Weighted fair queue of one worker.

    Workers do not share it: each serves the tenants fairly, so all of them together do.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = weights
        self._lanes: _Flows[Lane] = _Flows()
        self._tenants: dict[Lane, _Flows[str]] = {lane: _Flows() for lane in Lane}

    def state(self) -> FairQueueState:
        """Return the state that the next claim is ordered by."""
        rows = [
            (tenant, int(lane), ahead)
            for lane, flows in self._tenants.items()
            for tenant, ahead in flows.ahead().items()
        ]
        lanes = self._lanes.ahead()
        return FairQueueState(
            tenants=[tenant for tenant, _, _ in rows],
            lanes=[lane for _, lane, _ in rows],
            ahead=[ahead for _, _, ahead in rows],
            weighted=list(self._weights),
            weights=list(self._weights.values()),
            lanes_ahead=[lanes.get(lane, 0.0) for lane in Lane],
            lane_weights=[LANE_WEIGHTS[lane] for lane in Lane],
        )

    def advance(self, claims: Iterable[Claimed]) -> None:
        """Advance the lanes and tenants of claimed Items, in the order of the claims."""
        for claimed in claims:
            lane = Lane(claimed.lane)
            self._lanes.advance(lane, LANE_WEIGHTS[lane])
            self._tenants[lane].advance(claimed.tenant, self._weights.get(claimed.tenant, 1.0))


class _Flows(Generic[Flow]):
    """Virtual finish times of flows that share one server; a flow that is not ahead of the virtual time has none."""

    def __init__(self) -> None:
        self._now = 0.0
        self._ends: dict[Flow, float] = {}

    def ahead(self) -> dict[Flow, float]:
        """Return how far each flow is ahead of the virtual time."""
        self._ends = {flow: end for flow, end in self._ends.items() if end > self._now}
        return {flow: end - self._now for flow, end in self._ends.items()}

    def advance(self, flow: Flow, weight: float) -> None:
        """Advance a flow by one claim, and the virtual time to the claim's start."""
        self._now = max(self._now, self._ends.get(flow, 0.0))
        self._ends[flow] = self._now + 1.0 / weight
