"""Upcasters: a record of an older version as the next one has it, step by step up to the newest. Pure.

Shape: records are plain values as an Avro library reads them, field to value. A step adds what its version added and
takes nothing away, so it says the same as Avro's own resolution from the older schema to the newer one does.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from schemas.encoding import catalogue

Plain = Mapping[str, Any]


class Step(NamedTuple):
    """From one version to the next one."""

    to: int
    upcast: Callable[[Plain], Plain]


def _history_2(history: Plain) -> Plain:
    return {**history, "removals_permille_max": 1000, "incomplete_because": None}


def _transaction_event_2(event: Plain) -> Plain:
    return {**event, "previous_user_fields_json": None}


STEPS: Mapping[int, Step] = {
    catalogue.HISTORY_1: Step(catalogue.HISTORY, _history_2),
    catalogue.TRANSACTION_EVENT_1: Step(catalogue.TRANSACTION_EVENT, _transaction_event_2),
}
"""Every version that is not the newest of its schema, with the step to the one after it."""


def newest(number: int) -> int:
    """The newest version of the schema with this number."""
    while number in STEPS:
        number = STEPS[number].to
    return number


def upcast(number: int, plain: Plain) -> Plain:
    """A record of any version as the newest one has it."""
    while (step := STEPS.get(number)) is not None:
        number, plain = step.to, step.upcast(plain)
    return plain
