"""Route: declare one operation of the REST API."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gateway.http.parameters import Parameter


@dataclass(frozen=True, slots=True)
class Route:
    """One operation.

    `answers` maps a status to the name of its schema, None where the answer has no JSON body. `guard` names the
    credential: a tenant's API key, the cron's secret, or none.
    """

    method: Literal["GET", "POST", "PATCH", "DELETE"]
    path: str
    operation: str
    answers: Mapping[int, str | None]
    parameters: tuple[Parameter, ...] = ()
    guard: Literal["tenant", "cron", "open"] = "tenant"
