"""The simulator's own API under `/simulator/`, for the demo, tests and benchmarks. Shell.

It is not Plaid's: it makes Items at once, lets things happen, declares faults, and tells the truth.
"""

import asyncio
import dataclasses
from typing import Any

import msgspec
from aiohttp import web

from sandbox.simulator.activity import Pulse
from sandbox.simulator.api.limits import TABLES, Limit
from sandbox.simulator.api.plaid_errors import PlaidFailure
from sandbox.simulator.bank.bank import Item
from sandbox.simulator.bank.transactions import Change, amount_text
from sandbox.simulator.bank.truth import digest, truth_of, verbatim
from sandbox.simulator.control import fault_injection
from sandbox.simulator.control.control_requests import (
    DeclareFault,
    DeclareWebhookFault,
    Fire,
    Link,
    Live,
    MakeItems,
    MakeSteps,
    Rotate,
    SetLimits,
    SetRates,
)
from sandbox.simulator.control.faults import check_code
from sandbox.simulator.control.scripted_data import Update, scripted_changes
from sandbox.simulator.simulated_plaid import Outcome, SimulatedPlaid

QUIET_WAIT_MAX_S = 60.0
QUIET_POLL_S = 0.02


class Control:
    """Handlers of the control API over one world."""

    def __init__(self, world: SimulatedPlaid, pulse: Pulse) -> None:
        self._world = world
        self._pulse = pulse

    def routes(self) -> list[web.RouteDef]:
        """Give the routes of the control API."""
        return [
            web.get("/health", self.health),
            web.post("/items", self.make_items),
            web.get("/items", self.list_items),
            web.post("/link", self.link),
            web.post("/step", self.step),
            web.post("/changes", self.dictate),
            web.post("/activity", self.activity),
            web.post("/webhooks", self.fire),
            web.post("/keys/rotate", self.rotate),
            web.post("/faults", self.declare),
            web.get("/faults", self.declared),
            web.delete("/faults", self.withdraw),
            web.post("/fates", self.decide),
            web.post("/rates", self.rates),
            web.post("/limits", self.limits),
            web.get("/truth", self.truth),
            web.get("/stats", self.stats),
            web.get("/quiet", self.quiet),
        ]

    async def health(self, _request: web.Request) -> web.Response:
        """Say that the simulator is up, with its seed."""
        return _json({"status": "up", "seed": self._world.options.seed})

    async def make_items(self, request: web.Request) -> web.Response:
        """Make Items with their history at once."""
        wish = msgspec.json.decode(await request.read() or b"{}", type=MakeItems)
        made = []
        for number in range(wish.count):
            item = self._make(wish, user=wish.user if wish.count == 1 else f"{wish.user}-{number + 1}")
            if wish.prerender:
                self._world.prerender(item)
            made.append(self._shown(item, exchange=wish.exchange))
            await asyncio.sleep(0)
        return _json({"items": made, **made[0]})

    def _make(self, wish: MakeItems, *, user: str) -> Item:
        world = self._world
        if wish.relink is not None:
            return world.relink(world.item(wish.relink))
        return world.create_item(
            user,
            institution_id=wish.institution_id,
            transactions=wish.transactions,
            days=wish.days,
            webhook_url=wish.webhook,
            ready=wish.ready,
            custom=msgspec.json.encode(wish.custom).decode() if wish.custom is not None else None,
        )

    async def list_items(self, _request: web.Request) -> web.Response:
        """List the active Items."""
        items = self._world.bank.active_items()
        return _json({"items": [_summary(item) for item in items]})

    async def link(self, request: web.Request) -> web.Response:
        """Complete Link for a link token."""
        wish = msgspec.json.decode(await request.read(), type=Link)
        item = self._world.complete_link(wish.link_token, institution_id=wish.institution_id)
        return _json(self._shown(item, exchange=False))

    async def step(self, request: web.Request) -> web.Response:
        """Let updates happen."""
        wish = msgspec.json.decode(await request.read() or b"{}", type=MakeSteps)
        outcomes = [self._world.step(wish.item_id, changes=wish.changes) for _ in range(wish.count)]
        return _json({"updates": [_outcome(outcome) for outcome in outcomes if outcome is not None]})

    async def dictate(self, request: web.Request) -> web.Response:
        """Let exactly one dictated update happen at an Item."""
        wish = msgspec.json.decode(await request.read(), type=Update)
        item = self._world.item(wish.item_id)
        outcome = self._world.apply_update(item, lambda drawing: scripted_changes(drawing, wish.changes))
        return _json(_outcome(outcome))

    async def activity(self, request: web.Request) -> web.Response:
        """Start, change or stop the living bank."""
        wish = msgspec.json.decode(await request.read(), type=Live)
        self._pulse.live(rate_per_s=wish.rate_per_s, changes=wish.changes)
        return _json({"rate_per_s": wish.rate_per_s, "changes": wish.changes})

    async def fire(self, request: web.Request) -> web.Response:
        """Send webhooks for some or all Items, whatever their state."""
        wish = msgspec.json.decode(await request.read() or b"{}", type=Fire)
        world = self._world
        if wish.body is not None:
            return _json({"fired": self._fire_body(wish, wish.body)})
        items = (
            world.bank.active_items() if wish.item_ids is None else [world.item(item_id) for item_id in wish.item_ids]
        )
        fired = 0
        for item in items:
            for _ in range(wish.times):
                if wish.code == "SYNC_UPDATES_AVAILABLE":
                    fired += world.notifier.notify_updates(item)
                else:
                    fired += world.notifier.notify(item, wish.type, wish.code, wish.extra)
        return _json({"fired": fired})

    def _fire_body(self, wish: Fire, body: dict[str, Any]) -> int:
        url = wish.url or self._world.options.webhook_url
        if url is None:
            raise ValueError("url is missing, and the simulator has no default one")
        for _ in range(wish.times):
            self._world.notifier.send(url, body)
        return wish.times

    async def rotate(self, request: web.Request) -> web.Response:
        """Sign with a new key from now on."""
        wish = msgspec.json.decode(await request.read() or b"{}", type=Rotate)
        key = self._world.keyring.rotate(self._world.clock.now(), expire_old=wish.expire_old)
        return _json({"kid": key.kid})

    async def declare(self, request: web.Request) -> web.Response:
        """Declare a fault, or put an Item or an institution into a state."""
        wish = msgspec.json.decode(await request.read(), type=DeclareFault)
        return _json(fault_injection.declare(self._world, wish))

    async def decide(self, request: web.Request) -> web.Response:
        """Declare what becomes of webhooks to come."""
        fault_injection.decide(self._world, msgspec.json.decode(await request.read(), type=DeclareWebhookFault))
        return _json({"done": True})

    async def declared(self, _request: web.Request) -> web.Response:
        """List the faults that have not struck yet."""
        return _json({"faults": self._world.faults.declared()})

    async def withdraw(self, _request: web.Request) -> web.Response:
        """Forget the declared faults and fates."""
        return _json({"withdrawn": self._world.faults.withdraw() + self._world.deliveries.withdraw()})

    async def rates(self, request: web.Request) -> web.Response:
        """Change how often the seed lets things go wrong."""
        wish = msgspec.json.decode(await request.read(), type=SetRates)
        world = self._world
        webhooks = {
            name: share
            for name in ("lost", "repeated", "delayed", "delay_max_s")
            if (share := getattr(wish, f"webhooks_{name}")) is not None
        }
        faults: dict[str, Any] = {
            name: share
            for name in ("mutation", "failure", "other_failure")
            if (share := getattr(wish, f"sync_{name}")) is not None
        }
        if wish.sync_failures is not None:
            faults["failures"] = tuple(check_code(code) for code in wish.sync_failures)
        world.deliveries.rates = dataclasses.replace(world.deliveries.rates, **webhooks)
        world.faults.rates = dataclasses.replace(world.faults.rates, **faults)
        return _json({"webhooks": world.deliveries.rates, "sync": world.faults.rates})

    async def limits(self, request: web.Request) -> web.Response:
        """Choose a table of rate limits and change single ones."""
        wish = msgspec.json.decode(await request.read(), type=SetLimits)
        buckets = self._world.buckets
        if wish.table is not None:
            buckets.limits = dict(TABLES[wish.table])
        for endpoint, (item, client) in wish.limits.items():
            code = TABLES["sandbox"][endpoint].code if endpoint in TABLES["sandbox"] else "RATE_LIMIT"
            buckets.limits[endpoint] = Limit(item, client, code)
        return _json({"limits": {path: [limit.item, limit.client] for path, limit in buckets.limits.items()}})

    async def truth(self, request: web.Request) -> web.Response:
        """Tell the ground truth of all active Items, or of one; `verbatim` adds the rows as Plaid sends them."""
        world = self._world
        wanted = request.query.get("item_id")
        items = [world.item(wanted)] if wanted else world.bank.active_items()
        version = world.options.category_version
        shown: list[dict[str, Any]] = []
        for item in items:
            truth = truth_of(item, version=version)
            truth["digest"] = digest([truth["accounts"], truth["transactions"]])
            if "digests" in request.query:
                truth = {"item_id": item.item_id, "user": item.user, "digest": truth["digest"]}
            elif "verbatim" in request.query:
                truth["verbatim"] = verbatim(item, version=version)
            shown.append(truth)
            await asyncio.sleep(0)
        return _json({"items": shown})

    async def stats(self, request: web.Request) -> web.Response:
        """Count requests and webhooks; `records` adds each attempt with its times."""
        world = self._world
        endpoints: dict[str, dict[str, int]] = {}
        for (path, outcome), count in world.requests.items():
            endpoints.setdefault(path, {})[outcome] = count
        courier = world.deliveries
        shown: dict[str, Any] = {
            "requests": endpoints,
            "webhooks": {**courier.counts, "waiting": courier.waiting, "in_flight": courier.in_flight},
            "items": len(world.bank.active_items()),
            "transactions": sum(len(item.live) for item in world.bank.active_items()),
            "changes": sum(len(item.log) for item in world.bank.items.values()),
        }
        if "records" in request.query:
            shown["records"] = list(courier.records)
        return _json(shown)

    async def quiet(self, request: web.Request) -> web.Response:
        """Say whether no delivery is outstanding; `wait_s` waits for it, up to a minute."""
        world = self._world
        wait_s = min(float(request.query.get("wait_s", "0")), QUIET_WAIT_MAX_S)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait_s
        while not world.deliveries.quiet and loop.time() < deadline:
            await asyncio.sleep(QUIET_POLL_S)
        next_due_at = world.tasks.next_due_at()
        return _json(
            {
                "quiet": world.deliveries.quiet,
                "waiting": world.deliveries.waiting,
                "in_flight": world.deliveries.in_flight,
                "agenda": next_due_at.isoformat() if next_due_at else None,
            }
        )

    def _shown(self, item: Item, *, exchange: bool) -> dict[str, Any]:
        shown = {**_summary(item), "public_token": self._world.public_token(item)}
        if exchange:
            shown["access_token"] = item.access_token
        return shown


@web.middleware
async def refusals(request: web.Request, handler: Any) -> web.StreamResponse:
    """Answer a refused control request with what was wrong."""
    try:
        response: web.StreamResponse = await handler(request)
    except msgspec.ValidationError as error:
        return _json({"error": str(error)}, status=400)
    except (ValueError, PlaidFailure) as error:
        return _json({"error": str(error)}, status=400)
    return response


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


def _outcome(outcome: Outcome) -> dict[str, Any]:
    return {
        "item_id": outcome.item.item_id,
        "at": outcome.at.timestamp(),
        "changes": [_change(change) for change in outcome.changes],
    }


def _change(change: Change) -> dict[str, Any]:
    row = change.transaction
    return {
        "kind": change.kind,
        "transaction_id": row.transaction_id,
        "account_id": row.account_id,
        "amount": amount_text(row.amount),
        "pending": row.pending,
    }


def _json(value: object, *, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")
