"""Define a validated request and the description of an endpoint."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from sandbox.simulator.api.plaid_errors import PlaidFailure
from sandbox.simulator.bank.bank import Item
from sandbox.simulator.simulated_plaid import SimulatedPlaid


class Call(NamedTuple):
    """A request that passed every check. `item` is None where the endpoint takes no access token."""

    plaid: SimulatedPlaid
    body: dict[str, Any]
    item: Item | None

    @property
    def linked(self) -> Item:
        """The Item of the access token."""
        assert self.item is not None
        return self.item

    @property
    def options(self) -> dict[str, Any]:
        """The object `options` of the request."""
        return self.body.get("options") or {}


Handler = Callable[[Call], dict[str, Any] | bytes]


class Endpoint(NamedTuple):
    """An endpoint: its handler, the model of its request, whether it needs an access token."""

    handle: Handler
    model: str
    needs_item: bool


def endpoints(handlers: Mapping[str, Handler], *, without_item: Collection[str] = ()) -> dict[str, Endpoint]:
    """Describe endpoints by path; `without_item` lists those that take no access token."""
    described = {}
    for path, handle in handlers.items():
        # plaid-python names a request model after its path: /item/webhook/update is ItemWebhookUpdateRequest.
        module = f"{path.strip('/').replace('/', '_')}_request"
        model = f"{module}:{module.title().replace('_', '')}"
        described[path] = Endpoint(handle, model, path not in without_item)
    return described


def healthy_item(call: Call) -> Item:
    """Return the call's Item. Raises: PlaidFailure, where it is in error or its bank is down."""
    item = call.linked
    if item.error_code is not None:
        raise PlaidFailure(item.error_code)
    outage = call.plaid.outage_code(item)
    if outage is not None:
        item.last_failed_update = call.plaid.clock.now()
        raise PlaidFailure(outage)
    return item
