"""A request that passed every check, and how an endpoint is described."""

from collections.abc import Callable
from typing import Any, NamedTuple

from sandbox.simulator.api.plaid_errors import PlaidFailure
from sandbox.simulator.bank.bank import Item
from sandbox.simulator.simulated_plaid import SimulatedPlaid


class Call(NamedTuple):
    """A request that passed every check. `item` is absent where the endpoint has no access token."""

    world: SimulatedPlaid
    body: dict[str, Any]
    item: Item | None

    @property
    def linked(self) -> Item:
        """The Item of the access token."""
        assert self.item is not None
        return self.item


class Endpoint(NamedTuple):
    """How an endpoint is reached: its handler, the model of its request, whether it needs an access token."""

    handle: Callable[[Call], dict[str, Any] | bytes]
    model: str
    needs_item: bool = True


def healthy(call: Call) -> Item:
    """Give the call's Item. Raises: PlaidFailure, where it is in error or its bank is down."""
    item = call.linked
    if item.error_code is not None:
        raise PlaidFailure(item.error_code)
    outage = call.world.outage_code(item)
    if outage is not None:
        item.last_failed_update = call.world.clock.now()
        raise PlaidFailure(outage)
    return item


def endpoint(path: str, handle: Callable[[Call], dict[str, Any] | bytes], *, needs_item: bool = True) -> Endpoint:
    # plaid-python names a request model after its path: /item/webhook/update is ItemWebhookUpdateRequest.
    module = f"{path.strip('/').replace('/', '_')}_request"
    return Endpoint(handle, f"{module}:{module.title().replace('_', '')}", needs_item)
