"""`tartan link`: link a developer's first Item, in Plaid's Sandbox or at the simulator."""

import asyncio
import json
import time

from rich.console import Console

from runtime.plaid.client import Plaid
from runtime.settings import Settings
from sandbox.infra.clients import Application
from schemas.errors import Halt

ARRIVAL_S_MAX = 120.0
"""Plaid's Sandbox has an Item's first transactions after some seconds, its history after half a minute or so."""
POLL_S = 1.0


async def run_link(
    settings: Settings, gateway_url: str, api_key: str, user: str, institution: str, *, as_json: bool
) -> int:
    """Create a public token as Plaid Link does, link it through the gateway, and wait for the first transactions."""
    console = Console(stderr=True, soft_wrap=True, markup=False)
    if not (settings.plaid_client_id and settings.plaid_secret.get_secret_value()):
        raise Halt("set TARTAN_PLAID_CLIENT_ID and TARTAN_PLAID_SECRET (dashboard of Plaid, Keys, Sandbox)")
    if not api_key:
        raise Halt("set TARTAN_API_KEY to one of the keys in TARTAN_API_KEYS")
    if settings.plaid_environment != "sandbox":
        raise Halt("a first Item without a browser can only be made in Plaid's Sandbox: set TARTAN_PLAID_ENVIRONMENT")
    plaid = Plaid(settings)
    try:
        with console.status(f"Making an Item at {institution} ({settings.plaid_address()}) …"):
            token = await plaid.sandbox_public_token(institution)
    finally:
        await plaid.close()
    async with Application(gateway_url, api_key) as application:
        linked = await application.link(user, token)
        console.print(f"Linked {linked['item_id']} for {user}.")
        with console.status("Waiting for its first transactions …"):
            rows = await _first_transactions(application, user, linked["item_id"])
    for row in rows[:10]:
        console.print(f"  {row['date']}  {row['amount']:>12} {row['currency']}  {row['merchant_name'] or row['name']}")
    console.print(
        f"{len(rows)} transactions on the first page. All of them: GET {gateway_url}/v1/users/{user}/transactions"
    )
    if as_json:
        print(json.dumps({"item_id": linked["item_id"], "transactions": len(rows)}))
    return 0


async def _first_transactions(application: Application, user: str, item_id: str) -> list[dict[str, str]]:
    deadline = time.monotonic() + ARRIVAL_S_MAX
    while time.monotonic() < deadline:
        page = await application.transactions(user, item_id=item_id, limit="100")
        if page["transactions"]:
            rows: list[dict[str, str]] = page["transactions"]
            return rows
        await asyncio.sleep(POLL_S)
    raise Halt(f"no transactions of {item_id} after {ARRIVAL_S_MAX:g} s; see the log of `tartan streams`")
