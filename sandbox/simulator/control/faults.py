"""Inject faults into requests, on demand and by the seed.

A declared fault applies to the requests that match all its fields, `times` times. Its code is one of Plaid's error
codes, or one of `CONNECTION_FAULTS`, which break the connection instead, or `MUTATION`, which changes the bank's data
just before the page is cut, or `SLOW`. Pages of `/transactions/sync` are counted from 1 within a pagination.
"""

from typing import Literal, get_args

import msgspec

from sandbox.simulator.api.plaid_errors import KINDS
from sandbox.simulator.bank.randomness import derive
from sandbox.simulator.options import FaultRates

ConnectionFault = Literal["HTML", "BAD_GATEWAY", "TIMEOUT", "RESET", "TRUNCATED", "UNSENT"]
"""A page of HTML with status 200 or 502; no answer in time; a connection that breaks before the answer, within it, or
before the request arrives."""

CONNECTION_FAULTS = get_args(ConnectionFault)
WITHOUT_ANSWER = frozenset({"TIMEOUT", "RESET", "TRUNCATED", "UNSENT"})
WITHOUT_EFFECT = frozenset({"BAD_GATEWAY", "UNSENT"})
"""Faults after which the request has changed nothing."""
MUTATION = "MUTATION"
SLOW = "SLOW"
"""A proper answer, `delay_s` seconds late."""

FAULTS_MAX = 10_000
"""Faults declared at once; a test that needs more declares a rate."""


class Fault(msgspec.Struct, kw_only=True):
    """A declared fault. `times` None: until it is withdrawn."""

    code: str
    endpoint: str = "/transactions/sync"
    item_id: str | None = None
    institution_id: str | None = None
    page: int | None = None
    times: int | None = 1
    delay_s: float = 0.0
    number: int = 0


class Faults:
    """Hold the declared faults, oldest first, and draw those of the seed."""

    def __init__(self, seed: int, rates: FaultRates) -> None:
        self._seed = seed
        self.rates = rates
        self.declared: list[Fault] = []
        self._last_number = 0

    def declare(self, fault: Fault) -> Fault:
        """Add a fault. Raises: ValueError, where its code is unknown or there are too many."""
        check_code(fault.code)
        if len(self.declared) >= FAULTS_MAX:
            raise ValueError(f"more than {FAULTS_MAX} faults declared")
        self._last_number += 1
        fault.number = self._last_number
        self.declared.append(fault)
        return fault

    def withdraw(self) -> int:
        """Delete every declared fault and return their number."""
        count = len(self.declared)
        self.declared.clear()
        return count

    def take_match(
        self, endpoint: str, *, item_id: str | None, institution_id: str | None, page: int | None
    ) -> Fault | None:
        """Use the first declared fault that matches a request, or return None."""
        for fault in self.declared:
            if (
                fault.endpoint in (endpoint, "*")
                and fault.item_id in (None, item_id)
                and fault.institution_id in (None, institution_id)
                and fault.page in (None, page)
            ):
                if fault.times is not None:
                    fault.times -= 1
                    if fault.times <= 0:
                        self.declared.remove(fault)
                return fault
        return None

    def draw_other_fault(self, *, ordinal: int, request: int) -> str | None:
        """Draw the code of the n-th request of an Item to another endpoint, or None."""
        if not self.rates.other_failure:
            return None
        rng = derive(self._seed, "other fault", ordinal, request)
        return rng.choice(self.rates.failures) if rng.random() < self.rates.other_failure else None

    def draw_sync_fault(self, *, ordinal: int, request: int, page: int) -> str | None:
        """Draw the code of the n-th sync request of an Item, or None."""
        if not (self.rates.mutation or self.rates.failure):
            return None
        rng = derive(self._seed, "fault", ordinal, request)
        if page > 1 and rng.random() < self.rates.mutation:
            return MUTATION
        return rng.choice(self.rates.failures) if rng.random() < self.rates.failure else None


def check_code(code: str) -> str:
    """Return a fault's code. Raises: ValueError, where it is unknown."""
    if code not in KINDS and code not in CONNECTION_FAULTS and code not in (MUTATION, SLOW):
        raise ValueError(f"unknown fault code {code!r}")
    return code
