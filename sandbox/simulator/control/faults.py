"""Faults on demand and by the seed: which request goes wrong, and how.

`/transactions/sync` pages are counted from 1 within a pagination. A fault hits the requests that match all that it
names, as often as it says. What it does is one of Plaid's error codes, or one of `WIRE`, which break the
connection instead, or `MUTATION`, which changes the bank's data just before the page is cut, or `SLOW`.
"""

from typing import Literal, get_args

import msgspec

from sandbox.simulator.api.plaid_errors import KINDS
from sandbox.simulator.bank.randomness import derive
from sandbox.simulator.options import FaultRates

Wire = Literal["HTML", "BAD_GATEWAY", "TIMEOUT", "RESET", "TRUNCATED", "UNSENT"]
"""A page of HTML with status 200 or 502; no answer in time; a connection that breaks before the answer, in the middle
of it, or before the request was heard: only BAD_GATEWAY and UNSENT leave the world as it was."""

WIRE = get_args(Wire)
BREAKS = frozenset({"TIMEOUT", "RESET", "TRUNCATED", "UNSENT"})
UNHEARD = frozenset({"BAD_GATEWAY", "UNSENT"})
MUTATION = "MUTATION"
SLOW = "SLOW"
"""A proper answer, `delay_s` seconds late."""

FAULTS_MAX = 10_000
"""Faults declared at once; a test that needs more declares a rate."""


class Fault(msgspec.Struct, kw_only=True):
    """A declared fault: what it does (`code`), to which requests, how often (None: until it is withdrawn)."""

    code: str
    endpoint: str = "/transactions/sync"
    item_id: str | None = None
    institution_id: str | None = None
    page: int | None = None
    times: int | None = 1
    delay_s: float = 0.0
    number: int = 0


class Faults:
    """The declared faults, oldest first, and those of the seed."""

    def __init__(self, seed: int, rates: FaultRates) -> None:
        self._seed = seed
        self.rates = rates
        self._declared: list[Fault] = []
        self._numbers = 0

    def declare(self, fault: Fault) -> Fault:
        """Add a fault. Raises: ValueError, where its code is unknown or there are too many."""
        check_code(fault.code)
        if len(self._declared) >= FAULTS_MAX:
            raise ValueError(f"more than {FAULTS_MAX} faults declared")
        self._numbers += 1
        fault.number = self._numbers
        self._declared.append(fault)
        return fault

    def withdraw(self) -> int:
        """Forget every declared fault and say how many there were."""
        count = len(self._declared)
        self._declared.clear()
        return count

    def declared(self) -> list[Fault]:
        """Give what is declared and not yet used up."""
        return list(self._declared)

    def take_match(
        self, endpoint: str, *, item_id: str | None, institution_id: str | None, page: int | None
    ) -> Fault | None:
        """Take the first declared fault that matches a request, or None."""
        for fault in self._declared:
            if _matches(fault, endpoint, item_id=item_id, institution_id=institution_id, page=page):
                if fault.times is not None:
                    fault.times -= 1
                    if fault.times <= 0:
                        self._declared.remove(fault)
                return fault
        return None

    def draw_other_fault(self, *, ordinal: int, request: int) -> str | None:
        """Let the seed decide about the n-th request of an Item to another endpoint; give a code, or None."""
        if not self.rates.other_failure:
            return None
        rng = derive(self._seed, "other fault", ordinal, request)
        return rng.choice(self.rates.failures) if rng.random() < self.rates.other_failure else None

    def draw_sync_fault(self, *, ordinal: int, request: int, page: int) -> str | None:
        """Let the seed decide about the n-th sync request of an Item; give a code, or None."""
        if not (self.rates.mutation or self.rates.failure):
            return None
        rng = derive(self._seed, "fault", ordinal, request)
        if page > 1 and rng.random() < self.rates.mutation:
            return MUTATION
        if rng.random() < self.rates.failure:
            return rng.choice(self.rates.failures)
        return None


def check_code(code: str) -> str:
    """Give a fault's code back. Raises: ValueError, where nothing is known by it."""
    if code not in KINDS and code not in WIRE and code not in (MUTATION, SLOW):
        raise ValueError(f"unknown fault code {code!r}")
    return code


def _matches(fault: Fault, endpoint: str, *, item_id: str | None, institution_id: str | None, page: int | None) -> bool:
    return (
        fault.endpoint in (endpoint, "*")
        and fault.item_id in (None, item_id)
        and fault.institution_id in (None, institution_id)
        and fault.page in (None, page)
    )
