"""Serve the simulator's own API under `/simulator/`, for the demo, tests and benchmarks.

It is not Plaid's: it creates Items at once, runs updates, declares faults and returns the ground truth.
"""

import asyncio
import dataclasses
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from sandbox.simulator.activity import Activity
from sandbox.simulator.api.limits import TABLES, Limit
from sandbox.simulator.api.plaid_errors import PlaidFailure
from sandbox.simulator.bank.bank import Item
from sandbox.simulator.bank.transactions import amount_text
from sandbox.simulator.bank.truth import digest, truth_of, verbatim
from sandbox.simulator.control import control_requests, fault_injection
from sandbox.simulator.control.faults import check_code
from sandbox.simulator.control.scripted_data import ScriptedUpdate, scripted_changes
from sandbox.simulator.simulated_plaid import SimulatedPlaid, UpdateResult

QUIET_WAIT_MAX_S = 60.0
QUIET_POLL_S = 0.02

Body = TypeVar("Body", bound=msgspec.Struct)


class ControlApi:
    """Handle the control API of one simulated Plaid."""

    def __init__(self, plaid: SimulatedPlaid, activity: Activity) -> None:
        self._plaid = plaid
        self._activity = activity

    def routes(self) -> list[web.RouteDef]:
        """Return the routes of the control API."""
        return [
            web.get("/health", self.health),
            web.post("/items", self.create_items),
            web.get("/items", self.list_items),
            web.post("/link", self.complete_link),
            web.post("/step", self.run_steps),
            web.post("/changes", self.apply_update),
            web.post("/activity", self.set_activity),
            web.post("/webhooks", self.send_webhooks),
            web.post("/keys/rotate", self.rotate_key),
            web.post("/faults", self.declare_fault),
            web.get("/faults", self.list_faults),
            web.delete("/faults", self.withdraw_faults),
            web.post("/fates", self.declare_webhook_fault),
            web.post("/rates", self.set_rates),
            web.post("/limits", self.set_limits),
            web.get("/truth", self.truth),
            web.get("/stats", self.stats),
            web.get("/quiet", self.quiet),
        ]

    async def health(self, _request: web.Request) -> web.Response:
        """Report that the simulator is up, with its seed."""
        return _json({"status": "up", "seed": self._plaid.options.seed})

    async def create_items(self, request: web.Request) -> web.Response:
        """Create Items with their history."""
        body = await _read(request, control_requests.CreateItems)
        items = []
        for number in range(body.count):
            item = self._create_item(body, user=body.user if body.count == 1 else f"{body.user}-{number + 1}")
            if body.prerender:
                self._plaid.prerender(item)
            items.append(self._linked_item(item) | ({"access_token": item.access_token} if body.exchange else {}))
            await asyncio.sleep(0)
        return _json({"items": items, **items[0]})

    def _create_item(self, body: control_requests.CreateItems, *, user: str) -> Item:
        plaid = self._plaid
        if body.relink is not None:
            return plaid.relink(plaid.item(body.relink))
        return plaid.create_item(
            user,
            institution_id=body.institution_id,
            transactions=body.transactions,
            days=body.days,
            webhook_url=body.webhook,
            ready=body.ready,
            custom=msgspec.json.encode(body.custom).decode() if body.custom is not None else None,
        )

    async def list_items(self, _request: web.Request) -> web.Response:
        """List the active Items."""
        return _json({"items": [_summary(item) for item in self._plaid.bank.active_items()]})

    async def complete_link(self, request: web.Request) -> web.Response:
        """Complete Link for a link token."""
        body = await _read(request, control_requests.CompleteLink)
        item = self._plaid.complete_link(body.link_token, institution_id=body.institution_id)
        return _json(self._linked_item(item))

    async def run_steps(self, request: web.Request) -> web.Response:
        """Run random updates."""
        body = await _read(request, control_requests.RunSteps)
        results = [self._plaid.step(body.item_id, changes=body.changes) for _ in range(body.count)]
        return _json({"updates": [_update(result) for result in results if result is not None]})

    async def apply_update(self, request: web.Request) -> web.Response:
        """Apply exactly one scripted update to an Item."""
        body = await _read(request, ScriptedUpdate)
        item = self._plaid.item(body.item_id)
        result = self._plaid.apply_update(item, lambda generator: scripted_changes(generator, body.changes))
        return _json(_update(result))

    async def set_activity(self, request: web.Request) -> web.Response:
        """Start, change or stop the random activity."""
        body = await _read(request, control_requests.SetActivity)
        self._activity.set_rate(rate_per_s=body.rate_per_s, changes=body.changes)
        return _json({"rate_per_s": body.rate_per_s, "changes": body.changes})

    async def send_webhooks(self, request: web.Request) -> web.Response:
        """Send webhooks for some or all Items, whatever their state, or any body to any address."""
        body = await _read(request, control_requests.SendWebhooks)
        plaid, notifier, fired = self._plaid, self._plaid.notifier, 0
        if body.body is not None:
            url = body.url or plaid.options.webhook_url
            if url is None:
                raise ValueError("url is missing, and the simulator has no default one")
            for _ in range(body.times):
                notifier.send(url, body.body)
            return _json({"fired": body.times})
        items = plaid.bank.active_items() if body.item_ids is None else [plaid.item(name) for name in body.item_ids]
        for item in items:
            for _ in range(body.times):
                if body.code == "SYNC_UPDATES_AVAILABLE":
                    fired += notifier.notify_updates(item)
                else:
                    fired += notifier.notify(item, body.type, body.code, body.extra)
        return _json({"fired": fired})

    async def rotate_key(self, request: web.Request) -> web.Response:
        """Replace the signing key."""
        body = await _read(request, control_requests.RotateKey)
        key = self._plaid.keyring.rotate(self._plaid.clock.now(), expire_old=body.expire_old)
        return _json({"kid": key.kid})

    async def declare_fault(self, request: web.Request) -> web.Response:
        """Declare a fault, or put an Item or an institution into a state."""
        body = await _read(request, control_requests.DeclareFault)
        return _json(fault_injection.declare_fault(self._plaid, body))

    async def declare_webhook_fault(self, request: web.Request) -> web.Response:
        """Declare a fault of coming webhooks."""
        body = await _read(request, control_requests.DeclareWebhookFault)
        fault_injection.declare_webhook_fault(self._plaid, body)
        return _json({"done": True})

    async def list_faults(self, _request: web.Request) -> web.Response:
        """List the declared faults that are not used up."""
        return _json({"faults": self._plaid.faults.declared})

    async def withdraw_faults(self, _request: web.Request) -> web.Response:
        """Delete the declared faults of requests and webhooks."""
        return _json({"withdrawn": self._plaid.faults.withdraw() + self._plaid.deliveries.withdraw()})

    async def set_rates(self, request: web.Request) -> web.Response:
        """Change the shares of webhooks and requests that fail by the seed; an absent field keeps its value."""
        body = await _read(request, control_requests.SetRates)
        rates: dict[str, Any] = {
            name: value for name, value in msgspec.structs.asdict(body).items() if value is not None
        }
        if body.sync_failures is not None:
            rates["sync_failures"] = tuple(check_code(code) for code in body.sync_failures)
        deliveries, faults = self._plaid.deliveries, self._plaid.faults
        deliveries.rates = dataclasses.replace(deliveries.rates, **_with_prefix(rates, "webhooks_"))
        faults.rates = dataclasses.replace(faults.rates, **_with_prefix(rates, "sync_"))
        return _json({"webhooks": deliveries.rates, "sync": faults.rates})

    async def set_limits(self, request: web.Request) -> web.Response:
        """Select a table of rate limits and change single ones."""
        body = await _read(request, control_requests.SetLimits)
        limiter = self._plaid.rate_limiter
        if body.table is not None:
            limiter.limits = dict(TABLES[body.table])
        for endpoint, (item, client) in body.limits.items():
            code = TABLES["sandbox"][endpoint].code if endpoint in TABLES["sandbox"] else "RATE_LIMIT"
            limiter.limits[endpoint] = Limit(item, client, code)
        return _json({"limits": {path: [limit.item, limit.client] for path, limit in limiter.limits.items()}})

    async def truth(self, request: web.Request) -> web.Response:
        """Return the ground truth of all active Items, or of one; `verbatim` adds the rows as Plaid sends them."""
        item_id = request.query.get("item_id")
        items = [self._plaid.item(item_id)] if item_id else self._plaid.bank.active_items()
        version = self._plaid.options.category_version
        truths: list[dict[str, Any]] = []
        for item in items:
            truth = truth_of(item, version=version)
            truth["digest"] = digest([truth["accounts"], truth["transactions"]])
            if "digests" in request.query:
                truth = {"item_id": item.item_id, "user": item.user, "digest": truth["digest"]}
            elif "verbatim" in request.query:
                truth["verbatim"] = verbatim(item, version=version)
            truths.append(truth)
            await asyncio.sleep(0)
        return _json({"items": truths})

    async def stats(self, request: web.Request) -> web.Response:
        """Count requests and webhooks; `records` adds each delivery attempt with its times."""
        plaid, deliveries = self._plaid, self._plaid.deliveries
        endpoints: dict[str, dict[str, int]] = {}
        for (path, outcome), count in plaid.requests.items():
            endpoints.setdefault(path, {})[outcome] = count
        body: dict[str, Any] = {
            "requests": endpoints,
            "webhooks": {**deliveries.counts, "waiting": deliveries.waiting, "in_flight": deliveries.in_flight},
            "items": len(plaid.bank.active_items()),
            "transactions": sum(len(item.live) for item in plaid.bank.active_items()),
            "changes": sum(len(item.log) for item in plaid.bank.items.values()),
        }
        if "records" in request.query:
            body["records"] = list(deliveries.records)
        return _json(body)

    async def quiet(self, request: web.Request) -> web.Response:
        """Return whether no delivery is outstanding; `wait_s` waits for it, up to a minute."""
        deliveries = self._plaid.deliveries
        loop = asyncio.get_running_loop()
        deadline = loop.time() + min(float(request.query.get("wait_s", "0")), QUIET_WAIT_MAX_S)
        while not deliveries.quiet and loop.time() < deadline:
            await asyncio.sleep(QUIET_POLL_S)
        next_due_at = self._plaid.tasks.next_due_at()
        return _json(
            {
                "quiet": deliveries.quiet,
                "waiting": deliveries.waiting,
                "in_flight": deliveries.in_flight,
                "agenda": next_due_at.isoformat() if next_due_at else None,
            }
        )

    def _linked_item(self, item: Item) -> dict[str, Any]:
        return {**_summary(item), "public_token": self._plaid.public_token(item)}


@web.middleware
async def refusals(request: web.Request, handler: Any) -> web.StreamResponse:
    """Answer an invalid control request with 400 and its error."""
    try:
        response: web.StreamResponse = await handler(request)
    except (msgspec.ValidationError, ValueError, PlaidFailure) as error:
        return _json({"error": str(error)}, status=400)
    return response


async def _read(request: web.Request, model: type[Body]) -> Body:
    return msgspec.json.decode(await request.read() or b"{}", type=model)


def _with_prefix(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def _summary(item: Item) -> dict[str, Any]:
    return {
        "item_id": item.item_id,
        "user": item.user,
        "institution_id": item.institution.institution_id,
        "status": item.phase,
        "error_code": item.error_code,
        "accounts": len(item.accounts),
        "transactions": len(item.live),
        "changes": len(item.log),
    }


def _update(result: UpdateResult) -> dict[str, Any]:
    changes = [
        {
            "kind": change.kind,
            "transaction_id": change.transaction.transaction_id,
            "account_id": change.transaction.account_id,
            "amount": amount_text(change.transaction.amount),
            "pending": change.transaction.pending,
        }
        for change in result.changes
    ]
    return {"item_id": result.item.item_id, "at": result.at.timestamp(), "changes": changes}


def _json(value: object, *, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")
