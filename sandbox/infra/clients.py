"""HTTP clients of the simulator's control API and of the gateway's REST API."""

from typing import Any, Self

import aiohttp

from schemas.errors import Halt
from schemas.log.digest import AccountState, TransactionState, state_digest

TIMEOUT_S = 120.0
"""A benchmark's bank makes 100,000 transactions in one request."""

Json = dict[str, Any]


class _JsonClient:
    """Send JSON requests over one session; an answer of 400 or more raises Halt with its text."""

    def __init__(self, address: str, headers: dict[str, str] | None = None) -> None:
        self._address = address
        self._session = aiohttp.ClientSession(
            headers=headers, timeout=aiohttp.ClientTimeout(total=TIMEOUT_S), connector=aiohttp.TCPConnector(limit=64)
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def _request(self, method: str, path: str, body: object = None, **query: str) -> Json:
        async with self._session.request(method, self._address + path, json=body, params=query) as response:
            if response.status >= 400:
                raise Halt(f"{method} {path} answered {response.status}: {(await response.text())[:500]}")
            answer: Json = await response.json()
            return answer


class Bank(_JsonClient):
    """Control the simulated bank."""

    async def make_items(self, user: str, *, count: int = 1, transactions: int | None = None) -> list[Json]:
        """Make Items whose history is ready; each has a `public_token` and an `item_id`."""
        body = {"user": user, "count": count, "transactions": transactions, "ready": True}
        return list((await self._request("POST", "/simulator/items", body))["items"])

    async def step(self, item_id: str | None = None, *, changes: int = 1, count: int = 1) -> None:
        """Make updates now; their webhooks are sent."""
        await self._request("POST", "/simulator/step", {"item_id": item_id, "changes": changes, "count": count})

    async def live(self, rate_per_s: float) -> None:
        """Make updates continuously at this rate; 0 stops them."""
        await self._request("POST", "/simulator/activity", {"rate_per_s": rate_per_s})

    async def fault(self, **fault: object) -> None:
        """Inject a fault."""
        await self._request("POST", "/simulator/faults", fault)

    async def rates(self, **rates: object) -> None:
        """Set the shares of webhooks that are lost, repeated or delayed, and of requests that fail."""
        await self._request("POST", "/simulator/rates", rates)

    async def quiet(self) -> bool:
        """Return True if no webhook is being sent or waits to be sent."""
        return bool((await self._request("GET", "/simulator/quiet"))["quiet"])

    async def stats(self) -> Json:
        """Return counts of requests and webhooks."""
        return await self._request("GET", "/simulator/stats")

    async def deliveries(self) -> list[Json]:
        """Return each delivery attempt of a webhook with its times."""
        return list((await self._request("GET", "/simulator/stats", None, records="1"))["records"])

    async def truth(self) -> list[Json]:
        """Return each Item with the accounts and transactions that a correct copy has in the end."""
        return list((await self._request("GET", "/simulator/truth"))["items"])

    async def digest(self) -> str:
        """Return the state digest of the truth."""
        return truth_digest(await self.truth())


class Application(_JsonClient):
    """Call Tartan's REST API as an application's back end."""

    def __init__(self, gateway_url: str, api_key: str) -> None:
        super().__init__(gateway_url, {"Authorization": f"Bearer {api_key}"})

    async def link(self, user_id: str, public_token: str) -> Json:
        """Link an Item."""
        return await self._request("POST", "/v1/items", {"user_id": user_id, "public_token": public_token})

    async def link_token(self, user_id: str) -> str:
        """Return a token with which a browser opens Plaid Link."""
        return str((await self._request("POST", "/v1/link/token", {"user_id": user_id}))["link_token"])

    async def stream_token(self, user_id: str) -> str:
        """Return a short-lived token with which a browser opens the user's stream."""
        return str((await self._request("POST", f"/v1/users/{user_id}/stream-token"))["token"])

    async def item(self, item_id: str) -> Json:
        """Return an Item and its state."""
        return await self._request("GET", f"/v1/items/{item_id}")

    async def sync(self, item_id: str, *, wait_s: float) -> Json:
        """Start a sync run of an Item and wait for its result."""
        return await self._request("POST", f"/v1/items/{item_id}/sync", None, wait=str(wait_s))

    async def unlink(self, item_id: str, *, wait_s: float) -> Json:
        """Unlink an Item and wait until that is done."""
        return await self._request("DELETE", f"/v1/items/{item_id}", None, wait=str(wait_s))

    async def transactions(self, user_id: str, **filters: str) -> Json:
        """Return a page of a user's transactions."""
        return await self._request("GET", f"/v1/users/{user_id}/transactions", None, **filters)


def truth_digest(items: list[Json]) -> str:
    """Return the state digest of the simulator's truth, comparable with that of the tables."""
    return state_digest(
        (_transaction_state(item["item_id"], row) for item in items for row in item["transactions"]),
        (_account_state(item["item_id"], row) for item in items for row in item["accounts"]),
    )


def _transaction_state(item_id: str, row: Json) -> TransactionState:
    return (
        item_id,
        row["transaction_id"],
        row["account_id"],
        row["amount"],
        _currency(row),
        row["date"],
        row["pending"],
        row["name"],
        row["merchant_name"],
        row["category_detailed"],
    )


def _account_state(item_id: str, row: Json) -> AccountState:
    return item_id, row["account_id"], row["current"], row["available"], row["limit"], _currency(row)


def _currency(row: Json) -> str:
    return str(row["iso_currency_code"] or row["unofficial_currency_code"] or "XXX")
