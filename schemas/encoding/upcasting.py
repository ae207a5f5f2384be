"""Upcasters: convert a record of an older schema version to the newest one, step by step. Pure.

Shape: records are plain values as an Avro library reads them, field to value. A step adds the fields of its version
and removes none, so its result equals Avro's own resolution from the older schema to the newer one.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from schemas.encoding import catalogue

Plain = Mapping[str, Any]


class Step(NamedTuple):
    """Upcaster to the next version."""

    to: int
    upcast: Callable[[Plain], Plain]


STEPS: Mapping[int, Step] = {
    catalogue.HISTORY_1: Step(
        catalogue.HISTORY, lambda history: {**history, "removals_permille_max": 1000, "incomplete_because": None}
    ),
    catalogue.TRANSACTION_EVENT_1: Step(
        catalogue.TRANSACTION_EVENT, lambda event: {**event, "previous_user_fields_json": None}
    ),
}
"""By each version that is not the newest of its schema."""


def newest(number: int) -> int:
    """Return the newest version of the schema with this number."""
    while number in STEPS:
        number = STEPS[number].to
    return number


def upcast(number: int, plain: Plain) -> Plain:
    """Convert a record of any version to the newest one."""
    while (step := STEPS.get(number)) is not None:
        number, plain = step.to, step.upcast(plain)
    return plain
